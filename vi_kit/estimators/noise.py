"""Standard noise for estimators that do not sample by the library's own distributions."""

from __future__ import annotations

from array_api_compat import array_namespace

from vi_kit._named import Array
from vi_kit.backend import current


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
