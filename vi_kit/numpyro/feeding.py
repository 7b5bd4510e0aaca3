"""What a compiled loop of steps is given: data that all steps share, and what each has of its own.

Rows are cut on the device, where all data are; or here, a chunk at a time, where they are in a file or go to several
devices, so that no more than the chunk is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from vi_kit.numpyro.sharding import Devices, has_rows, is_placed, to_host
from vi_kit.workflow.batches import Call, Rows, Source, Stream
from vi_kit.workflow.training import MOST_AT_ONCE

MAX_BYTES = 2**26
"""Of minibatches that wait for their steps."""
MAX_WAITING = 64
"""Of these, as many."""


@dataclass(frozen=True)
class Fed:
    """What a loop takes for the next steps.

    Attributes:
        key: of the loop.
        data: that all steps share.
        steps: what each has, along a first axis of length `capacity`.
        call_of: from these two, the second without that axis, to the arguments of a step.
        num: of steps.
        capacity: the most that the loop can take.
    """

    key: Any
    data: Any
    steps: Any
    call_of: Callable[[Any, Any], Call]
    num: int
    capacity: int


class Feed:
    """Of one fit.

    Args:
        source: of arguments.
        devices: where they go.
    """

    def __init__(self, source: Source, devices: Devices):
        self.source, self.devices, self.data = source, devices, ()
        self.failed: Exception | None = None
        self.leaves, self.tree = jax.tree.flatten(source.everything[0])
        self.is_data = [has_rows(x) for x in self.leaves]
        own = [x for x, is_data in zip(self.leaves, self.is_data, strict=True) if is_data]
        self.cuts_here = isinstance(source, Rows) and any(_stays(x, devices) for x in own)
        if self.cuts_here:
            self.data = [x if isinstance(x, np.ndarray) else to_host(x) for x in own]
        elif isinstance(source, Rows):
            self.data = [devices.everywhere(x) for x in own]
            source.args = self._args(self.data)
        elif not isinstance(source, Stream) and devices.mesh is not None:
            self.data = [devices.rows(x) for x in own]

    def _args(self, data: Sequence[Any]) -> Any:
        return _filled(self.tree, self.leaves, self.is_data, data)

    @property
    def example(self) -> Call:
        """The arguments of one step, for what runs before the first."""
        args, kwargs = self.devices.here(self.source.example)
        return (jax.tree.map(_in_memory, args), kwargs) if self.cuts_here else (args, kwargs)

    @property
    def traced(self) -> tuple[list[Any], Callable[[Sequence[Any]], Call]]:
        """The arrays of one step that are traced in the loop, and the arguments that are made of them."""
        leaves, tree = jax.tree.flatten(self.example)
        if isinstance(self.source, Stream):
            is_own = [hasattr(x, "dtype") for x in leaves]
        else:
            are_traced = isinstance(self.source, Rows) or bool(self.data)
            is_own = [own and are_traced for own in self.is_data]
            is_own += [False] * (len(leaves) - len(is_own))  # by keyword

        arrays = [x for x, own in zip(leaves, is_own, strict=True) if own]
        return arrays, lambda traced: _filled(tree, leaves, is_own, traced)

    def next(self, most: int) -> Fed:
        source = self.source
        if isinstance(source, Stream):
            return self._stacked(source, most)
        if isinstance(source, Rows):
            return self._cut_here(source, most) if self.cuts_here else self._cut_there(source, most)

        def whole(data: Any, step: Any) -> Call:
            return (self._args(data), source.example[1]) if data else source.example

        return Fed("whole", self.data, (), whole, most, MOST_AT_ONCE)

    def _cut_there(self, source: Rows, most: int) -> Fed:
        def rows(data: Any, index: Any) -> Call:
            args, kwargs = replace(source, args=self._args(data)).at(index)
            return self.devices.cut(args, source.batch_size), kwargs

        steps = np.zeros((MOST_AT_ONCE, source.batch_size), np.int32)
        for i in range(most):
            steps[i] = source.index()
        return Fed("rows", self.data, steps, rows, most, MOST_AT_ONCE)

    def _cut_here(self, source: Rows, most: int) -> Fed:
        size = source.batch_size
        capacity = _capacity(sum(size * x[:1].nbytes for x in self.data))
        num = min(most, capacity)
        index = np.stack([source.index() for _ in range(num)]) if num else np.zeros((0, size), int)

        def one(x: np.ndarray) -> Any:
            def part(steps: slice, rows: slice, *others: slice) -> np.ndarray:
                found = np.zeros((capacity, len(range(size)[rows]), *x.shape[1:]), x.dtype)
                found[:num] = x[index[:, rows]]  # those of steps that are not taken are not read
                return found[(steps, slice(None), *others)]

            return self.devices.made((capacity, size, *x.shape[1:]), spec, part)

        spec = self.devices.spec(size, 1)

        def cut(data: Any, own: Any) -> Call:
            return self._args(own), source.kwargs

        return Fed("cut", (), [one(x) for x in self.data] if num else [], cut, num, capacity)

    def _stacked(self, source: Stream, most: int) -> Fed:
        """Minibatches of one kind."""
        kind: Any = None
        found: list[Sequence[Any]] = []
        capacity, tree = MOST_AT_ONCE, None
        others: tuple[list[Any], list[bool]] = [], []
        if self.failed is not None:
            raise self.failed
        while len(found) < min(most, capacity):
            try:
                call = source.take()
            except Exception as error:
                if not found:
                    raise
                self.failed = error  # once the steps before it are taken
                break
            if call is None:
                break
            leaves, tree_of_call = jax.tree.flatten(call)
            is_array = [hasattr(x, "dtype") for x in leaves]
            arrays = [x for x, own in zip(leaves, is_array, strict=True) if own]
            rest = [x for x, own in zip(leaves, is_array, strict=True) if not own]
            placed = self.devices.mesh is not None and any(map(is_placed, arrays))
            arrays = arrays if placed else [np.asarray(x) for x in arrays]
            own_kind = tree_of_call, tuple((x.shape, x.dtype) for x in arrays), repr(rest), placed
            if kind not in (None, own_kind):
                source.waiting.append(call)
                break
            without = [None if own else x for x, own in zip(leaves, is_array, strict=True)]
            kind, tree, others = own_kind, tree_of_call, (without, is_array)
            # what is on the devices already is not put together again
            capacity = 1 if placed else _capacity(sum(x.nbytes for x in arrays))
            found.append(arrays)
        num = len(found)
        steps = [
            self._steps([*xs, *[xs[0]] * (capacity - num)], found[0])
            for xs in zip(*found, strict=True)
        ]

        def stacked(data: Any, step: Any) -> Call:
            return _filled(tree, *others, step)

        return Fed(kind, (), steps, stacked, num, capacity)

    def _steps(self, arrays: Sequence[Any], of_first: Sequence[Any]) -> Any:
        """One array of several minibatches, along a new axis."""
        if len(arrays) == 1 and is_placed(arrays[0]):
            return arrays[0][None]
        made = np.stack([np.asarray(x) for x in arrays])
        if self.devices.mesh is None:
            return made
        num_rows = next((len(x) for x in of_first if x.ndim), 0)
        has = made.ndim > 1 and made.shape[1] == num_rows
        spec = self.devices.spec(num_rows, 1) if has else P()
        return self.devices.made(made.shape, spec, lambda *index: made[index])


def _filled(tree: Any, leaves: Sequence[Any], is_own: Sequence[bool], own: Sequence[Any]) -> Any:
    """Leaves put together, with others in the place of some."""
    given = iter(own)
    both = zip(leaves, is_own, strict=True)
    return jax.tree.unflatten(tree, [next(given) if there else x for x, there in both])


def _stays(x: Any, devices: Devices) -> bool:
    """Whether an array is cut where it is: in a file, or in memory for several devices."""
    return isinstance(x, np.memmap) or (devices.mesh is not None and not is_placed(x))


def _in_memory(x: Any) -> Any:
    return jnp.asarray(x) if has_rows(x) else x


def _capacity(num_bytes: int) -> int:
    return max(1, min(MAX_WAITING, MAX_BYTES // max(1, num_bytes)))
