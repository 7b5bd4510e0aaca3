"""Where the arguments of each step come from: all data at once, rows of arrays, or whatever yields minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.workflow.ambient import isolated

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The arguments of model and guide."""


@dataclass(frozen=True)
class Data:
    """Where a user has the data. See `vi_kit.pyro.fit`."""

    batch_size: int | None
    batches: Iterable[Any] | None
    data_size: int | None


@dataclass(frozen=True)
class Share:
    """Of the rows of each minibatch, those that one of several processes has.

    Attributes:
        rank: of the process.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    def of(self, num: int) -> slice:
        """Of so many rows."""
        return slice(self.rank * num // self.count, (self.rank + 1) * num // self.count)


class Source(Protocol):
    """Gives each step its arguments, in an order that a seed decides."""

    @property
    def weight(self) -> float:
        """What the last arguments count for, among those that other processes have in the same step: by their rows."""
        ...

    @property
    def shared(self) -> int | None:
        """Rows of a step of all processes, where each has some of them."""
        ...

    @property
    def num_rows(self) -> int | None:
        """Of all data; `None` if they are not cut, or it is not known."""
        ...

    @property
    def example(self) -> Call:
        """The arguments of one step."""
        ...

    @property
    def everything(self) -> Call:
        """Those that have all data, or the first minibatch of which there is only one at a time."""
        ...

    @property
    def content(self) -> list[Any]:
        """What is there of all data, whichever of several processes has it."""
        ...

    @property
    def manner(self) -> dict[str, Any]:
        """What is known of how steps take the data, by name."""
        ...

    @property
    def takes_all(self) -> bool:
        """Whether each step has all data."""
        ...

    def take(self) -> Call | None:
        """Those of the next step; `None` if there are no more."""
        ...

    def rows(self, step: int) -> np.ndarray | None:
        """Which of all rows a step has, counted from nought; `None` if that is not known, or all in their order."""
        ...

    def position(self) -> dict[str, Any]:
        """What `seek` needs to go on from here."""
        ...

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass
class Whole:
    """The same arguments in each step."""

    example: Call
    num_rows: int | None = None
    takes_all: bool = True
    weight: float = 1.0
    shared: int | None = None

    @property
    def everything(self) -> Call:
        return self.example

    @property
    def content(self) -> list[Any]:
        return _parts(self.example)

    @property
    def manner(self) -> dict[str, Any]:
        return {}

    def take(self) -> Call:
        return self.example

    def rows(self, step: int) -> None:
        return None

    def position(self) -> dict[str, Any]:
        return {}

    def seek(self, position: Mapping[str, Any]) -> None:
        pass


@dataclass
class Rows:
    """Rows of arrays, in a new order in each epoch. What is left over at its end waits for the next.

    Attributes:
        args: positional arguments; the arrays among them are cut along their first axis.
        kwargs: the same in each step.
        batch_size: rows of a step.
        num_rows: of each array.
        seed: of the order.
        cut: from an argument and indices of shape `(batch_size,)` to those rows, of the arrays in it.
        step: the next.
        share: of the rows of a step.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch_size: int
    num_rows: int
    seed: int
    cut: Callable[[Any, Any], Any]
    step: int = 0
    epoch: int = -1
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    share: Share = field(default_factory=Share)

    @property
    def example(self) -> Call:
        return self.at(np.arange(self.batch_size)[self.share.of(self.batch_size)])

    @property
    def shared(self) -> int | None:
        return self.batch_size if self.share.count > 1 else None

    @property
    def weight(self) -> float:
        own = range(self.batch_size)[self.share.of(self.batch_size)]
        return len(own) * self.share.count / self.batch_size

    @property
    def everything(self) -> Call:
        return self.args, self.kwargs

    @property
    def content(self) -> list[Any]:
        return _parts(self.everything)

    @property
    def manner(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    @property
    def takes_all(self) -> bool:
        return self.batch_size == self.num_rows and self.share.count == 1

    def at(self, index: Any) -> Call:
        """The arguments that have some rows."""
        return tuple(self.cut(one, index) for one in self.args), self.kwargs

    def index(self) -> np.ndarray:
        """The rows of the next step, shape `(batch_size,)` where one process has them all."""
        self.step += 1
        return self.rows(self.step - 1)

    def rows(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.num_rows // self.batch_size)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        batch = self.order[place * self.batch_size : (place + 1) * self.batch_size]
        return batch[self.share.of(self.batch_size)]

    def take(self) -> Call:
        return self.at(self.index())

    def position(self) -> dict[str, Any]:
        return {"step": self.step}

    def seek(self, position: Mapping[str, Any]) -> None:
        self.step = int(position["step"])


@dataclass
class Stream:
    """Minibatches of an iterable, from its start again and again; an iterator ends.

    Attributes:
        batches: the iterable.
        args: what comes before each minibatch.
        kwargs: what comes with it.
        num_rows: of all data, if known.
        seed: of the ambient random numbers that the iterable draws, as a torch `DataLoader` does to shuffle.
        arrays: from what it yields to arrays of the library.
        lengths: of the arrays in an argument, along their first axis.
        cut: as for `Rows`.
        share: of the rows of each minibatch.
        is_counted: whether `num_rows` was not said, but found by looking at what yields them.
        usual: rows of a minibatch, which then counts as one; `None` if each does.
        num_taken: rows of the last one.
    """

    batches: Iterable[Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    num_rows: int | None
    seed: int
    arrays: Callable[[Any], Any]
    lengths: Callable[[Any], list[int]]
    cut: Callable[[Any, Any], Any]
    is_counted: bool = False
    share: Share = field(default_factory=Share)
    usual: float | None = None
    num_taken: int = 0
    epoch: int = -1
    place: int = 0
    ended: bool = False
    takes_all: bool = False

    def __post_init__(self) -> None:
        self.waiting: list[Call] = []
        self.iterator: Iterator[Any] = iter(())
        self.first: Any = None
        self.raw: Any = None
        first = self.take()
        if first is None:
            raise ObjectiveError(
                message(
                    "fit: there are no batches",
                    got=f"{type(self.batches).__name__}, which yields nothing",
                    expected="an iterable of minibatches: tuples, dicts or arrays",
                    fix="check the loader; drop_last=True leaves nothing of fewer rows than a batch",
                )
            )
        self.first = first
        self.waiting.append(first)

    @property
    def example(self) -> Call:
        return self.first

    @property
    def everything(self) -> Call:
        return self.first

    @property
    def content(self) -> list[Any]:
        is_there = isinstance(self.batches, list | tuple)
        return [*_parts((self.args, self.kwargs)), self.batches if is_there else self.raw]

    @property
    def manner(self) -> dict[str, Any]:
        batches: Any = self.batches
        try:
            return {"batches in an epoch": len(batches)}
        except TypeError:  # an iterator
            return {}

    @property
    def shared(self) -> int | None:
        return round(self.usual * self.share.count) if self.usual and self.share.count > 1 else None

    @property
    def weight(self) -> float:
        return 1.0 if self.usual is None else self.num_taken / self.usual

    def give(self, share: Share, usual: float | None) -> None:
        """Have a share of each minibatch, from the first one on."""
        self.share, self.usual = share, usual
        self.first = self._arguments(self.raw)
        self.waiting = [self.first]

    def take(self) -> Call | None:
        if self.waiting:
            return self.waiting.pop()
        for _ in range(2):
            if not self.ended and self.epoch >= 0:
                with isolated(self._seed_of_batch()):
                    batch = next(self.iterator, self)
                if batch is not self:
                    self.place += 1
                    if self.first is None:
                        self.raw = batch
                    return self._arguments(batch)
            if self.ended or not self._begins():
                break
        self.ended = True
        return None

    def rows(self, step: int) -> None:
        return None

    def _begins(self) -> bool:
        """Whether there is another epoch."""
        if self.epoch >= 0 and (self.place == 0 or self.iterator is self.batches):
            return False
        self.epoch, self.place = self.epoch + 1, 0
        sampler = getattr(self.batches, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:  # a DistributedSampler has another order only if it is told
            set_epoch(self.epoch)
        with isolated(self._seed_of_batch()):
            self.iterator = iter(self.batches)
        return True

    def _seed_of_batch(self) -> int:
        words = np.random.SeedSequence([self.seed, self.epoch, self.place]).generate_state(1)
        return int(words[0])

    def _arguments(self, batch: Any) -> Call:
        batch = self.arrays(batch)
        if all_lengths(batch, self.lengths)[:1] == [0]:
            raise _empty(f"minibatch {self.place} of epoch {self.epoch + 1} has no rows")
        batch = self._shared(batch)
        if isinstance(batch, Mapping):
            return self.args, {**self.kwargs, **batch}
        if isinstance(batch, list | tuple):
            return (*self.args, *batch), self.kwargs
        return (*self.args, batch), self.kwargs

    def _shared(self, batch: Any) -> Any:
        """The rows of a minibatch that are for this process."""
        found = all_lengths(batch, self.lengths)
        self.num_taken = num = found[0] if found else 0
        if self.share.count == 1:
            return batch
        index = np.arange(num)[self.share.of(num)]
        self.num_taken = len(index)

        def own(one: Any) -> Any:
            return self.cut(one, index) if set(self.lengths(one)) == {num} else one

        if isinstance(batch, Mapping):
            return {k: own(v) for k, v in batch.items()}
        return tuple(map(own, batch)) if isinstance(batch, list | tuple) else own(batch)

    def position(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place - len(self.waiting)}

    def seek(self, position: Mapping[str, Any]) -> None:
        epoch, place = int(position["epoch"]), int(position["place"])
        # what shuffles with a generator of its own has to shuffle as often
        while (self.epoch, self.place - len(self.waiting)) < (epoch, place):
            if self.take() is None:
                raise ObjectiveError(
                    message(
                        "fit: there are fewer batches than when the checkpoint was written",
                        got=f"{self.place} in epoch {self.epoch}",
                        expected=f"at least {place} in epoch {epoch}",
                        fix="the same batches, from their start",
                    )
                )


def _parts(call: Call) -> list[Any]:
    args, kwargs = call
    return [*args, *kwargs.values()]


def source_of(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: Data,
    *,
    seed: int,
    lengths: Callable[[Any], list[int]],
    cut: Callable[[Any, Any], Any],
    arrays: Callable[[Any], Any],
) -> Source:
    """What a user asked for.

    Args:
        lengths: of the arrays in an argument, along their first axis.

    Raises:
        ObjectiveError: arrays of several lengths, none at all, fewer rows than a batch has, or both ways at once.
    """
    batch_size, batches, data_size = data.batch_size, data.batches, data.data_size
    if data_size is not None:
        data_size = whole_number("fit", "data_size", data_size)
    if batches is not None:
        if batch_size is not None:
            raise _both(batch_size)
        if not isinstance(batches, Iterable):
            raise ObjectiveError(
                message(
                    "fit: batches is not iterable",
                    got=f"a {type(batches).__name__}",
                    expected="a DataLoader, a list or another iterable of minibatches",
                    fix="batches=loader, or arrays as arguments and batch_size=...",
                )
            )
        _warn_of_lengths(batches, lengths)
        rows = data_size or _rows_behind(batches, lengths)
        counted = data_size is None
        return Stream(batches, args, kwargs, rows, seed, arrays, lengths, cut, counted)
    if batch_size is None:
        if data_size is not None:
            raise ObjectiveError(
                message(
                    "fit: data_size is of the data that minibatches are taken from",
                    got=f"data_size={data_size}, and neither batches nor batch_size",
                    expected="batches, or all data as arguments, which say how many they are",
                    fix="leave data_size out",
                )
            )
        every = [n for one in _parts((args, kwargs)) for n in lengths(one)]
        if every and not any(every):
            raise _empty("the data have no rows")
        return Whole((args, kwargs))
    batch_size = whole_number("fit", "batch_size", batch_size)
    found = [length for one in args for length in lengths(one)]
    if found and data_size not in (None, found[0]):
        raise ObjectiveError(
            message(
                "fit: data_size contradicts the arrays that batch_size cuts",
                got=f"data_size={data_size}, arrays of {found[0]} rows",
                expected="as many rows as there are",
                fix="leave data_size out, or batches=... for a part of the data",
            )
        )
    if len(set(found)) != 1:
        raise ObjectiveError(
            message(
                "fit: batch_size cuts the arrays among the positional arguments, which have not one length",
                got=f"lengths {found}",
                expected="positional arrays with a row for each datum; what is not data by keyword",
                fix="fit(model, guide, x, y, batch_size=..., other=...)",
            )
        )
    if batch_size > found[0]:
        raise ObjectiveError(
            message(
                "fit: a batch has more rows than there are",
                got=f"batch_size={batch_size} of {found[0]} rows",
                expected=f"batch_size of at most {found[0]}",
                fix="leave batch_size out",
            )
        )
    return Rows(args, kwargs, batch_size, found[0], seed, cut)


def _empty(what: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"fit: {what}",
            got="arrays of length 0",
            expected="at least one row",
            fix="leave out what is empty: a filter in collate_fn, or an uneven split, may make it",
        )
    )


def _both(batch_size: Any) -> ObjectiveError:
    return ObjectiveError(
        message(
            "fit: both batch_size and batches",
            got=f"batch_size={batch_size!r} and batches=...",
            expected="one of them",
            fix="batches=loader alone: the loader decides on the size",
        )
    )


def _rows_behind(batches: Any, lengths: Callable[[Any], list[int]]) -> int | None:
    """The rows of minibatches that are there, or of the data set of a torch `DataLoader`."""
    if isinstance(batches, list | tuple):
        found = [all_lengths(batch, lengths)[:1] for batch in batches]
        return sum(n for one in found for n in one) if all(found) else None
    dataset = getattr(batches, "dataset", None)
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _warn_of_lengths(batches: Any, lengths: Callable[[Any], list[int]]) -> None:
    """Warn of minibatches of several lengths that come in one order."""
    found: set[int] = set()
    if isinstance(batches, list | tuple):
        found = {n for batch in batches for n in all_lengths(batch, lengths)[:1]}
    elif type(getattr(batches, "sampler", None)).__name__ == "SequentialSampler":
        rows, size = _rows_behind(batches, lengths), getattr(batches, "batch_size", None)
        if rows and size and not getattr(batches, "drop_last", True):
            found = {min(size, rows), rows % size or size}
    if len(found) > 1:
        warnings.warn(
            f"fit: minibatches of {min(found)} to {max(found)} rows, the same in each epoch. Each stands for all data:"
            " rows of a short one count for more, in every epoch. Shuffle the rows (DataLoader(..., shuffle=True),"
            " or batch_size=...), leave the rest out (drop_last=True), or have batches of one length",
            stacklevel=4,
        )


def all_lengths(batch: Any, lengths: Callable[[Any], list[int]]) -> list[int]:
    """Of the arrays in a minibatch."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = parts if isinstance(batch, Mapping | list | tuple) else [batch]
    return [n for part in parts for n in lengths(part)]
