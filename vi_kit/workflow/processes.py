"""Processes that take the steps of one fit together: what one of them finds out, all do the same with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from vi_kit.base.errors import NotFiniteError, ObjectiveError, ProcessError, ViKitError, message

T = TypeVar("T")


class Processes(Protocol):
    """Those of one fit. Each of them has to ask the same, in the same order."""

    @property
    def rank(self) -> int:
        """Which of them this is."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def shares_rows(self) -> bool:
        """Whether each has rows of its own, and steps by the mean of all gradients; else they take one step."""
        ...

    def gathered(self, value: Any) -> list[Any]:
        """What each of them gives, by rank.

        Raises:
            ProcessError: one of them is gone.
        """
        ...

    def first(self, value: Any) -> Any:
        """What the first of them gives.

        Raises:
            ProcessError: one of them is gone.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    count: int = 1
    shares_rows: bool = False

    def gathered(self, value: Any) -> list[Any]:
        return [value]

    def first(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Failure:
    """Why a process cannot go on.

    Attributes:
        text: of its error.
        is_stop: whether it is about numbers that are not finite.
    """

    text: str
    is_stop: bool

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        own = isinstance(error, ViKitError)
        text = str(error) if own else f"{type(error).__name__}: {error}"
        return cls(text, isinstance(error, NotFiniteError))


def elsewhere(failures: Sequence[Failure | None]) -> NotFiniteError | ProcessError:
    """The error of a process that has none itself.

    Args:
        failures: of all processes, of which some have one.
    """
    rank, failure = next((i, f) for i, f in enumerate(failures) if f is not None)
    headline, _, rest = failure.text.partition("\n")
    headline = f"in process {rank} of {len(failures)}: {headline}"
    if failure.is_stop:
        return NotFiniteError("\n".join([headline, *([rest] * bool(rest))]))
    return ProcessError(
        message(
            headline,
            got=f"an error in process {rank}, whose traceback is there; this one was well",
            expected="no error in any of the processes, which end together",
            fix=f"see the error of process {rank}",
        )
    )


def gone(processes: Processes, error: BaseException, waits: str) -> ProcessError:
    """The error of a process to which another does not answer.

    Args:
        error: of the library.
        waits: what says how long one is waited for.
    """
    return ProcessError(
        message(
            f"process {processes.rank} of {processes.count}: another process of the group is gone, or does not answer",
            got=str(error).strip().partition("\n")[0],
            expected="all processes of the group in the same fit, until it ends",
            fix=f"see the output of the others, of which one was ended or failed; {waits}",
        )
    )


def together(processes: Processes, action: Callable[[], T]) -> T:
    """Do something in each process by itself; if it fails in one, it fails in all.

    Raises:
        ProcessError, NotFiniteError: it has failed in another process.
    """
    if processes.count == 1:
        return action()
    try:
        found = action()
    except BaseException as error:
        with suppress(ProcessError):
            processes.gathered(Failure.of(error))
        raise
    failures = processes.gathered(None)
    if any(failures):
        raise elsewhere(failures)
    return found


def refuse_diverged(processes: Processes, own: str) -> None:
    """Refuse to go on with parameters that are no longer the same in each process.

    Args:
        own: by which this one's are known.

    Raises:
        ProcessError: in each process.
    """
    if len(set(processes.gathered(own))) > 1:
        raise ProcessError(
            message(
                "fit: the parameters are no longer the same in each process",
                got="the same gradients, and other parameters after a step",
                expected="an optimiser whose steps are a function of the gradients",
                fix="an optimiser that draws no random numbers, with the same settings in each process",
            )
        )


def refuse_differences(processes: Processes, what: str, own: dict[str, str], fix: str) -> None:
    """Refuse processes of which some have other settings, or other data.

    Args:
        what: was compared.
        own: that of this process, by name.
        fix: what helps.

    Raises:
        ObjectiveError: in each process, with what differs.
    """
    every = processes.gathered(own)
    names = {name: None for one in every for name in one}
    texts = []
    for name in names:
        values = [one.get(name) for one in every]
        other = next((i for i, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            texts.append(f"{name}: {values[0]} in process 0, {values[other]} in process {other}")
    if texts:
        raise ObjectiveError(
            message(
                f"fit: {what} differ between the processes",
                got="; ".join(texts),
                expected="the same in each process",
                fix=fix,
            )
        )
