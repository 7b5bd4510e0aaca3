"""Two moons in NumPyro."""

from __future__ import annotations

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random

from models.simulation_based import CRESCENT, NOISE, NUM_HIDDEN, NUM_PARTS, PRIOR_SCALE


def model(x: jax.Array) -> None:
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(2), PRIOR_SCALE).to_event(1))
    place = jnp.stack([-jnp.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / math.sqrt(2)
    even = dist.Categorical(logits=jnp.zeros(len(CRESCENT)))
    parts = dist.Normal(place + CRESCENT, NOISE).to_event(1)
    numpyro.sample("x", dist.MixtureSameFamily(even, parts), obs=x)


def guide(x: jax.Array) -> None:
    """A mixture of Normals, by a network of two layers."""

    def normal(name: str, scale: float, *shape: int) -> jax.Array:
        return numpyro.param(name, lambda key: scale * random.normal(key, shape))

    sizes = [2, NUM_HIDDEN, NUM_HIDDEN]
    hidden = x
    for i, (num_in, num_out) in enumerate(pairwise(sizes)):
        weights = normal(f"weights_{i}", 1 / math.sqrt(num_in), num_in, num_out)
        hidden = jnp.tanh(hidden @ weights + normal(f"offsets_{i}", 1.0, num_out))

    def out(name: str, *shape: int) -> jax.Array:
        return (hidden @ normal(name, 0.2, NUM_HIDDEN, math.prod(shape))).reshape(shape)

    shares = dist.Categorical(logits=out("logits", NUM_PARTS))
    scales = jax.nn.softplus(out("scales", NUM_PARTS, 2)) + 0.01
    parts = dist.Normal(out("locs", NUM_PARTS, 2), scales).to_event(1)
    numpyro.sample("theta", dist.MixtureSameFamily(shares, parts))
