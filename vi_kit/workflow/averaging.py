"""Iterates are averaged once they are stationary, until their mean is known well enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vi_kit.base.errors import whole_number
from vi_kit.workflow.history import History
from vi_kit.workflow.series import autocorrelation_time, split_rhat
from vi_kit.workflow.stopping import Decision, between

APART = 10
"""Percent more looks, from one test to the next."""


@dataclass(frozen=True)
class IterateAverage:
    r"""Average the iterates once they are stationary, and stop when their mean is known well enough.

    Steps of one size end in noise about the optimum, and the mean of iterates is closer to it than the last of them.
    The iterates (unconstrained parameters, after each `every` steps) of the last half of the steps are taken for
    stationary when split-$\hat R$ of each coordinate is at most `max_rhat`. From there on they are averaged, until of
    each coordinate
    $$\mathrm{MCSE} = \mathrm{sd}\,\sqrt{\tau / n} \le \epsilon\,\max(|\text{mean}|, \text{scale}),
    \qquad n / \tau \ge \text{min\_ess},$$
    with $\tau$ the autocorrelation time of $n$ iterates. The parameters of the fit are the averaged ones.
    Several restarts: each must be so, and each is averaged by itself.

    The paper looks at windows of a fixed length; here they grow with the fit, and tests are made when there are 10 %
    more iterates. The mean is over all steps, and its error taken from those that were looked at. Of more than 2000
    coordinates a regular part is looked at. Use a constant step size: those that go to zero leave nothing to average.

    Args:
        tolerance: $\epsilon$.
        every: steps between iterates that are looked at.
        min_looks: iterates before the first test, and in the mean.
        max_rhat: the largest $\hat R$ of stationary iterates.
        min_ess: the least effective number of iterates in the mean.
        scale: of parameters near zero, in their units.

    Example:
        >>> import vi_kit as vi
        >>> vi.IterateAverage(tolerance=0.02, every=20).averages
        True

    References:
        Dhaka et al. 2020, Robust, Accurate Stochastic Optimization for Variational Inference.
    """

    tolerance: float = 0.01
    every: int = 10
    min_looks: int = 50
    max_rhat: float = 1.1
    min_ess: float = 50.0
    scale: float = 1.0
    reads_iterates: ClassVar[bool] = True
    shrinks: ClassVar[bool] = False
    averages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("tolerance", "min_ess", "scale"):
            between("IterateAverage", name, getattr(self, name), 0.0, np.inf)
        between("IterateAverage", "max_rhat", self.max_rhat, 1.0, np.inf)
        whole_number("IterateAverage", "every", self.every)
        whole_number("IterateAverage", "min_looks", self.min_looks, least=4)

    def decide(self, history: History) -> Decision:
        """After each `every` steps."""
        if not self.is_test(len(history.looks)):
            return Decision()
        if history.averaging < 0:
            window = history.iterates[len(history.iterates) // 2 :]
            rhat = split_rhat(alive(window))
            is_stationary = rhat.size > 0 and bool((rhat <= self.max_rhat).all())
            return Decision(average=True) if is_stationary else Decision()
        first = int(np.searchsorted(history.looks, history.averaging, side="right"))
        averaged = alive(history.iterates[first:])
        if len(averaged) < self.min_looks or averaged.size == 0:
            return Decision()
        error, ess = errors_of(averaged)
        size = np.maximum(abs(averaged.mean(axis=0)), self.scale)
        if (error > self.tolerance * size).any() or (ess < self.min_ess).any():
            return Decision()
        since = history.num_steps - history.averaging
        worst = float((error / size).max())
        return Decision(f"the mean of the last {since} iterates is known to {worst:.2g}")

    def is_test(self, num_looks: int) -> bool:
        """Whether one is made after so many looks."""
        at = self.min_looks
        while at < num_looks:
            at += -(-at * APART // 100)
        return at == num_looks


def errors_of(iterates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Monte Carlo standard error of a mean of iterates, and their effective number; along the first axis."""
    num = len(iterates)
    ess = num / np.maximum(autocorrelation_time(iterates), 1e-12)
    return iterates.std(axis=0, ddof=1) / np.sqrt(ess), ess


def alive(iterates: list[np.ndarray]) -> np.ndarray:
    """Of the restarts that have not failed, shape `(num, num_restarts, num_coordinates)`."""
    stacked = np.stack(iterates) if iterates else np.zeros((0, 0, 0))
    return stacked[:, np.isfinite(stacked).all(axis=(0, 2))]
