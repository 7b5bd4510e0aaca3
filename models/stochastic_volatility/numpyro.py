"""Stochastic volatility in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from models.stochastic_volatility import MEAN, PERSISTENCE, VOLATILITY


def model(data: jax.Array) -> None:
    def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
        ahead = MEAN + PERSISTENCE * (state - MEAN)
        state = numpyro.sample("h", dist.Normal(ahead, VOLATILITY))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(0.5 * state)), obs=datum)
        return state, None

    scan(step, jnp.array(MEAN), data)


def proposal(data: jax.Array) -> None:
    """The prediction, shifted by what a return says."""
    slope = numpyro.param("slope", jnp.array(0.0))
    scale = numpyro.param("scale", jnp.array(VOLATILITY), constraint=constraints.positive)

    def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
        ahead = MEAN + PERSISTENCE * (state - MEAN)
        surprise = datum**2 * jnp.exp(-ahead) - 1.0
        shift = slope * jnp.tanh(surprise)
        return numpyro.sample("h", dist.Normal(ahead + shift, scale)), None

    scan(step, jnp.array(MEAN), data)
