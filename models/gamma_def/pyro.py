"""The deep exponential family of digits in Pyro."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import plate
from torch.nn.functional import softplus

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
from vi_kit.pyro import Loss

Family = Callable[[str, torch.Tensor], dist.TorchDistribution]
"""From a name and an array of the wanted shape and dtype to a distribution with parameters of that name."""


def model(x: torch.Tensor, layers: tuple[int, ...] = LAYERS) -> None:
    """Each element has a plate, so that a score multiplies only what depends on it."""
    images, sizes, top = plate("images", len(x), dim=-2), (x.shape[-1], *layers), len(layers)
    shape = x.new_tensor(SPARSITY)
    with images, plate(f"units_{top}", sizes[top], dim=-1):
        z = pyro.sample(f"z_{top}", dist.Gamma(shape, x.new_tensor(TOP_RATE)))
    for layer in reversed(range(top)):
        units = plate(f"units_{layer}", sizes[layer], dim=-1)
        with plate(f"inputs_{layer}", sizes[layer + 1], dim=-2), units:
            w = pyro.sample(f"w_{layer}", dist.Gamma(shape, x.new_tensor(WEIGHT_RATE)))
        mean = z @ w
        with images, units:
            if layer > 0:
                z = pyro.sample(f"z_{layer}", dist.Gamma(shape, shape / mean))
            else:
                pyro.sample("x", dist.Poisson(mean), obs=x)


def starting_at(value: float, like: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Not all alike, or the units of a layer stay the same."""
    return lambda: value + 0.1 * torch.randn_like(like)


def gamma(name: str, like: torch.Tensor) -> dist.TorchDistribution:
    shape = LEAST_SHAPE + softplus(pyro.param(f"{name}_shape", starting_at(0.5, like)))
    mean = LEAST_MEAN + softplus(pyro.param(f"{name}_mean", starting_at(0.0, like)))
    return dist.Gamma(shape, shape / mean)


def log_normal(name: str, like: torch.Tensor) -> dist.TorchDistribution:
    loc = pyro.param(f"{name}_loc", starting_at(-0.8, like))
    scale = softplus(pyro.param(f"{name}_scale", starting_at(0.5, like)))
    return dist.LogNormal(loc, scale)


def guide(x: torch.Tensor, layers: tuple[int, ...] = LAYERS, family: Family = gamma) -> None:
    """Mean field: a variable of the family for every z and w."""
    images, sizes = plate("images", len(x), dim=-2), (x.shape[-1], *layers)
    for layer in range(len(sizes)):
        units = plate(f"units_{layer}", sizes[layer], dim=-1)
        if layer > 0:
            with images, units:
                pyro.sample(f"z_{layer}", family(f"z_{layer}", x.new_empty(len(x), sizes[layer])))
        if layer < len(layers):
            above = sizes[layer + 1]
            with plate(f"inputs_{layer}", above, dim=-2), units:
                pyro.sample(f"w_{layer}", family(f"w_{layer}", x.new_empty(above, sizes[layer])))


def fit(
    x: np.ndarray, estimator: vi.Estimator, num_steps: int, layers: tuple[int, ...] = LAYERS
) -> np.ndarray:
    """Train the Gamma guide; an estimate of the ELBO (nats per image) from each step."""
    torch.set_num_threads(1)  # the arrays are small; a second thread only waits
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    images, optim = torch.as_tensor(x, dtype=torch.float64), pyro.optim.Adam({"lr": LEARNING_RATE})
    svi = pyro.infer.SVI(model, guide, optim, loss=Loss(vi.elbo(), estimator))
    return -np.array([svi.step(images, layers) for _ in range(num_steps)]) / len(x)
