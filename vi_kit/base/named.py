"""Arrays with named axes: what the cost algebra computes with, for any array library.

A program runs with axes at fixed negative dims (its plates, the replicates and worlds left of them).
Outside the program every array carries the axes that it really has, in one canonical order, so that
two arrays are brought together by inserting dims of size one and by nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.value import value

Array = Any

EVENT, PLATE, REPLICATE, SLOT, WORLD = range(-1, 4)


@dataclass(frozen=True)
class Axis:
    """One axis of the computation.

    Attributes:
        kind: `EVENT` (of a value that is no log density), `PLATE`, `REPLICATE` (copies made by `iid`), `SLOT`
            (alternatives to one drawn value) or `WORLD` (all values of a support). The kinds stand in this order from
            right to left.
        order: position among the axes of its kind, larger is further left. A plate that lies along no dim, because
            the program goes through its elements one after the other, has order 0.
        name: the plate's name, or a name made from the site's.
        size: length.
        scale: factor on a sum over this axis; `full_size / size` for a subsampled plate. A program may know of the
            elements of a minibatch only: its plate is the same, without a scale. `Run.scale` is that of both.
        is_cut: whether the minibatch is one of `fit`, which processes may share: what estimators keep counts for all
            data then, and is the same for each number of processes.
    """

    kind: int
    order: int
    name: str
    size: int
    scale: float = field(default=1.0, compare=False)
    is_cut: bool = field(default=False, compare=False)

    def __hash__(self) -> int:
        return hash(self.name)  # by which most differ: terms look for axes all the time

    @property
    def key(self) -> tuple[int, int, str]:
        return (self.kind, self.order, self.name)


def union(*groups: Iterable[Axis]) -> tuple[Axis, ...]:
    """All axes of the groups, leftmost first."""
    found = {a for g in groups for a in g}
    if len(found) < 2:
        return tuple(found)
    return tuple(sorted(found, key=lambda a: a.key, reverse=True))


@value(slots=True)
class Named:
    """An array and the axes of its dims, leftmost first."""

    array: Array
    axes: tuple[Axis, ...] = ()

    def aligned(self, axes: tuple[Axis, ...]) -> Array:
        """The array with dims for exactly `axes` (a superset of its own), some of size one."""
        if axes == self.axes:
            return self.array
        own = iter(self.array.shape)
        shape = tuple(next(own) if a in self.axes else 1 for a in axes)
        return self.array.reshape(shape)

    def sum(self, axes: Iterable[Axis]) -> Named:
        """Sum over those of `axes` that the array has."""
        axes = set(axes)
        dims = tuple(i for i, a in enumerate(self.axes) if a in axes)
        if not dims:
            return self
        kept = tuple(a for a in self.axes if a not in axes)
        return Named(self.array.sum(dims), kept)

    def __add__(self, other: Named) -> Named:
        return combine(operator.add, self, other)

    def __sub__(self, other: Named) -> Named:
        return combine(operator.sub, self, other)

    def __mul__(self, other: Named) -> Named:
        return combine(operator.mul, self, other)

    def __neg__(self) -> Named:
        return self.scaled(-1.0)

    def scaled(self, factor: float) -> Named:
        return self if factor == 1.0 else Named(self.array * factor, self.axes)

    def index(self, axis: Axis, position: int) -> Named:
        dim = self.axes.index(axis)
        return Named(
            self.array[(slice(None),) * dim + (position,)],
            self.axes[:dim] + self.axes[dim + 1 :],
        )

    def renamed(self, old: Axis, new: Axis) -> Named:
        """The same array with one axis under another name, dims brought into canonical order."""
        return ordered(self.array, tuple(new if a == old else a for a in self.axes))

    def broadcast(self, axes: Iterable[Axis]) -> Named:
        """Expanded so that it really has every one of `axes`."""
        wanted = union(self.axes, axes)
        shape = tuple(a.size for a in wanted)
        xp = array_namespace(self.array)
        return Named(xp.broadcast_to(self.aligned(wanted), shape), wanted)

    def excluding_sum(self, axes: Iterable[Axis]) -> Named:
        """At each index of `axes`, the sum over all the other indices: exact also with infinities."""
        axes = tuple(a for a in self.axes if a in set(axes))
        rest = tuple(a for a in self.axes if a not in axes)
        xp = array_namespace(self.array)
        flat = xp.permute_dims(self.array, tuple(self.axes.index(a) for a in axes + rest))
        flat = xp.reshape(flat, (-1, *(a.size for a in rest)))
        out = exclusive_scan(flat, lambda x: xp.cumulative_sum(x, axis=0), xp.add, 0.0)
        return ordered(xp.reshape(out, tuple(a.size for a in axes + rest)), axes + rest)


def exclusive_scan(
    x: Array, scan: Callable[[Array], Array], combine: Callable[..., Array], neutral: float
) -> Array:
    """Combine, for each index of dim 0, all *other* entries, from a prefix and a suffix scan."""
    xp = array_namespace(x)
    edge = xp.zeros_like(x[:1]) + neutral
    before = xp.concat([edge, scan(x)[:-1]], axis=0)
    after = xp.flip(xp.concat([edge, scan(xp.flip(x, axis=0))[:-1]], axis=0), axis=0)
    return combine(before, after)


def softmax(x: Array, axis: int = 0) -> Array:
    """Weights that sum to one along a dim, in the proportions of `exp(x)`."""
    xp = array_namespace(x)
    x = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return x / xp.sum(x, axis=axis, keepdims=True)


def ordered(array: Array, axes: tuple[Axis, ...]) -> Named:
    """Bring the dims of `array` into canonical order."""
    if all(left.key > right.key for left, right in pairwise(axes)):
        return Named(array, axes)
    wanted = union(axes)
    return Named(array_namespace(array).permute_dims(array, tuple(map(axes.index, wanted))), wanted)


def combine(fn: Callable[..., Array], *operands: Named) -> Named:
    """Apply an elementwise function with broadcasting over the union of axes."""
    axes = operands[0].axes
    if any(o.axes != axes for o in operands):
        axes = union(*(o.axes for o in operands))
    return Named(fn(*(o.aligned(axes) for o in operands)), axes)


def total(parts: Iterable[Named]) -> Named:
    """Sum of arrays, fewest axes first so that little is broadcast."""
    head, *rest = sorted(parts, key=lambda p: len(p.axes))
    for part in rest:
        head = head + part
    return head


def from_layout(array: Array, layout: Mapping[int, Axis], required: Iterable[Axis] = ()) -> Named:
    """Name the dims of an array that a program made.

    Args:
        array: has dims at the negative positions of `layout`, any of them missing or of size one.
        layout: negative dim to axis.
        required: axes that the result must have, whatever the array's size there.

    Raises:
        ValueError: a dim of size above one at a position that `layout` does not name.
    """
    required, whole = tuple(required), tuple(array.shape)
    if not (required or whole):
        return Named(array)
    axes, shape = [], []
    for position, size in enumerate(whole, -len(whole)):
        axis = layout.get(position)
        if size == 1 and axis not in required:
            continue
        if axis is None:
            raise ValueError(f"dim {position} of shape {whole}")
        axes.append(axis)
        shape.append(size)
    if len(axes) != len(whole):
        array = array.reshape(tuple(shape))
    named = ordered(array, tuple(axes))
    if all(a in axes for a in required) and shape == [a.size for a in axes]:
        return named
    return named.broadcast(required)


def stack(parts: Sequence[Named], axis: Axis) -> Named:
    """Arrays along a new axis."""
    axes = union(*(p.axes for p in parts))
    arrays = [p.broadcast(axes).array for p in parts]
    return ordered(array_namespace(arrays[0]).stack(arrays), (axis, *axes))
