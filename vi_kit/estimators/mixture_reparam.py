"""Implicit reparameterisation of mixtures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.layouts import Gradient
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution, Mixture
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion, shown


@dataclass(frozen=True)
class MixtureReparam(Estimator):
    r"""The pathwise gradient through a mixture, $\partial_\theta z = -\partial_\theta F_\theta(z) / q_\theta(z)$.

    F is the distribution function, that of the mixture in one dimension. With more of them each coordinate is moved
    given those before it, by $F(z_d \mid z_1, \dots, z_{d-1})$, whose weights are the components' posterior
    probabilities given these. The gradient reaches weights and components alike.

    Unbiased when: the cost is continuous in the value; a jump is refused, but with `biased=True`.
    Needs: a MixtureSameFamily of components with independent continuous elements whose distribution function has a
        gradient (Normal, Laplace, Cauchy, LogNormal, ...).
    Cost: one evaluation of the model.
    Variance: that of `Reparam` for the components; for the weights it grows as the modes move apart, where mass has to
        pass through a region of little density.
    Use for: guides with several modes that overlap.

    Args:
        biased: whether a cost may jump in the value, at the price of a bias.

    Example:
        >>> MixtureReparam()
        MixtureReparam()

    References:
        Graves 2016, Stochastic Backpropagation through Mixture Density Distributions.
        Figurnov, Mohamed and Mnih 2018, Implicit Reparameterization Gradients.
    """

    gradient: ClassVar[Gradient] = Gradient.PATH
    biased: bool = field(default=False, kw_only=True, repr=False)

    def __repr__(self) -> str:
        return shown(self)

    def reason_against(self, dist: Distribution) -> str | None:
        mixture = dist.mixture()
        if mixture is None:
            return f"needs a MixtureSameFamily; {dist.name} is none"
        return mixture.reason_against()

    def expand(self, dist: Distribution) -> Expansion:
        mixture = dist.mixture()
        assert mixture is not None
        return Expansion(_moved(mixture, dist.sample()))

    def contract(self, downstream: Downstream) -> list[Term]:
        return list(downstream.terms)


def _moved(mixture: Mixture, value: Array) -> Array:
    """A draw, as a function of the mixture's parameters."""
    backend, xp = current().backend, array_namespace(value)
    value = value if mixture.event_ndim else value[..., None]
    below = mixture.cdf(value)
    density, slope = backend.jvp(mixture.log_prob, [value], [xp.ones_like(value)])
    log_weights, coordinates = mixture.log_weights, []
    for d in range(value.shape[-1]):
        weights = xp.exp(log_weights - backend.logsumexp(log_weights, axis=-1)[..., None])
        up_to = xp.sum(weights * below[..., d], axis=-1)
        at = backend.stop_gradient(xp.sum(weights * xp.exp(density[..., d]), axis=-1))
        change = -(up_to - backend.stop_gradient(up_to)) / at
        coordinates.append(value[..., d] + change)
        log_weights = log_weights + density[..., d] + slope[..., d] * change[..., None]
    moved = xp.stack(coordinates, axis=-1)
    return moved if mixture.event_ndim else moved[..., 0]
