"""Closed forms: the expectation over a site, from the operations of the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_kit.base.demands import ClosedForm, Demand
from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.layouts import Closed, Gradient, Layout
from vi_kit.base.protocols import Distribution, Moments
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion

UNKNOWN = Moments("unknown", (), lambda value: value)


@dataclass(frozen=True, repr=False)
class Analytic(Estimator):
    r"""The exact expectation $\nabla_\theta E[f(z)]$, term by term, from the operations of model and guide.

    The site's value carries its mean and covariance through affine operations: sums, products with constants, linear
    and convolution layers, slices, other shapes. Squares (a Normal log density whose loc it is), products of
    independent sites, the `exp` of Normal values (Poisson and LogNormal likelihoods; also times their squares), their
    `sin` and `cos`, and powers and logs of Gamma values turn it into an expectation, which only linear operations may
    touch. Values of a Categorical or Bernoulli may be compared with constants, choose between cases and index tables.
    Log densities of the site's own value come from the KL divergences and entropies that the library has. A term that
    has no closed form is refused, with the operation and the line of the program; or it gets the gradient of
    `fallback`, while all other terms stay exact.

    Unbiased when: always, in costs that are linear in the log densities (`elbo`); nonlinear objectives are refused.
    Needs: a site of known mean and variance: Normal, MultivariateNormal, LogNormal, Gamma, Beta, Dirichlet, Bernoulli,
        Categorical, ...; terms that are closed forms in it, or a `fallback`.
    Cost: up to two evaluations of an affine model, whatever the number of elements.
    Variance: zero by this site, but for terms left to `fallback`.
    Use for: linear decoders, conjugate models, mixtures, regression with an AutoMultivariateNormal guide; the KL term
        of any model.

    Args:
        fallback: estimator of the terms that have no closed form; `None` to refuse them.

    Raises:
        AnalyticError: before any gradient, a term that has no closed form, and no `fallback`.
        EstimatorError: a fallback that is none.

    Example:
        >>> from vi_kit.estimators import Reparam
        >>> Analytic(fallback=Reparam())
        Analytic(fallback=Reparam())

    References:
        Shao, Liu and Van den Broeck 2025, Zero-Variance Gradients for Variational Autoencoders (Silent Gradients).
        Ranganath, Gerrish and Blei 2014, Black Box Variational Inference (on expectations given all else).
    """

    gradient: ClassVar[Gradient] = Gradient.PATH
    fallback: Estimator | None = None

    def __post_init__(self) -> None:
        other = self.fallback
        if other is None:
            return
        fits = (
            isinstance(other, Estimator)
            and type(other).layout is Estimator.layout
            and other.gradient is not Gradient.PART
            and not other.holds_params
        )
        if not fits:
            raise EstimatorError(
                message(
                    "Analytic: its fallback must be an estimator of single draws",
                    got=f"fallback={other!r}",
                    expected="Reparam(), MixtureReparam(), Score(...), Relaxed(...) or StraightThrough(...)",
                    fix="fallback=vi.Reparam(), or vi.Score() for discrete sites",
                )
            )

    def __repr__(self) -> str:
        return "Analytic()" if self.fallback is None else f"Analytic(fallback={self.fallback!r})"

    def demand(self, dist: Distribution) -> Demand:
        del dist
        return ClosedForm()

    def layout(self, dist: Distribution) -> Layout:
        del dist
        return Closed()

    def reason_against(self, dist: Distribution) -> str | None:
        if self.fallback is not None:
            return self.fallback.reason_against(dist)
        if dist.moments() is None:
            return f"needs the mean and the variance of {dist.name}, which are not known"
        return None

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(None, moments=dist.moments() or UNKNOWN)

    def contract(self, downstream: Downstream) -> list[Term]:
        return list(downstream.terms)
