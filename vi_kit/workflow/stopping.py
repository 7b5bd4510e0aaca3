"""When a fit is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vi_kit.workflow.history import History


@dataclass(frozen=True)
class Decision:
    """What is to be done after a look at how a fit goes.

    Attributes:
        stop: why it is done; empty if it is not.
        shrink: a factor for the step size; `None` to leave it.
        average: whether iterates are averaged from here on; `None` to leave it as it is.
    """

    stop: str = ""
    shrink: float | None = None
    average: bool | None = None


class StoppingRule(Protocol):
    """Decides by the history of a fit alone, so that a fit that goes on from a checkpoint decides the same."""

    @property
    def every(self) -> int:
        """Steps between its looks."""
        ...

    @property
    def reads_iterates(self) -> bool:
        """Whether it reads where parameters were."""
        ...

    @property
    def shrinks(self) -> bool:
        """Whether it may make the step size smaller."""
        ...

    @property
    def averages(self) -> bool:
        """Whether it may average iterates."""
        ...

    def decide(self, history: History) -> Decision:
        """After each `every` steps."""
        ...
