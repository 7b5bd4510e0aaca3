"""The programs of `state_space.py` in NumPyro."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from models.state_space import MEAN, NOISE, OBS_NOISE, PERSISTENCE, STAY, VOLATILITY

Programs = tuple[Callable[[], None], Callable[[], None]]


def linear(data: jax.Array) -> Programs:
    """The linear-Gaussian model, and a proposal that goes part of the way from the prediction to the datum."""

    def model() -> None:
        def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
            state = numpyro.sample("z", dist.Normal(STAY * state, NOISE))
            numpyro.sample("x", dist.Normal(state, OBS_NOISE), obs=datum)
            return state, None

        scan(step, jnp.array(0.0), data)

    def proposal() -> None:
        gain = numpyro.param("gain", jnp.array(0.5), constraint=constraints.unit_interval)
        scale = numpyro.param("scale", jnp.array(0.7), constraint=constraints.positive)

        def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
            ahead = STAY * state
            return numpyro.sample("z", dist.Normal(ahead + gain * (datum - ahead), scale)), None

        scan(step, jnp.array(0.0), data)

    return model, proposal


def stochastic_volatility(data: jax.Array) -> Programs:
    """Returns whose log variance is an autoregression; the proposal shifts the prediction by what a return says."""

    def model() -> None:
        def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            state = numpyro.sample("h", dist.Normal(ahead, VOLATILITY))
            numpyro.sample("y", dist.Normal(0.0, jnp.exp(0.5 * state)), obs=datum)
            return state, None

        scan(step, jnp.array(MEAN), data)

    def proposal() -> None:
        slope = numpyro.param("slope", jnp.array(0.0))
        scale = numpyro.param("scale", jnp.array(VOLATILITY), constraint=constraints.positive)

        def step(state: jax.Array, datum: jax.Array) -> tuple[jax.Array, None]:
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            surprise = datum**2 * jnp.exp(-ahead) - 1.0
            shift = slope * jnp.tanh(surprise)
            return numpyro.sample("h", dist.Normal(ahead + shift, scale)), None

        scan(step, jnp.array(MEAN), data)

    return model, proposal
