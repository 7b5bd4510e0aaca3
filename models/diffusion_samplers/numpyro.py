"""The diffusion sampler in NumPyro."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.control_flow import scan

from models.diffusion_samplers import NUM_HIDDEN, NUM_STEPS, Target


def model(target: Target) -> None:
    """The walk without a drift, whose end is weighted."""
    scale = target.scale / math.sqrt(NUM_STEPS)

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return numpyro.sample("x", dist.Normal(x, scale).to_event(1)), None

    x, _ = scan(step, jnp.zeros(target.num_dims), None, length=NUM_STEPS - 1)
    x = numpyro.sample("end", dist.Normal(x, scale).to_event(1))
    numpyro.factor("target", target.log_density(x) - target.log_end_density(x))


def guide(target: Target) -> None:
    """The walk with a drift: a network of the state, with offsets of its own at each step."""
    num_dims, scale = target.num_dims, target.scale / math.sqrt(NUM_STEPS)

    def normal(name: str, num_in: int, num_out: int, divisor: float) -> Any:
        return numpyro.param(name, lambda key: random.normal(key, (num_in, num_out)) / divisor)

    slopes = normal("slopes", num_dims, NUM_HIDDEN, math.sqrt(num_dims))
    mixing = normal("mixing", NUM_HIDDEN, NUM_HIDDEN, math.sqrt(NUM_HIDDEN))
    offsets = normal("offsets", NUM_STEPS, NUM_HIDDEN, 1.0)
    weights = numpyro.param("weights", jnp.zeros((NUM_HIDDEN, num_dims)))

    def ahead(x: jax.Array, offset: jax.Array) -> Any:
        hidden = jnp.tanh(jnp.tanh(x @ slopes + offset) @ mixing)
        return dist.Normal(x + scale * (hidden @ weights), scale).to_event(1)

    def step(x: jax.Array, offset: jax.Array) -> tuple[jax.Array, None]:
        return numpyro.sample("x", ahead(x, offset)), None

    x, _ = scan(step, jnp.zeros(num_dims), offsets[:-1])
    numpyro.sample("end", ahead(x, offsets[-1]))


def programs(target: Target) -> tuple[Any, Any]:
    """Of a target."""
    return partial(model, target), partial(guide, target)
