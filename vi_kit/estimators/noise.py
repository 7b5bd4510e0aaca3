"""Standard noise for estimators that do not sample by the library's own distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.named import Array


def uniform(shape: tuple[int, ...], like: Array) -> Array:
    """On [0, 1), with the dtype and device of `like`."""
    return current().backend.uniform(tuple(shape), like=like)


def exponential(shape: tuple[int, ...], like: Array) -> Array:
    """Standard exponential, above zero."""
    xp = array_namespace(like)
    return xp.clip(-xp.log1p(-uniform(shape, like)), min=xp.finfo(like.dtype).tiny)


def gumbel(shape: tuple[int, ...], like: Array) -> Array:
    """Standard Gumbel."""
    return -array_namespace(like).log(exponential(shape, like))


def normal(shape: tuple[int, ...], like: Array) -> Array:
    """Standard normal."""
    xp = array_namespace(like)
    return xp.sqrt(2.0 * exponential(shape, like)) * xp.cos(2.0 * math.pi * uniform(shape, like))


def log_gamma(concentration: Array) -> Array:
    """Log of a standard Gamma variable; does not underflow where the concentration is small."""
    concentration = current().backend.stop_gradient(concentration)
    xp = array_namespace(concentration)
    larger = xp.log(current().backend.standard_gamma(concentration + 1.0))
    return larger - exponential(concentration.shape, like=concentration) / concentration


@dataclass(frozen=True, eq=False)
class Noise:
    """A source of standard noise for a site.

    Attributes:
        shape: of what each word returns, one number for each element of the site.
        like: an array whose dtype and device it takes.
    """

    shape: tuple[int, ...]
    like: Array

    def uniform(self) -> Array:
        """On [0, 1)."""
        return uniform(self.shape, self.like)

    def exponential(self) -> Array:
        """Above zero."""
        return exponential(self.shape, self.like)

    def gumbel(self) -> Array:
        return gumbel(self.shape, self.like)

    def normal(self) -> Array:
        return normal(self.shape, self.like)
