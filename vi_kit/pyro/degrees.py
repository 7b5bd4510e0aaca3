"""Which polynomials a torch program computes: tensors that carry their degrees through every ATen operation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch.distributions import biject_to
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import vi_kit
from vi_kit.degrees import (
    CONTINUOUS,
    JUMPS,
    TESTS,
    Cut,
    DegreeProbe,
    Degrees,
    Form,
    Rule,
    chosen,
    contraction,
    derive,
    exponential,
    first_moved,
    linear,
    logarithm,
    moved,
    named,
    power,
    product,
    quotient,
    solved,
    start,
    stepped,
    unknown,
)
from vi_kit.jumps import NUM_DRAWS, JumpProbe, Jumps, Snapshot, find_jumps
from vi_kit.plan import Plan
from vi_kit.pyro.distributions import is_validation


def degree_probe(plan: Plan) -> DegreeProbe:
    """A probe with a zero of degree one for each site whose estimator asks for a degree."""
    reading = Reading()
    return DegreeProbe(
        {
            label: reading.leaf(label, torch.zeros(()), degree)
            for label, degree in plan.degrees.items()
        }
    )


def degrees_found(probe: DegreeProbe) -> list[tuple[str, str, Form]]:
    """What the terms of a probe are, as `DegreeProbe.found` says it."""
    return probe.found(degrees_of(probe))


def degrees_of(probe: DegreeProbe) -> list[Degrees]:
    """What each of the values of a probe is in each site."""
    leaks = next(iter(probe.zeros.values())).reading.leaks
    own = [v.degrees if isinstance(v, Traced) else {} for v in probe.values()]
    return [derive("leaks", moved, [leaks, degrees]) for degrees in own]


@dataclass(eq=False)
class Step:
    """An operation on values that depend on sites: its arguments, such values by their number, and the numbers of
    what it made."""

    func: Any
    args: Any
    kwargs: Any
    made: list[int]


@dataclass(frozen=True)
class Number:
    """Stands for a value that depends on sites."""

    of: int


@dataclass(eq=False)
class Reading:
    """What all the tensors of a probe share.

    Attributes:
        leaks: sites of which something left the reach of tracing.
        results: how to find the result of an operation that takes steps, from all values by number.
        branches: the operations that told the program a value.
        steps: all operations on values that depend on sites, if they are to be repeated.
        plain: all values by number.
        leaves: the numbers of those from which all others are made.
        sharing: the tensors of each storage, which a write into one of them changes.
        is_drawing: whether a site gets its value, whose randomness is known to the probe.
    """

    repeats: bool = False
    leaks: dict[str, Form] = field(default_factory=dict)
    results: dict[Cut, Callable[[list[Any]], Any]] = field(default_factory=dict)
    branches: set[Cut] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    plain: list[torch.Tensor] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    sharing: dict[int, list[Traced]] = field(default_factory=dict)
    is_drawing: bool = False

    def leaf(self, label: str, value: torch.Tensor, degree: int | None) -> Traced:
        self.leaves.append(len(self.plain))
        return self.traced(value, {label: start(degree)})

    def traced(self, value: torch.Tensor, degrees: Degrees) -> Traced:
        made = Traced(value, degrees, self, len(self.plain) if self.repeats and degrees else None)
        if self.repeats:
            self.sharing.setdefault(_storage(value), []).append(made)
        if made.number is not None:
            self.plain.append(value)
        return made

    def leak(self, degrees: Degrees, cut: Cut) -> None:
        """What a value is that left the reach of tracing, which from now on any may depend on."""
        for label, form in degrees.items():
            made = Form(blocker=cut.name)
            if form.is_continuous:
                cuts = self.leaks.get(label, made).cuts
                made = Form(is_continuous=True, cuts=cuts | {cut})
            self.leaks[label] = made

    def repeated(self, leaf: torch.Tensor) -> list[Any]:
        """All values by number, for another value of the leaves."""
        values: list[Any] = [None] * len(self.plain)
        for number in self.leaves:
            values[number] = leaf.clone()

        def known(x: Any) -> Any:
            return values[x.of] if isinstance(x, Number) else x

        for step in self.steps:
            result = step.func(*tree_map(known, step.args), **tree_map(known, step.kwargs))
            made = [x for x in tree_iter(result) if isinstance(x, torch.Tensor)]
            for number, value in zip(step.made, made, strict=True):
                values[number] = value
        return values


class Traced(torch.Tensor):
    """A tensor that knows what it is in each site.

    Attributes:
        plain: its values.
        degrees: what it is.
        reading: shared by all tensors of a probe.
        number: of its value, if that depends on sites and is to be made again.
    """

    plain: torch.Tensor
    degrees: Degrees
    reading: Reading
    number: int | None

    @staticmethod
    def __new__(
        cls, plain: torch.Tensor, degrees: Degrees, reading: Reading, number: int | None
    ) -> Traced:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device=plain.device,
        )
        self.plain, self.degrees, self.reading, self.number = plain, degrees, reading, number
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Traced({self.plain!r}, {dict(self.degrees)})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*_plain(args), **_plain(kwargs))
        traced = [t for t in tree_iter((args, kwargs)) if isinstance(t, cls)]
        reading, name = traced[0].reading, func._schema.name.removeprefix("aten::")
        degrees, frame = _degrees(name, args, kwargs), sys._getframe(1)
        cut = Cut(_line(frame), name.strip("_"), len(reading.steps))
        by_distribution = is_validation(frame)
        steps = name in JUMPS or bool(kwargs.get("rounding_mode"))
        if not degrees:
            if func._schema.is_mutable:
                return kwargs.get("out", args[0])
            return _wrapped(reading, result, {}, {})
        if torch.Tag.nondeterministic_seeded in func.tags and reading.repeats:
            if not reading.is_drawing:
                reading.leak(degrees, replace(cut, name="randomness of the program's own"))
            return _wrapped(reading, result, {}, {})
        numbered: Any = tree_map(_numbered, (args, kwargs))
        if func._schema.is_mutable:
            return _written(
                cut, args, kwargs, degrees, reading, Step(func, numbered[0], numbered[1], [])
            )
        from_numbers = not any(t.is_floating_point() and t.degrees for t in traced)
        is_check = name in TESTS or name.endswith("_ex")  # linear algebra says whether it went well
        is_known = by_distribution or is_check or from_numbers
        whole = stepped(degrees, cut, is_known)
        if is_check:
            whole = {k: CONTINUOUS if f.is_continuous else f for k, f in whole.items()}
        if steps:
            degrees = stepped(degrees, cut, by_distribution)
        if not any(isinstance(x, torch.Tensor) for x in tree_iter(result)):
            if not by_distribution:
                _told(reading, degrees, cut, traced[0])
            return result
        wrapped = _wrapped(reading, result, degrees, whole)
        if reading.repeats:
            made = [x for x in tree_iter(wrapped) if isinstance(x, cls)]
            numbers = [x.number for x in made if x.number is not None]
            reading.steps.append(Step(func, numbered[0], numbered[1], numbers))
            stepping = [x.number for x in made if steps or not x.is_floating_point()]
            if stepping and not is_known:
                reading.results[cut] = _result(name, numbered[0], stepping)
        return wrapped


def _wrapped(reading: Reading, result: Any, floating: Degrees, whole: Degrees) -> Any:
    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return reading.traced(x, floating if x.is_floating_point() else whole)

    return tree_map(wrap, result)


def _plain(tree: Any) -> Any:
    return tree_map(lambda x: x.plain if isinstance(x, Traced) else x, tree)


def _numbered(x: Any) -> Any:
    if not isinstance(x, Traced):
        return x
    return x.plain if x.number is None else Number(x.number)


def _result(name: str, args: Any, made: list[Any]) -> Callable[[list[Any]], Any]:
    """How to find by all values, once they are made again, the steps that an operation took."""
    if name not in ("fmod", "remainder", "frac"):
        return lambda values: np.concatenate([_numpy(values[n]).ravel() for n in made])
    rounding = "floor" if name == "remainder" else "trunc"

    def quotient(values: list[Any]) -> np.ndarray:
        x, *y = (values[a.of] if isinstance(a, Number) else a for a in args)
        return _numpy(torch.div(x, y[0] if y else 1.0, rounding_mode=rounding))

    return quotient


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _told(reading: Reading, degrees: Degrees, cut: Cut, value: Traced) -> None:
    """Note that the program was told a value, as a Python number."""
    if not value.is_floating_point() and all(
        f.is_continuous and not f.cuts for f in degrees.values()
    ):
        return
    cut = replace(cut, name="a value that became a Python number", key=len(reading.results))
    reading.leak(degrees, cut)
    number = value.number
    if number is not None and not value.is_floating_point():
        reading.results[cut] = lambda values: _numpy(values[number])
        reading.branches.add(cut)


LIBRARIES = tuple(f"{Path(str(module.__file__)).parent}/" for module in (torch, pyro, vi_kit))


def _line(frame: Any) -> str:
    """The line of the program on which something is done."""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(LIBRARIES):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _written(
    cut: Cut, args: Any, kwargs: Any, degrees: Degrees, reading: Reading, step: Step
) -> Any:
    """The result of an operation that writes into its first operand, where that stays what it was."""
    target = kwargs.get("out", args[0])
    reach = reading.sharing.get(_storage(_plain(target)), [])
    is_continuous = all(form.is_continuous for form in degrees.values())
    fits = is_continuous and all(t.number is not None for t in reach)
    if not isinstance(target, Traced) or not (fits or target.degrees == degrees):
        reading.leak(degrees, replace(cut, name=f"{cut.name}_, which writes in place"))
    elif target.number is not None:
        step.made.append(target.number)
        reading.steps.append(step)
        for t in reach:
            t.degrees = derive("list", moved, [t.degrees, degrees])
    return target


def _storage(value: torch.Tensor) -> int:
    """Tells apart what tensors are views of."""
    return value.untyped_storage()._cdata


class Watch(TorchDispatchMode):
    """Notices whether a program has an operation that takes steps at all.

    Attributes:
        found: whether it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found:
            return result
        name = func._schema.name.removeprefix("aten::").strip("_")
        made = result if isinstance(result, tuple) else (result,)
        if name in JUMPS or any(
            isinstance(x, torch.Tensor) and not x.is_floating_point() for x in made
        ):
            of = any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tree_iter(args))
            self.found = of and not is_validation(sys._getframe(1))
        return result


