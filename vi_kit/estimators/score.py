"""The score function: differentiate the density of what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from array_api_compat import array_namespace

from vi_kit.base.layouts import Gradient
from vi_kit.base.named import Axis, Named
from vi_kit.base.protocols import Distribution
from vi_kit.base.supports import moves
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Site, Term, stopped
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.baselines import Baseline, Constant, check_baseline
from vi_kit.estimators.memory import Memory
from vi_kit.estimators.others import asked


@dataclass(frozen=True)
class WithBaseline(Estimator):
    """What estimators have in common that multiply a log density by what a site is worth.

    Attributes:
        baseline: what is subtracted from the cost.
    """

    baseline: Baseline = field(default_factory=Constant, kw_only=True)

    def __post_init__(self) -> None:
        check_baseline(type(self).__name__, self.baseline)

    @property
    def memory(self) -> Memory:
        return self.baseline.memory

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        return self.baseline.unmet_need(axes)

    def score(self, downstream: Downstream, log_density: Term) -> list[Term]:
        """The terms, and the gradient of a log density times what the site is worth, less the baseline.

        Args:
            downstream: of the site.
            log_density: of what was drawn: of the site's value, or of the noise from which it was made.
        """
        site, worth = downstream.site, downstream.worth()
        linear, swapped = downstream.linear(), downstream.swapped()
        if linear.terms:
            unit = linear.unit
            costs = [stopped(w).scaled(1.0 / unit) for w in linear.worths()]
            subtracted = asked(site, costs, self.baseline.subtracted)
            if subtracted is not None:
                worth = worth - _where_finite(subtracted).scaled(unit)
        if swapped.terms:
            worth = worth - _where_finite(stopped(swapped.alternatives()))
        return [*downstream.terms, downstream.weighted(log_density, worth)]

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        return asked(site, [value], self.baseline.alternative, reduced)


@dataclass(frozen=True)
class ScoredNoise(WithBaseline):
    """What estimators have in common whose value is a function of noise that has a density with parameters."""

    gradient: ClassVar[Gradient] = Gradient.PART

    def contract(self, downstream: Downstream) -> list[Term]:
        assert downstream.site.log_noise is not None
        return self.score(downstream, downstream.site.log_noise)


@dataclass(frozen=True)
class Score(WithBaseline):
    r"""The score function, $E[(f(z) - b) \nabla_\theta \log q_\theta(z)]$.

    Only terms that depend on the site enter $f$ (Rao-Blackwellisation by provenance), summed over the
    plates that the site is not in. With `LeaveOneOut` this is RLOO on a mean and VIMCO on `log_mean_exp`.

    Unbiased when: always; a probability of exactly zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: a log density, and a support that does not depend on parameters.
    Cost: one evaluation of the model.
    Variance: high without a baseline; falls with replicates.
    Use for: any other site: large supports, counts, programs that branch on the value. Give it a baseline.

    Args:
        baseline: what is subtracted from the cost.

    Example:
        >>> Score()
        Score(baseline=Constant(value=0.0))

    References:
        Williams 1992, Simple Statistical Gradient-Following Algorithms (REINFORCE).
        Mnih and Rezende 2016, Variational Inference for Monte Carlo Objectives (VIMCO).
        Kool, van Hoof and Welling 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free! (RLOO).
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    baseline: Baseline = field(default_factory=Constant)

    def reason_against(self, dist: Distribution) -> str | None:
        if dist.name == "Delta":
            return "needs a density; Delta has none, and its value is differentiable"
        return moves(dist)

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.sample())

    def contract(self, downstream: Downstream) -> list[Term]:
        assert downstream.site.log_q is not None
        return self.score(downstream, downstream.site.log_q)


def _where_finite(baseline: Named) -> Named:
    """What a baseline says, and zero where that is not finite: it sees other draws only, so it may be left out."""
    xp = array_namespace(baseline.array)
    finite = xp.where(xp.isfinite(baseline.array), baseline.array, xp.zeros_like(baseline.array))
    return Named(finite, baseline.axes)
