"""A minimum of a function without noise, by L-BFGS, as exactly as its numbers allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""From a point to the value there and its gradient; infinite where there is none."""

MEMORY = 20
"""Pairs of steps and changes of the gradient that are kept."""
MOST_TRIED = 40
"""Points along one direction."""
DECREASE, CURVATURE = 1e-4, 0.9
"""Of the weak conditions of Wolfe."""
TOLERANCE = 1e-12
"""Nats by which a step would lower the value, at which there is no use in it."""


@dataclass
class Inverse:
    """What is known of the inverse of the Hessian, from the last steps."""

    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, step: np.ndarray, change: np.ndarray) -> None:
        if step @ change > 1e-14 * np.linalg.norm(step) * np.linalg.norm(change):
            self.pairs = [*self.pairs[-MEMORY + 1 :], (step, change)]

    def times(self, vector: np.ndarray) -> np.ndarray:
        """By the recursion of two loops."""
        found, weights = vector.copy(), []
        for step, change in reversed(self.pairs):
            weights.append(step @ found / (step @ change))
            found -= weights[-1] * change
        if self.pairs:
            step, change = self.pairs[-1]
            found *= step @ change / (change @ change)
        for (step, change), weight in zip(self.pairs, reversed(weights), strict=True):
            found += (weight - change @ found / (step @ change)) * step
        return found


@dataclass
class Minimum:
    """Where it was found.

    Attributes:
        at: the point.
        value: there.
        gradient: there.
        losses: after each iteration.
        norms: of the gradients, likewise.
        converged: whether no step would lower the value by more than rounding.
        why: it ended, in words.
        inverse: see `Inverse`.
    """

    at: np.ndarray
    value: float
    gradient: np.ndarray
    inverse: Inverse
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    converged: bool = False
    why: str = ""


def minimum(
    evaluate: Evaluate, start: np.ndarray, *, rounding: float, most: int, ends: Callable[[], bool]
) -> Minimum:
    """Go down from a point at which the value is finite.

    Args:
        evaluate: the function.
        start: the point.
        rounding: the smallest relative difference of two numbers.
        most: iterations.
        ends: asked after each, whether it shall be the last.

    References:
        Liu and Nocedal 1989, On the Limited Memory BFGS Method for Large Scale Optimization.
        Lewis and Overton 2013, Nonsmooth Optimization via Quasi-Newton Methods (the search along a line).
    """
    now = Minimum(start, *evaluate(start), Inverse())
    while True:
        direction = -now.inverse.times(now.gradient)
        fall = -float(now.gradient @ direction)
        smallest = max(TOLERANCE, 4 * rounding * abs(now.value))
        known = len(now.inverse.pairs) >= min(5, len(start)) or not now.gradient.any()
        if fall < smallest and (known or float(now.gradient @ now.gradient) < smallest**2):
            now.converged, now.why = True, "it converged"
            return now
        if len(now.losses) >= most:
            now.why = "the largest number of iterations was reached"
            return now
        if ends():
            now.why = "interrupted"
            return now
        first = 1.0 if now.inverse.pairs else min(1.0, 1 / float(np.linalg.norm(now.gradient)))
        found = _along(evaluate, now, direction, first)
        if found is None and now.inverse.pairs and fall > 1e3 * smallest:
            now.inverse.pairs = []  # what it knew of the curvature is of no use here
            continue
        if found is None:
            now.converged = fall < 1e3 * smallest
            now.why = "no lower value is to be found" + " (rounding)" * now.converged
            return now
        at, value, gradient = found
        now.inverse.add(at - now.at, gradient - now.gradient)
        now.at, now.value, now.gradient = at, value, gradient
        now.losses.append(value)
        now.norms.append(float(np.linalg.norm(gradient)))


def _along(
    evaluate: Evaluate, now: Minimum, direction: np.ndarray, length: float
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """A point that meets the weak conditions of Wolfe; `None` if none is found."""
    slope, low, high = float(now.gradient @ direction), 0.0, np.inf
    best = None
    for _ in range(MOST_TRIED):
        at = now.at + length * direction
        value, gradient = evaluate(at)
        if not np.isfinite(value) or value > now.value + DECREASE * length * slope:
            high = length
        elif float(gradient @ direction) < CURVATURE * slope:
            low, best = length, (at, value, gradient)
        else:
            return at, value, gradient
        length = 2 * low if np.isinf(high) else (low + high) / 2
    return best