def find_jumps_in(
    plan: Plan, leaves: Iterable[torch.Tensor], execute: Callable[[DegreeProbe], None]
) -> Jumps:
    """Which terms jump in the values of the sites of `Plan.pathwise`.

    Args:
        plan: of the program.
        leaves: its parameters, which are moved a little meanwhile.
        execute: makes a dry run with a probe.
    """

    def probe_at(place: float) -> tuple[JumpProbe, Reading]:
        torch.random.set_rng_state(state)
        reading = Reading(repeats=True)
        start = torch.tensor(place, dtype=torch.float64)
        zeros = {label: reading.leaf(label, start, None) for label in sorted(plan.pathwise)}
        probe = JumpProbe(zeros, draw=lambda dist, t: _on_the_way(dist.fn, t, reading), cut=_cut)
        execute(probe)
        return probe, reading

    def numbers(values: Iterable[Any]) -> list[np.ndarray]:
        return [_numpy(torch.as_tensor(v)) for v in values]

    with _moved_a_little(leaves):
        state = torch.random.get_rng_state()
        probe, reading = probe_at(0.0)
        made = probe.values()
        base = {cut: result(reading.plain) for cut, result in reading.results.items()}

        def at(place: float) -> Snapshot:
            values = reading.repeated(torch.tensor(place, dtype=torch.float64))
            results = {cut: result(values) for cut, result in reading.results.items()}
            numbered = tree_map(_numbered, made)
            terms = numbers(values[x.of] if isinstance(x, Number) else x for x in numbered)
            elsewhere = any(not np.array_equal(base[b], results[b]) for b in reading.branches)
            return Snapshot(results, terms, elsewhere)

        def again(place: float) -> Snapshot:
            return Snapshot({}, numbers(_plain(probe_at(place)[0].values())))

        sources, degrees = probe.sources(), degrees_of(probe)
        with torch.no_grad():
            start, plain = at(0.0).terms, numbers(_plain(made))
            same = all(np.allclose(a, b, equal_nan=True) for a, b in zip(start, plain, strict=True))
            nowhere = Snapshot({}, start)  # the program is not what was traced
            return find_jumps(
                sources,
                degrees,
                at if same else lambda _: nowhere,
                again,
                frozenset(reading.branches),
            )


