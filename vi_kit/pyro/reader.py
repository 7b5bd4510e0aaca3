"""One reading of a program for all that is asked of its operations.

The operations of ATen are recorded while the program runs once. What is asked of them is a `Domain` each: which sites
values reach unseen (`leak_probe.py`), which elements of plates meet (`mixing.py`). It follows the record when it is
asked, and costs nothing if it never is. Whether there are steps is seen at once (`degrees.Watch`), and so are the lines
that ask for operations.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vi_kit.pyro.degrees import Drawing, Reads, Watch
from vi_kit.pyro.frames import caller, is_own, is_script, is_traced, is_validation, line_of
from vi_kit.pyro.leaks import tells, tensors_in


class Told(NamedTuple):
    """That the program is told a value by an operation.

    Attributes:
        line: where.
        is_checked: whether by a check, of which the program hears nothing.
        is_traced: whether provenance knows of it, or need not.
        by_script: whether by what is called there, and not by an operation of torch.
    """

    line: str
    is_checked: bool
    is_traced: bool
    by_script: bool


class Operation(NamedTuple):
    """An operation of a program.

    Attributes:
        func: what was called.
        args: its arguments.
        kwargs: those by name.
        result: what it made.
        told: whether the program is told a value.
        is_own: whether this library asked for it.
        is_drawing: whether a site was getting its value, of which all is known.
        held: what there was in the tensors of indices, by number; a program may go on to write into them.
        before: what it gave another shape in place, as it was.
    """

    func: Any
    args: Any
    kwargs: Any
    result: Any
    told: Told | None
    is_own: bool
    is_drawing: bool
    held: Mapping[int, torch.Tensor]
    before: torch.Tensor | None


class Domain(ABC):
    """What is followed through the operations of a record, from where it is made.

    Args:
        record: of a program.
    """

    def __init__(self, record: Record) -> None:
        self.record, self._next = record, len(record.events)
        record.domains.append(self)

    @abstractmethod
    def note(self, operation: Operation) -> None:
        """Follow an operation."""

    def later(self, do: Callable[[], None]) -> None:
        """To be done when all operations until now are followed."""
        self.record.events.append((self, do))

    def catch_up(self) -> None:
        """Follow all operations until now."""
        events = self.record.events
        with self.record.reading():
            while self._next < len(events):
                event = events[self._next]
                if isinstance(event, Operation):
                    self.note(event)
                elif event[0] is self:
                    event[1]()
                self._next += 1  # what fails, fails whenever it is asked


class Record(Drawing, TorchDispatchMode):
    """The operations of a program.

    Attributes:
        events: the operations, and what domains do between them.
        domains: that may follow them.
        watch: whether there are steps.
        reads: what is read without an operation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else the first operation imports torch's compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Operation | tuple[Domain, Callable[[], None]]] = []
        self.domains: list[Domain] = []
        self.watch, self.reads = Watch(), Reads(self._catch_up)
        self._is_reading = False

    @contextmanager
    def modes(self) -> Iterator[None]:
        """While the program runs."""
        with self, self.reads:
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While a domain computes."""
        outside, self._is_reading = self._is_reading, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._is_reading = outside

    @property
    def is_told(self) -> bool:
        """Whether the program is told values."""
        return self.watch.tells or bool(self.reads.found)

    @property
    def takes_steps(self) -> bool:
        """Whether it may take steps, or reads or detaches values."""
        return bool(self.watch.found or self.reads.found or self.reads.detaches)

    def _catch_up(self) -> None:
        """Before a tensor gets another shape or memory, by which it was known."""
        for domain in self.domains:
            with suppress(Exception):  # that of one domain is no matter for the program
                domain.catch_up()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, frame = kwargs or {}, caller()
        if self._is_reading:
            return func(*args, **kwargs)
        turns, may_resize, indices = _about(func)
        with torch._C.DisableTorchFunction():  # or provenance would be followed here, too
            given = tensors_in([args[i] for i in indices]) if indices else ()
            held = {id(x): x.clone() for x in given}
            if turns or may_resize:
                self._catch_up()
            before = args[0].detach() if turns else None
            result = func(*args, **kwargs)
            self.watch.see(func, args, kwargs, result, frame)
            told = self._told(frame) if tells(func, args, result) else None
        own, is_drawing = is_own(frame), self.is_drawing
        self.events.append(
            Operation(func, args, kwargs, result, told, own, is_drawing, held, before)
        )
        return result

    def _told(self, frame: Any) -> Told:
        is_checked = self.reads.is_checking or is_validation(frame) or is_own(frame)
        return Told(line_of(frame), is_checked, is_traced(frame), is_script(frame))


@functools.cache
def _about(func: Any) -> tuple[bool, bool, list[int]]:
    """Whether an operation gives a tensor another shape in place, or may; and which of its arguments are indices."""
    given = func._schema.arguments
    may_resize = any(a.is_out for a in given)
    indices = [i for i, a in enumerate(given) if a.name in ("index", "indices") and not a.is_out]
    return torch.Tag.inplace_view in func.tags, may_resize, indices
