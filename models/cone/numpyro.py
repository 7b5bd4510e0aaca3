"""The noisy cone in NumPyro."""

from __future__ import annotations

import time
from collections.abc import Callable

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


def guide_published(z_obs: float = Z_OBS) -> None:
    """Mean field, as Becker et al. start it."""
    del z_obs
    for name in ("x", "y"):
        loc = numpyro.param(f"{name}_loc", jnp.array(0.0))
        scale = jnp.exp(numpyro.param(f"{name}_log_scale", jnp.array(0.0)))
        numpyro.sample(name, dist.Normal(loc, scale))


def guide_ring(z_obs: float = Z_OBS) -> None:
    """A point of the ring at an angle that only the guide has, and Normals about it."""
    turns = numpyro.sample("turns", dist.Uniform(0.0, 1.0))
    for name, function in (("x", jnp.cos), ("y", jnp.sin)):
        scale = jnp.exp(numpyro.param(f"{name}_log_scale", jnp.array(0.0)))
        loc = jnp.sqrt(z_obs) * function(2 * jnp.pi * turns)
        numpyro.sample(name, dist.Normal(loc, scale))


def ring(num_particles: int) -> Callable[..., None]:
    """The guide of a ring without its angle."""
    return vi.marginal(guide_ring, ["x", "y"], vi.ImportanceSampling(num_particles))


def guide_semi_implicit(z_obs: float = Z_OBS) -> None:
    """Normals about a network of a direction that only the guide has: a density without a form.

    It starts as a small circle, and learns the radius.
    """
    del z_obs
    turns = numpyro.sample("turns", dist.Uniform(0.0, 1.0))
    direction = jnp.stack([jnp.cos(2 * jnp.pi * turns), jnp.sin(2 * jnp.pi * turns)], -1)
    angles = 2 * jnp.pi * jnp.arange(HIDDEN) / HIDDEN
    towards = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    slopes = numpyro.param("direction_slopes", towards)
    weights = numpyro.param("direction_weights", towards.T / HIDDEN)
    out = jnp.tanh(direction @ slopes) @ weights
    scale = jnp.exp(numpyro.param("log_scale", jnp.array(0.0)))
    for i, name in enumerate(("x", "y")):
        numpyro.sample(name, dist.Normal(out[..., i], scale))


def semi_implicit(num_particles: int) -> Callable[..., None]:
    """The same with an estimate of its density of x and y, from the network in so many directions."""
    return vi.marginal(guide_semi_implicit, ["x", "y"], vi.ImportanceSampling(num_particles))


def fit_published(guide, objective: vi.Objective, num_samples: int = 64) -> tuple[float, float]:
    """Plain SGD as published, 5000 steps of 1e-3; the bound in nats, and seconds with compilation."""
    svi = SVI(model, guide, optax.sgd(1e-3), Loss(objective, num_samples=num_samples))
    begin = time.perf_counter()
    start = svi.init(random.key(0), Z_OBS)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: svi.update(s, Z_OBS), s, length=5000))(
        start
    )
    params = jax.block_until_ready(svi.get_params(state))
    seconds = time.perf_counter() - begin
    estimate = Loss(objective, num_samples=20_000)
    return -float(estimate.loss(random.key(1), params, model, guide, Z_OBS)), seconds


def train(guide, objective: vi.Objective, num_steps: int) -> dict[str, jax.Array]:
    """The parameters of a guide, trained from its start."""
    rate = optax.exponential_decay(0.02, num_steps, 0.1)
    optim = optax.chain(optax.clip(10.0), optax.adam(rate))
    svi = SVI(model, guide, optim, Loss(objective, num_samples=8))
    return svi.run(random.key(0), num_steps, Z_OBS, progress_bar=False).params


def fit(guide, objective: vi.Objective, num_steps: int) -> float:
    """Train a guide from its start; the bound in nats."""
    params = train(guide, objective, num_steps)
    estimate = Loss(objective, num_samples=4000)
    return -float(estimate.loss(random.key(1), params, model, guide, Z_OBS))
