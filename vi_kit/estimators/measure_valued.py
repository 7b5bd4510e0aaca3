"""Measure-valued derivatives: differentiate the density as a difference of two densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.layouts import Alternatives, Gradient, Layout, Single
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution, Elementary
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.noise import Noise
from vi_kit.estimators.tables.weak_derivatives import WEAK_DERIVATIVES


@dataclass(frozen=True)
class MeasureValued(Estimator):
    r"""The weak derivative, $\nabla_\theta E[f(z)] = c_\theta (E[f(z^+)] - E[f(z^-)])$, per parameter.

    Wherever it can, the drawn value itself stands for one of the two sides, and both sides share
    their noise. A vector event is perturbed one coordinate at a time. A gradient of the concentration of a
    Gamma or Weibull, or of the total count of a NegativeBinomial, is refused.

    Unbiased when: always; the cost need not be differentiable in the value.
    Needs: independent Bernoulli, Categorical, Binomial, Poisson, Geometric, NegativeBinomial (probs), Normal,
        Laplace, Exponential, Gamma (rate), Weibull (scale) or Beta elements.
    Cost: 1 + D S evaluations of the model for D elements in the event; S is 3 for Normal, 2 for Laplace and Beta,
        K - 1 for a Categorical of K, 1 for the others.
    Variance: low, and bounded where the cost is; grows with D only through the cost.
    Use for: a cost with jumps in a continuous value; counts.

    Example:
        >>> MeasureValued()
        MeasureValued()

    References:
        Pflug 1996, Optimization of Stochastic Models.
        Mohamed, Rosca, Figurnov and Mnih 2020, Monte Carlo Gradient Estimation in Machine Learning.
        Arratia, Goldstein and Kochman 2019, Size Bias for One and All (section 11, for Beta).
    """

    gradient: ClassVar[Gradient] = Gradient.NONE

    def layout(self, dist: Distribution) -> Layout:
        elements = dist.elementary()
        if elements is None or elements.family not in WEAK_DERIVATIVES:
            return Single()
        per_element = WEAK_DERIVATIVES[elements.family].num_slots(elements.params)
        return Alternatives(per_element * math.prod(_event_shape(elements)))

    def reason_against(self, dist: Distribution) -> str | None:
        elements = dist.elementary()
        if elements is None or elements.family not in WEAK_DERIVATIVES:
            return f"has no weak derivative for {dist.name}"
        for name in WEAK_DERIVATIVES[elements.family].fixed:
            if current().backend.may_need_gradient(elements.params[name]):
                return f"has no weak derivative for the {name} of {elements.family}"
        return None

    def expand(self, dist: Distribution) -> Expansion:
        elements = dist.elementary()
        assert elements is not None
        backend = current().backend
        fixed = {k: backend.stop_gradient(v) for k, v in elements.params.items()}
        moved = {k: v - fixed[k] for k, v in elements.params.items()}
        drawn = elements.sample()

        xp = array_namespace(drawn)
        is_float = xp.isdtype(drawn.dtype, "real floating")
        like = drawn if is_float else next(iter(fixed.values()))
        noise = Noise(tuple(drawn.shape), like).exponential
        pairs = WEAK_DERIVATIVES[elements.family].pairs(drawn, fixed, moved, noise)
        values = xp.stack([xp.astype(v, drawn.dtype) for v, _ in pairs])
        coefficients = xp.stack([c for _, c in pairs])
        if elements.family in ("Bernoulli", "Categorical") and not elements.by_probs:
            values = xp.where(_possible(fixed["probs"], values, elements.family), values, drawn)
        values, coefficients = _one_at_a_time(drawn, values, coefficients, elements.event_ndim)
        return Expansion(
            elements.push(drawn),
            alternatives=elements.push(values),
            coefficients=coefficients,
            has_path=elements.push_has_params,
        )

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_differences()


def _possible(probs: Array, values: Array, family: str) -> Array:
    """Where discrete values have a probability that is not zero. By logits its gradient is zero there, and what they
    are worth may be infinite."""
    xp = array_namespace(probs)
    if family == "Bernoulli":
        return xp.where(values > 0, probs, 1.0 - probs) > 0
    probs = xp.broadcast_to(probs, (values.shape[0], *probs.shape))
    return xp.take_along_axis(probs, values[..., None], axis=-1)[..., 0] > 0


def _event_shape(elements: Elementary) -> tuple[int, ...]:
    param = next(iter(elements.params.values()))
    shape = tuple(param.shape)[:-1] if elements.family == "Categorical" else tuple(param.shape)
    return shape[len(shape) - elements.event_ndim :]


def _one_at_a_time(
    drawn: Array, values: Array, coefficients: Array, event_ndim: int
) -> tuple[Array, Array]:
    """Alternatives to a whole event: each is the drawn one but for one coordinate."""
    if event_ndim == 0:
        return values, coefficients
    xp = array_namespace(values)
    batch = tuple(drawn.shape)[: drawn.ndim - event_ndim]
    event = tuple(drawn.shape)[drawn.ndim - event_ndim :]
    size, slots = math.prod(event), values.shape[0]
    flat = xp.reshape(values, (slots, 1, *batch, size))
    base = xp.reshape(drawn, (1, 1, *batch, size))
    eye = xp.reshape(
        xp.eye(size, dtype=xp.bool, device=device(drawn)), (1, size, *(1,) * len(batch), size)
    )
    values = xp.reshape(xp.where(eye, flat, base), (slots * size, *batch, *event))
    coefficients = xp.moveaxis(xp.reshape(coefficients, (slots, *batch, size)), -1, 1)
    return values, xp.reshape(coefficients, (slots * size, *batch))
