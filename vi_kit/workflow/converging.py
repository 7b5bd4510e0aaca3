"""Whether parameters are where the objective is best: signal and noise of gradients, and what more steps would gain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_kit.engine.variance import Measured, drawn_sites, warm_up
from vi_kit.workflow.series import signed_rank
from vi_kit.workflow.stationary import halves_of

CLEAR = 3.5
"""Standard errors from zero from which on a gradient is worth a line search."""
LEAST_PAIRS = 10
"""Of batches, by which losses are said to fall: of fewer, the signed ranks cannot tell at `LEVEL`."""
LEVEL = 1e-3
SHRINKS = 2.0**-10
"""By which the first step of a line search is multiplied, at most."""
GROWS = 2.0**10


@dataclass(frozen=True)
class Noise:
    r"""The gradient of one parameter, or what the noise of one site does to it.

    Attributes:
        signal: the Euclidean norm of its mean over the root of its total variance (of a site: of the variance that its
            random numbers contribute). The square of the mean's norm has the variance over the number of gradients
            taken from it, so that of noise alone it is zero on average, and not $1 / \sqrt n$ of it.
        error: its standard error, by the jackknife.
        z: the greatest |mean| over its standard error, among the coordinates.
    """

    signal: float
    error: float
    z: float


@dataclass(frozen=True)
class Gain:
    """What one step from the parameters gains, along the mean gradient and by a line search with held noise.

    Attributes:
        nats: by how much the loss falls, found by noise that chose neither direction nor length; never more than what
            there is to gain.
        error: its standard error.
        num_coordinates: of the parameters.
    """

    nats: float
    error: float
    num_coordinates: int

    def is_over(self, tolerance: float) -> bool:
        """Whether it is more than that, and is no chance."""
        return self.nats > tolerance and self.nats > 5 * self.error


@dataclass(frozen=True)
class Fall:
    """How the losses of a fit have changed at its end.

    Attributes:
        nats: the median of their fall, from the older half of the last steps to the newer.
        chance: of ranks like these, if they did not fall.
        num_steps: of each half.
    """

    nats: float
    chance: float
    num_steps: int

    def is_over(self, tolerance: float) -> bool:
        """Whether it is more than that, and is no chance."""
        return self.nats > tolerance and self.chance <= LEVEL


def fall_of(losses: np.ndarray) -> Fall:
    """Of the last fifth of the steps, or of four hundred if these are more, but of no more than half of them.

    The last fifth is the shortest part that tells something of most fits; what is older has the way to the optimum in
    it, of which a fit that has come there long since would be accused.
    """
    num = min(len(losses) // 2, max(len(losses) // 5, 400))
    window = losses[len(losses) - num :]
    older, newer = halves_of(window)
    if len(newer) < LEAST_PAIRS or not np.isfinite(window).all():
        return Fall(0.0, 1.0, 0)
    return Fall(float(np.median(older - newer)), signed_rank(newer - older), len(window) // 2)


def found_of(
    replay: Measured, loss: Any, num: int, seed: int, *, by_site: bool
) -> tuple[dict[str, Noise], dict[str, Noise], Gain | None]:
    """Signal and noise by parameter, those by site if wanted, and the gain of a step; `None` without parameters.

    Args:
        replay: of the programs.
        loss: whose gradients they are.
        num: of gradients.
        seed: of them.
        by_site: whether the noise of each site is wanted: `num` gradients more of each.
    """
    plan = replay.plan(loss)
    before = warm_up(plan)
    moved = replay.moved(loss, num, before, seed)
    owners = np.array(moved.owners, dtype=object)
    if not len(owners):
        return {}, {}, None
    first = moved.at(np.zeros(len(owners)))
    gradients = first[:, 1:]
    params = {n: noise_of(gradients[:, owners == n]) for n in dict.fromkeys(moved.owners)}
    sites = _by_site(replay, loss, drawn_sites(plan), num, before, seed) if by_site else {}
    gain = Gain(0.0, 0.0, len(owners))
    if is_clear(gradients):
        # the direction knows the noise of `first`; lengths are chosen and gains found by other noise
        fresh = replay.moved(loss, num, before, seed + 1)
        gain = gain_along(lambda shift: fresh.at(shift)[:, 0], direction(gradients))
    return params, sites, gain


def noise_of(gradients: np.ndarray, contributed: np.ndarray | None = None) -> Noise:
    """Signal and noise of independent gradients, shape `(num, num_coordinates)`.

    Args:
        gradients: of them.
        contributed: numbers of which the variance that the signal is compared with is the mean; if left out, it is all
            of it.
    """
    num = len(gradients)
    mean = gradients.mean(axis=0)
    off = gradients - mean
    squares = (off**2).sum(axis=1)
    total = squares.sum()
    # each left out in turn, after all of them
    means = np.concatenate([mean[None], mean - off / (num - 1)])
    sums = np.concatenate([[total], total - squares * num / (num - 1)])
    nums = np.array([num, *[num - 1] * num])
    variances = sums / (nums - 1)
    compared = variances
    if contributed is not None:
        compared = np.concatenate([[contributed.sum()], contributed.sum() - contributed]) / nums
    floor = float((_rounding(gradients) ** 2).sum())
    squared = ((means**2).sum(axis=1) - variances / nums) / np.maximum(compared, floor)
    error = math.sqrt((num - 1) * float(squared[1:].var()))
    signal = math.sqrt(max(float(squared[0]), 0.0))
    z = float(_z(gradients).max(initial=0.0))
    return Noise(signal, math.sqrt(signal**2 + error) - signal, z)


def _by_site(
    replay: Measured, loss: Any, labels: list[str], num: int, before: int, seed: int
) -> dict[str, Noise]:
    """What the noise of each site does to the coordinates that it reaches."""
    draws = replay.redrawn(loss, labels, num, before, seed)
    plain, found = draws[:, 0], {}
    for i, label in enumerate(labels):
        halves = (draws[:, 1 + i] - plain) ** 2 / 2
        reached = halves.max(axis=0) > _rounding(plain) ** 2
        found[label] = noise_of(plain[:, reached], halves[:, reached].sum(axis=1))
    return found


def is_clear(gradients: np.ndarray) -> bool:
    """Whether a mean gradient may be away from zero: by one coordinate, or by many together."""
    z = _z(gradients)
    return bool(z.max(initial=0.0) > CLEAR or (z**2 - 1).sum() > CLEAR * (2 * len(z)) ** 0.5)


def _z(gradients: np.ndarray) -> np.ndarray:
    error = gradients.std(axis=0, ddof=1) / len(gradients) ** 0.5
    return abs(gradients.mean(axis=0)) / np.hypot(error, _rounding(gradients))


def _rounding(gradients: np.ndarray) -> np.ndarray:
    """What rounding can make of each coordinate."""
    return 1e-6 * (1 + abs(gradients).max(axis=0, initial=0.0))


def direction(gradients: np.ndarray) -> np.ndarray:
    r"""Where to look for less loss: minus the mean gradient over its variance, coordinate by coordinate.

    Of a reparameterised ELBO the variance of one gradient is about the curvature (of a Normal at its optimum it is), so
    that this is about Newton's step. Coordinates that noise may have moved count less, and none moves by more than one
    at first.
    """
    mean, variance = gradients.mean(axis=0), gradients.var(axis=0, ddof=1)
    weight = np.maximum(1 - 4 / np.maximum(_z(gradients), 1e-9) ** 2, 0.0)
    least = 1e-3 * abs(mean).max(initial=0.0) + 1e-30
    return -weight * mean / (variance + abs(mean) + least)


def gain_along(values: Any, step: np.ndarray) -> Gain:
    """The gain of the best length of a step: half of the draws choose it, the others tell what it gains.

    Args:
        values: of a shift of the parameters, losses of draws with held noise, shape `(num_draws,)`.
        step: the direction.
    """
    if not step.any():
        return Gain(0.0, 0.0, len(step))
    here = values(np.zeros(len(step)))
    half = len(here) // 2
    gains = {0.0: np.zeros_like(here)}

    def chosen(length: float) -> float:
        if length not in gains:
            gains[length] = here - values(length * step)
        found = float(gains[length][:half].mean())
        return found if math.isfinite(found) else -math.inf

    best = 1.0
    while chosen(best) <= 0 and best > SHRINKS:
        best /= 4
    while chosen(best) > 0 and best < GROWS and chosen(4 * best) > chosen(best):
        best *= 4
    own = gains[best][half:]
    if chosen(best) <= 0 or not np.isfinite(own).all():
        return Gain(0.0, 0.0, len(step))
    return Gain(float(own.mean()), float(own.std(ddof=1) / len(own) ** 0.5), len(step))
