"""The bound no longer improves: a test with a known rate of errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vi_kit.base.errors import whole_number
from vi_kit.workflow.history import History
from vi_kit.workflow.series import autocorrelation_time, clipped, signed_rank, without_line
from vi_kit.workflow.stopping import Decision, between

GROWTH_PERCENT = 15
"""Of the number of steps, from one test to the next."""
SPENT = 0.05
"""Of the rate of errors that is left, by each test."""
NUM_PAIRS = 25
BATCH = 5.0
"""The least length of a batch, in autocorrelation times."""


@dataclass(frozen=True)
class Stationary:
    r"""Stop when the bound has been shown not to improve by more than a tolerance.

    Of the last half of the steps so far, the older half is compared with the newer. Each is cut into $m$ batches (25,
    or fewer if losses are autocorrelated: each is at least five autocorrelation times long), with means $a_i$ and
    $b_i$ of the losses. Under the hypothesis that the bound still improves by more than $\epsilon$ from one half to
    the other, $x_i = a_i - b_i - \epsilon$ lie above zero; Wilcoxon's signed ranks test it, exactly, and the fit
    stops when it is rejected at the level $\alpha_k$. Tests are made when there are 15 % more steps than at the
    last one, and the $k$-th has $\alpha_k = \alpha\,(1 - r)\,r^k$ with $r = 0.95$. As $\sum_k \alpha_k = \alpha$, the
    fit stops while the bound still improves by more than $\epsilon$ with a probability of at most $\alpha$, however
    many tests are made. That a change *cannot be told* from none bounds nothing: in much noise none can.

    Holds when: the means of batches are nearly independent, and differences of two symmetric about what is expected.
    Those of equally distributed noise are, skewed and heavy-tailed noise included. The bound improves by less and less
    (a plateau that is longer than a fourth of the steps is taken for the end).
    Several restarts: all must have been shown not to improve.
    `python -m benchmarks --only stopping` measures the rate, and what happens where this does not hold.

    Args:
        tolerance: $\epsilon$, as a part of the loss's size: what may be gained by a fourth of the steps so far.
        min_nats: $\epsilon$ is at least that. To show that so little is gained takes about
            $100\,(\text{standard deviation of losses} / \epsilon)^2$ steps, times their autocorrelation time.
        false_positive_rate: $\alpha$.
        every: steps between looks, of which some are tests.
        min_steps: no test is made before.

    Example:
        >>> import numpy as np, vi_kit as vi
        >>> rule = vi.Stationary(tolerance=0.01)
        >>> noise = np.random.default_rng(0).standard_normal(2000)
        >>> rule.improvement(100.0 + noise).stops, rule.improvement(100.0 - 0.01 * np.arange(2000) + noise).stops
        (True, False)

    References:
        Wilcoxon 1945, Individual Comparisons by Ranking Methods; Lan and DeMets 1983, Discrete Sequential Boundaries
        for Clinical Trials (a level for each look).
    """

    tolerance: float = 1e-3
    min_nats: float = 0.5
    false_positive_rate: float = 0.05
    every: int = 100
    min_steps: int = 200
    reads_iterates: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        between("Stationary", "tolerance", self.tolerance, 0.0, np.inf)
        between("Stationary", "min_nats", self.min_nats, 0.0, np.inf)
        between("Stationary", "false_positive_rate", self.false_positive_rate, 0.0, 1.0)
        whole_number("Stationary", "every", self.every)
        whole_number("Stationary", "min_steps", self.min_steps)

    def decide(self, history: History) -> Decision:
        """After each `every` steps."""
        level = self.level(history.num_steps)
        if level is None:
            return Decision()
        losses = history.losses.reshape(history.num_steps, -1)
        alive = np.isfinite(losses).all(axis=0)
        found = [self.improvement(own, level) for own in losses.T[alive]]
        if not found or not all(one.stops for one in found):
            return Decision()
        most = max(one.tolerance for one in found)
        return Decision(f"the bound no longer improves by {most:.3g} nats")

    def level(self, num_steps: int) -> float | None:
        """That of the test after so many steps; `None` if there is none."""
        for k, step in enumerate(self.tests()):
            if step >= num_steps:
                left = self.false_positive_rate * (1 - SPENT) ** k
                return SPENT * left if step == num_steps else None
        return None

    def tests(self) -> Iterator[int]:
        """After which steps there is one."""
        look = -(-self.min_steps // self.every)
        while True:
            yield look * self.every
            look += -(-look * GROWTH_PERCENT // 100)

    def improvement(self, losses: np.ndarray, level: float | None = None) -> Improvement:
        """What is known of the change in the last half of some losses, shape `(num_steps,)`.

        Args:
            losses: of all steps so far.
            level: of the test; `None`: the whole false-positive rate, as if it were the only one.
        """
        half = len(losses) // 4
        older, newer = halves_of(losses[len(losses) - 2 * half :])
        num = len(newer)
        tolerance = max(self.min_nats, self.tolerance * abs(float(newer.mean())) if num else 0.0)
        level = self.false_positive_rate if level is None else level
        chance = signed_rank(older - newer - tolerance) if num else 1.0
        return Improvement(
            float(np.median(older - newer)) if num else 0.0, tolerance, chance, level
        )


@dataclass(frozen=True)
class Improvement:
    """How losses have changed.

    Attributes:
        change: the median of the improvements from a batch of the older half to that of the newer (nats).
        tolerance: what is small (nats).
        chance: of batches like these, if the bound improved by more than that.
        level: of the test.
    """

    change: float
    tolerance: float
    chance: float
    level: float

    @property
    def stops(self) -> bool:
        return self.chance <= self.level


def halves_of(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of batches of the older half of a window, and of the newer, as far as they have the newest of each."""
    half, (num, length) = len(window) // 2, batches_of(window)
    used = window[len(window) - 2 * half :].reshape(2, half)[:, half - num * length :]
    older, newer = used.reshape(2, num, max(length, 1)).mean(axis=2)
    return older, newer


def batches_of(window: np.ndarray) -> tuple[int, int]:
    """How many batches a half of a window is cut into, and how long they are."""
    half = len(window) // 2
    if half == 0:
        return 0, 0
    rest = without_line(window)
    time = max(1.0, *(float(autocorrelation_time(x)) for x in (rest, clipped(rest))))
    length = int(np.ceil(max(BATCH * time, half / NUM_PAIRS)))
    return half // length, length
