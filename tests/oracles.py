"""Exact bounds and gradients by enumeration in NumPy float64, and the statistical rule of the tests."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable

import numpy as np


def gradient(f: Callable[[np.ndarray], complex], x: np.ndarray) -> np.ndarray:
    """Gradient of an analytic function by the complex step: exact to rounding."""
    step = 1e-30
    return np.array([f(x + 1j * step * e).imag / step for e in np.eye(len(x))])


def expected_log_mean_exp(log_q: np.ndarray, log_w: np.ndarray, particles: int) -> complex:
    """E[log mean_k w_k] over independent draws from a finite distribution, by full enumeration."""
    total = 0.0
    for ks in itertools.product(range(len(log_q)), repeat=particles):
        weight = np.exp(sum(log_q[k] for k in ks))
        total = total + weight * np.log(sum(np.exp(log_w[k]) for k in ks) / particles)
    return total


def log_bernoulli(logit, value):
    return value * logit - np.log(1 + np.exp(logit))


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def seed_of(name: str) -> int:
    """The seed of a test, from its id."""
    return zlib.crc32(name.encode())


def check_unbiased(draws: np.ndarray, exact: np.ndarray, *, power: bool = True) -> None:
    """The statistical rule: |z| <= 5 everywhere, and a zero gradient would be rejected.

    Args:
        draws: independent gradient estimates, shape `(num_draws, num_params)`.
        exact: shape `(num_params,)`.
        power: whether |exact| must reach 20 standard errors somewhere.
    """
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    difference = np.abs(draws.mean(axis=0) - exact)
    rounding = 1e-9 * (1 + np.abs(exact))
    z = np.where(difference <= rounding, 0.0, difference / np.maximum(error, 1e-300))
    assert z.max() <= 5, f"z = {z}, mean = {draws.mean(axis=0)}, exact = {exact}"
    if power:
        assert (np.abs(exact) >= 20 * error).any(), f"too few draws: {np.abs(exact) / error}"


def largest_z(draws: np.ndarray, exact: np.ndarray) -> float:
    """How clearly the draws reject `exact`."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    return float((np.abs(draws.mean(axis=0) - exact) / np.maximum(error, 1e-300)).max())


def log_add_exp(a, b):
    """Elementwise `log(exp(a) + exp(b))`, complex steps included."""
    top = np.maximum(np.real(a), np.real(b))
    return top + np.log(np.exp(a - top) + np.exp(b - top))


def normalised(log_density, log_measure):
    """A log density whose integral over the nodes of the last dim is one."""
    log_mass = log_density + log_measure
    top = np.real(log_mass).max(axis=-1, keepdims=True)
    return log_density - top - np.log(np.exp(log_mass - top).sum(axis=-1, keepdims=True))


def expected_bound(log_mass, log_w, particles):
    """E[log mean_k w_k] over independent draws from the masses of nodes, the last dim.

    Args:
        log_mass: log probability, or log density times quadrature weight, shape `(*batch, nodes)`.
        log_w: log weights, of the same shape.
        particles: number of draws.

    Returns:
        Shape `(*batch,)`.
    """
    log_mass, log_w = np.broadcast_arrays(log_mass, log_w)
    mass, total = log_mass, log_w
    for _ in range(particles - 1):
        batch = mass.shape[:-1]
        mass = (mass[..., None] + log_mass[..., None, :]).reshape(*batch, -1)
        total = log_add_exp(total[..., None], log_w[..., None, :]).reshape(*batch, -1)
    return (np.exp(mass) * (total - np.log(particles))).sum(axis=-1)
