"""What an estimator asks of a cost, for which it is refused others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution


@dataclass(frozen=True)
class Continuous:
    """No jump in the value of the site, along whose path the gradient goes."""


Probe = Callable[[Distribution, Array], Array]
"""A value of the site whose elements have a zero added, to find by it the degrees of terms, or jumps."""


@dataclass(frozen=True)
class ContinuousBetween:
    """No jump between the discrete values of the site.

    Attributes:
        probe: at a value between them.
    """

    probe: Probe


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in the elements of the site.

    Attributes:
        degree: the highest.
        probe: at any value.
        larger: an estimator for another degree, or `None` if there is none.
    """

    degree: int
    probe: Probe
    larger: Callable[[int], Any] = lambda degree: None


@dataclass(frozen=True)
class ClosedForm:
    """A closed form in the value of the site, or what the estimator falls back on."""


Demand = Continuous | ContinuousBetween | Polynomial | ClosedForm
