"""The nodes and weights that `Quadrature` knows, family by family."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.named import Array

Params = dict[str, Array]
Rule = Callable[[Params, int], tuple[Array, Array]]
"""From the parameters and the number of nodes to nodes, shape `(num_nodes, *shape)`, and weights that sum to one, of
that shape or with ones for dims that they do not have. Both have gradients."""


def floating(*arrays: Array) -> list[Array]:
    """The arrays with the floating dtype to which they and fractions come together."""
    xp = array_namespace(*arrays)
    dtype = functools.reduce(operator.add, [a * 1.0 for a in arrays]).dtype
    return [xp.astype(a, dtype) for a in arrays]


def along(values: np.ndarray, like: Array, ndim: int) -> Array:
    """A vector of constants along a new dim in front of `ndim` others."""
    xp = array_namespace(like)
    array = current().backend.constants(values, like)
    return xp.reshape(xp.astype(array, like.dtype), (-1, *(1,) * ndim))


@functools.cache
def hermite(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / weights.sum()


@functools.cache
def spherical(size: int, is_second: bool) -> np.ndarray:
    """Equally weighted nodes of a standard normal vector, shape `(2 * size, size)`: both ways along orthogonal axes,
    as far out as its length is on average (root of the mean square). The second rule has other axes."""
    axes = np.eye(size)
    if is_second:  # those of the discrete cosine transform
        k, i = np.indices((size, size))
        axes = np.cos(np.pi * k * (2 * i + 1) / (2 * size)) * math.sqrt(2 / size)
        axes[0] = math.sqrt(1 / size)
    return math.sqrt(size) * np.concatenate([axes, -axes])


def _exponential(params: Params, num_nodes: int) -> tuple[Array, Array]:
    rate = params["rate"]
    nodes, weights = np.polynomial.laguerre.laggauss(num_nodes)
    return along(nodes, rate, rate.ndim) / rate, along(weights, rate, rate.ndim)


def _uniform(params: Params, num_nodes: int) -> tuple[Array, Array]:
    low, high = params["low"], params["high"]
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    middle = along((nodes + 1) / 2, low, low.ndim)
    return low + (high - low) * middle, along(weights / 2, low, low.ndim)


def _gamma(params: Params, num_nodes: int) -> tuple[Array, Array]:
    a = params["concentration"]
    k = _counted(a, num_nodes)
    nodes, weights = _golub_welsch(2 * k + a[..., None], (k * (k + a[..., None] - 1))[..., 1:])
    return nodes / params["rate"], weights


def _beta(params: Params, num_nodes: int) -> tuple[Array, Array]:
    a, b = params["concentration1"][..., None], params["concentration0"][..., None]
    xp, k, s = array_namespace(a), _counted(a, num_nodes), a + b
    # Jacobi polynomials on [0, 1]; for k = 0, and in the first of the squares, a factor is cancelled by hand
    first, later = k == 0, k >= 2
    gap = (a - b) * (s - 2) / xp.where(first, xp.ones_like(s * k), (2 * k + s - 2) * (2 * k + s))
    centres = xp.where(first, a / s, (1 + gap) / 2)
    cancelled = xp.where(
        later, (k + s - 2) / xp.where(later, 2 * k + s - 3, xp.ones_like(s * k)), 1.0
    )
    squares = k * (k + a - 1) * (k + b - 1) * cancelled
    squares = squares / xp.where(first, xp.ones_like(s * k), (2 * k + s - 2) ** 2 * (2 * k + s - 1))
    return _golub_welsch(centres, squares[..., 1:])


def _counted(like: Array, num_nodes: int) -> Array:
    xp = array_namespace(like)
    return xp.arange(num_nodes, dtype=like.dtype, device=device(like))


def _golub_welsch(diagonal: Array, squares: Array) -> tuple[Array, Array]:
    """Nodes and weights from the recurrence of orthogonal polynomials. Their gradients are those of the eigenvalues
    and eigenvectors, so that the gradient of the rule is as exact as the rule.

    Args:
        diagonal: shape `(*shape, num_nodes)`.
        squares: of what stands beside it, shape `(*shape, num_nodes - 1)`.

    Returns:
        Both of shape `(num_nodes, *shape)`.
    """
    xp, n = array_namespace(diagonal), diagonal.shape[-1]
    eye = xp.eye(n, dtype=diagonal.dtype, device=device(diagonal))
    beside = xp.sqrt(squares)[..., None] * eye[:-1, :]
    pad = xp.zeros_like(diagonal[..., :1, None] * eye[:1, :])
    below = xp.concat([pad, beside], axis=-2)
    matrix = diagonal[..., None] * eye + below + xp.matrix_transpose(below)
    nodes, vectors = xp.linalg.eigh(matrix)
    return xp.moveaxis(nodes, -1, 0), xp.moveaxis(vectors[..., 0, :] ** 2, -1, 0)


RULES: dict[str, Rule] = {
    "Exponential": _exponential,
    "Gamma": _gamma,
    "Uniform": _uniform,
    "Beta": _beta,
}
"""Of scalar families. `Normal` has rules for vectors too: `hermite` and `spherical`."""
