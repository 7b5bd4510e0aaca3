"""What estimators and baselines keep from step to step, each site its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution


@dataclass(frozen=True)
class State:
    """An array, zero at first, which the step writes.

    Attributes:
        shape: from the sizes of the plates of the site, leftmost first, to its own.
    """

    shape: Callable[[Sequence[int]], tuple[int, ...]]


@dataclass(frozen=True)
class Learned:
    """A number that is learned by minimising the variance of the gradient.

    Attributes:
        start: at first.
    """

    start: float


@dataclass(frozen=True)
class Network:
    """A network with parameters of its own.

    Attributes:
        network: a module, or a program that registers its parameters.
        inputs: from the distribution of the site and the arguments of a step to its input.
    """

    network: Any
    inputs: Callable[[Distribution, tuple[Any, ...], Mapping[str, Any]], Array]


@dataclass(frozen=True)
class Step:
    """The number of steps so far, one for all sites."""


Memory = Mapping[str, State | Learned | Network | Step]
"""By name; the name of the site is added to it."""