@contextmanager
def _moved_a_little(leaves: Iterable[torch.Tensor]) -> Iterator[None]:
    """Parameters are moved, so that it does not matter where they start."""
    kept = [(p, p.detach().clone()) for p in leaves if p.is_floating_point()]
    try:
        for p, old in kept:
            p.data.add_(0.05 * torch.randn_like(old) * (1.0 + old.abs()))
        yield
    finally:
        for p, old in kept:
            p.data.copy_(old)


def _cut(value: torch.Tensor) -> torch.Tensor:
    return _plain(value).detach()


def _on_the_way(fn: Any, t: torch.Tensor, reading: Reading) -> Any:
    """A value on the way from a draw; of a transformed distribution it is its noise that moves."""
    if isinstance(fn, torch.distributions.Independent):
        return _on_the_way(fn.base_dist, t, reading)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = _on_the_way(fn.base_dist, t, reading)
        for transform in fn.transforms:
            value = transform(value)
        return value
    reading.is_drawing = True
    try:
        draws = [_cut(fn.sample()) for _ in range(NUM_DRAWS)]
        bijection = biject_to(fn.support)
        one, *others = (_cut(bijection.inv(draw)).double() for draw in draws)
    finally:
        reading.is_drawing = False
    steps = torch.stack([other - one for other in others])
    step = torch.sign(steps[0]) * (steps**2).mean(0).sqrt()
    return bijection((one + t * step).to(draws[0].dtype))


