"""The maps from noise to values that `RejectionReparam` and `GeneralizedReparam` know, family by family.

Each draws a value without gradient, takes the noise from which the map makes that value, holds it, and applies the
map once more with live parameters. So drawn, the noise has exactly the distribution of noise that was accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution, Elementary
from vi_kit.estimators import noise
from vi_kit.estimators.base import Expansion

Drawn = tuple[Array, Array]
"""Values with a gradient, and the log densities of their noise, which is held."""

LogGamma = Callable[[Array], Drawn]
"""Draws the log of standard Gamma variables, from concentrations."""

Sampler = Callable[[Elementary, LogGamma], Drawn]


def by_rejection(augmentation: int) -> LogGamma:
    """Marsaglia and Tsang's sampler of a Gamma variable whose concentration is higher by `augmentation`, brought
    back by that many uniform variables to powers. A concentration below one is raised by at least one."""

    def draw(concentration: Array) -> Drawn:
        xp, held = array_namespace(concentration), _held(concentration)
        num = max(augmentation, 1)
        order = xp.reshape(xp.arange(num, device=device(held)), (num, *(1,) * held.ndim))
        log_powers = noise.exponential((num, *held.shape), like=held) / (
            concentration + xp.astype(order, held.dtype)
        )
        shrink, more = xp.sum(log_powers, axis=0), augmentation
        if augmentation == 0:
            more = xp.astype(held < 1.0, held.dtype)
            shrink = more * shrink
        log_value, log_noise = _marsaglia_tsang(concentration + more)
        return log_value - shrink, log_noise

    return draw


def _marsaglia_tsang(concentration: Array) -> Drawn:
    # d (1 + x)^3 with x = eps / sqrt(9 d), d = a - 1/3. The log density of eps is written so that nothing large
    # cancels where a is; constants are left out.
    xp, held = array_namespace(concentration), _held(concentration)
    drawn = current().backend.standard_gamma(held)
    factor, slope = concentration - 1.0 / 3.0, 1.0 / xp.sqrt(9.0 * concentration - 3.0)
    x = xp.expm1(xp.log(drawn / _held(factor)) / 3.0)
    x = x + x / _held(slope) * _change(slope)
    log_ratio = xp.log1p(x)
    log_noise = factor * (3.0 * log_ratio - 3.0 * x - 3.0 * x**2 - x**3)
    log_noise = log_noise + (concentration - 0.5) * xp.log1p(-1.0 / (3.0 * concentration))
    return xp.log(factor) + 3.0 * log_ratio, log_noise - _stirling_error(concentration)


def standardised(concentration: Array) -> Drawn:
    """The log of a Gamma variable less its mean, over its standard deviation."""
    xp, backend = array_namespace(concentration), current().backend
    log_concentration = xp.log(concentration)
    mean = backend.polygamma(0, concentration)
    scale = xp.sqrt(backend.polygamma(1, concentration))
    log_value = _affine(noise.log_gamma(concentration), mean, scale)
    log_ratio = log_value - log_concentration
    log_noise = concentration * (log_ratio - xp.expm1(log_ratio)) + 0.5 * log_concentration
    return log_value, log_noise + xp.log(scale) - _stirling_error(concentration)


def _stirling_error(x: Array) -> Array:
    """`lgamma(x)` less `(x - 1/2) log(x) - x + log(2 pi) / 2`."""
    xp = array_namespace(x)
    is_large = x > 100.0
    small, large = xp.where(is_large, 1.0, x), xp.where(is_large, x, 100.0)
    exact = current().backend.lgamma(small) - (small - 0.5) * xp.log(small) + small
    series = 1.0 / (12.0 * large) - 1.0 / (360.0 * large**3) + 1.0 / (1260.0 * large**5)
    return xp.where(is_large, series, exact - 0.5 * math.log(2.0 * math.pi))


def _standardised_logit(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    """A Beta variable by its logit less its mean, over its standard deviation."""
    del log_gamma
    a, b = elements.params["concentration1"], elements.params["concentration0"]
    xp, backend = array_namespace(a), current().backend
    mean = backend.polygamma(0, a) - backend.polygamma(0, b)
    scale = xp.sqrt(backend.polygamma(1, a) + backend.polygamma(1, b))
    value = _affine(noise.log_gamma(a) - noise.log_gamma(b), mean, scale)
    zero = xp.zeros_like(value)
    log_beta = backend.lgamma(a) + backend.lgamma(b) - backend.lgamma(a + b)
    log_density = -a * xp.logaddexp(zero, -value) - b * xp.logaddexp(zero, value) - log_beta
    return _unit(value), log_density + xp.log(scale)


def _gamma(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    log_value, log_noise = log_gamma(elements.params["concentration"])
    rate = elements.params["rate"]
    return _positive(log_value - array_namespace(rate).log(rate)), log_noise


def _exponential(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    rate = elements.params["rate"]
    log_value, log_noise = log_gamma(array_namespace(rate).ones_like(rate))
    return _positive(log_value - array_namespace(rate).log(rate)), log_noise


def _beta(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    first, first_noise = log_gamma(elements.params["concentration1"])
    second, second_noise = log_gamma(elements.params["concentration0"])
    return _unit(first - second), first_noise + second_noise


def _dirichlet(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    log_values, log_noise = log_gamma(elements.params["concentration"])
    # not by the log of their sum, whose rounding would show in the sum of the values
    xp = array_namespace(log_values)
    weights = xp.exp(log_values - _held(xp.max(log_values, axis=-1, keepdims=True)))
    values = weights / xp.sum(weights, axis=-1, keepdims=True)
    least = 2.0 * xp.finfo(values.dtype).tiny
    return xp.clip(values, min=least), xp.sum(log_noise, axis=-1)


def _student_t(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    df, loc, scale = (elements.params[name] for name in ("df", "loc", "scale"))
    xp = array_namespace(df)
    log_half, log_noise = log_gamma(df / 2.0)
    stretch = xp.exp((xp.log(df / 2.0) - log_half) / 2.0)
    return loc + scale * noise.normal(df.shape, like=df) * stretch, log_noise


def _von_mises(elements: Elementary, log_gamma: LogGamma) -> Drawn:
    # Best and Fisher: a wrapped Cauchy variable, tan(x / 2) = k tan(u / 2) with u uniform, as the proposal.
    del log_gamma
    loc, kappa = elements.params["loc"], elements.params["concentration"]
    xp, value = array_namespace(loc), elements.sample()
    tau = 1.0 + xp.sqrt(1.0 + 4.0 * kappa**2)
    rho = 2.0 * kappa / (tau + xp.sqrt(2.0 * tau))
    k = (1.0 - rho) / (1.0 + rho)
    tangent = xp.tan((value - _held(loc)) / 2.0) / _held(k)
    value = value + _change(loc + 2.0 * xp.atan(k * tangent))
    log_jacobian = xp.log(2.0 * k / (1.0 + (k * tangent) ** 2))
    return value, elements.log_prob(value) + log_jacobian


def _truncated_normal(bound: str, side: float) -> Sampler:
    """Robert's sampler: an exponential step beyond the bound is proposed, scaled to the tail."""

    def draw(elements: Elementary, log_gamma: LogGamma) -> Drawn:
        del log_gamma
        loc, scale, edge = (elements.params[name] for name in ("loc", "scale", bound))
        xp, value = array_namespace(loc), elements.sample()
        log_rate = xp.asinh(side * (edge - loc) / scale / 2.0)
        unit = side * scale * xp.exp(-log_rate)
        step = (value - _held(edge)) / _held(unit)
        value = value + _change(edge + unit * step)
        return value, elements.log_prob(value) + xp.log(xp.abs(unit))

    return draw


