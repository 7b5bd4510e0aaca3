"""Which JAX programs see several elements of a plate at once.

Of which elements of a plate each entry of an array is made is read off the jaxpr, equation by equation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from vi_kit.analysis.blocked import Once
from vi_kit.analysis.mixing import (
    NOTHING,
    NOWHERE,
    Along,
    Place,
    along,
    broadcast,
    find,
    gathered,
    joined,
    merged,
    moved,
    spread_out,
    together,
)
from vi_kit.base.named import Axis
from vi_kit.numpyro.interpreter import Analysis, Inside, bound, has
from vi_kit.numpyro.markers import elements_p
from vi_kit.numpyro.operations import rule_for

Places = Mapping[int, Place]
"""By the number of each plate."""

Number = Callable[[], Any]
"""Says what a value is, if it is the same at every call of the program, else `None`."""


@dataclass(frozen=True)
class Operation:
    """An equation, where elements lie in its operands, and what these are."""

    equation: Any
    places: Sequence[Along]
    numbers: Sequence[Number]

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        return self.equation.params

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [atom.aval.shape for atom in self.equation.invars]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return self.equation.outvars[0].aval.shape

    def elements(self) -> list[np.ndarray]:
        """For each entry of the operands the element of which it is made."""
        return [spread_out(p, shape) for p, shape in zip(self.places, self.shapes, strict=True)]


Rule = Callable[[Operation], Any]
"""To where elements lie in the results, a `Place`, or in each of them, a list."""


def find_mixed_in(
    plates: Sequence[Axis], jaxpr: ClosedJaxpr, terms: Sequence[tuple[str, tuple[Axis, ...]]]
) -> set[tuple[str, Axis]]:
    """Which terms see several elements of which plates.

    Args:
        plates: to be looked at.
        jaxpr: of a dry run, whose last outputs are the terms.
        terms: where they come from, and their axes.
    """
    found = Mixing(plates).read(jaxpr, [Seen({}) for _ in jaxpr.jaxpr.invars])
    of_terms = found[len(found) - len(terms) :]
    return find(plates, [(*kind, x.places) for kind, x in zip(terms, of_terms, strict=True)])


def places(jaxpr: ClosedJaxpr, inputs: Sequence[Places]) -> list[dict[int, Place]]:
    """Of the outputs, given those of the inputs."""
    return [dict(x.places) for x in Mixing().read(jaxpr, [Seen(of) for of in inputs])]


@dataclass(frozen=True)
class Seen:
    """A value: where elements lie in it, and what it is."""

    places: Places
    number: Number = field(default=lambda: None, compare=False)

    def each(self, fn: Callable[[Along], Place]) -> Seen:
        """The same, with what a function makes of every place that is known."""
        return Seen({n: None if place is None else fn(place) for n, place in self.places.items()})


class Mixing(Analysis[Seen]):
    """Reads of which elements of plates each entry of an array is made.

    Args:
        plates: whose elements are told apart where values of sites are marked.

    Attributes:
        steps: the loops that go along elements, and for the number that the element of a step has there, which ones.
    """

    def __init__(self, plates: Sequence[Axis] = ()) -> None:
        super().__init__()
        self.plates = plates
        self.steps: dict[int, tuple[Inside, tuple[int, ...]]] = {}

    def constant(self, value: Any) -> Seen:
        return Seen({}, lambda: None if isinstance(value, Tracer) else value)

    def equation(self, equation: Any, operands: list[Seen]) -> Sequence[Seen]:
        if any(x.places for x in operands) or has(equation, (elements_p,)):
            return super().equation(equation, operands)
        made = Once(lambda: _evaluated(equation, [x.number() for x in operands]))
        return [Seen({}, lambda i=i: made()[i]) for i in range(len(equation.outvars))]

    def on_vi_kit_elements(self, equation: Any, operands: list[Seen]) -> Sequence[Seen]:
        shape, params = equation.outvars[0].aval.shape, equation.params
        places: dict[int, Place] = {}
        for n, plate in enumerate(self.plates):
            if plate in params["axes"]:
                dim = len(shape) - plate.order - params["event_ndim"]
                is_there = dim >= 0 and shape[dim] == plate.size
                places[n] = along(dim, range(1, plate.size + 1)) if is_there else None
        return [Seen(places)]

    def transfer(self, equation: Any, operands: list[Seen]) -> Sequence[Seen]:
        rule = rule_for(equation.primitive.name, RULES)
        results: list[dict[int, Place]] = [{} for _ in equation.outvars]
        for n in {n: None for x in operands for n in x.places}:
            own = [x.places.get(n, NOTHING) for x in operands]
            known = [place for place in own if place is not None]
            found: Any = None
            if len(known) == len(own) and rule is not None:
                found = rule(Operation(equation, known, [x.number for x in operands]))
            each = found if isinstance(found, list) else [found] * len(results)
            for of, place in zip(results, each, strict=True):
                if place != NOTHING:
                    of[n] = place
        return [Seen(of) for of in results]

    def lost(self, equation: Any, operands: list[Seen]) -> Sequence[Seen]:
        of = dict.fromkeys(n for x in operands for n in x.places)
        return [Seen(of) for _ in equation.outvars]

    def join(self, values: Sequence[Seen]) -> Seen:
        return Seen(joined([x.places for x in values]))

    def steered(self, value: Seen, by: Seen) -> Seen:
        return Seen({**value.places, **dict.fromkeys(by.places)})

    def of_a_step(self, value: Seen) -> Seen:
        """The element of a step has a number of its own."""

        def seen(place: Along) -> Place:
            if place.dim == NOWHERE or place.dim > 0:
                return moved(place, place.dim - 1)
            known = {loop: number for number, loop in self.steps.items()}
            loop = self.inside, place.elements
            number = known.setdefault(loop, -2 - len(known))
            self.steps[number] = loop
            return Along(NOWHERE, (number,))

        return value.each(seen)

    def handed_on(self, value: Seen) -> Seen:
        """The elements of several steps meet in it."""
        own = self._of_this_loop()
        return value.each(lambda place: None if own & set(place.elements) else place)

    def of_all_steps(self, value: Seen) -> Seen:
        own = self._of_this_loop()

        def made(place: Along) -> Place:
            numbers = set(place.elements) - {0}
            if not own & numbers:
                return moved(place, place.dim + 1)
            return along(0, self.steps[min(numbers)][1]) if len(numbers) == 1 else None

        return value.each(made)

    def _of_this_loop(self) -> set[int]:
        return {number for number, (loop, _) in self.steps.items() if loop == self.inside}


def _evaluated(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation, as far as there are some."""
    unknown = [None] * len(equation.outvars)
    if equation.effects or any(x is None for x in operands):
        return unknown
    try:
        with jax.ensure_compile_time_eval():
            return bound(equation, operands)
    except Exception:  # it may be one that only compiled programs have
        return unknown