def _of(x: Any) -> dict[str, Form]:
    """What an argument is; of a list, what its elements are together."""
    operands = [t.degrees for t in tree_iter(x) if isinstance(t, Traced)]
    return derive("list", moved, operands) if operands else {}


def _degrees(name: str, args: Any, kwargs: Any) -> dict[str, Form]:
    base = name.removesuffix("_") if name not in RULES else name
    if base in SPECIAL:
        return SPECIAL[base](base, *args, **kwargs)
    operands = [*map(_of, args), *map(_of, kwargs.values())]
    rule = RULES.get(base, unknown)
    if _is_whole(kwargs.get("dtype")):
        rule = unknown
    return derive(base, rule, operands)


def _is_whole(dtype: Any) -> bool:
    return dtype is not None and not dtype.is_floating_point


def _sum(name: str, x: Any, y: Any, **kwargs: Any) -> dict[str, Form]:
    """Of two; transforms add a zero."""
    if isinstance(y, int | float) and y == 0:
        return derive(name, moved, [_of(x)])
    return derive(name, linear, [_of(x), _of(y)])


def _power(name: str, base: Any, exponent: Any, **kwargs: Any) -> dict[str, Form]:
    known = float(exponent) if isinstance(exponent, int | float) else None
    return derive(name, power(known), [_of(base), _of(exponent)])


def _added_product(name: str, x: Any, *factors: Any, **kwargs: Any) -> dict[str, Form]:
    both = derive(name, contraction, [_of(f) for f in factors[:2]])
    return derive(name, linear, [_of(x), both])


def _added_quotient(name: str, x: Any, top: Any, bottom: Any, **kwargs: Any) -> dict[str, Form]:
    both = derive(name, quotient, [_of(top), _of(bottom)])
    return derive(name, linear, [_of(x), both])


def _convolution(name: str, x: Any, weight: Any, bias: Any, *rest: Any) -> dict[str, Form]:
    return _added_product(name, bias, x, weight)


def _solved(name: str, matrix: Any, right: Any, **kwargs: Any) -> dict[str, Form]:
    return derive(name, solved, [_of(matrix), _of(right)])


def _xlogy(name: str, x: Any, y: Any) -> dict[str, Form]:
    return derive(name, product, [_of(x), derive("log", logarithm, [_of(y)])])


def _reciprocal(name: str, x: Any) -> dict[str, Form]:
    return derive(name, quotient, [{}, _of(x)])


def _constant(name: str, *args: Any, **kwargs: Any) -> dict[str, Form]:
    return {}


RULES: Mapping[str, Rule] = {
    **named("rsub neg sum mean cumsum trace", linear),
    **named("view _unsafe_view reshape expand permute transpose t squeeze unsqueeze", moved),
    **named("select slice narrow clone detach detach_ alias contiguous _to_copy to", moved),
    **named("unbind split split_with_sizes chunk as_strided unfold flip roll diagonal", moved),
    **named("repeat positive lift_fresh cat stack copy tril triu diag_embed", moved),
    **named("constant_pad_nd _reshape_alias", moved),
    **named("index gather index_select masked_fill masked_select", first_moved),
    **named("mul", product),
    **named("mm bmm mv dot", contraction),
    **named("div", quotient),
    **named("square", power(2)),
    **named("sqrt", power(0.5)),
    **named("rsqrt", power(-0.5)),
    **named("exp", exponential),
    **named("log", logarithm),
    **named("where", chosen),
}
"""By the name of the ATen operation."""

SPECIAL: Mapping[str, Callable[..., dict[str, Form]]] = {
    **dict.fromkeys(("add", "sub"), _sum),
    "pow": _power,
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm", "addcmul", "addr"), _added_product),
    "addcdiv": _added_quotient,
    "convolution": _convolution,
    "linalg_solve_triangular": _solved,
    "reciprocal": _reciprocal,
    "xlogy": _xlogy,
    **dict.fromkeys(
        "zeros_like ones_like full_like empty_like rand_like randn_like".split(), _constant
    ),
    **dict.fromkeys("new_zeros new_ones new_full new_empty new_empty_strided".split(), _constant),
}
"""Those whose operands are of different kinds, and those that look at shapes only."""
