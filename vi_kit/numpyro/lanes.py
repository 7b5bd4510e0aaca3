"""Several values of a site at once in a JAX program that sees one: its jaxpr, computed anew along axes of its own.

A program run is traced as it stands, with one value at each site. Its operations are then evaluated along the worlds
of the sites on which they depend (by `jax.vmap`, so that nothing in the program can mix them), and once more, without
gradient, for the alternatives to each drawn value. What does not depend on a site is computed once.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive

from vi_kit.base.named import Axis, union
from vi_kit.costs.terms import Site
from vi_kit.engine.lanes import Part
from vi_kit.numpyro.interpreter import INLINED, AnyJaxpr, Domain, bound

worlds_p = Primitive("vi_kit_worlds")
"""One of the values that the operand has in front: all of them, along the worlds of `site`."""

alternatives_p = Primitive("vi_kit_alternatives")
"""The first operand, what was drawn at `site`; in its place, one at a time, the values that the second has in front."""

worlds_p.def_abstract_eval(lambda values, *, site: values.update(shape=values.shape[1:]))
alternatives_p.def_abstract_eval(lambda value, others, *, site: value)

Lane = Site | None
"""What a value is of: `None` where every site has what was drawn; a site, where it has its alternatives."""


@dataclass(frozen=True, eq=False)
class Lanes:
    """A value of a program that depends on sites with several values.

    Attributes:
        parts: by lane; a lane that is lacking is that of `None`.
    """

    parts: Mapping[Lane, Part]

    @property
    def base(self) -> Part:
        return self.parts[None]

    @property
    def dtype(self) -> Any:
        return self.base.array.dtype

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """What the program sees."""
        array, ndim = self.base.array, len(self.base.axes)
        return jax.ShapeDtypeStruct(array.shape[ndim:], array.dtype)

    def map(self, fn: Callable[[Any], Any]) -> Lanes:
        """An elementwise function of every array."""
        return Lanes({lane: Part(fn(p.array), p.axes) for lane, p in self.parts.items()})

    def drawn(self) -> Lanes:
        return Lanes({None: self.base})


@dataclass(frozen=True, eq=False)
class _Step:
    """One equation, what it calls being laid out: operands and results are numbers of cells, or constants."""

    primitive: Primitive
    params: Mapping[str, Any]
    operands: tuple[Any, ...]
    results: tuple[int, ...]


class _Layout(Domain[int]):
    """Lays out a jaxpr, and what it calls, as steps. What is known of a value is the number of its cell.

    Attributes:
        known: constants, by cell.
        varied: the cells of what depends on a site that has several values.
    """

    calls = INLINED

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.known: dict[int, Any] = {}
        self.varied: set[int] = set()
        self.numbers = itertools.count()

    def constant(self, value: Any) -> int:
        cell = next(self.numbers)
        self.known[cell] = value
        return cell

    def call(self, equation: Any, body: AnyJaxpr, operands: list[int]) -> Sequence[int]:
        varies = not self.varied.isdisjoint(operands)
        return self.read(body, operands) if varies else self.transfer(equation, operands)

    def transfer(self, equation: Any, operands: list[int]) -> Sequence[int]:
        primitive, results = equation.primitive, tuple(next(self.numbers) for _ in equation.outvars)
        self.steps.append(_Step(primitive, equation.params, tuple(operands), results))
        if primitive in (worlds_p, alternatives_p) or not self.varied.isdisjoint(operands):
            self.varied.update(results)
        return results


def evaluate(
    fn: Callable[..., Sequence[Any]], inputs: Sequence[Lanes], sites: Mapping[int, Site]
) -> list[Lanes]:
    """What a function of arrays returns, for all values at once.

    Args:
        fn: takes arrays as a program sees them, returns arrays.
        inputs: for its arguments.
        sites: of the run, by order.
    """
    closed = jax.make_jaxpr(fn)(*(x.aval for x in inputs))
    layout = _Layout()
    given = {next(layout.numbers): x for x in inputs}
    layout.varied.update(c for c, x in given.items() if x.base.axes or len(x.parts) > 1)
    results = layout.read(closed, list(given))
    return _Evaluation(layout, given, results, sites).run()


class _Evaluation:
    """Of the steps of a program, lane by lane, and in each lane those together that have the same axes.

    A step has the axes of all its operands together; so what has fewer comes first.
    """

    def __init__(
        self,
        layout: _Layout,
        inputs: Mapping[int, Lanes],
        results: Sequence[int],
        sites: Mapping[int, Site],
    ):
        self.sites = sites
        self.results = list(results)
        self.steps = _needed(layout.steps, results)
        self.users: dict[int, list[_Step]] = defaultdict(list)
        for step in self.steps:
            for cell in step.operands:
                self.users[cell].append(step)
        self.parts: dict[Lane, dict[int, Part]] = {None: {}}
        self.axes: dict[Lane, dict[int, frozenset[Axis]]] = {None: {}}
        wanted = set(results)
        for cell, value in layout.known.items():
            if cell in wanted:  # what is not an array may be that in a jaxpr only
                value = jnp.asarray(value)
            self._set(None, cell, Part(value))
        for cell, lanes in inputs.items():
            for lane, part in lanes.parts.items():
                self._set(lane, cell, part)

    def _set(self, lane: Lane, cell: int, part: Part) -> None:
        self.parts.setdefault(lane, {})[cell] = part
        self.axes.setdefault(lane, {})[cell] = frozenset(part.axes)

    def _site(self, step: _Step) -> Site:
        return self.sites[step.params["site"]]

    def _axis(self, step: _Step) -> Axis:
        """Along which the values of a site are put."""
        site = self._site(step)
        axis = site.world if step.primitive is worlds_p else site.slots
        assert axis is not None
        return axis

    def run(self) -> list[Lanes]:
        for step in self.steps:
            for lane in self._lanes(step):
                axes = self._axes_of(step, lane)
                self.axes.setdefault(lane, {}).update((r, axes) for r in step.results)
        for lane in list(self.axes):
            self._run_lane(lane)
        return [
            Lanes({lane: parts[r] for lane, parts in self.parts.items() if r in parts})
            for r in self.results
        ]

    def _lanes(self, step: _Step) -> list[Lane]:
        """The lanes in which a step differs from what was drawn, and that of what was drawn."""
        own = [self._site(step)] if step.primitive is alternatives_p else []
        operands = step.operands[:1] if own else step.operands
        found = [lane for lane, axes in self.axes.items() if any(o in axes for o in operands)]
        return list(dict.fromkeys([None, *found, *own]))

    def _axes_of(self, step: _Step, lane: Lane) -> frozenset[Axis]:
        if step.primitive is alternatives_p:
            site, (value, others) = self._site(step), step.operands
            if lane is site:
                return self._axes(others, None) | {self._axis(step)}
            return self._axes(value, lane)
        found = frozenset[Axis]().union(*(self._axes(o, lane) for o in step.operands))
        if step.primitive is worlds_p:
            found |= {self._axis(step)}
        return found

    def _axes(self, cell: int, lane: Lane) -> frozenset[Axis]:
        own = self.axes[lane]
        return own[cell] if cell in own else self.axes[None][cell]

    def _part(self, cell: int, lane: Lane) -> Part:
        own = self.parts.get(lane, {})
        if cell in own:
            return own[cell]
        part = self.parts[None][cell]
        return part if lane is None else self._held(part, lane)

    def _held(self, part: Part, lane: Site) -> Part:
        """A value as alternatives need it: they are compared, and only those of few estimators differentiated."""
        if lane.is_live or not hasattr(part.array, "dtype"):
            return part
        return Part(lax.stop_gradient(part.array), part.axes)

    def _run_lane(self, lane: Lane) -> None:
        groups: dict[frozenset[Axis], list[_Step]] = {}
        for step in self.steps:
            own = self.axes[lane]
            if step.results and all(r in own for r in step.results):
                groups.setdefault(own[step.results[0]], []).append(step)
        for axes in sorted(groups, key=len):
            self._run_group(lane, union(axes), groups[axes])

    def _run_group(self, lane: Lane, axes: tuple[Axis, ...], steps: Sequence[_Step]) -> None:
        self.parts.setdefault(lane, {})
        plain = []
        for step in steps:
            if step.primitive is worlds_p:
                self._set(lane, step.results[0], self._worlds(step, lane))
            elif step.primitive is alternatives_p and self._site(step) is lane:
                self._set(lane, step.results[0], self._alternatives(step))
            else:
                plain.append(step)
        made = {r for step in plain for r in step.results}
        needed = list(dict.fromkeys(o for s in plain for o in s.operands if o not in made))
        given = [self._part(o, lane) for o in needed]
        wanted = self._wanted(lane, plain)

        def body(*arrays: Any) -> list[Any]:
            known = dict(zip(needed, arrays, strict=True))
            for step in plain:
                known.update(zip(step.results, _bound(step, known), strict=True))
            return [known[r] for r in wanted]

        for axis in reversed(axes):
            body = _along(body, [axis in p.axes for p in given], axis.size)
        if plain:
            for cell, array in zip(wanted, body(*(p.array for p in given)), strict=True):
                self.parts[lane][cell] = Part(array, axes)

    def _wanted(self, lane: Lane, plain: Sequence[_Step]) -> list[int]:
        """The results of a group that other groups or lanes use."""
        inside = {id(step) for step in plain}

        def leaves(step: _Step) -> bool:  # a lane may do the same step with other values
            return id(step) not in inside or (lane is None and len(self._lanes(step)) > 1)

        made = (r for step in plain for r in step.results)
        return [r for r in made if r in self.results or any(map(leaves, self.users[r]))]

    def _worlds(self, step: _Step, lane: Lane) -> Part:
        return _in_front(self._part(step.operands[0], lane), self._axis(step))

    def _alternatives(self, step: _Step) -> Part:
        part = self._held(self.parts[None][step.operands[1]], self._site(step))
        return _in_front(part, self._axis(step))


def _along(fn: Callable[..., Any], has_axis: Sequence[bool], size: int) -> Callable[..., Any]:
    """A function of arrays, some of which have one more dim in front: mapped, or one after the other where an
    operation cannot be mapped."""

    def mapped(*arrays: Any) -> Any:
        try:
            return jax.vmap(fn, [0 if has else None for has in has_axis], axis_size=size)(*arrays)
        except NotImplementedError:
            own = [a for a, has in zip(arrays, has_axis, strict=True) if has]

            def one(now: Sequence[Any]) -> Any:
                rest = iter(now)
                pairs = zip(arrays, has_axis, strict=True)
                return fn(*(next(rest) if has else a for a, has in pairs))

            return lax.map(one, own)

    return mapped


def _in_front(part: Part, axis: Axis) -> Part:
    """The first dim that the program would see as an axis."""
    axes = union(part.axes, [axis])
    return Part(jnp.moveaxis(part.array, len(part.axes), axes.index(axis)), axes)


def _needed(steps: Sequence[_Step], results: Iterable[int]) -> list[_Step]:
    """The steps on which the results depend."""
    wanted, found = set(results), []
    for step in reversed(steps):
        if wanted.intersection(step.results):
            wanted.update(step.operands)
            found.append(step)
    return found[::-1]


def _bound(step: _Step, known: Mapping[int, Any]) -> Sequence[Any]:
    """What an equation makes of arrays."""
    operands = [known[o] for o in step.operands]
    if step.primitive is alternatives_p:
        return operands[:1]
    return bound(step, operands)
