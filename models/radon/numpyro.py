"""Radon in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoNormal

from models.radon import NUM_COUNTIES

__all__ = ["AutoNormal", "guide", "model"]


def model(county: jax.Array, u: jax.Array, x: jax.Array, y: jax.Array) -> None:
    """County of each house, uranium of each county, floor and log radon of each house."""
    a = numpyro.sample("a", dist.Normal(jnp.zeros(3), 2.0).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("counties", NUM_COUNTIES):
        level = numpyro.sample("level", dist.Normal(a[..., :1] + a[..., 1:2] * u, tau[..., None]))
    with numpyro.plate("houses", len(y)):
        mean = level[..., county] + a[..., 2:] * x
        numpyro.sample("y", dist.Normal(mean, sigma[..., None]), obs=y)


def sums(county: jax.Array, values: jax.Array) -> jax.Array:
    """Of each county."""
    return jnp.bincount(county, values, length=NUM_COUNTIES)


def guide(county: jax.Array, u: jax.Array, x: jax.Array, y: jax.Array) -> None:
    """Given the rest, the levels are Normal, with means and variances that are known."""
    loc = numpyro.param("loc", jnp.array([1.4, 0.7, -0.6]))
    scale = numpyro.param("scale", jnp.array([0.05, 0.1, 0.1]), constraint=constraints.positive)
    a = numpyro.sample("a", dist.Normal(loc, scale).to_event(1))
    values = {}
    for name, start in (("tau", -1.8), ("sigma", -0.3)):
        middle = numpyro.param(f"{name}_loc", jnp.array(start))
        spread = numpyro.param(f"{name}_scale", jnp.array(0.1), constraint=constraints.positive)
        values[name] = numpyro.sample(name, dist.LogNormal(middle, spread))[..., None]
    before, inside = values["tau"] ** -2, values["sigma"] ** -2
    precision = before + inside * sums(county, 0 * y + 1)
    residual = sums(county, y) - a[..., 2:] * sums(county, x)
    mean = (before * (a[..., :1] + a[..., 1:2] * u) + inside * residual) / precision
    with numpyro.plate("counties", NUM_COUNTIES):
        numpyro.sample("level", dist.Normal(mean, precision**-0.5))
