"""A minimum of a function without noise, by SciPy's L-BFGS-B, as exactly as its numbers allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""From a point to the value there and its gradient; infinite where there is none."""

MEMORY = 20
"""Pairs of steps and changes of the gradient that are kept."""
MOST_TRIED = 40
"""Points along one direction."""
TOLERANCE = 1e-12
"""Nats by which a step would lower the value, at which there is no use in it."""
FAR = 1e10
"""How much higher than at the start a value counts where there is none."""


@dataclass
class Minimum:
    """Where it was found.

    Attributes:
        at: the point.
        value: there.
        gradient: there.
        inverse: of the Hessian, as far as the last steps have told it.
        losses: after each iteration.
        norms: of the gradients, likewise.
        converged: whether no step would lower the value by more than rounding.
        why: it ended, in words.
    """

    at: np.ndarray
    value: float
    gradient: np.ndarray
    inverse: Any = None
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    converged: bool = False
    why: str = ""


def minimum(
    evaluate: Evaluate, start: np.ndarray, *, rounding: float, most: int, ends: Callable[[], bool]
) -> Minimum:
    """Go down from a point at which the value is finite.

    SciPy ends where a step does not lower the value. That is taken for a minimum if the step of Newton, by what is
    known of the Hessian, would not do so either; else it goes on from there, with nothing known.

    Args:
        evaluate: the function.
        start: the point.
        rounding: the smallest relative difference of two numbers.
        most: iterations.
        ends: asked after each, whether it shall be the last.

    References:
        Zhu et al. 1997, Algorithm 778: L-BFGS-B.
    """
    from scipy import optimize  # takes long to import

    now = Minimum(start, *evaluate(start))
    highest, norm = abs(now.value) + FAR, 0.0

    def finite(at: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal norm
        value, gradient = evaluate(at)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return highest, now.gradient
        norm = float(np.linalg.norm(gradient))
        return value, gradient

    def after(intermediate_result: Any) -> None:
        now.losses.append(float(intermediate_result.fun))
        now.norms.append(norm)
        if ends():
            raise StopIteration

    while True:
        options: Any = {
            "maxcor": MEMORY,
            "maxls": MOST_TRIED,
            "maxiter": most - len(now.losses),
            "maxfun": MOST_TRIED * most,
            "ftol": 0.0,
            "gtol": 0.0,
        }
        before = now.value
        found: Any = optimize.minimize(
            finite, now.at, jac=True, method="L-BFGS-B", callback=after, options=options
        )
        now.at, now.inverse = found.x, found.hess_inv
        now.value, now.gradient = evaluate(now.at)
        smallest = max(TOLERANCE, 4 * rounding * abs(now.value))
        fall = float(now.gradient @ now.inverse.matvec(now.gradient))
        now.converged = fall < 1e3 * smallest
        if now.converged:
            now.why = "it converged"
        elif ends():
            now.why = "interrupted"
        elif len(now.losses) >= most:
            now.why = "the largest number of iterations was reached"
        elif before - now.value > smallest:
            continue
        else:
            now.why = "no lower value is to be found"
        return now
