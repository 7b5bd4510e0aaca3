"""Two estimators of one expectation, mixed over the course of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_kit.base.errors import EstimatorError, message
from vi_kit.estimators.base import Estimator, Policy


@dataclass(frozen=True)
class Annealed(Policy):
    r"""The gradient $w_t g_1 + (1 - w_t) g_2$ of two estimators, with a weight that depends on the number of steps.

    Both are of the same expectation, so that the mean of the mixture is its gradient whatever the weight; what changes
    is the noise. The whole objective is estimated twice, once with each; sites with other estimators take part in both.
    All `Annealed` sites of a loss share one schedule. In NumPyro give `SVI` the guide `loss.with_state(guide)`, which
    counts the steps.

    Unbiased when: both estimators are.
    Needs: what both need.
    Cost: two evaluations of model and guide, whatever the weight; a new loss is cheaper once it has reached 0 or 1.
    Variance: $w^2$ times that of the first plus $(1 - w)^2$ times that of the second.
    Use for: a start without noise where the final estimator needs a good guide; comparing two estimators in one run.

    Args:
        first: estimator with weight $w_t$.
        second: estimator with the rest.
        schedule: from the number of steps so far, an array without dims, to the weight of `first`, from 0 to 1.

    Raises:
        EstimatorError: not two estimators and a function; several schedules in one loss; given by `infer`.

    Example:
        >>> from vi_kit.estimators import Reparam, Score
        >>> Annealed(Score(), Reparam(), lambda step: 0.99**step).second
        Reparam()

    References:
        Shao, Liu and Van den Broeck 2025, Zero-Variance Gradients for Variational Autoencoders (Silent
            Gradients), on training dynamics.
    """

    first: Estimator
    second: Estimator
    schedule: Callable[[Any], Any]

    def __post_init__(self) -> None:
        plain = isinstance(self.first, Estimator) and isinstance(self.second, Estimator)
        if not plain or not callable(self.schedule):
            raise EstimatorError(
                message(
                    "Annealed: it takes two estimators and a function of the number of steps",
                    got=repr((self.first, self.second, self.schedule)),
                    expected="Annealed(first, second, schedule)",
                    fix="vi.Annealed(vi.Analytic(), vi.Reparam(), lambda step: 0.99**step)",
                )
            )

    @property
    def variants(self) -> tuple[Estimator, Estimator]:
        return self.first, self.second
