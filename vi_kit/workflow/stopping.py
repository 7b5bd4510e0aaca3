"""When a fit is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vi_kit.base.errors import ObjectiveError, message

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


def between(where: str, name: str, value: Any, low: float, high: float) -> None:
    """A setting that is a number between two others, neither of which it may be.

    Raises:
        ObjectiveError: it is not.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and low < value < high:
        return
    shown = f"{low:g} < {name}" + (f" < {high:g}" if high < float("inf") else "")
    fix = f"{name}={(low + min(high, low + 1)) / 2:g}"
    raise ObjectiveError(
        message(
            f"{where}: {name} is out of range", got=f"{name}={value!r}", expected=shown, fix=fix
        )
    )
