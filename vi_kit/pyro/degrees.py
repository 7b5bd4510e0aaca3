"""Which polynomials a torch program computes: tensors that carry their degrees through every ATen operation."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.distributions import biject_to
from torch.overrides import TorchFunctionMode

from vi_kit.analysis.degrees import (
    GAPS,
    INVERSES,
    JUMPS,
    POLES,
    RULES,
    SIDES,
    Cut,
    DegreeProbe,
    Degrees,
    Form,
    contraction,
    derive,
    linear,
    logarithm,
    moved,
    parted,
    power,
    product,
    quotient,
    start,
    stepped,
    unknown,
)
from vi_kit.analysis.jumps import (
    HERE,
    NUM_DRAWS,
    Aside,
    JumpProbe,
    Jumps,
    Snapshot,
    Sums,
    find_jumps,
    rounded,
    ways,
    weighted,
    with_cuts,
)
from vi_kit.base.demands import Demand
from vi_kit.engine.plan import Plan
from vi_kit.pyro.frames import LIBRARIES, caller, is_own, line_of, origin
from vi_kit.pyro.leaks import (
    ARRAY,
    DETACHING,
    NUMBER,
    SETTING,
    TELLING,
    UNSEEN,
    listed,
    tells_number,
)
from vi_kit.pyro.leaves import reached
from vi_kit.pyro.noise import noise_states, set_noise
from vi_kit.pyro.operations import KIND, KINDS, name_of, rule_for
from vi_kit.pyro.trees import leaves as leaves_of
from vi_kit.pyro.trees import mapped

aten = torch.ops.aten

OF_NUMBERS = {
    getattr(aten, name).Tensor: getattr(aten, name).Scalar for name in ("add", "sub", "mul", "div")
}
"""Operations with a number, which are made with a tensor."""

MAX_MAPPED = 2**16
"""How many numbers a program may make that is evaluated at many places together."""


def degree_probe(plan: Plan) -> DegreeProbe:
    """A probe with a zero of degree one for each site whose estimator asks for a degree."""
    reading = Reading()
    return DegreeProbe(
        {
            label: reading.leaf(label, torch.zeros(()), demand)
            for label, demand in plan.degrees.items()
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
    """An operation on values that depend on sites: its arguments, such values by their number, the numbers of what it
    made, and whether the program says that this has no derivative."""

    func: Any
    args: Any
    kwargs: Any
    made: list[int]
    is_stop: bool = False

    @functools.cached_property
    def moving(self) -> tuple[list[tuple[int, int]], list[int], list[str]]:
        """Which arguments depend on sites: values, by their number, those with values in them, and those by name."""
        values = [(i, x.of) for i, x in enumerate(self.args) if isinstance(x, Number)]
        trees = [i for i, x in enumerate(self.args) if isinstance(x, list | tuple)]
        trees = [i for i in trees if _has_numbers(self.args[i])]
        return values, trees, [name for name, x in self.kwargs.items() if _has_numbers(x)]

    @functools.cached_property
    def with_tangents(self) -> tuple[Any, list[int]]:
        """The operation and its constant operands, as forward derivatives are cheap: a tangent that is not there costs
        torch fifty times as much as one that is zero, and so does a number that is written as a tensor."""
        func, other = self.func, self.args[1] if len(self.args) > 1 else None
        if func in OF_NUMBERS and isinstance(other, int | float | complex):
            func = OF_NUMBERS[func]
        tensors = enumerate(self.args)
        return func, [i for i, x in tensors if isinstance(x, torch.Tensor) and _is_inexact(x)]

    def again(
        self, values: list[Any], chosen: tuple[int, int] | None = None, tangents: bool = False
    ) -> list[torch.Tensor]:
        """What it makes of other values; `chosen`: of an argument that chooses, what that is instead; `tangents`:
        whether values have such."""

        def known(x: Any) -> Any:
            return values[x.of] if isinstance(x, Number) else x

        (single, trees, named), args, kwargs = self.moving, list(self.args), self.kwargs
        if chosen is not None:
            which, index = chosen
            is_factor = self.func._schema.name == "aten::mul"
            args[which] = torch.full_like(args[which], is_factor or index)
        for i, number in single:
            args[i] = values[number]
        for i in trees:
            args[i] = mapped(known, args[i])
        if named:
            kwargs = {**kwargs, **{name: mapped(known, kwargs[name]) for name in named}}
        func, constant = self.with_tangents if tangents else (self.func, [])
        for i in constant:
            args[i] = forward_ad.make_dual(args[i], torch.zeros_like(args[i]))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return [result]
        return [x for x in leaves_of(result) if isinstance(x, torch.Tensor)]


@dataclass(frozen=True)
class Mapped:
    """All values by number, of one of many places at which a program was evaluated together."""

    values: Sequence[torch.Tensor]
    place: int

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.values[number][self.place]


@dataclass(frozen=True)
class Number:
    """Stands for a value that depends on sites."""

    of: int


def _has_numbers(tree: Any) -> bool:
    return any(isinstance(x, Number) for x in leaves_of(tree))


class Drawing:
    """Knows whether a site gets its value, whose randomness is known to the probe.

    Attributes:
        is_drawing: whether it does.
    """

    is_drawing = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """While a site gets its value."""
        self.is_drawing = True
        try:
            yield
        finally:
            self.is_drawing = False


@dataclass(eq=False)
class Reading(Drawing):
    """What all the tensors of a probe share.

    Attributes:
        harmless: lines at which the program is told values that make no difference.
        leaks: sites of which something left the reach of tracing.
        results: how to find the result of an operation that takes steps, from all values by number.
        gaps: how to find by how much the sides of a comparison differ.
        reaches: how to find how far a denominator is from zero, in slopes.
        comparing: the same, by the number of its result.
        trained: operands of operations that take steps whose gradient reaches a parameter, but by way of sites.
        branches: the operations that told the program a value of which it is known where it changes.
        reads: those that told it another.
        stops: those whose result has no derivative because the program says so.
        is_whole: whether all else is followed.
        steps: all operations on values that depend on sites, if they are to be repeated.
        choices: those by which something constant chooses whether the result of one of `results` is seen: which
            argument does, and among how many.
        chosen: what may not be seen.
        plain: all values by number.
        leaves: the numbers of those from which all others are made.
        sharing: the tensors of each storage, which a write into one of them changes.
    """

    repeats: bool = False
    harmless: frozenset[str] = frozenset()
    leaks: dict[str, Form] = field(default_factory=dict)
    results: dict[Cut, Callable[[list[Any]], Any]] = field(default_factory=dict)
    gaps: dict[Cut, Callable[[list[Any]], Any]] = field(default_factory=dict)
    reaches: dict[Cut, Callable[[list[Any]], Any]] = field(default_factory=dict)
    comparing: dict[int | None, Callable[[list[Any]], Any]] = field(default_factory=dict)
    trained: dict[Cut, list[torch.Tensor]] = field(default_factory=dict)
    branches: set[Cut] = field(default_factory=set)
    reads: set[Cut] = field(default_factory=set)
    stops: set[Cut] = field(default_factory=set)
    is_whole: bool = True
    steps: list[Step] = field(default_factory=list)
    choices: dict[int, tuple[int, int]] = field(default_factory=dict)
    chosen: set[Cut] = field(default_factory=set)
    plain: list[torch.Tensor] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    sharing: dict[int, list[Traced]] = field(default_factory=dict)

    def leaf(self, label: str, value: torch.Tensor, demand: Demand | None) -> Traced:
        self.leaves.append(len(self.plain))
        return self.traced(value, {label: start(demand)})

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

    def step(self, step: Step, degrees: Degrees) -> None:
        """Note an operation, and what it made."""
        choice = chosen_among(name_of(step.func), step.args)
        cuts = {cut for form in degrees.values() for cut in form.cuts}
        if choice and cuts:
            self.choices[len(self.steps)] = choice
            self.chosen |= cuts
        self.steps.append(step)

    def repeated(
        self,
        leaves: Sequence[torch.Tensor],
        way: Sequence[int] = (),
        stops: bool = False,
        tangents: bool = False,
    ) -> list[Any]:
        """All values by number, for other values of the leaves, with `choices` as a way says, and with a derivative
        where the program says that there is none, or without; `tangents`: whether leaves have such."""
        values: list[Any] = [None] * len(self.plain)
        for number, leaf in zip(self.leaves, leaves, strict=True):
            values[number] = leaf.clone()

        indices = dict(zip(self.choices, way, strict=True)) if way else {}
        for place, step in enumerate(self.steps):
            chosen = (self.choices[place][0], indices[place]) if place in indices else None
            for number, value in zip(step.made, step.again(values, chosen, tangents), strict=True):
                values[number] = value.detach() if stops and step.is_stop else value
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

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self.read(UNSEEN, caller()))

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        return self.read(ARRAY, caller()).numpy(*args, **kwargs)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.read(ARRAY, caller()).__array__(*args, **kwargs)

    def tolist(self) -> Any:
        return self.read(NUMBER, caller()).tolist()

    def read(self, name: str, frame: Any) -> torch.Tensor:
        """The values, which the program is told."""
        if self.degrees:
            _told(self.reading, self.degrees, Cut(line_of(frame), name), self)
        return self.plain.detach()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func, kwargs)
        steps = name in JUMPS
        if func._schema.is_mutable and "out" not in kwargs and (steps or name in GAPS):
            same = getattr(getattr(aten, name_of(func)), func._overloadname)
            return aten.copy_(args[0], same(args[0].clone(), *args[1:], **kwargs))
        result = func(*_plain(args), **_plain(kwargs))
        traced = [t for t in leaves_of((args, kwargs)) if isinstance(t, cls)]
        reading = traced[0].reading
        degrees, frame = _degrees(name, args, kwargs), caller()
        line, by_distribution = origin(frame, name)
        cut = Cut(line, name.strip("_"), len(reading.steps))
        if not degrees:
            if func._schema.is_mutable:
                return kwargs.get("out", args[0])
            return _wrapped(reading, result, {}, {})
        if torch.Tag.nondeterministic_seeded in func.tags and reading.repeats:
            if not reading.is_drawing:
                reading.is_whole = False
                reading.leak(degrees, replace(cut, name="randomness of the program's own"))
            return _wrapped(reading, result, {}, {})
        numbered: Any = mapped(_numbered, (args, kwargs))
        if reading.repeats and not (by_distribution or steps):
            degrees = _parted(cut, args, numbered[0], degrees, reading)
        is_stop = name == "detach" or not torch.is_grad_enabled()
        is_stop = is_stop and reading.repeats and not (by_distribution or is_own(frame))
        if is_stop:
            stop = cut if torch.is_grad_enabled() else replace(cut, name="no_grad")
            reading.stops.add(stop)
            degrees = parted(degrees, degrees, stop)
        if func._schema.is_mutable:
            return _written(
                cut, args, kwargs, degrees, reading, Step(func, numbered[0], numbered[1], [])
            )
        from_numbers = not any(_is_inexact(t) and t.degrees for t in traced)
        is_known = by_distribution or from_numbers
        whole = stepped(degrees, cut, is_known)
        if steps:
            degrees = stepped(degrees, cut, by_distribution)
        if tells_number(result):
            if not by_distribution:
                _told(reading, degrees, replace(cut, name=NUMBER), traced[0])
            return result
        wrapped = _wrapped(reading, result, degrees, whole)
        if reading.repeats:
            made = [x for x in leaves_of(wrapped) if isinstance(x, cls)]
            numbers = [x.number for x in made if x.number is not None]
            func = aten.alias.default if func is aten.detach.default else func
            reading.step(Step(func, numbered[0], numbered[1], numbers, is_stop), degrees)
            stepping = [x.number for x in made if steps or not _is_inexact(x)]
            if stepping and not is_known and cut not in reading.results:
                reading.results[cut] = _result(name, numbered[0], stepping)
                if cut.name in GAPS:
                    gap = _gap(cut.name, numbered[0])
                    reading.gaps[cut] = reading.comparing[stepping[0]] = gap
            if cut in reading.results and torch.is_grad_enabled():
                tensors = (x for x in leaves_of((args, kwargs)) if isinstance(x, torch.Tensor))
                reading.trained[cut] = [x for x in tensors if x.requires_grad]
        return wrapped


def _wrapped(reading: Reading, result: Any, floating: Degrees, whole: Degrees) -> Any:
    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return reading.traced(x, floating if _is_inexact(x) else whole)

    return mapped(wrap, result)


def _is_inexact(x: torch.Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _plain(tree: Any) -> Any:
    return mapped(lambda x: x.plain if isinstance(x, Traced) else x, tree)


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


def _gap(name: str, args: Any) -> Callable[[list[Any]], Any]:
    """How to find by all values what changes its sign where the result of a comparison changes."""

    def gap(values: list[Any]) -> np.ndarray:
        known = (values[x.of] if isinstance(x, Number) else x for x in args)
        return _numpy(GAPS[name](*known)).ravel()

    return gap


def _parted(cut: Cut, args: Any, numbered: Any, degrees: Degrees, reading: Reading) -> Degrees:
    """What an operation made, if it may be infinite or jumps at values of its operands."""
    operand = pole(cut.name, args)
    if operand is not None and _of(args[operand]):
        number = numbered[operand].of
        reading.results[cut] = lambda values: _growth(values[number])
        reading.reaches[cut] = lambda values: _reach(values[number])
        return parted(degrees, _of(args[operand]), cut)
    if cut.name in SIDES:

        def side(values: list[Any]) -> np.ndarray:
            known = (values[x.of] if isinstance(x, Number) else x for x in numbered)
            return _numpy(SIDES[cut.name](*known))

        of = _of(args[0]) if cut.name in INVERSES else degrees
        if of:
            reading.results[cut] = side
        return parted(degrees, of, cut)
    return degrees


def pole(name: str, args: Any) -> int | None:
    """Which operand of an operation has a pole at zero."""
    is_power = name == "pow" and not (isinstance(args[1], int | float) and args[1] < 0)
    return None if is_power else POLES.get(name)


def chosen_among(name: str, args: Any) -> tuple[int, int] | None:
    """Which argument chooses that does not depend on the sites, and among how many. A factor that is zero does."""
    if name == "mul":
        factors = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor) and not x.any()]
        return (factors[0], 1) if factors else None
    which = {"where": 0, "masked_fill": 1}.get(name)
    return (which, 2) if which is not None and isinstance(args[which], torch.Tensor) else None


def _growth(x: torch.Tensor) -> np.ndarray:
    """Whether the size of a value grows along the way."""
    value, slope = forward_ad.unpack_dual(x)
    return _numpy(torch.zeros_like(value) if slope is None else value.sign() * slope.sign())


def _reach(x: torch.Tensor) -> np.ndarray:
    """How far on the way a value would be zero, by its slope; with its sign."""
    value, slope = forward_ad.unpack_dual(x)
    return _numpy(value * torch.inf if slope is None else value / slope.abs())


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _told(reading: Reading, degrees: Degrees, cut: Cut, value: Traced) -> None:
    """Note that the program was told a value."""
    if not value.is_floating_point() and all(
        f.is_continuous and not f.cuts for f in degrees.values()
    ):
        return
    cuts = {c for form in degrees.values() for c in form.cuts}
    is_check = any(c.name.endswith("_ex") and c.where == cut.where for c in cuts)
    if is_check or cut.where in reading.harmless:  # linear algebra asks whether it went well
        return
    cut = replace(cut, key=len(reading.results) + len(reading.reads))
    reading.leak(degrees, cut)
    number = value.number
    if value.is_floating_point():
        reading.reads.add(cut)
    elif number is not None:
        reading.results[cut] = lambda values: _numpy(values[number])
        reading.branches.add(cut)
        if number in reading.comparing:
            reading.gaps[cut] = reading.comparing[number]
        inner = {c: None for form in degrees.values() for c in form.cuts}
        reading.trained[cut] = [x for c in inner for x in reading.trained.get(c, ())]


def _written(
    cut: Cut, args: Any, kwargs: Any, degrees: Degrees, reading: Reading, step: Step
) -> Any:
    """The result of an operation that writes into its first operand, where that stays what it was."""
    target = kwargs.get("out", args[0])
    reach = reading.sharing.get(_storage(_plain(target)), [])
    is_continuous = all(form.is_continuous for form in degrees.values())
    fits = is_continuous and all(t.number is not None for t in reach)
    if not isinstance(target, Traced) or not (fits or target.degrees == degrees):
        reading.is_whole = False
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


class Watch:
    """Notices whether a program has an operation that takes steps, or may be infinite, or reads values at all.

    Attributes:
        found: whether it has.
        tells: whether it is told values as Python numbers.
    """

    def __init__(self) -> None:
        self.found = self.tells = False

    def see(self, func: Any, args: Any, kwargs: Any, result: Any, frame: Any) -> None:
        if self.found and self.tells:
            return
        name = name_of(func, kwargs).strip("_")
        made = result if isinstance(result, tuple) else (result,)
        whole = any(isinstance(x, torch.Tensor) and not _is_inexact(x) for x in made)
        operand = pole(name, args)
        divides = operand is not None and isinstance(args[operand], torch.Tensor)
        tells = tells_number(result)
        stops = not torch.is_grad_enabled() and not is_own(frame)
        steps = name in JUMPS or name in SIDES or name in GAPS
        if steps or divides or whole or tells or stops:
            of = any(isinstance(x, torch.Tensor) and _is_inexact(x) for x in leaves_of(args))
            # a program that is told something may take a way that this run does not see
            of = of or (tells and not is_own(frame, LIBRARIES))
            of = of and not origin(frame, name)[1]
            self.found, self.tells = self.found or of, self.tells or (of and tells)


class Reads(TorchFunctionMode):
    """Notices whether values are read without an operation, or detached. What a program makes of a list of tensors,
    it makes of a list of numbers here, and a deep copy by an operation.

    Args:
        before_set: to be done before a tensor gets the memory of another.

    Attributes:
        found: those that are read, and where.
        detaches: whether values are detached.
        is_checking: whether an operation reads a value to check it, of which the program is not told.
    """

    def __init__(self, before_set: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.before_set = before_set
        self.found: list[tuple[torch.Tensor, str]] = []
        self.detaches = self.is_checking = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        frame = caller()
        if func in TELLING:
            if not is_own(frame):
                self.found += [(x, line_of(frame)) for x in args if isinstance(x, torch.Tensor)]
            told = TELLING[func]
            args = tuple(x.read(told, frame) if isinstance(x, Traced) else x for x in args)
        if func == SETTING:
            self.before_set()
        if func is torch.Tensor.__deepcopy__ and args[0].is_leaf:
            func = _deeply_copied
        self.detaches |= func in DETACHING and not is_own(frame)
        of_list = listed(func, args)
        self.found += [(x, line_of(frame)) for x in of_list]
        if any(isinstance(x, Traced) for x in of_list):
            kwargs = {"dtype": of_list[0].dtype, **kwargs}
            args = (mapped(functools.partial(_listed, frame), args[0]), *args[1:])
        is_counted = len(args) > 1 or "num_classes" in kwargs
        self.is_checking = func is torch.nn.functional.one_hot and is_counted
        try:
            return func(*args, **kwargs)
        finally:
            self.is_checking = False


def _listed(frame: Any, x: Any) -> Any:
    return x.read(NUMBER, frame).tolist() if isinstance(x, Traced) else x


def _deeply_copied(x: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    if id(x) not in memo:
        memo[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
    return memo[id(x)]


def find_jumps_in(
    labels: Sequence[str],
    leaves: Mapping[str, torch.Tensor],
    execute: Callable[[DegreeProbe], None],
    number: int,
    one_way: bool = False,
    holds: bool = True,
    harmless: frozenset[str] = frozenset(),
) -> Jumps:
    """Which terms jump in the values of sites.

    Args:
        labels: of the sites.
        leaves: parameters by name, which are moved a little meanwhile.
        execute: makes a dry run with a probe.
        number: of the values of other sites.
        holds: whether values that are held do not move. If they do, it is only asked for jumps where parameters say.
        one_way: whether all elements of sites move in one direction, by which what is told of the least, of the
            largest or of all changes.
        harmless: lines at which values are read that make no difference.
    """

    held: dict[Any, torch.Tensor] = {}

    def places(place: float, only: str | None = None, aside: Aside = HERE) -> list[torch.Tensor]:
        moved = (place if only in (None, label) else 0.0 for label in labels)
        return [torch.tensor([x, *aside], dtype=torch.float64) for x in moved]

    def probe_with(
        starts: Sequence[torch.Tensor],
        reading: Reading,
        leaf: Callable[[str, torch.Tensor], Any],
        cut: Callable[[torch.Tensor], torch.Tensor],
        settled: dict[Any, torch.Tensor] | None = None,
    ) -> JumpProbe:
        """A dry run; the values of sites are those that are settled, or settle them."""
        set_noise(states)
        counts, drawn = Counter[str](), Counter[str]()

        def known(label: str, value: torch.Tensor) -> torch.Tensor:
            counts[label] += 1
            first = held.setdefault((label, counts[label]), value)
            return first if first.shape == value.shape else value

        def sampled(label: str, sample: Callable[[], torch.Tensor]) -> torch.Tensor:
            with reading.drawing():
                return known(label, _cut(sample()))

        def draw(label: str, dist: Any, t: torch.Tensor) -> Any:
            value = _on_the_way(dist.fn, t, reading, functools.partial(known, label), one_way)
            if not isinstance(value, Traced):
                return value
            plain = value.plain
            offset = torch.zeros_like(plain)
            if settled is not None:
                drawn[label] += 1
                offset = settled.setdefault((label, drawn[label]), plain) - plain
            return value.detach() + offset

        zeros = {label: leaf(label, start) for label, start in zip(labels, starts, strict=True)}
        probe = JumpProbe(zeros, draw=draw, cut=cut, known=sampled, number=number, holds=holds)
        with Reads():
            execute(probe)
        return probe

    def probe_at(
        place: float, only: str | None = None, settled: dict[Any, torch.Tensor] | None = None
    ) -> tuple[JumpProbe, Reading]:
        reading = Reading(repeats=True, harmless=harmless)

        def leaf(label: str, start: torch.Tensor) -> Traced:
            return reading.leaf(label, start, None)

        return probe_with(places(place, only), reading, leaf, _cut, settled), reading

    def plainly(starts: Sequence[torch.Tensor], cut: Any) -> list[torch.Tensor]:
        """Of a run that is not traced."""
        values = probe_with(starts, Reading(), lambda label, start: start, cut).values()
        return [torch.as_tensor(v) for v in values]

    def slopes(place: float, only: str | None) -> tuple[np.ndarray, Callable[[float], Sums]]:
        """By torch, and by runs of the program that see the same held values."""
        kept: list[torch.Tensor] = []

        def keeping(value: torch.Tensor) -> torch.Tensor:
            kept.append(_cut(value))
            return kept[-1]

        with torch.enable_grad():
            starts = [start.requires_grad_() for start in places(place)]
            totals = weighted(plainly(starts, keeping), torch.as_tensor)
        found = derivatives(totals, starts, only)

        def sums(by: float) -> Sums:
            again = iter(kept)
            shifted = places(by, only)
            starts = [a + b for a, b in zip(places(place), shifted, strict=True)]
            terms = plainly(starts, lambda value: next(again))
            return np.array([t.item() for t in weighted(terms, torch.as_tensor)]), rounded(
                numbers(terms)
            )

        return found, sums

    def slopes_on(
        place: float, only: str | None, way: tuple[int, ...]
    ) -> tuple[np.ndarray, Callable[[float], Sums]]:
        """By torch, and by the operations that were followed, where the program chooses otherwise."""

        def sums_at(starts: Sequence[torch.Tensor], stops: bool) -> tuple[list[Any], list[Any]]:
            values = reading.repeated(starts, way, stops)
            terms = [values[x.of] if isinstance(x, Number) else x for x in numbered]
            terms = [torch.as_tensor(term) for term in terms]
            return weighted(terms, torch.as_tensor), terms

        with torch.enable_grad():
            starts = [start.requires_grad_() for start in places(place)]
            totals, _ = sums_at(starts, True)

        def sums(by: float) -> Sums:
            moved = [a + b for a, b in zip(places(place), places(by, only), strict=True)]
            totals, terms = sums_at(moved, False)
            return np.array([t.item() for t in totals]), rounded(numbers(terms))

        return derivatives(totals, starts, only), sums

    def derivatives(
        totals: Sequence[torch.Tensor], starts: Sequence[torch.Tensor], only: str | None
    ) -> np.ndarray:
        moving = [start for k, start in zip(labels, starts, strict=True) if only in (None, k)]
        found = np.zeros(len(totals))
        for i, total in enumerate(totals):
            if total.requires_grad:
                grads = torch.autograd.grad(total, moving, retain_graph=True, allow_unused=True)
                found[i] = sum(g[0].item() for g in grads if g is not None)
        return found

    def numbers(values: Iterable[Any]) -> list[np.ndarray]:
        return [_numpy(torch.as_tensor(v)) for v in values]

    with moved_a_little(leaves.values()):
        states = noise_states()
        probe, reading = probe_at(0.0)
        made = probe.values()
        base = {cut: reading.results[cut](reading.plain) for cut in reading.branches}
        numbered = mapped(_numbered, made)

        def at(
            place: float, aside: Aside = HERE, only: str | None = None, way: Sequence[int] = ()
        ) -> Snapshot:
            with forward_ad.dual_level():
                starts = [dual(leaf) for leaf in places(place, only, aside)]
                return snapshot(reading.repeated(starts, way, tangents=has_slopes))

        def at_many(
            several: Sequence[float], aside: Aside = HERE, way: Sequence[int] = ()
        ) -> list[Snapshot]:
            nonlocal is_mapped
            if is_mapped and len(several) > 1:
                by_place = (places(place, aside=aside) for place in several)
                stacked = [torch.stack(leaf) for leaf in zip(*by_place, strict=True)]

                def values_at(*starts: Any) -> list[Any]:
                    return reading.repeated(starts, way, tangents=has_slopes)

                try:
                    with forward_ad.dual_level():
                        values = torch.vmap(values_at)(*map(dual, stacked))
                        return [snapshot(Mapped(values, i)) for i in range(len(several))]
                except (RuntimeError, ValueError, NotImplementedError):
                    is_mapped = False  # an operation cannot be
            return [at(place, aside, way=way) for place in several]

        def snapshot(values: Any) -> Snapshot:
            results: dict[Cut, Any]
            results = {cut: result(values) for cut, result in reading.results.items()}
            gaps = {cut: gap(values) for cut, gap in reading.gaps.items()}
            terms = numbers(values[x.of] if isinstance(x, Number) else x for x in numbered)
            reaches = {cut: reach(values) for cut, reach in reading.reaches.items()}
            if not has_slopes:
                results.update({cut: None for cut in results if cut.name in POLES})
            elsewhere = any(not np.array_equal(base[b], results[b]) for b in reading.branches)
            return Snapshot(results, terms, elsewhere, gaps, reaches)

        def dual(leaf: torch.Tensor) -> torch.Tensor:
            if not has_slopes:
                return leaf
            with warnings.catch_warnings():  # of what torch loads the first time
                warnings.simplefilter("ignore")
                along = torch.tensor([1.0, *HERE], dtype=leaf.dtype)
                return forward_ad.make_dual(leaf, along.expand_as(leaf).clone())

        is_mapped = sum(x.numel() for x in reading.plain) <= MAX_MAPPED
        has_slopes = any(cut.name in POLES for cut in reading.results)
        if has_slopes:
            try:
                at(0.0)
            except (RuntimeError, NotImplementedError):  # an operation has no forward derivative
                has_slopes = False

        def again(place: float, only: str | None) -> tuple[Snapshot, Snapshot] | None:
            try:
                values = plainly(places(place, only), _cut)
            except Exception:  # the program may refuse values that are far from a draw
                return None
            there = at(place, only=only)
            there = replace(there, is_elsewhere=there.is_elsewhere or not reading.is_whole)
            return Snapshot({}, numbers(values)), there

        def shifted(cut: Cut, place: float, name: str) -> np.ndarray | None:
            settled: dict[Any, torch.Tensor] = {}
            try:
                with torch.enable_grad():
                    probe_at(place, settled=settled)
                with moved_a_little([leaves[name]]):
                    with torch.enable_grad():
                        moved = probe_at(place, settled=settled)[1]
                    with forward_ad.dual_level():
                        starts = [dual(leaf) for leaf in places(place)]
                        return moved.results[cut](moved.repeated(starts, tangents=has_slopes))
            except Exception:  # the program may take another way, or refuse values
                return None

        sources, degrees = probe.sources(), degrees_of(probe)
        names = {id(p): name for name, p in leaves.items()}
        trained = {
            cut: [names[id(p)] for p in reached(operands) if id(p) in names]
            for cut, operands in reading.trained.items()
        }
        trained = {cut: of for cut, of in trained.items() if of}
        if not holds:
            degrees = with_cuts(degrees, trained.keys())
            if not any(form.cuts for of in degrees for form in of.values()):
                return Jumps()
        with torch.no_grad():
            start, plain = at(0.0).terms, numbers(_plain(made))
            same = all(np.allclose(a, b, equal_nan=True) for a, b in zip(start, plain, strict=True))
            nowhere = Snapshot({}, start)  # the program is not what was traced
            found = find_jumps(
                sources,
                degrees,
                at if same else lambda place, aside: nowhere,
                again if same else None,
                frozenset(reading.branches),
                frozenset(reading.reads),
                frozenset(reading.stops),
                slopes,
                trained,
                shifted,
                at_many=at_many if same and is_mapped else None,
            )
            of_chosen = with_cuts(degrees, reading.chosen - reading.reads)
            for way in ways([size for _, size in reading.choices.values()]) if same else ():
                if not found.of_all(labels):
                    more = find_jumps(
                        sources,
                        of_chosen,
                        functools.partial(at, way=way),
                        stops=frozenset(reading.stops),
                        slopes=functools.partial(slopes_on, way=way),
                        at_many=functools.partial(at_many, way=way) if is_mapped else None,
                    )
                    found = found.joined(more)
            return found


@contextmanager
def moved_a_little(leaves: Iterable[torch.Tensor]) -> Iterator[None]:
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


def _on_the_way(
    fn: Any,
    t: torch.Tensor,
    reading: Reading,
    known: Callable[[torch.Tensor], torch.Tensor],
    one_way: bool,
) -> Any:
    """A value on the way from a draw, all elements one way or each its own; of a transformed distribution it is its
    noise that moves."""
    if isinstance(fn, torch.distributions.Independent):
        return _on_the_way(fn.base_dist, t, reading, known, one_way)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = _on_the_way(fn.base_dist, t, reading, known, one_way)
        for transform in fn.transforms:
            value = transform(value)
        return value
    with reading.drawing():
        draws = [_cut(fn.sample()) for _ in range(NUM_DRAWS)]
        bijection = biject_to(fn.support)
        free = torch.stack([_cut(bijection.inv(draw)).double() for draw in draws])
        one, *others = known(free)
    steps = torch.stack([other - one for other in others])
    step = (steps**2).mean(0).sqrt()
    step = step if one_way else torch.sign(steps[0]) * step
    moved_by = torch.tensordot(t.to(step.device), torch.stack([step, *steps[1:]]), 1)
    return bijection((one + moved_by).to(draws[0].dtype))


def _of(x: Any) -> dict[str, Form]:
    """What an argument is; of a list, what its elements are together."""
    operands = [t.degrees for t in leaves_of(x) if isinstance(t, Traced)]
    return derive("list", moved, operands) if operands else {}


def _degrees(name: str, args: Any, kwargs: Any) -> dict[str, Form]:
    if name in SPECIAL:
        return SPECIAL[name](name, *args, **kwargs)
    if KIND.get(name) == "shape":
        return {}
    operands = [*map(_of, args), *map(_of, kwargs.values())]
    rule = None if _is_whole(kwargs.get("dtype")) else rule_for(name, RULES)
    return derive(name, rule or unknown, operands)


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


def _xlogy(name: str, x: Any, y: Any) -> dict[str, Form]:
    return derive(name, product, [_of(x), derive("log", logarithm, [_of(y)])])


def _reciprocal(name: str, x: Any) -> dict[str, Form]:
    return derive(name, quotient, [{}, _of(x)])


SPECIAL: Mapping[str, Callable[..., dict[str, Form]]] = {
    **dict.fromkeys(("add", "sub"), _sum),
    "pow": _power,
    **dict.fromkeys(KINDS["added product"].split(), _added_product),
    "addcdiv": _added_quotient,
    "convolution": _convolution,
    "reciprocal": _reciprocal,
    "xlogy": _xlogy,
}
"""Those whose operands are of different kinds."""
