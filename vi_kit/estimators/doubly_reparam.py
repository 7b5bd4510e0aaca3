"""Double reparameterisation: no score term is left in the gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vi_kit.base.layouts import Gradient
from vi_kit.base.protocols import Distribution
from vi_kit.base.supports import moves
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion, lacks_sampler, shown


@dataclass(frozen=True)
class DoublyReparam(Estimator):
    r"""The pathwise gradient with the parameters of $\log q$ held fixed, for a cost $F(\log w_1, \dots, \log w_K)$:
    $\sum_k (F_k - F_{kk})\, \partial_\theta \log w_k(z_k(\theta))$, with first and second derivatives of F.

    $F_k$ is the pathwise part. The score part that it leaves out, $-E[F_k \nabla_\theta \log q(z_k)]$, is
    reparameterised once more: it is the pathwise derivative of $-F_k$ as a function of $z_k$ alone. On `elbo`
    this is sticking the landing, on `iwae` DReG; other objectives need no formula of their own. In a hierarchical
    guide only parameters are held, the path through the sites before stays; $z_k$ is then all sites of the draw.

    Unbiased when: the cost is continuous in the value; a jump is refused, but with `biased=True`.
    Needs: a reparameterised sampler; a support that does not depend on parameters; no site of `Score` or
        `MeasureValued` drawn given this one. Inside a nonlinear function (`iwae`): all reparameterised sites of the
        guide, unmasked and scaled alike if there are several, and no enumerated site drawn given one.
    Cost: two evaluations of model and guide, one of them with parameters held.
    Variance: zero on `elbo` once the guide is the posterior; does not grow with the particles of `iwae`.
    Use for: bounds of many particles; the end of training, when the guide is close.

    Args:
        biased: whether a cost may jump in the value, at the price of a bias.

    Example:
        >>> DoublyReparam()
        DoublyReparam()

    References:
        Roeder, Wu and Duvenaud 2017, Sticking the Landing.
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
        Bauer and Mnih 2021, Generalized Doubly Reparameterized Gradient Estimators.
    """

    holds_params: ClassVar[bool] = True
    gradient: ClassVar[Gradient] = Gradient.PATH
    biased: bool = field(default=False, kw_only=True, repr=False)

    def __repr__(self) -> str:
        return shown(self)

    def reason_against(self, dist: Distribution) -> str | None:
        return lacks_sampler(dist) or moves(dist)

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.rsample())

    def contract(self, downstream: Downstream) -> list[Term]:
        slope = downstream.slope()
        return [*downstream.terms, *([] if slope is None else [downstream.weighted(slope)])]
