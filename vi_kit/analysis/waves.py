"""Sines and cosines of Gaussian values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from array_api_compat import array_namespace

from vi_kit.analysis.factors import Factor, Gaussian, Known, centred, variance_of
from vi_kit.analysis.moments import Affine, product_mean
from vi_kit.analysis.parts import Noise
from vi_kit.base.named import Array


@dataclass(frozen=True, eq=False)
class Wave(Factor):
    r"""$\sin(\phi + k \pi / 2)$ for Gaussian $\phi$ with mean m and variance v, of mean $e^{-v/2} \sin(m + k \pi / 2)$.

    Attributes:
        phase: the values.
        quarters: k, by which a sine is a cosine.
        raw: itself by mean and variance, if its elements are independent.
    """

    phase: Affine
    quarters: int = 0
    raw: Affine | None = None

    @classmethod
    def of(cls, phase: Affine, quarters: int) -> Wave:
        plain, site = cls(phase, quarters), phase.site_of_elements
        if site is None:
            return plain
        square = (1.0 - _damped(2.0 * phase.mean, 4.0 * variance_of(phase), 2 * quarters + 1)) / 2.0
        raw = Affine.around(plain.mean, Noise(site, square - plain.mean**2))
        return cls(phase, quarters, raw)

    @cached_property
    def mean(self) -> Array:
        return _damped(self.phase.mean, variance_of(self.phase), self.quarters)

    def times(self, other: Factor) -> Known | None:
        sites = self.sites | other.sites
        if isinstance(other, Wave):
            apart = self.phase.plus(other.phase.scaled(-1.0))
            falling = Wave(apart, self.quarters - other.quarters + 1).mean
            rising = Wave(self.phase.plus(other.phase), self.quarters + other.quarters + 1).mean
            return Known((falling - rising) / 2, sites)
        gaussian = other.as_gaussian()
        if gaussian is None or len(gaussian.values) > 1:
            return None
        phase, mean, weight = centred(self.phase), self.phase.mean, 1.0
        if gaussian.exponent is not None:  # it moves means by covariances
            mean = mean + product_mean(phase, centred(gaussian.exponent))
            weight = Gaussian((), gaussian.exponent).mean
        variance = variance_of(phase)
        total = other.mean * _damped(mean, variance, self.quarters)
        for value in gaussian.values:
            slope = weight * _damped(mean, variance, self.quarters + 1)
            total = total + product_mean(centred(value), phase) * slope
        return Known(total, sites)


def _damped(mean: Array, variance: Array, quarters: int) -> Array:
    xp = array_namespace(mean)
    value = (xp.cos if quarters % 2 else xp.sin)(mean) * xp.exp(-variance / 2)
    return -value if quarters % 4 > 1 else value