def _held(array: Array) -> Array:
    return current().backend.stop_gradient(array)


def _change(array: Array) -> Array:
    """Zero, with the gradient of an array."""
    return array - _held(array)


def _affine(value: Array, shift: Array, scale: Array) -> Array:
    """A value whose standardised form is held."""
    return value + _change(shift) + (value - _held(shift)) / _held(scale) * _change(scale)


def _positive(log_value: Array) -> Array:
    """Above zero, whatever the log."""
    xp = array_namespace(log_value)
    # not the log of the least itself, whose exponential may round to below it
    least = math.log(xp.finfo(log_value.dtype).tiny) + 1.0
    return xp.exp(xp.clip(log_value, min=least))


def _unit(logit: Array) -> Array:
    """Between zero and one, whatever the logit."""
    xp = array_namespace(logit)
    limits = xp.finfo(logit.dtype)
    value = xp.exp(-xp.logaddexp(xp.zeros_like(logit), -logit))
    return xp.clip(value, min=limits.tiny, max=1.0 - limits.eps)


REJECTION_SAMPLERS: dict[str, Sampler] = {
    "Gamma": _gamma,
    "Chi2": _gamma,
    "Exponential": _exponential,
    "Beta": _beta,
    "Dirichlet": _dirichlet,
    "StudentT": _student_t,
    "VonMises": _von_mises,
    "LeftTruncatedNormal": _truncated_normal("low", 1.0),
    "RightTruncatedNormal": _truncated_normal("high", -1.0),
}

STANDARDISED: dict[str, Sampler] = {
    "Gamma": _gamma,
    "Chi2": _gamma,
    "Beta": _standardised_logit,
    "Dirichlet": _dirichlet,
}


def lacks_map(dist: Distribution, samplers: Mapping[str, Sampler], what: str) -> str | None:
    """Why no sampler of a table serves a distribution; `None` if one does."""
    elements = dist.elementary()
    if elements is not None and elements.family in samplers:
        return None
    return f"has no {what} for {dist.name}; it has one for {', '.join(samplers)}"


def with_floating_params(elements: Elementary | None) -> Elementary:
    """Elements whose parameters are all of a floating dtype."""
    assert elements is not None

    def cast(param: Array) -> Array:
        xp = array_namespace(param)
        is_float = xp.isdtype(param.dtype, "real floating")
        return param if is_float else xp.astype(param, xp.asarray(1.0).dtype)

    return replace(elements, params={k: cast(v) for k, v in elements.params.items()})


def summed(elements: Elementary, drawn: Drawn) -> Expansion:
    """The expansion of a site from its elements: the log densities of their noise are summed over the event."""
    value, log_noise = drawn
    if elements.event_ndim:
        dims = tuple(range(-elements.event_ndim, 0))
        log_noise = array_namespace(log_noise).sum(log_noise, axis=dims)
    return Expansion(elements.push(value), log_noise=log_noise)
