"""What a callback of a fit is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moment:
    """What a callback is given.

    Attributes:
        step: steps that were taken.
        losses: of all of them (nats).
        objective: the mean of the last hundred, with the sign of the objective.
        params: gives the present parameters, by name.
    """

    step: int
    losses: np.ndarray
    objective: float
    params: Callable[[], dict[str, Any]]


Callback = Callable[[Moment], Any]
"""Called between steps; the fit stops where it returns `True`."""
