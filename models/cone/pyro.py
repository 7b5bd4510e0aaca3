"""The noisy cone in Pyro."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import vi_kit as vi
from models.cone import HIDDEN, PRIOR_SCALE, Z_OBS
from vi_kit.pyro import Loss


def model(z_obs: float = Z_OBS) -> None:
    x = pyro.sample("x", dist.Normal(0.0, PRIOR_SCALE))
    y = pyro.sample("y", dist.Normal(0.0, PRIOR_SCALE))
    height = x**2 + y**2
    pyro.sample("z", dist.Normal(height, 0.1 + height / 100), obs=torch.as_tensor(z_obs))


def guide(z_obs: float = Z_OBS) -> None:
    """Mean field: a Normal for x and one for y."""
    del z_obs
    for name, loc in (("x", 0.5), ("y", 2.0)):
        loc = pyro.param(f"{name}_loc", torch.tensor(loc))
        scale = pyro.param(f"{name}_scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample(name, dist.Normal(loc, scale))


def guide_autoregressive(z_obs: float = Z_OBS) -> None:
    """A Normal for x, then one for y whose location and scale are a small network of x.

    Given x it has one mode, so it can follow half of the ring, not both halves.
    """
    del z_obs
    x_loc = pyro.param("x_loc", torch.tensor(0.0))
    x_scale = pyro.param("x_scale", torch.tensor(1.0), constraint=constraints.positive)
    x = pyro.sample("x", dist.Normal(x_loc, x_scale))
    slopes = pyro.param("slopes", lambda: torch.randn(HIDDEN))
    offsets = pyro.param("offsets", lambda: torch.randn(HIDDEN))
    weights = pyro.param("weights", lambda: 0.1 * torch.randn(HIDDEN, 2))
    bias = pyro.param("bias", torch.tensor([1.5, 0.0]))
    # The network acts on a new last dim, so x may have any batch shape.
    out = torch.tanh(x[..., None] * slopes + offsets) @ weights + bias
    scale = torch.nn.functional.softplus(out[..., 1]) + 1e-3
    pyro.sample("y", dist.Normal(out[..., 0], scale))


def guide_published(z_obs: float = Z_OBS) -> None:
    """Mean field, as Becker et al. start it."""
    del z_obs
    for name in ("x", "y"):
        loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
        scale = pyro.param(f"{name}_log_scale", torch.tensor(0.0)).exp()
        pyro.sample(name, dist.Normal(loc, scale))


def guide_ring(z_obs: float = Z_OBS) -> None:
    """A point of the ring at an angle that only the guide has, and Normals about it."""
    turns = pyro.sample("turns", dist.Uniform(0.0, 1.0))
    for name, function in (("x", torch.cos), ("y", torch.sin)):
        scale = pyro.param(f"{name}_log_scale", torch.tensor(0.0)).exp()
        loc = math.sqrt(z_obs) * function(2 * math.pi * turns)
        pyro.sample(name, dist.Normal(loc, scale))


def ring(num_particles: int) -> Callable[..., None]:
    """The guide of a ring without its angle."""
    return vi.marginal(guide_ring, ["x", "y"], vi.ImportanceSampling(num_particles))


def guide_semi_implicit(z_obs: float = Z_OBS) -> None:
    """Normals about a network of a direction that only the guide has: a density without a form.

    It starts as a small circle, and learns the radius.
    """
    del z_obs
    turns = pyro.sample("turns", dist.Uniform(0.0, 1.0))
    direction = torch.stack([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)], -1)
    angles = 2 * math.pi * torch.arange(HIDDEN) / HIDDEN
    towards = torch.stack([torch.cos(angles), torch.sin(angles)])
    slopes = pyro.param("direction_slopes", towards)
    weights = pyro.param("direction_weights", towards.T / HIDDEN)
    out = torch.tanh(direction @ slopes) @ weights
    scale = torch.exp(pyro.param("log_scale", torch.tensor(0.0)))
    for i, name in enumerate(("x", "y")):
        pyro.sample(name, dist.Normal(out[..., i], scale))


def semi_implicit(num_particles: int) -> Callable[..., None]:
    """The same with an estimate of its density of x and y, from the network in so many directions."""
    return vi.marginal(guide_semi_implicit, ["x", "y"], vi.ImportanceSampling(num_particles))


def fit_published(guide, objective: vi.Objective, num_samples: int = 64) -> tuple[float, float]:
    """Plain SGD as published, 5000 steps of 1e-3; the bound in nats, and seconds."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = Loss(objective, num_samples=num_samples)
    svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), loss)
    begin = time.perf_counter()
    for _ in range(5000):
        svi.step(Z_OBS)
    seconds = time.perf_counter() - begin
    return -Loss(objective, num_samples=20_000).loss(model, guide, Z_OBS), seconds


def train(guide, objective: vi.Objective, num_steps: int) -> None:
    """Train the parameters of a guide from their start."""
    torch.set_num_threads(1)  # the arrays are small; a second thread only waits
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optim = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / num_steps)})
    svi = pyro.infer.SVI(model, guide, optim, loss=Loss(objective, num_samples=8))
    for _ in range(num_steps):
        svi.step(Z_OBS)


def fit(guide, objective: vi.Objective, num_steps: int) -> float:
    """Train a guide from its start; the bound in nats."""
    train(guide, objective, num_steps)
    return -Loss(objective, num_samples=4000).loss(model, guide, Z_OBS)
