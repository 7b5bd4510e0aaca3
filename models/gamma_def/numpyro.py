"""The deep exponential family of digits in NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from jax.nn import softplus
from numpyro import plate
from numpyro.infer import SVI

import vi_kit as vi
from models.gamma_def import (
    LAYERS,
    LEARNING_RATE,
    LEAST_MEAN,
    LEAST_SHAPE,
    SPARSITY,
    TOP_RATE,
    WEIGHT_RATE,
)
from vi_kit.numpyro import Loss

Family = Callable[[str, tuple[int, ...]], Any]
"""From a name and a shape to a distribution with parameters of that name."""


def model(x: jax.Array, layers: tuple[int, ...] = LAYERS) -> None:
    """Each element has a plate, so that a score multiplies only what depends on it."""
    images, sizes, top = plate("images", len(x), dim=-2), (x.shape[-1], *layers), len(layers)
    with images, plate(f"units_{top}", sizes[top], dim=-1):
        z = numpyro.sample(f"z_{top}", dist.Gamma(SPARSITY, TOP_RATE))
    for layer in reversed(range(top)):
        units = plate(f"units_{layer}", sizes[layer], dim=-1)
        with plate(f"inputs_{layer}", sizes[layer + 1], dim=-2), units:
            w = numpyro.sample(f"w_{layer}", dist.Gamma(SPARSITY, WEIGHT_RATE))
        mean = jnp.matmul(z, w)
        with images, units:
            if layer > 0:
                z = numpyro.sample(f"z_{layer}", dist.Gamma(SPARSITY, SPARSITY / mean))
            else:
                numpyro.sample("x", dist.Poisson(mean), obs=x)


def starting_at(value: float, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Not all alike, or the units of a layer stay the same."""
    return lambda key: value + 0.1 * random.normal(key, shape)


def gamma(name: str, size: tuple[int, ...]) -> Any:
    shape = jnp.asarray(numpyro.param(f"{name}_shape", starting_at(0.5, size)))
    mean = jnp.asarray(numpyro.param(f"{name}_mean", starting_at(0.0, size)))
    shape = LEAST_SHAPE + softplus(shape)
    return dist.Gamma(shape, shape / (LEAST_MEAN + softplus(mean)))


def log_normal(name: str, size: tuple[int, ...]) -> Any:
    loc = numpyro.param(f"{name}_loc", starting_at(-0.8, size))
    scale = jnp.asarray(numpyro.param(f"{name}_scale", starting_at(0.5, size)))
    return dist.LogNormal(loc, softplus(scale))


def guide(x: jax.Array, layers: tuple[int, ...] = LAYERS, family: Family = gamma) -> None:
    """Mean field: a variable of the family for every z and w."""
    images, sizes = plate("images", len(x), dim=-2), (x.shape[-1], *layers)
    for layer in range(len(sizes)):
        units = plate(f"units_{layer}", sizes[layer], dim=-1)
        if layer > 0:
            with images, units:
                numpyro.sample(f"z_{layer}", family(f"z_{layer}", (len(x), sizes[layer])))
        if layer < len(layers):
            above = sizes[layer + 1]
            with plate(f"inputs_{layer}", above, dim=-2), units:
                numpyro.sample(f"w_{layer}", family(f"w_{layer}", (above, sizes[layer])))


def fit(
    x: np.ndarray, estimator: vi.Estimator, num_steps: int, layers: tuple[int, ...] = LAYERS
) -> np.ndarray:
    """Train the Gamma guide; an estimate of the ELBO (nats per image) from each step."""
    numpyro.enable_x64()  # in single precision, Gamma variables of a small shape are often zero
    images = jnp.asarray(x, float)
    svi = SVI(model, guide, optax.adam(LEARNING_RATE), Loss(vi.elbo(), estimator))
    result = svi.run(random.key(0), num_steps, images, layers, progress_bar=False)
    return -np.asarray(result.losses) / len(x)
