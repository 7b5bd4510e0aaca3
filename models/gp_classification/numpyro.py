"""Gaussian-process classification in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints

from models.gp_classification import JITTER, NUM_INDUCING, inducing_points


def function(x: jax.Array, u: jax.Array) -> dist.Normal:
    """The Gaussian process at each of the points, given `u`."""
    variance = numpyro.param("variance", jnp.array(1.0), constraint=constraints.positive)
    length = numpyro.param("length", jnp.ones(2), constraint=constraints.positive)
    inducing = numpyro.param("inducing", lambda _: jnp.array(inducing_points()))

    def kernel(a: jax.Array) -> jax.Array:
        apart = (a[:, None] - inducing) / length
        return variance * jnp.exp(-0.5 * (apart**2).sum(-1))

    noise = JITTER * variance
    lower = jnp.linalg.cholesky(kernel(inducing) + noise * jnp.eye(NUM_INDUCING))
    weights = solve_triangular(lower, kernel(x).T, lower=True).T
    rest = variance + noise - (weights**2).sum(-1)
    return dist.Normal(weights @ u, jnp.sqrt(rest))


def model(x: jax.Array, y: jax.Array) -> None:
    u = numpyro.sample("u", dist.Normal(jnp.zeros(NUM_INDUCING), 1.0).to_event(1))
    function_given_u = function(x, u)
    with numpyro.plate("points", len(x)):
        f = numpyro.sample("f", function_given_u)
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def guide(x: jax.Array, y: jax.Array) -> None:
    loc = numpyro.param("loc", jnp.zeros(NUM_INDUCING))
    scale = numpyro.param("scale", jnp.eye(NUM_INDUCING), constraint=constraints.lower_cholesky)
    u = numpyro.sample("u", dist.MultivariateNormal(loc, scale_tril=scale))
    function_given_u = function(x, u)
    with numpyro.plate("points", len(x)):
        numpyro.sample("f", function_given_u)
