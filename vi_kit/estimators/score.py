"""The score function: differentiate the density of what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from vi_kit._named import Named, combine
from vi_kit.baselines import Baseline, Constant
from vi_kit.cost import stopped
from vi_kit.credit import downstream, gradient_term, grouped, matched, unit
from vi_kit.estimators.base import Estimator, Expansion

if TYPE_CHECKING:
    from vi_kit._named import Axis
    from vi_kit.backend import Distribution
    from vi_kit.cost import Site, Term


@dataclass(frozen=True)
class Score(Estimator):
    r"""The score function, $E[(f(z) - b) \nabla_\theta \log q_\theta(z)]$.

    Only terms that depend on the site enter $f$ (Rao-Blackwellisation by provenance), summed over the
    plates that the site is not in. With `LeaveOneOut` this is RLOO on a mean and VIMCO on `log_mean_exp`.

    Unbiased when: always, for a baseline that does not see the value drawn.
    Needs: a log density.
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

    baseline: Baseline = field(default_factory=Constant)

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...] | None:
        return self.baseline.state_shape(plates)

    def reason_against(self, dist: Distribution) -> str | None:
        if dist.name == "Delta":
            return "needs a density; Delta has none, and its value is differentiable"
        return None

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        return self.baseline.unmet_need(axes)

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.sample())

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        return self.baseline.alternative(site, value, reduced)

    def contract(self, site: Site, terms: Sequence[Term]) -> list[Term]:
        assert site.log_q is not None
        done = list(terms)
        for group in grouped(terms):
            log_q = matched(site.log_q, site, group[0].drawn)
            coefficient = Named(log_q.array - stopped(log_q).array, log_q.axes)
            worth = downstream(group, site, lambda t: t.base)
            linear = [t for t in group if site not in t.alternatives]
            swapped = [t for t in group if site in t.alternatives]
            if linear:
                own = downstream(linear, site, lambda t: t.base) if swapped else worth
                factor = unit(linear)
                baseline = self.baseline.subtracted(site, own.scaled(1.0 / factor))
                worth = _minus(worth, baseline and baseline.scaled(factor))
            if swapped:
                other = downstream(swapped, site, lambda t: t.alternatives[site])
                worth = _minus(worth, other)
            done.append(gradient_term(coefficient, worth, group[0]))
        return done


def _minus(worth: Named, baseline: Named | None) -> Named:
    """Subtract a baseline where it is finite; that depends on other draws only, so it may be left out."""
    if baseline is None:
        return worth
    xp = array_namespace(baseline.array)
    finite = xp.where(xp.isfinite(baseline.array), baseline.array, xp.zeros_like(baseline.array))
    return combine(lambda w, b: w - b, worth, Named(finite, baseline.axes))
