"""How a fit has gone so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class History:
    """How a fit has gone so far.

    Attributes:
        losses: of each step (nats), shape `(num_steps,)` or `(num_steps, num_restarts)`.
        norms: of the gradients, likewise.
        iterates: numbers that tell where parameters were, each `(num_restarts, num)`, when a stopping rule looked.
        looks: the steps after which it did.
        shrunk: the steps after which the step size was made smaller.
        averaging: the step since which iterates are averaged; -1 if they are not.
        begun: the steps since which they are, or were.
        stopped: why a rule ended it.
    """

    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    norms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    iterates: list[np.ndarray] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    shrunk: list[int] = field(default_factory=list)
    averaging: int = -1
    begun: list[int] = field(default_factory=list)
    stopped: str = ""

    @property
    def num_steps(self) -> int:
        return len(self.losses)

    def add(self, losses: np.ndarray, norms: np.ndarray) -> None:
        """More steps."""
        first = not len(self.losses)
        self.losses = losses if first else np.concatenate([self.losses, losses])
        self.norms = norms if first else np.concatenate([self.norms, norms])

    def snapshot(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self))

    @classmethod
    def of(cls, snapshot: Mapping[str, Any]) -> History:
        """From a checkpoint."""
        return cls(**snapshot)


def last_tenth(num_steps: int) -> int:
    """How many steps tell where a fit ended."""
    return max(10, num_steps // 10)
