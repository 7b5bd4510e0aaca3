"""The weak derivatives that `MeasureValued` knows, family by family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.named import Array

Params = dict[str, Array]
Exponentials = Callable[[], Array]
Pair = tuple[Array, Array]
"""A value to compare with the drawn one, and the weight of the difference."""


@dataclass(frozen=True)
class WeakDerivative:
    """The weak derivatives of one family, each a difference from the drawn value.

    Attributes:
        num_slots: number of pairs, from the parameters.
        pairs: from the drawn elements, the parameters without gradient, the parameters minus that
            (value zero, with gradient) and a source of standard exponential noise.
        fixed: parameters that have none.
    """

    num_slots: Callable[[Params], int]
    pairs: Callable[[Array, Params, Params, Exponentials], list[Pair]]
    fixed: tuple[str, ...] = ()


def _bernoulli(x: Array, fixed: Any, moved: Params, noise: Any) -> list[Pair]:
    return [(1.0 - x, (1.0 - 2.0 * x) * moved["probs"])]


def _categorical(x: Array, fixed: Params, moved: Params, noise: Any) -> list[Pair]:
    xp = array_namespace(fixed["probs"])
    size = fixed["probs"].shape[-1]
    others = [(x + shift) % size for shift in range(1, size)]
    return [(y, xp.take_along_axis(moved["probs"], y[..., None], axis=-1)[..., 0]) for y in others]


def _binomial(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # n times the difference that one trial makes to the sum of the other n - 1. That trial is one of the drawn n
    # at random, a success with probability x / n, and is turned over; exp(-noise) is uniform on (0, 1].
    n = fixed["total_count"]
    xp = array_namespace(x)
    success = xp.exp(-noise()) * n <= x
    value = xp.where(success, xp.clip(x - 1, min=0), x + 1)
    weight = n * moved["probs"]
    return [(value, xp.where(success, -weight, weight))]


def _poisson(x: Array, fixed: Any, moved: Params, noise: Any) -> list[Pair]:
    return [(x + 1.0, moved["rate"])]


def _geometric(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # p (1 - p)^x changes by 1 / p times the difference of itself and x p^2 (1 - p)^(x - 1): as many failures as
    # come before the second success, and one.
    p = fixed["probs"]
    xp = array_namespace(p)
    further = xp.floor(noise() / -xp.log1p(-p))
    return [(x + 1.0 + further, -moved["probs"] / p)]


def _negative_binomial(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # x NB(x; r) = r p / (1 - p) NB(x - 1; r + 1), so that the change x / p - r / (1 - p) of the log probability is
    # r / (1 - p) times one more than NB(r + 1) against NB(r); a geometric variable makes the latter the former.
    p = fixed["probs"]
    xp = array_namespace(p)
    further = xp.floor(noise() / -xp.log(p))
    return [(x + 1.0 + further, fixed["total_count"] / (1.0 - p) * moved["probs"])]


def _side(x: Array) -> Array:
    """1 where it is not negative, -1 elsewhere; `xp.sign` writes by a mask, for which a host waits."""
    one = array_namespace(x).ones_like(x)
    return array_namespace(x).where(x < 0.0, -one, one)


def _normal(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # Location: a Rayleigh step up against the same step down. Scale: a double-sided Maxwell variable
    # against a normal one; the drawn value is one coordinate of the three whose norm is Maxwell's.
    loc, scale = fixed["loc"], fixed["scale"]
    xp = array_namespace(x)
    step = scale * xp.sqrt(2.0 * noise())
    weight = moved["loc"] / (scale * math.sqrt(2.0 * math.pi))
    deviation = (x - loc) / scale
    maxwell = _side(deviation) * xp.sqrt(deviation**2 + 2.0 * noise())
    return [
        (loc + step, weight),
        (loc - step, -weight),
        (loc + scale * maxwell, moved["scale"] / scale),
    ]


def _laplace(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # Location: an exponential step up against the same step down; the drawn value is one of them, its mirror
    # image the other. Scale: that step is a sum of two exponentials (the density times |x - loc| / scale)
    # against one.
    loc, scale = fixed["loc"], fixed["scale"]
    side = _side(x - loc)
    return [
        (2.0 * loc - x, -side * moved["loc"] / (2.0 * scale)),
        (x + side * scale * noise(), moved["scale"] / scale),
    ]


def _exponential(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    return [(x + noise() / fixed["rate"], -moved["rate"] / fixed["rate"])]


def _gamma(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    weight = -moved["rate"] * fixed["concentration"] / fixed["rate"]
    return [(x + noise() / fixed["rate"], weight)]


def _weibull(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # x^k is exponential with rate scale^-k, whose relative change is -k times that of the scale.
    scale, k = fixed["scale"], fixed["concentration"]
    value = scale * ((x / scale) ** k + noise()) ** (1.0 / k)
    return [(value, moved["scale"] * k / scale)]


def _beta(x: Array, fixed: Params, moved: Params, noise: Exponentials) -> list[Pair]:
    # The log density changes by log x - E[log x] with a. As -log x is infinitely divisible, weighting by it adds an
    # independent t to it (Steutel), of density exp(-a t) (1 - exp(-b t)) / (1 - exp(-t)) over E[-log x]. Here t is
    # exponential with rate a; the ratio, between b / a and 1 / a, goes to the weight. The same for 1 - x with b.
    a, b = fixed["concentration1"], fixed["concentration0"]
    xp = array_namespace(x)
    limits = xp.finfo(x.dtype)

    def step(own: Array, other: Array) -> Pair:
        t = xp.clip(noise() / own, min=limits.tiny)
        return t, xp.expm1(-other * t) / (own * xp.expm1(-t))

    (down, weight1), (up, weight0) = step(a, b), step(b, a)
    pairs = [
        (x * xp.exp(-down), -weight1 * moved["concentration1"]),
        (x - (1.0 - x) * xp.expm1(-up), -weight0 * moved["concentration0"]),
    ]
    return [(xp.clip(y, min=limits.tiny, max=1.0 - limits.eps), c) for y, c in pairs]


def _one(params: Params) -> int:
    del params
    return 1


def _two(params: Params) -> int:
    del params
    return 2


WEAK_DERIVATIVES = {
    "Bernoulli": WeakDerivative(_one, _bernoulli),
    "Categorical": WeakDerivative(lambda p: p["probs"].shape[-1] - 1, _categorical),
    "Binomial": WeakDerivative(_one, _binomial, fixed=("total_count",)),
    "Poisson": WeakDerivative(_one, _poisson),
    "Geometric": WeakDerivative(_one, _geometric),
    "NegativeBinomial": WeakDerivative(_one, _negative_binomial, fixed=("total_count",)),
    "Normal": WeakDerivative(lambda p: 3, _normal),
    "Laplace": WeakDerivative(_two, _laplace),
    "Exponential": WeakDerivative(_one, _exponential),
    "Gamma": WeakDerivative(_one, _gamma, fixed=("concentration",)),
    "Weibull": WeakDerivative(_one, _weibull, fixed=("concentration",)),
    "Beta": WeakDerivative(_two, _beta),
}
