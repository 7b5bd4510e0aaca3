"""Which torch programs see several elements of a plate at once, or of what lies in front of their own dims.

Of which elements each entry of a tensor is made is read off the ATen operations of one run.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from pyro.ops.provenance import detach_provenance, get_provenance
from torch.distributions import Independent, TransformedDistribution
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vi_kit.analysis.mixing import (
    NOTHING,
    NOWHERE,
    Along,
    Place,
    along,
    broadcast,
    gathered,
    merged,
    moved,
    spread_out,
    together,
)
from vi_kit.base.named import Axis
from vi_kit.engine.run import Run
from vi_kit.pyro.expectations import Random
from vi_kit.pyro.frames import LIBRARIES, caller, is_own, line_of
from vi_kit.pyro.leaks import COUNTED, SHAPES, is_apart, tensors_in
from vi_kit.pyro.operations import KIND, name_of, rule_for
from vi_kit.pyro.reader import Domain, Operation, Record

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """An operation.

    Attributes:
        func: what was called.
        name: without the underscore of one that writes into an operand.
        given: the arguments by name.
        made: its results that are tensors.
        may_change: numbers of those arguments that are made of the arguments of the program.
        held: what there was in the tensors of indices, by number.
    """

    func: Any
    name: str
    given: Mapping[str, Any]
    made: Sequence[torch.Tensor]
    may_change: frozenset[int]
    held: Mapping[int, torch.Tensor]


Operands = Sequence[tuple[torch.Tensor, Along]]
"""Those that are made of elements of a plate, and where these lie."""

Rule = Callable[[Call, Operands], Any]
"""From an operation to where they lie in its results, a `Place`, or in each of them, a list."""


@dataclass(frozen=True)
class Spot:
    """Which numbers of its storage a tensor has."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storage: torch.Tensor) -> torch.Tensor:
        return storage.as_strided(self.shape, self.strides, self.offset)


class Shapes(TorchFunctionMode):
    """Notices where a program counts dims, or elements, of tensors that have more of them than it would have alone.

    Args:
        reader: knows those tensors.
    """

    def __init__(self, reader: Mixing) -> None:
        super().__init__()
        self.reader = reader

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        frame = caller()
        if func not in (*COUNTED, *SHAPES) or is_own(frame, LIBRARIES):
            return result
        places = self.reader.places(detach_provenance(args[0]))
        in_front = {n for n, p in places.items() if self.reader.lies_apart(n, p)}
        if not in_front:
            return result

        def told() -> None:
            self.reader.tell(in_front, line_of(frame))

        if func in SHAPES and len(args) == 1 and not kwargs:
            return Shape(result, told)
        if func in COUNTED or _dim(args, kwargs) >= 0:
            told()
        return result


def _dim(args: Any, kwargs: Any) -> int:
    return args[1] if len(args) > 1 else kwargs["dim"]


class Shape(tuple):
    """Of a tensor that has more dims than a program knows. It says so if these are counted from the first one."""

    told: Callable[[], None]

    def __new__(cls, sizes: Sequence[int], told: Callable[[], None]) -> Shape:
        self = super().__new__(cls, sizes)
        self.told = told
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index >= 0:
            self.told()
        return super().__getitem__(index)

    def numel(self) -> int:
        self.told()
        return math.prod(self)


TURNING = (aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_, aten.swapaxes_, aten.swapdims_)
"""Give a tensor another shape in place."""

GIVEN = -1
"""In the place of the number of a plate: the arguments of the program."""


