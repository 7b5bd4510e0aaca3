"""Reparameterisation through acceptance-rejection samplers."""

from __future__ import annotations

from dataclasses import dataclass, field

from vi_kit.base.errors import whole_number
from vi_kit.base.protocols import Distribution
from vi_kit.estimators.base import Expansion, shown
from vi_kit.estimators.rejector import Rejector
from vi_kit.estimators.score import ScoredNoise
from vi_kit.estimators.tables.rejection_samplers import (
    REJECTION_SAMPLERS,
    by_rejection,
    lacks_map,
    summed,
    with_floating_params,
)

NOT_SMOOTH = (
    "Bernoulli",
    "Categorical",
    "Binomial",
    "Poisson",
    "Geometric",
    "NegativeBinomial",
    "Dirichlet",
)
"""Families that are no continuous scalars."""


@dataclass(frozen=True)
class RejectionReparam(ScoredNoise):
    r"""The path through an acceptance-rejection sampler, and the score of the noise that it accepts:
    $E_\pi[\nabla_\theta f(h_\theta(\epsilon)) + f(h_\theta(\epsilon)) \nabla_\theta \log \pi_\theta(\epsilon)]$ with
    $\log \pi_\theta(\epsilon) = \log q_\theta(h_\theta(\epsilon)) + \log |\partial h_\theta / \partial \epsilon|$.

    Nothing is rejected for the families below: the value is drawn by the library's own sampler, and
    $\epsilon = h^{-1}(z)$ of it, held, has exactly the distribution of accepted noise. The samplers are those of
    Marsaglia and Tsang (Gamma, and what is made of Gamma variables), Best and Fisher (VonMises) and Robert (Normal
    truncated on one side). A Gamma is drawn with its concentration raised by `augmentation`, times uniform variables
    to powers: the more, the closer to one is the acceptance and the smaller the score of the noise. A concentration
    below one is raised by at least one. A `Rejector` distribution of Pyro, or another with `score_parts` of its own, is
    drawn by its own sampler.

    Unbiased when: the cost is continuous in the value; a jump is refused, but with `biased=True`; for a
        VonMises, on the circle.
    Needs: independent Gamma, Chi2, InverseGamma, Exponential, Beta, Dirichlet, StudentT, VonMises or (NumPyro)
        one-sided TruncatedNormal elements; or a `vi.Rejector` of your own.
    Cost: one evaluation of the model, and `augmentation` uniform variables for each Gamma variable.
    Variance: low where the cost is smooth: near that of `Reparam` with augmentation, and of `Score` times the
        small score of the noise. With little augmentation give it a baseline.
    Use for: VonMises sites; samplers of your own, which have no other path; large Dirichlet sites in NumPyro, where it
        takes a fraction of the time of `Reparam`.

    Args:
        augmentation: by how much the concentration of a Gamma variable is raised.
        rejector: your own sampler of the site, in place of those above.
        baseline: what is subtracted from the cost in the score term.
        biased: whether a cost may jump in the value, at the price of a bias.

    Raises:
        ObjectiveError: `augmentation` is not a whole number, or negative.

    Example:
        >>> RejectionReparam(augmentation=3)
        RejectionReparam(baseline=Constant(value=0.0), augmentation=3, rejector=None)

    References:
        Naesseth, Ruiz, Linderman and Blei 2017, Reparameterization Gradients through Acceptance-Rejection Sampling
            Algorithms.
        Marsaglia and Tsang 2000, A Simple Method for Generating Gamma Variables.
        Best and Fisher 1979, Efficient Simulation of the von Mises Distribution.
        Robert 1995, Simulation of Truncated Normal Variables.
    """

    augmentation: int = 10
    rejector: Rejector | None = None
    biased: bool = field(default=False, kw_only=True, repr=False)

    def __repr__(self) -> str:
        return shown(self)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("RejectionReparam", "augmentation", self.augmentation, least=0)

    def reason_against(self, dist: Distribution) -> str | None:
        if self.rejector is None and dist.has_partial_rsample:
            return None
        if self.rejector is None:
            return lacks_map(dist, REJECTION_SAMPLERS, "acceptance-rejection sampler")
        elements = dist.elementary(self.rejector.params)
        if elements is None:
            return f"does not know the parameters of {dist.name}: give Rejector its `params`"
        if elements.family in NOT_SMOOTH:
            return f"needs independent continuous scalars; {dist.name} has none"
        return self.rejector.problem(with_floating_params(elements))

    def expand(self, dist: Distribution) -> Expansion:
        if self.rejector is not None:
            elements = with_floating_params(dist.elementary(self.rejector.params))
            return summed(elements, self.rejector.draw(elements))
        if dist.has_partial_rsample:
            value, log_noise = dist.partial_rsample()
            return Expansion(value, log_noise=log_noise)
        elements = with_floating_params(dist.elementary())
        draw = REJECTION_SAMPLERS[elements.family]
        return summed(elements, draw(elements, by_rejection(self.augmentation)))