def _elementwise(op: Operation) -> Place:
    pairs = zip(op.places, op.shapes, strict=True)
    return together(broadcast(p, shape, op.shape) for p, shape in pairs)


def _rearranged(op: Operation) -> list[Place]:
    """Of operations that leave numbers as they are: the same is done with the elements of which they are made."""
    if op.name in VIEWS:
        return [gathered(VIEWS[op.name](op.elements()[0], op))]
    return _of_elements(op, op.elements())


def _broadcast_in_dim(x: np.ndarray, op: Operation) -> np.ndarray:
    shape, dims = op.shape, op.params["broadcast_dimensions"]
    sizes = dict(zip(dims, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(d, 1) for d in range(len(shape))]), shape)


def _sliced(x: np.ndarray, op: Operation) -> np.ndarray:
    params = op.params
    steps = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


VIEWS: Mapping[str, Callable[[np.ndarray, Operation], np.ndarray]] = {
    "reshape": lambda x, op: x.reshape(op.shape),
    "squeeze": lambda x, op: x.reshape(op.shape),
    "expand_dims": lambda x, op: x.reshape(op.shape),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": lambda x, op: x.transpose(op.params["permutation"]),
    "slice": _sliced,
    "rev": lambda x, op: np.flip(x, op.params["dimensions"]),
}
"""Rearrangements that take no memory."""


def _of_elements(op: Operation, operands: Sequence[Any]) -> list[Place]:
    with jax.ensure_compile_time_eval():
        return [gathered(np.asarray(x)) for x in bound(op.equation, [*map(jnp.asarray, operands)])]


def _outside(name: str) -> Rule:
    """Of operations along the dims that a parameter names, which stay."""

    def rule(op: Operation) -> Place:
        dims, place = op.params[name], _elementwise(op)
        dims = dims if isinstance(dims, tuple) else (dims,)
        return merged(place) if place is not None and place.dim in dims else place

    return rule


def _reduced(op: Operation) -> Place:
    dims, place = op.params["axes"], together(op.places)
    if place is None or place.dim == NOWHERE:
        return place
    if place.dim in dims:
        return merged(place)
    return moved(place, place.dim - sum(d < place.dim for d in dims))


def _before_the_last(num: int) -> Rule:
    """Of functions of so many dims at the end."""

    def rule(op: Operation) -> Place:
        pairs = zip(op.places, op.shapes, strict=True)
        return together(merged(p) if p.dim >= len(shape) - num else p for p, shape in pairs)

    return rule


def _solved(op: Operation) -> Place:
    """Of equations with several right sides, each by itself."""
    matrix, right = op.places
    by_itself = len(op.shapes[1]) - (1 if op.params["left_side"] else 2)
    if matrix == NOTHING and right.dim == by_itself:
        return right
    return _before_the_last(2)(op)


def _solved_by_functions(op: Operation) -> Place:
    place = together(op.places)
    spread = [s for p, s in zip(op.places, op.shapes, strict=True) if p.dim != NOWHERE]
    is_batch = place is not None and all(place.dim < len(s) - 1 for s in spread)
    return place if is_batch and all(place == p for p in op.places if p.dim != NOWHERE) else None


def _transformed(op: Operation) -> Place:
    return _before_the_last(len(op.params["fft_lengths"]))(op)


