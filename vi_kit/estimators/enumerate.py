"""Enumeration: the exact expectation over a finite support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_kit.base.errors import Refusal
from vi_kit.base.layouts import Gradient, Layout, Worlds
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion


@dataclass(frozen=True)
class Enumerate(Estimator):
    r"""The sum over all values, $\nabla_\theta \sum_z q_\theta(z) f(z)$.

    The value of the site is its whole support, along a new axis on the left. Inside a nonlinear
    function of replicates (`iwae`) the exact sum is over all joint values of the replicates. It is taken
    while these number at most `max_worlds`. Beyond that one value is drawn per replicate, and each is in
    turn compared with all others, $\sum_k \sum_z \nabla q_\theta(z) F(z_k := z)$. Neither needs a further
    evaluation of the model.

    Unbiased when: always; a term outside the site's plate is refused.
    Needs: a finite support.
    Cost: as many evaluations of the model as the support has values; a chain of T sites costs T K^2.
    Variance: zero on a linear cost (`elbo`), and wherever the exact sum is taken; else that of the other replicates.
    Use for: sites with few values; the first choice for them.

    Args:
        max_worlds: largest number of joint values of the enumerated sites on which one term may depend,
            or that a nonlinear function may sum over.

    Example:
        >>> Enumerate()
        Enumerate(max_worlds=1024)

    References:
        Titsias and Lázaro-Gredilla 2015, Local Expectation Gradients for Black Box Variational Inference.
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    max_worlds: int = 1024

    def layout(self, dist: Distribution) -> Layout:
        return Worlds(dist.support_size() or 1, self.max_worlds, is_support=True)

    def reason_against(self, dist: Distribution) -> str | None:
        size = dist.support_size()
        if size is None:
            return (
                f"needs a finite support that is the same for all draws; that of {dist.name} is not"
            )
        if size > self.max_worlds:
            reason = f"{dist.name} has {size} values, above max_worlds={self.max_worlds}"
            return Refusal(reason, fix=f"vi.Enumerate(max_worlds={size}), or another estimator")
        return None

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.support(), is_worlds=True, weights=dist.support_probs())

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_worlds()
