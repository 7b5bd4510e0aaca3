"""The programs of `state_space.py` in NumPyro."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from models.state_space import MEAN, NOISE, OBS_NOISE, PERSISTENCE, STAY, VOLATILITY

Programs = tuple[Callable[[], None], Callable[[], None]]


def linear(data: jax.Array) -> Programs:
    """The linear-Gaussian model, and a proposal that goes part of the way from the prediction to the datum."""

    def model() -> None:
        state = jnp.array(0.0)
        for t, datum in enumerate(data):
            state = numpyro.sample(f"z{t}", dist.Normal(STAY * state, NOISE))
            numpyro.sample(f"x{t}", dist.Normal(state, OBS_NOISE), obs=datum)

    def proposal() -> None:
        gain = numpyro.param("gain", jnp.array(0.5), constraint=constraints.unit_interval)
        scale = numpyro.param("scale", jnp.array(0.7), constraint=constraints.positive)
        state = jnp.array(0.0)
        for t, datum in enumerate(data):
            ahead = STAY * state
            state = numpyro.sample(f"z{t}", dist.Normal(ahead + gain * (datum - ahead), scale))

    return model, proposal


def stochastic_volatility(data: jax.Array) -> Programs:
    """Returns whose log variance is an autoregression; the proposal shifts the prediction by what a return says."""

    def model() -> None:
        state = jnp.array(MEAN)
        for t, datum in enumerate(data):
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            state = numpyro.sample(f"h{t}", dist.Normal(ahead, VOLATILITY))
            numpyro.sample(f"y{t}", dist.Normal(0.0, jnp.exp(0.5 * state)), obs=datum)

    def proposal() -> None:
        slope = numpyro.param("slope", jnp.array(0.0))
        scale = numpyro.param("scale", jnp.array(VOLATILITY), constraint=constraints.positive)
        state = jnp.array(MEAN)
        for t, datum in enumerate(data):
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            surprise = datum**2 * jnp.exp(-ahead) - 1.0
            state = numpyro.sample(f"h{t}", dist.Normal(ahead + slope * jnp.tanh(surprise), scale))

    return model, proposal
