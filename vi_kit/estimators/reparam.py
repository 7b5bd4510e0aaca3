"""Reparameterisation: differentiate through the sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vi_kit.base.layouts import Gradient
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion, lacks_sampler, shown


@dataclass(frozen=True)
class Reparam(Estimator):
    r"""The pathwise gradient, $\nabla_\theta E[f(z)] = E[\nabla_\theta f(g_\theta(\epsilon))]$.

    Unbiased when: the cost is continuous in the value; a jump is refused, but with `biased=True`.
    Needs: a reparameterised sampler (`has_rsample`); implicit reparameterisation counts.
    Cost: one evaluation of the model.
    Variance: low where the cost is smooth.
    Use for: continuous sites; the first choice.

    Args:
        biased: whether a cost may jump in the value, at the price of a bias.

    Example:
        >>> Reparam()
        Reparam()

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes.
        Figurnov, Mohamed and Mnih 2018, Implicit Reparameterization Gradients.
    """

    gradient: ClassVar[Gradient] = Gradient.PATH
    biased: bool = field(default=False, kw_only=True, repr=False)

    def __repr__(self) -> str:
        return shown(self)

    def reason_against(self, dist: Distribution) -> str | None:
        return lacks_sampler(dist)

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.rsample())

    def contract(self, downstream: Downstream) -> list[Term]:
        return list(downstream.terms)
