"""The sigmoid belief network in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random

from models.sigmoid_belief_network import NUM_MIDDLE, NUM_PIXELS, NUM_TOP


def affine(name: str, x: jax.Array, num_out: int) -> jax.Array:
    """An affine function of the last dim, with parameters of its own."""
    num_in = x.shape[-1]
    weights = numpyro.param(
        f"{name}_weights", lambda key: 0.1 * random.normal(key, (num_in, num_out))
    )
    return x @ weights + numpyro.param(f"{name}_bias", jnp.zeros(num_out))


def model(x: jax.Array) -> None:
    with numpyro.plate("images", len(x)):
        top = numpyro.sample("top", dist.Bernoulli(logits=jnp.zeros(NUM_TOP)).to_event(1))
        logits = affine("to_middle", top, NUM_MIDDLE)
        middle = numpyro.sample("middle", dist.Bernoulli(logits=logits).to_event(1))
        logits = affine("to_pixels", middle, NUM_PIXELS)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    with numpyro.plate("images", len(x)):
        logits = affine("from_pixels", x, NUM_MIDDLE)
        middle = numpyro.sample("middle", dist.Bernoulli(logits=logits).to_event(1))
        logits = affine("from_middle", middle, NUM_TOP)
        numpyro.sample("top", dist.Bernoulli(logits=logits).to_event(1))
