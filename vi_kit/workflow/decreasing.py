"""Steps become smaller each time that their iterates are stationary, until that no longer changes their mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.workflow.averaging import IterateAverage, alive, errors_of
from vi_kit.workflow.history import History
from vi_kit.workflow.stopping import Decision, between


@dataclass(frozen=True)
class DecreasingSteps:
    r"""Make steps smaller when their iterates are stationary, and stop when smaller ones would not change the result.

    The mean of iterates at a step size $\gamma$ lies beside the optimum by about $b\,\gamma$ (where the objective is no
    parabola), however many there are. So, at each step size, `average` finds the mean $\bar\lambda_\gamma$ of
    stationary iterates and its Monte Carlo error; then the step size is multiplied by $\rho$ = `factor`. Of two
    successive means,
    $$\Delta = \bar\lambda_{\rho\gamma} - \bar\lambda_\gamma,
    \qquad b\,\rho\gamma \approx \frac{\rho}{1 - \rho}\,\Delta.$$
    The fit stops when the root mean square of the latter over the coordinates, each relative to
    $\max(|\text{mean}|, \text{scale})$, is at most `tolerance`: the squares less what the Monte Carlo errors add to
    them, plus two standard errors. The parameters of the fit are the last mean.
    Several restarts: each must be so.

    The paper compares successive means by the symmetrised Kullback-Leibler divergence of Gaussian guides, and weighs
    what the next step size would bring against its steps. Here it is the parameters that are compared, so that any
    guide can be fitted; they are the unconstrained ones. Give the optimiser a constant step size, as large as it bears.

    Args:
        average: when iterates are stationary, and when their mean is known. Its tolerance should be a fourth of this
            one, or less: otherwise two means differ by their errors alone.
        factor: $\rho$, by which steps become smaller.
        tolerance: of the means, as a part of their size.

    Example:
        >>> import vi_kit as vi
        >>> rule = vi.DecreasingSteps(vi.IterateAverage(tolerance=0.02), tolerance=0.1)
        >>> rule.factor, rule.every
        (0.5, 10)

    References:
        Welandawe et al. 2022, A Framework for Improving the Reliability of Black-box Variational Inference (RAABBVI).
        Dieuleveut et al. 2020, Bridging the Gap between Constant Step Size Stochastic Gradient Descent and Markov
        Chains (that the mean is off by a multiple of the step size).
    """

    average: IterateAverage = field(default_factory=IterateAverage)
    factor: float = 0.5
    tolerance: float = 0.05
    reads_iterates: ClassVar[bool] = True
    shrinks: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.average, IterateAverage):
            raise ObjectiveError(
                message(
                    "DecreasingSteps: average is no vi.IterateAverage",
                    got=f"average={self.average!r}",
                    expected="the rule by which the iterates of one step size are averaged",
                    fix="DecreasingSteps(vi.IterateAverage(tolerance=0.01))",
                )
            )
        between("DecreasingSteps", "factor", self.factor, 0.0, 1.0)
        between("DecreasingSteps", "tolerance", self.tolerance, 0.0, np.inf)

    @property
    def every(self) -> int:
        """Steps between its looks."""
        return self.average.every

    def decide(self, history: History) -> Decision:
        """After each `every` steps."""
        marks = [0, *history.shrunk]
        decision = self.average.decide(_part(history, marks[-1], history.num_steps))
        if not decision.stop:
            return decision
        left = np.inf
        if history.shrunk:
            before = _part(history, history.begun[-2], marks[-1])
            left = self.left(before, _part(history, history.averaging, history.num_steps))
        if left > self.tolerance:
            return Decision(shrink=self.factor, average=False)
        return Decision(
            f"smaller steps would change the mean of the iterates by {left:.2g} or less"
        )

    def left(self, before: History, now: History) -> float:
        """By how much the mean at the present step size is off, as a part of its size: of the worst restart.

        Args:
            before: iterates that were averaged at the step size before.
            now: those at the present one.
        """
        both = alive([*before.iterates, *now.iterates])
        parts = both[: len(before.iterates)], both[len(before.iterates) :]
        if both.size == 0:
            return np.inf
        old, new = (part.mean(axis=0) for part in parts)
        variance = sum(errors_of(part)[0] ** 2 for part in parts)
        size = np.maximum(abs(new), self.average.scale)
        change = (new - old) / size
        variance = variance / size**2
        square = (change**2 - variance).mean(axis=-1)
        # if the errors of all coordinates are one
        error = (np.sqrt(2) * variance + 2 * abs(change) * np.sqrt(variance)).mean(axis=-1)
        largest = float((np.maximum(square, 0.0) + 2 * error).max())
        return self.factor / (1 - self.factor) * largest**0.5


def _part(history: History, after: int, until: int) -> History:
    """What was seen after one step, until another."""
    first, last = np.searchsorted(history.looks, [after, until], side="right")
    return History(
        losses=history.losses,
        iterates=history.iterates[first:last],
        looks=history.looks[first:last],
        averaging=history.averaging,
    )
