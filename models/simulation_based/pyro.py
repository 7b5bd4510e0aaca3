"""Two moons in Pyro."""

from __future__ import annotations

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch.nn.functional import softplus

from models.simulation_based import CRESCENT, NOISE, NUM_HIDDEN, NUM_PARTS, PRIOR_SCALE


def model(x: torch.Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), PRIOR_SCALE).to_event(1))
    total, difference = theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]
    place = torch.stack([-total.abs(), difference], -1) / math.sqrt(2)
    points = place[..., None, :] + torch.as_tensor(CRESCENT, dtype=place.dtype)
    even = dist.Categorical(logits=torch.zeros(points.shape[:-1]))
    parts = dist.Normal(points, NOISE).to_event(1)
    pyro.sample("x", dist.MixtureSameFamily(even, parts), obs=x)


def guide(x: torch.Tensor) -> None:
    """A mixture of Normals, by a network of two layers."""

    def normal(name: str, scale: float, *shape: int) -> torch.Tensor:
        return pyro.param(name, lambda: scale * torch.randn(shape))

    sizes = [2, NUM_HIDDEN, NUM_HIDDEN]
    hidden = x
    for i, (num_in, num_out) in enumerate(pairwise(sizes)):
        weights = normal(f"weights_{i}", 1 / math.sqrt(num_in), num_in, num_out)
        hidden = torch.tanh(hidden @ weights + normal(f"offsets_{i}", 1.0, num_out))

    def out(name: str, *shape: int) -> torch.Tensor:
        return (hidden @ normal(name, 0.2, NUM_HIDDEN, math.prod(shape))).unflatten(-1, shape)

    shares = dist.Categorical(logits=out("logits", NUM_PARTS))
    scales = softplus(out("scales", NUM_PARTS, 2)) + 0.01
    parts = dist.Normal(out("locs", NUM_PARTS, 2), scales).to_event(1)
    pyro.sample("theta", dist.MixtureSameFamily(shares, parts))
