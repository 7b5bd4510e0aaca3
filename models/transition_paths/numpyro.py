"""Transition paths in NumPyro."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.control_flow import scan

from models.transition_paths import (
    HOTTER,
    NOISE,
    NUM_HIDDEN,
    NUM_STEPS,
    START,
    ahead,
    log_arrived,
)


def model() -> None:
    """A walk in the potential, weighted by its end."""

    def step(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        z = numpyro.sample("z", dist.Normal(ahead(z), NOISE).to_event(1))
        return z, z

    z, path = scan(step, jnp.array(START), None, length=NUM_STEPS - 1)
    z = numpyro.sample("end", dist.Normal(ahead(z), NOISE).to_event(1))
    numpyro.deterministic("path", jnp.concatenate([path, z[None]]))
    numpyro.factor("arrived", log_arrived(z))


def guide(hotter: float = 1.0) -> None:
    """The walk with a further drift, a network of the place with offsets of its own at each step, and steps whose
    width is learned: the last ones aim."""

    def normal(name: str, num_in: int, num_out: int, divisor: float) -> jax.Array:
        return numpyro.param(name, lambda key: random.normal(key, (num_in, num_out)) / divisor)

    slopes = normal("slopes", 2, NUM_HIDDEN, 1.0)
    mixing = normal("mixing", NUM_HIDDEN, NUM_HIDDEN, math.sqrt(NUM_HIDDEN))
    offsets = normal("offsets", NUM_STEPS, NUM_HIDDEN, 1.0)
    weights = numpyro.param("weights", jnp.zeros((NUM_HIDDEN, 2)))
    widths = hotter * NOISE * jnp.exp(numpyro.param("widths", jnp.zeros(NUM_STEPS)))

    def next_step(z: jax.Array, own: tuple[jax.Array, jax.Array]) -> dist.Distribution:
        offset, width = own
        hidden = jnp.tanh(jnp.tanh(z @ slopes + offset) @ mixing)
        return dist.Normal(ahead(z) + NOISE * (hidden @ weights), width).to_event(1)

    def step(z: jax.Array, own: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return numpyro.sample("z", next_step(z, own)), None

    z, _ = scan(step, jnp.array(START), (offsets[:-1], widths[:-1]))
    numpyro.sample("end", next_step(z, (offsets[-1], widths[-1])))


def hotter_guide() -> None:
    """The same with wider steps."""
    guide(HOTTER)
