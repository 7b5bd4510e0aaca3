"""What `fit(..., fixed_draws=...)` needs of a library: an objective whose noise is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from vi_kit.engine.plan import Plan

Wanted = Mapping[str, Callable[[Mapping[str, Any]], Any] | None]
"""By name, functions of the values of the model's sites by name; `None`: the site of that name itself."""


class Tilted(Protocol):
    """The objective of a model whose log density has some functions added to it, each element times a number of its
    own: the tilt, a vector. By minus the derivative by it the objective has their means."""

    names: list[str]
    """Of the elements."""

    def evaluate(self, flat: np.ndarray, tilt: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss with the noise held, its gradient by the parameters, and by the tilt."""
        ...

    def drawn(self, flat: np.ndarray, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The two gradients at tilt zero, of single draws with noise of their own, each `(num_draws, num)`."""
        ...


class Held(Protocol):
    """The loss as a function of the parameters, unconstrained and flat. Evaluated twice, it is the same to the bit."""

    at: np.ndarray
    """The present parameters."""
    of_guide: np.ndarray
    """Which of them are the guide's, booleans."""
    rounding: float
    """The smallest relative difference of two numbers."""
    inverse: Any
    """What was learned of the Hessian."""

    def plan(self) -> Plan:
        """What was found of the programs."""
        ...

    def remembers(self) -> list[str]:
        """What the programs keep from one run to the next, by name."""
        ...

    def evaluate(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient; infinite where there is none."""
        ...

    def first(self) -> float:
        """The loss at the present parameters.

        Raises:
            NotFiniteError: there is none, by the library's own words.
        """
        ...

    def settle(self, flat: np.ndarray) -> None:
        """The parameters are these."""
        ...

    def times_hessian(self, flat: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
        """The second derivative along a direction; `None` if a sampler or a density has none in the library."""
        ...

    def latent(self) -> list[str]:
        """The names of the sites that the guide draws and the model takes."""
        ...

    def tilted(self, wanted: Wanted) -> Tilted: ...