def _numbered(first: int) -> Rule:
    """Of operations at indices, the arguments from a number on: of what is rearranged, if they are known."""

    def rule(op: Operation) -> Place | list[Place]:
        indices = [number() for number in op.numbers[first:]]
        if any(p != NOTHING for p in op.places[first:]):
            return None
        if all(i is not None for i in indices):
            return _of_elements(op, [*op.elements()[:first], *indices])
        part = op.shape if first == 1 else op.shapes[1]
        sizes, place = zip(part, op.shapes[0], strict=True), together(op.places)
        whole = [d for d, (size, all_of_it) in enumerate(sizes) if size == all_of_it]
        return place if place is None or place.dim in (*whole, NOWHERE) else merged(place)

    return rule


def _gathered(op: Operation) -> Place | list[Place]:
    own, at = op.places
    indices = op.numbers[1]()
    if at == NOTHING and indices is not None:
        return _of_elements(op, [op.elements()[0], indices])
    dims, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    shape = op.shapes[0]
    out = range(len(op.shape))
    of_indices = [d for d in out if d not in dims.offset_dims]
    if at.dim != NOWHERE:
        if at.dim >= len(of_indices):
            return None
        at = moved(at, of_indices[at.dim])
    if own.dim in dims.operand_batching_dims:
        i = dims.operand_batching_dims.index(own.dim)
        own = moved(own, of_indices[dims.start_indices_batching_dims[i]])
    elif own.dim != NOWHERE:
        gone = (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
        if own.dim in gone or sizes[own.dim] != shape[own.dim]:
            return together([merged(own), at])
        kept = [d for d in range(len(shape)) if d not in gone]
        own = moved(own, dims.offset_dims[kept.index(own.dim)])
    return together([own, at])


def _scattered(op: Operation) -> Place | list[Place]:
    own, at, updates = op.places
    indices, shape = op.numbers[1](), op.shapes[0]
    if at == NOTHING and indices is not None and op.name == "scatter":
        old, _, new = op.elements()
        return _of_elements(op, [old, np.asarray(indices), new])
    dims = op.params["dimension_numbers"]
    gone = (*dims.inserted_window_dims, *dims.operand_batching_dims)
    windows = dict(
        zip(dims.update_window_dims, (d for d in range(len(shape)) if d not in gone), strict=True)
    )
    sizes = op.shapes[2]
    whole = {to for of, to in windows.items() if sizes[of] == shape[to]}
    if updates.dim != NOWHERE:
        updates = moved(updates, windows[updates.dim]) if updates.dim in windows else None
    found = together([own, updates])
    is_whole = found is not None and found.dim in (*whole, NOWHERE)
    return found if at == NOTHING and is_whole else None


def _product(op: Operation) -> Place:
    contracted, batch = op.params["dimension_numbers"]
    found: list[Place] = []
    free = [
        [d for d in range(len(shape)) if d not in (*batch[side], *contracted[side])]
        for side, shape in enumerate(op.shapes)
    ]
    for side, place in enumerate(op.places):
        if place.dim in contracted[side]:
            place = merged(place)
        elif place.dim in batch[side]:
            place = moved(place, batch[side].index(place.dim))
        elif place.dim != NOWHERE:
            place = moved(place, len(batch[0]) + len(free[0]) * side + free[side].index(place.dim))
        found.append(place)
    return together(found)


def _convolved(op: Operation) -> Place:
    dims, (rows, kernel) = op.params["dimension_numbers"], op.places
    if rows.dim == NOWHERE and kernel.dim == NOWHERE:
        return together(op.places)
    is_batch = rows.dim == dims.lhs_spec[0] and op.params["batch_group_count"] == 1
    return together([moved(rows, dims.out_spec[0]), kernel]) if is_batch else None


def _windows(op: Operation) -> Place:
    place, params = together(op.places), op.params
    if place is None or place.dim == NOWHERE:
        return place
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    alone = all(params.get(name, (1,) * 99)[place.dim] == 1 for name in names)
    return place if alone and params["padding"][place.dim] == (0, 0) else merged(place)


def _copied(op: Operation) -> list[Place]:
    return list(op.places)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("sum", "pointwise", "choice", "comparison", "cast"), _elementwise),
    "copy": _copied,
    "layout": _rearranged,
    **dict.fromkeys(("total", "reduction"), _reduced),
    **dict.fromkeys(("running total", "running"), _outside("axis")),
    **dict.fromkeys(("window total", "window"), _windows),
    "sort": _outside("dimension"),
    "gather": _gathered,
    "dynamic_slice": _numbered(1),
    "dynamic_update_slice": _numbered(2),
    **dict.fromkeys(("written", "added at", "multiplied at"), _scattered),
    "dot_general": _product,
    "conv_general_dilated": _convolved,
    "matrix": _before_the_last(2),
    "top_k": _before_the_last(1),
    "fft": _transformed,
    "triangular_solve": _solved,
    "custom_linear_solve": _solved_by_functions,
}
"""By the name of the primitive, or of its kind."""
