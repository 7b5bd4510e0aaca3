"""The linear-Gaussian series in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from models.state_space import NOISE, OBS_NOISE, STAY


def model(data: jax.Array) -> None:
    def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
        state = numpyro.sample("z", dist.Normal(STAY * state, NOISE))
        numpyro.sample("x", dist.Normal(state, OBS_NOISE), obs=datum)
        return state, None

    scan(step, jnp.array(0.0), data)


def proposal(data: jax.Array) -> None:
    """Part of the way from the prediction to the datum."""
    gain = numpyro.param("gain", jnp.array(0.5), constraint=constraints.unit_interval)
    scale = numpyro.param("scale", jnp.array(0.7), constraint=constraints.positive)

    def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
        ahead = STAY * state
        return numpyro.sample("z", dist.Normal(ahead + gain * (datum - ahead), scale)), None

    scan(step, jnp.array(0.0), data)
