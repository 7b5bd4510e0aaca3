"""Reparameterisation by a standardised value, whose density still depends on parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from vi_kit.base.protocols import Distribution
from vi_kit.estimators.base import Expansion, shown
from vi_kit.estimators.score import ScoredNoise
from vi_kit.estimators.tables.rejection_samplers import (
    STANDARDISED,
    lacks_map,
    standardised,
    summed,
    with_floating_params,
)


@dataclass(frozen=True)
class GeneralizedReparam(ScoredNoise):
    r"""The path through a standardised value, and the score of what standardising leaves:
    $E_\pi[\nabla_\theta f(h_\theta(\epsilon)) + f(h_\theta(\epsilon)) \nabla_\theta \log \pi_\theta(\epsilon)]$.

    The noise of a Gamma variable is its log less the mean of that, over its standard deviation (digamma and
    trigamma of the concentration); that of a Beta variable the same of its logit; a Dirichlet is made of Gamma
    variables. Mean and variance of the noise do not depend on the parameters, its higher moments do.

    Unbiased when: the cost is continuous in the value; a jump is refused, but with `biased=True`.
    Needs: independent Gamma, Chi2, InverseGamma, Beta or Dirichlet elements.
    Cost: one evaluation of the model.
    Variance: below that of `Score`; above that of `RejectionReparam` with augmentation. Give it a baseline.
    Use for: a comparison; `Reparam` and `RejectionReparam` have less variance.

    Args:
        baseline: what is subtracted from the cost in the score term.
        biased: whether a cost may jump in the value, at the price of a bias.

    Example:
        >>> GeneralizedReparam()
        GeneralizedReparam(baseline=Constant(value=0.0))

    References:
        Ruiz, Titsias and Blei 2016, The Generalized Reparameterization Gradient.
    """

    biased: bool = field(default=False, kw_only=True, repr=False)

    def __repr__(self) -> str:
        return shown(self)

    def reason_against(self, dist: Distribution) -> str | None:
        return lacks_map(dist, STANDARDISED, "standardised form")

    def expand(self, dist: Distribution) -> Expansion:
        elements = with_floating_params(dist.elementary())
        return summed(elements, STANDARDISED[elements.family](elements, standardised))
