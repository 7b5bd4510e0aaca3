"""Measure-valued derivatives: differentiate the density as a difference of two densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from vi_kit._named import Array, combine
from vi_kit.backend import current
from vi_kit.credit import downstream, gradient_term, grouped, matched
from vi_kit.estimators.base import Estimator, Expansion

if TYPE_CHECKING:
    from vi_kit.backend import Distribution, Elementary
    from vi_kit.cost import Site, Term


@dataclass(frozen=True)
class MeasureValued(Estimator):
    r"""The weak derivative, $\nabla_\theta E[f(z)] = c_\theta (E[f(z^+)] - E[f(z^-)])$, per parameter.

    Wherever it can, the drawn value itself stands for one of the two sides, and both sides share
    their noise. A vector event is perturbed one coordinate at a time. Noise of a Gamma's
    concentration has no such form and is refused.

    Unbiased when: always; the cost need not be differentiable in the value.
    Needs: independent Bernoulli, Categorical, Normal, Exponential, Gamma (rate) or Poisson elements.
    Cost: 1 + D S evaluations of the model for D elements in the event; S is 1 for Bernoulli, Exponential,
        Gamma and Poisson, 3 for Normal, K - 1 for a Categorical of K.
    Variance: low, and bounded where the cost is; grows with D only through the cost.

    Example:
        >>> MeasureValued()
        MeasureValued()

    References:
        Pflug 1996, Optimization of Stochastic Models.
        Mohamed, Rosca, Figurnov and Mnih 2020, Monte Carlo Gradient Estimation in Machine Learning.
    """

    def num_slots(self, dist: Distribution) -> int:
        elements = dist.elementary()
        if elements is None:
            return 0
        per_element = WEAK_DERIVATIVES[elements.family].num_slots(elements.params)
        return per_element * math.prod(_event_shape(elements))

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

        def exponential() -> Array:
            xp = array_namespace(drawn)
            like = next(iter(fixed.values()))
            return -xp.log1p(-backend.uniform(tuple(drawn.shape), like=like))

        xp = array_namespace(drawn)
        pairs = WEAK_DERIVATIVES[elements.family].pairs(drawn, fixed, moved, exponential)
        values = xp.astype(xp.stack([v for v, _ in pairs]), drawn.dtype)
        coefficients = xp.stack([c for _, c in pairs])
        values, coefficients = _one_at_a_time(drawn, values, coefficients, elements.event_ndim)
        return Expansion(
            elements.push(drawn), alternatives=elements.push(values), coefficients=coefficients
        )

    def contract(self, site: Site, terms: Sequence[Term]) -> list[Term]:
        assert site.coefficients is not None
        done = list(terms)
        for group in grouped(t for t in terms if site in t.alternatives):
            coefficient = matched(site.coefficients, site, group[0].drawn)
            other = downstream(group, site, lambda t: t.alternatives[site])
            own = downstream(group, site, lambda t: t.base)
            worth = combine(lambda x, y: x - y, other, own)
            done.append(gradient_term(coefficient, worth, group[0]))
        return done


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


Pair = tuple[
    Array, Array
]  # a value to compare with the drawn one, and the weight of the difference


@dataclass(frozen=True)
class WeakDerivative:
    """The weak derivatives of one family, each a difference from the drawn value.

    Attributes:
        num_slots: number of pairs, from the parameters.
        pairs: from the drawn elements, the parameters without gradient, the parameters minus that
            (value zero, with gradient) and a source of standard exponential noise.
        fixed: parameters that have none.
    """

    num_slots: Callable[[dict[str, Array]], int]
    pairs: Callable[[Array, dict[str, Array], dict[str, Array], Callable[[], Array]], list[Pair]]
    fixed: tuple[str, ...] = ()


def _bernoulli(x: Array, fixed: Any, moved: Any, noise: Any) -> list[Pair]:
    return [(1.0 - x, (1.0 - 2.0 * x) * moved["probs"])]


def _categorical(x: Array, fixed: Any, moved: Any, noise: Any) -> list[Pair]:
    xp = array_namespace(fixed["probs"])
    size = fixed["probs"].shape[-1]
    others = [(x + shift) % size for shift in range(1, size)]
    return [(y, xp.take_along_axis(moved["probs"], y[..., None], axis=-1)[..., 0]) for y in others]


def _normal(x: Array, fixed: Any, moved: Any, noise: Callable[[], Array]) -> list[Pair]:
    # Location: a Rayleigh step up against the same step down. Scale: a double-sided Maxwell variable
    # against a normal one; the drawn value is one coordinate of the three whose norm is Maxwell's.
    loc, scale = fixed["loc"], fixed["scale"]
    xp = array_namespace(x)
    step = scale * xp.sqrt(2.0 * noise())
    weight = moved["loc"] / (scale * math.sqrt(2.0 * math.pi))
    deviation = (x - loc) / scale
    maxwell = xp.sign(deviation) * xp.sqrt(deviation**2 + 2.0 * noise())
    return [
        (loc + step, weight),
        (loc - step, -weight),
        (loc + scale * maxwell, moved["scale"] / scale),
    ]


def _exponential(x: Array, fixed: Any, moved: Any, noise: Callable[[], Array]) -> list[Pair]:
    return [(x + noise() / fixed["rate"], -moved["rate"] / fixed["rate"])]


def _gamma(x: Array, fixed: Any, moved: Any, noise: Callable[[], Array]) -> list[Pair]:
    weight = -moved["rate"] * fixed["concentration"] / fixed["rate"]
    return [(x + noise() / fixed["rate"], weight)]


def _poisson(x: Array, fixed: Any, moved: Any, noise: Any) -> list[Pair]:
    return [(x + 1.0, moved["rate"])]


def _one(params: dict[str, Array]) -> int:
    del params
    return 1


WEAK_DERIVATIVES = {
    "Bernoulli": WeakDerivative(_one, _bernoulli),
    "Categorical": WeakDerivative(lambda p: p["probs"].shape[-1] - 1, _categorical),
    "Normal": WeakDerivative(lambda p: 3, _normal),
    "Exponential": WeakDerivative(_one, _exponential),
    "Gamma": WeakDerivative(_one, _gamma, fixed=("concentration",)),
    "Poisson": WeakDerivative(_one, _poisson),
}
