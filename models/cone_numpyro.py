"""The programs of the noisy cone (`cone.py`) in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.distributions import constraints
from numpyro.infer import SVI

import vi_kit as vi
from models.cone import HIDDEN, PRIOR_SCALE, Z_OBS
from vi_kit.numpyro import Loss


def model(z_obs: float = Z_OBS) -> None:
    x = numpyro.sample("x", dist.Normal(0.0, PRIOR_SCALE))
    y = numpyro.sample("y", dist.Normal(0.0, PRIOR_SCALE))
    height = x**2 + y**2
    numpyro.sample("z", dist.Normal(height, 0.1 + height / 100), obs=z_obs)


def guide(z_obs: float = Z_OBS) -> None:
    """Mean field: a Normal for x and one for y."""
    del z_obs
    for name, loc in (("x", 0.5), ("y", 2.0)):
        loc = numpyro.param(f"{name}_loc", jnp.array(loc))
        scale = numpyro.param(f"{name}_scale", jnp.array(1.0), constraint=constraints.positive)
        numpyro.sample(name, dist.Normal(loc, scale))


def guide_autoregressive(z_obs: float = Z_OBS) -> None:
    """A Normal for x, then one for y whose location and scale are a small network of x.

    Given x it has one mode, so it can follow half of the ring, not both halves.
    """
    del z_obs
    x_loc = numpyro.param("x_loc", jnp.array(0.0))
    x_scale = numpyro.param("x_scale", jnp.array(1.0), constraint=constraints.positive)
    x = numpyro.sample("x", dist.Normal(x_loc, x_scale))
    slopes = numpyro.param("slopes", lambda key: random.normal(key, (HIDDEN,)))
    offsets = numpyro.param("offsets", lambda key: random.normal(key, (HIDDEN,)))
    weights = numpyro.param("weights", lambda key: 0.1 * random.normal(key, (HIDDEN, 2)))
    bias = numpyro.param("bias", jnp.array([1.5, 0.0]))
    # The network acts on a new last dim, so x may have any batch shape.
    out = jnp.tanh(x[..., None] * slopes + offsets) @ weights + bias
    scale = jax.nn.softplus(out[..., 1]) + 1e-3
    numpyro.sample("y", dist.Normal(out[..., 0], scale))


def fit(guide, objective: vi.Objective, num_steps: int) -> float:
    """Train a guide from its start; the bound in nats."""
    rate = optax.exponential_decay(0.02, num_steps, 0.1)
    optim = optax.chain(optax.clip(10.0), optax.adam(rate))
    svi = SVI(model, guide, optim, Loss(objective, num_samples=8))
    result = svi.run(random.key(0), num_steps, Z_OBS, progress_bar=False)
    estimate = Loss(objective, num_samples=4000)
    return -float(estimate.loss(random.key(1), result.params, model, guide, Z_OBS))