class Mixing(Domain):
    """Reads off operations of which elements of plates, or of other axes, tensors are made.

    Args:
        record: of the operations of a program.
        arguments: of the program.
        harmless: lines at which what the program is told makes no difference.

    Attributes:
        numbers: of the axes.
        told: axes of whose elements the program was told values, so that any later one may depend on them; where.
        unknown: axes whose elements came to an operation of which nothing is known; which.
        apart: axes whose elements were taken apart.
    """

    def __init__(
        self, record: Record, arguments: Any, harmless: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(record)
        self.harmless = harmless
        self.numbers: dict[Axis, int] = {}
        self.told, self.unknown, self.apart = dict[int, str](), dict[int, str](), set[int]()
        self._counts: dict[int, int] = {}
        self._places: defaultdict[int, dict[Spot, dict[int, Place]]] = defaultdict(dict)
        self._written: defaultdict[int, dict[int, torch.Tensor]] = defaultdict(dict)
        for x in _tensors(arguments):
            self._add(x, {GIVEN: None})

    def mark(self, value: torch.Tensor, dims: Mapping[Axis, int]) -> None:
        """Say along which dims of a tensor the elements of axes lie, of whatever it was made."""
        self.later(functools.partial(self._mark, value, dims))

    def _mark(self, value: torch.Tensor, dims: Mapping[Axis, int]) -> None:
        places: dict[int, Place] = {}
        for axis, dim in dims.items():
            number = self.numbers.setdefault(axis, len(self.numbers))
            self._counts[number] = axis.size
            if value.shape[dim] != axis.size:
                raise ValueError(f"{axis.name} is not dim {dim} of shape {tuple(value.shape)}")
            places[number] = along(dim % value.ndim, range(1, axis.size + 1))
        write = self._write if self._written[_memory(value)] else self._add
        write(value, places)

    def drawn(self, fn: Any, dims: Mapping[Axis, int], pathwise: bool) -> torch.Tensor:
        """A value of a distribution whose elements are drawn apart, along these dims; a transform may mix them."""
        if isinstance(fn, Independent):
            return self.drawn(fn.base_dist, dims, pathwise)
        if isinstance(fn, TransformedDistribution) and _only_transforms(type(fn)):
            value: Any = self.drawn(fn.base_dist, dims, pathwise)
            for transform in fn.transforms:
                value = transform(value)
            return value
        with self.record.drawing():
            value = fn.rsample() if pathwise else fn.sample()
        self.mark(value, dims)
        return value

    @contextmanager
    def modes(self) -> Iterator[None]:
        """All that is to be entered where something lies in front."""
        with self.record.modes(), Shapes(self):
            yield

    def mark_in_front(self, run: Run, value: torch.Tensor, event_ndim: int) -> None:
        """Say so of a drawn value and what lies in front of its plates."""
        if isinstance(value, Random):
            if value.sample is None:
                return
            value = value.sample()
        layout = run.layout((), get_provenance(value), "a value")
        value = detach_provenance(value)
        dims = {axis: dim - event_ndim for dim, axis in layout.items()}
        self.mark(
            value,
            {a: d for a, d in dims.items() if value.ndim >= -d and value.shape[d] == a.size > 1},
        )

    def lies_apart(self, number: int, place: Place) -> bool:
        """Whether the elements of an axis have a dim of a tensor to themselves."""
        if number == GIVEN or place is None:
            return number != GIVEN
        return place.dim != NOWHERE and len(place.elements) == self._counts[number]

    def places(self, value: torch.Tensor) -> dict[int, Place]:
        """Where elements lie in a tensor. Those that were taken apart may have met, if the program was told what its
        arguments are: at others it may do something else."""
        self.catch_up()
        with self.record.reading():
            for x, line in self.record.reads.found:
                self._tell(self._of(detach_provenance(x)), line)
            self.record.reads.found.clear()
            told = {*self.told}
            lost = told | (self.apart if GIVEN in told else set())
            return {**self._of(value), **dict.fromkeys(lost, None)}

    def along(self, axes: Sequence[Axis], value: torch.Tensor) -> dict[int, Place]:
        """Where the elements of axes lie in a tensor, by their place among these."""
        places = self.places(value)
        numbers = {self.numbers[axis]: i for i, axis in enumerate(axes) if axis in self.numbers}
        return {i: places[number] for number, i in numbers.items() if number in places}

    def tell(self, numbers: Iterable[int], line: str) -> None:
        """Note that the program is told something of all elements of axes."""
        self.told.update({n: line for n in numbers if n not in self.told})

    def _tell(self, numbers: Iterable[int], line: str) -> None:
        if line not in self.harmless:
            self.tell(numbers, line)

    def _of(self, value: torch.Tensor) -> dict[int, Place]:
        """Of what is not known in memory that is, no more than that elements are in there."""
        memory, spot = _memory(value), _spot(value)
        known = self._places[memory] if memory in self._places else {}
        written = self._written[memory] if memory in self._written else {}
        if not written and (spot in known or not known):
            return known.get(spot, {})
        if not all(len(storage) == _size(value) for storage in written.values()) or not written:
            return dict.fromkeys({n for of in (written, *known.values()) for n in of})
        found = {n: gathered(spot.of(storage).numpy()) for n, storage in written.items()}
        return {n: p for n, p in {**known.get(spot, {}), **found}.items() if p != NOTHING}

    def _add(self, value: torch.Tensor, places: dict[int, Place]) -> None:
        self._places[_memory(value)][_spot(value)] = places

    def _write(self, value: torch.Tensor, places: Mapping[int, Place]) -> None:
        """Note what was written into a tensor, and with it into all that share its memory."""
        memory, spot = _memory(value), _spot(value)
        known, written = self._places[memory], self._written[memory]
        for number in {n for of in (places, *known.values()) for n in of} - written.keys():
            written[number] = storage = torch.zeros(_size(value), dtype=torch.int64)
            for other, of in known.items():
                if number in of:
                    other.of(storage).copy_(_elements(of[number], other.shape))
        for number, storage in written.items():
            if len(storage) != _size(value):  # numbers of another type are there
                storage.copy_(_elements(None, storage.shape))
                continue
            spot.of(storage).copy_(_elements(places.get(number, NOTHING), spot.shape))

    def note(self, operation: Operation) -> None:
        func, args, kwargs = operation.func, operation.args, operation.kwargs
        of = [] if operation.is_drawing else list(self._operands((args, kwargs)))
        if func.overloadpacket in TURNING:
            self._turned(operation)
        elif of or (self._written and func._schema.is_mutable):
            self._follow(operation, of)

    def _turned(self, operation: Operation) -> None:
        """What gives a tensor another shape in place."""
        before, value = operation.before, operation.args[0]
        assert before is not None
        found: dict[int, Place] = {}
        for number, place in self._of(before).items():
            elements = _elements(place, before.shape).clone()
            operation.func(elements, *operation.args[1:], **operation.kwargs)
            found[number] = gathered(elements.numpy())
        self._add(value, found)

    def _operands(self, arguments: Any) -> Iterator[tuple[torch.Tensor, dict[int, Place]]]:
        for x in _tensors(arguments):
            places = self._of(x)
            if places:
                yield x, places

    def _follow(self, operation: Operation, of: Any) -> None:
        func, args, kwargs = operation.func, operation.args, operation.kwargs
        told = operation.told
        if told is not None and not told.is_checked:
            self._tell({n for _, found in of for n in found}, told.line)
        schema = func._schema.arguments
        given = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(schema)
        }
        into = [given[a.name] for a in schema if a.alias_info and a.alias_info.is_write]
        name = name_of(func)
        written, made = _tensors(into), _tensors(operation.result)
        if name == "set" or KIND.get(name) == "shape" or not (made or written):
            return
        may_change = frozenset(id(x) for x, places in of if GIVEN in places)
        call = Call(func, name, given, made or written, may_change, operation.held)
        if name in ("copy", "fill"):  # what was there before is gone
            of = [(x, places) for x, places in of if x is not given["self"]]
        results = self._results(call, of, operation.is_own)
        for x, places in zip(call.made, results, strict=True):
            self._add(x, {n: p for n, p in places.items() if p != NOTHING})
        for x in written:
            at = next((i for i, y in enumerate(call.made) if y is x), None)
            lost = {n: None for places in results for n in places}
            self._write(x, lost if at is None else results[at])

    def _results(self, call: Call, of: Any, by_own: bool) -> list[dict[int, Place]]:
        """By result, where what lies in the operands is in it."""
        rule, results = _rule(call), [dict[int, Place]() for _ in call.made]
        if rule is _unknown:
            self.unknown.update({n: call.name for _, places in of for n in places})
        for number in {n: None for _, places in of for n in places}:
            operands = [(x, places[number]) for x, places in of if number in places]
            found = None if None in [p for _, p in operands] else rule(call, operands)
            found = found if isinstance(found, list) else [found] * len(results)
            if number not in self.apart and any(
                p and not _is_whole(p, self._counts.get(number, 0)) for p in found
            ):
                self.apart.update([] if by_own else [number])
            for x, place, places in zip(call.made, found, results, strict=True):
                places[number] = _checked(place, x.shape)
        return results


