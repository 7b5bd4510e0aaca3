"""The Bayesian neural network in NumPyro, with an autoguide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoNormal

from models.bayesian_neural_network import NUM_UNITS

__all__ = ["AutoNormal", "model"]


def model(x: jax.Array, y: jax.Array) -> None:
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((x.shape[-1], NUM_UNITS)), 1.0).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(jnp.zeros(NUM_UNITS), 1.0).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros(NUM_UNITS), NUM_UNITS**-0.5).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    hidden = jnp.tanh(x @ w1 + b1[..., None, :])
    with numpyro.plate("patients", len(y)):
        mean = (hidden * w2[..., None, :]).sum(-1) + b2[..., None]
        numpyro.sample("y", dist.Normal(mean, noise[..., None]), obs=y)
