"""Enumeration: the exact expectation over a finite support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from array_api_compat import array_namespace

from vi_kit._named import Named
from vi_kit.cost import stopped
from vi_kit.credit import downstream, gradient_term, grouped, matched
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.worlds import contract_world

if TYPE_CHECKING:
    from vi_kit.backend import Distribution
    from vi_kit.cost import Site, Term


@dataclass(frozen=True)
class Enumerate(Estimator):
    r"""The sum over all values, $\nabla_\theta \sum_z q_\theta(z) f(z)$.

    The value of the site is its whole support, along a new axis on the left. Inside a nonlinear
    function of replicates (`iwae`) the exact sum is over all joint values of the replicates. It is taken
    while these number at most `max_worlds`. Beyond that one value is drawn per replicate, and each is in
    turn compared with all others, $\sum_k \sum_z \nabla q_\theta(z) F(z_k := z)$. Neither needs a further
    evaluation of the model.

    Unbiased when: always; a term outside the site's plate is refused.
    Needs: a finite support, and a model that broadcasts over dims on the left.
    Cost: as many evaluations of the model as the support has values; a chain of T sites costs T K^2.
    Variance: zero on a linear cost (`elbo`), and wherever the exact sum is taken; else that of the other replicates.

    Args:
        max_worlds: largest number of joint values of the enumerated sites on which one term may depend,
            or that a nonlinear function may sum over.

    Example:
        >>> Enumerate()
        Enumerate(max_worlds=1024)

    References:
        Titsias and Lázaro-Gredilla 2015, Local Expectation Gradients for Black Box Variational Inference.
    """

    tracked: ClassVar[bool] = False
    max_worlds: int = 1024

    def num_worlds(self, dist: Distribution) -> int:
        return dist.support_size() or 1

    def reason_against(self, dist: Distribution) -> str | None:
        size = dist.support_size()
        if size is None:
            return f"needs a finite support; that of {dist.name} is not"
        if size > self.max_worlds:
            return f"{dist.name} has {size} values, above max_worlds={self.max_worlds}"
        return None

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.support(), is_support=True)

    def contract(self, site: Site, terms: Sequence[Term]) -> list[Term]:
        assert site.log_q and site.world and site.slots
        world, done = site.world, []
        probs = replace(
            site.log_q,
            base=_exp(site.log_q.base),
            alternatives={s: _exp(a) for s, a in site.log_q.alternatives.items()},
        )
        for t in terms:
            if world in t.base.axes:
                done.append(contract_world(site, probs, t))
            else:
                done.append(t)
        for group in grouped(t for t in terms if site in t.alternatives):
            q = matched(probs, site, group[0].drawn - {site})
            q = q.renamed(world, site.slots)
            coefficient = Named(q.array - stopped(q).array, q.axes)
            worth = downstream(group, site, lambda t: t.alternatives[site])
            done.append(gradient_term(coefficient, worth, group[0]))
        return done


def _exp(named: Named) -> Named:
    return Named(array_namespace(named.array).exp(named.array), named.axes)