def _only_transforms(cls: type[TransformedDistribution]) -> bool:
    """Whether the draws of a class are those of the base, transformed, and nothing else."""
    own, plain = (cls.sample, cls.rsample), TransformedDistribution
    return own == (plain.sample, plain.rsample)


def _is_whole(place: Along, count: int) -> bool:
    """Whether an array has all elements in their order, each as often in a row as the others; or none."""
    if place.dim == NOWHERE:
        return place == NOTHING
    found = np.array(place.elements)
    num = int(np.argmax(found != found[0]))
    return found.size % count == 0 and (found == np.arange(found.size) // num % count + 1).all()


def _checked(place: Place, shape: Sequence[int]) -> Place:
    """A place that a result of this shape can have."""
    if place is None or place.dim == NOWHERE:
        return place
    return place if tuple(shape[place.dim : place.dim + 1]) == (len(place.elements),) else None


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Those that have memory to be known by."""
    return [x for x in tensors_in(tree) if not is_apart(x)]


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


def _size(value: torch.Tensor) -> int:
    """How many numbers of its type are in the memory of a tensor."""
    return value.untyped_storage().nbytes() // value.element_size()


def _spot(value: torch.Tensor) -> Spot:
    return Spot(int(value.storage_offset()), tuple(value.shape), value.stride())


def _rule(call: Call) -> Rule:
    rule = rule_for(call.name, RULES)
    if rule is not None:
        return rule
    packet = getattr(aten, call.name, call.func.overloadpacket)
    overloads = [call.func, *(getattr(packet, o) for o in packet.overloads()[:1])]
    return _elementwise if any(torch.Tag.pointwise in o.tags for o in overloads) else _unknown


def _unknown(call: Call, operands: Operands) -> Place:
    del call, operands
    return None


def _elementwise(call: Call, operands: Operands) -> Place:
    """Of tensors that are broadcast."""
    shape = call.made[0].shape
    return together(broadcast(place, x.shape, shape) for x, place in operands)


def _kept(call: Call, operands: Operands) -> Place:
    """Where dims count from the first one."""
    del call
    return together(place for _, place in operands)


def _elements(place: Place, shape: Sequence[int]) -> torch.Tensor:
    """For each entry of a tensor the element of which it is made."""
    spread = spread_out(place, shape)
    own = spread[tuple(slice(0, None if step else 1) for step in spread.strides)]
    return torch.from_numpy(np.array(own)).expand(tuple(shape))


def _rearranged(call: Call, operands: Operands) -> list[Place]:
    """Of operations that leave numbers as they are: the same is done with the elements of which they are made."""
    places = {id(x): place for x, place in operands}

    def elements(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in indices:
            return call.held[id(x)].cpu()
        return _elements(places.get(id(x), NOTHING), x.shape)

    indices = {id(x) for name in ("index", "indices") for x in _tensors(call.given.get(name))}
    given = tree_map(elements, {**call.given, **({"value": 0} if "value" in call.given else {})})
    if KIND.get(call.name) == "reshape":
        if given["self"].numel() != call.made[0].numel():  # numbers of another type
            return [None]
        made = given["self"].reshape(call.made[0].shape)
    else:
        named = {a.name: a.kwarg_only for a in call.func._schema.arguments}
        args = [given[name] for name, by_name in named.items() if not by_name]
        made = call.func(*args, **{n: given[n] for n, by_name in named.items() if by_name})
    return [gathered(x.numpy()) for x in _tensors(made)]


def _along(call: Call, num_dims: int) -> tuple[int, ...]:
    """The dims along which an operation goes; all, if none is given."""
    names = ("dim", "dims", "dimension")
    dims = next((call.given[name] for name in names if name in call.given), None)
    if dims is None or dims == []:
        return tuple(range(num_dims))
    return tuple(d % num_dims for d in (dims if isinstance(dims, list | tuple) else (dims,)))


def _outside(call: Call, operands: Operands) -> Place:
    """Of operations along dims which stay."""
    dims, place = _along(call, max(1, operands[0][0].dim())), _kept(call, operands)
    return merged(place) if place is not None and place.dim in dims else place


def _without(call: Call, operands: Operands) -> Place:
    """Of operations along dims which are gone."""
    dims, place = _along(call, max(1, operands[0][0].dim())), _kept(call, operands)
    if place is None or place.dim == NOWHERE:
        return place
    if place.dim in dims:
        return merged(place)
    gone = 0 if call.given.get("keepdim") else sum(d < place.dim for d in dims)
    return moved(place, place.dim - gone)


def _before_the_last(num: int) -> Rule:
    """Of functions of so many dims at the end."""

    def rule(call: Call, operands: Operands) -> Place:
        found: list[Place] = []
        for x, place in operands:
            is_inside = place.dim != NOWHERE and place.dim >= x.dim() - num
            found.append(merged(place) if is_inside else place)
        smaller = call.made[0].dim() < operands[0][0].dim()
        if None in found or smaller:
            return together(found)
        pairs = zip(operands, cast(list[Along], found), strict=True)
        return _elementwise(call, [(x, place) for (x, _), place in pairs])

    return rule


SOLVED = {
    "linalg_solve_triangular": "B",
    "_linalg_solve_ex": "B",
    "linalg_lu_solve": "B",
    "triangular_solve": "self",
    "cholesky_solve": "self",
}
"""The argument of the right side of an equation, whose columns are by themselves."""


def _solved(call: Call, operands: Operands) -> Place:
    right = call.given[SOLVED[call.name]]
    columns = right.dim() - 1 if call.given.get("left", True) and right.dim() > 1 else None
    matrices = [(x, p) for x, p in operands if x is not right or p.dim != columns]
    found: list[Place] = [
        moved(p, call.made[0].dim() - 1) for x, p in operands if x is right and p.dim == columns
    ]
    return together([*found, _before_the_last(2)(call, matrices)] if matrices else found)


def _loss(call: Call, operands: Operands) -> Place:
    place = _elementwise(replace(call, made=[call.given["self"]]), operands)
    return merged(place) if place is not None and call.given["reduction"] else place


def _picked_loss(call: Call, operands: Operands) -> Place:
    """Of the negative log probability of a class."""
    own, target = _place_of(call, operands, "self"), _place_of(call, operands, "target")
    if call.given["self"].dim() == 1 or own.dim == 1:
        return None
    place = together([moved(own, own.dim - (own.dim > 1)), target])
    return merged(place) if place is not None and call.given["reduction"] else place


def _place_of(call: Call, operands: Operands, name: str) -> Along:
    """That of an argument."""
    return next((place for x, place in operands if x is call.given[name]), NOTHING)


PRODUCTS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
}
"""The arguments that are multiplied."""


def _product(call: Call, operands: Operands) -> Place:
    names = PRODUCTS[call.name]
    left, right = (_place_of(call, operands, name) for name in names)
    sizes = [call.given[name].dim() for name in names]
    found = [
        merged(left) if left.dim == sizes[0] - 1 else left,
        merged(right) if right.dim == max(0, sizes[1] - 2) else right,
    ]
    added = [] if "self" in names else [o for o in operands if o[0] is call.given["self"]]
    return together([*found, *(_elementwise(call, [o]) for o in added)])


def _of_rows(call: Call, operands: Operands) -> Place:
    """Of functions of everything but the first dim of an input."""
    place = _kept(call, operands)
    is_input = all(x is call.given["input"] or p.dim == NOWHERE for x, p in operands)
    return place if place is not None and is_input and place.dim in (0, NOWHERE) else None


def _of_first_dims(call: Call, operands: Operands) -> Place:
    """Of functions of rows of all operands."""
    place = _kept(call, operands)
    return place if place is not None and place.dim in (0, NOWHERE) else None


def _layer_norm(call: Call, operands: Operands) -> Place:
    return _before_the_last(len(call.given["normalized_shape"]))(call, operands)


def _batch_norm(call: Call, operands: Operands) -> list[Place]:
    if any(x is not call.given["input"] for x, _ in operands):
        return [None] * len(call.made)
    ((_, own),) = operands
    is_apart = not call.given["training"] or own.dim == 1
    return [own if is_apart else merged(own), *[merged(own)] * (len(call.made) - 1)]


def _recurrent(call: Call, operands: Operands) -> list[Place]:
    """Of one layer, over the first dim of its input."""
    place = _place_of(call, operands, "input")
    known = {id(call.given[name]) for name in ("input", "hx_", "cx_")}
    states = [p for x, p in operands if x is not call.given["input"]]
    if any(id(x) not in known for x, _ in operands) or place.dim not in (1, NOWHERE):
        return [None] * len(call.made)
    batch = together([moved(place, 0), *states])
    if batch is None or batch.dim not in (0, NOWHERE):
        return [None] * len(call.made)
    last = [moved(batch, x.dim() - 2) for x in call.made[1:3]]
    return [moved(batch, 1), *last, *[None] * (len(call.made) - 3)]


def _embedded(call: Call, operands: Operands) -> Place:
    weight, indices = _place_of(call, operands, "weight"), _place_of(call, operands, "indices")
    weight = merged(weight) if weight.dim == 0 else moved(weight, call.made[0].dim() - 1)
    return together([weight, indices])


def _gathered(call: Call, operands: Operands) -> Place | list[Place]:
    """Taken at, or put to, indices along a dim."""
    index = _place_of(call, operands, "index")
    dim = call.given["dim"] % max(1, call.given["self"].dim())
    touched = any(place.dim == dim for x, place in operands if x is not call.given["index"])
    adds = call.name in ("scatter_add", "scatter_reduce", "index_add")
    if (
        index == NOTHING
        and not adds
        and not (touched and id(call.given["index"]) in call.may_change)
    ):
        return _rearranged(call, operands)
    if call.name == "index_select":
        index = moved(index, dim)
    found = [merged(p) if p.dim == dim else p for x, p in operands if x is not call.given["index"]]
    if call.name not in ("gather", "index_select") and index.dim == dim:
        return None
    sizes = call.made[0].shape
    fitted = [
        p if p is None or p.dim == NOWHERE else along(p.dim, p.elements[: sizes[p.dim]])
        for p in (*found, index)
    ]
    return together(fitted)


def _indexed(call: Call, operands: Operands) -> Place | list[Place]:
    x, indices = call.given["self"], list(call.given["indices"])
    own, given = _place_of(call, operands, "self"), [i for i in indices if i is not None]
    placed = {id(i): place for i, place in operands if any(i is other for other in given)}
    found: list[Place] = []
    if own != NOTHING:
        by = indices[own.dim] if 0 <= own.dim < len(indices) else None
        masks = any(i.dtype in (torch.bool, torch.uint8) for i in given)
        may_change = call.may_change if own.dim != NOWHERE else frozenset()
        at_fault = given if masks else [by] if by is not None else []
        if any(id(i) in placed or id(i) in may_change for i in at_fault):
            own = merged(own)
            if own is None:
                return None
        found += _rearranged(call, [(x, own)])
    if placed:
        if any(i.dtype in (torch.bool, torch.uint8) for i in given):
            return None
        shape = torch.broadcast_shapes(*(i.shape for i in given))
        places = [d for d, i in enumerate(indices) if i is not None]
        front = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
        for i in given:
            place = broadcast(placed.get(id(i), NOTHING), i.shape, shape)
            found.append(place if place is None else moved(place, front + place.dim))
    return together(found)


def _put(call: Call, operands: Operands) -> Place | list[Place]:
    """What is written at indices, or one number at a mask."""
    indices, values = call.given["indices"], call.given["values"]
    is_mask = [i is not None and i.dtype == torch.bool for i in indices] == [True]
    if is_mask and indices[0].dim() == call.given["self"].dim() and values.dim() == 0:
        return _kept(call, operands)
    if call.given.get("accumulate") or any(
        x is i or id(i) in call.may_change for i in indices for x, _ in operands
    ):
        return None
    return _rearranged(call, operands)


def _searched(call: Call, operands: Operands) -> Place:
    edges = call.given.get("boundaries", call.given.get("sorted_sequence"))
    place = together(place for _, place in operands)
    return None if any(x is edges for x, _ in operands) else place


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("copy", "noise"), _elementwise),
    **_named("fill masked_fill log_sigmoid_forward _prelu_kernel resolve_conj", _elementwise),
    **_named("log_sigmoid_backward softplus_backward elu_backward mish_backward", _elementwise),
    **_named("leaky_relu_backward hardtanh_backward hardsigmoid_backward", _elementwise),
    **_named("hardswish_backward mse_loss_backward huber_loss_backward", _elementwise),
    **_named("binary_cross_entropy_backward smooth_l1_loss_backward", _elementwise),
    **_named("select_backward slice_backward", _rearranged),
    **_named("_softmax_backward_data _log_softmax_backward_data", _outside),
    **_named("triangle view_as_real view_as_complex", _kept),
    **dict.fromkeys(("layout", "reshape"), _rearranged),
    **dict.fromkeys(("total", "reduction"), _without),
    **dict.fromkeys(("running total", "running"), _outside),
    **_named(
        "gather scatter scatter_add scatter_reduce index_select index_add index_fill", _gathered
    ),
    "index": _indexed,
    "index_put": _put,
    "embedding": _embedded,
    **_named("bucketize searchsorted", _searched),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(SOLVED, _solved),
    **_named("matrix _cdist_forward", _before_the_last(2)),
    **_named("binary_cross_entropy binary_cross_entropy_with_logits mse_loss", _loss),
    **_named("smooth_l1_loss huber_loss soft_margin_loss", _loss),
    **_named("nll_loss_forward nll_loss2d_forward", _picked_loss),
    **_named("grid_sampler_2d grid_sampler_3d affine_grid_generator", _of_first_dims),
    "_scaled_dot_product_flash_attention_for_cpu": _before_the_last(2),
    "_scaled_dot_product_flash_attention": _before_the_last(2),
    "_scaled_dot_product_efficient_attention": _before_the_last(2),
    **_named("max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d", _before_the_last(2)),
    **_named("upsample_nearest2d upsample_bilinear2d adaptive_max_pool2d", _before_the_last(2)),
    **_named("multinomial _sample_dirichlet", _before_the_last(1)),
    **_named("convolution native_group_norm", _of_rows),
    "native_layer_norm": _layer_norm,
    **_named("native_batch_norm _native_batch_norm_legit cudnn_batch_norm", _batch_norm),
    **_named("_thnn_fused_gru_cell _thnn_fused_lstm_cell", _before_the_last(1)),
    "mkldnn_rnn_layer": _recurrent,
}
"""By the name of the ATen operation, or of its kind. Those that torch calls pointwise need none."""
