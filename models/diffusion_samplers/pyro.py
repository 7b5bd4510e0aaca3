"""The diffusion sampler in Pyro."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from models.diffusion_samplers import NUM_HIDDEN, NUM_STEPS, Target

NAMES = [f"x{t}" for t in range(NUM_STEPS - 1)] + ["end"]


def model(target: Target) -> None:
    """The walk without a drift, whose end is weighted."""
    x, scale = torch.zeros(target.num_dims), target.scale / math.sqrt(NUM_STEPS)
    for name in NAMES:
        x = pyro.sample(name, dist.Normal(x, scale).to_event(1))
    pyro.factor("target", target.log_density(x) - target.log_end_density(x))


def guide(target: Target) -> None:
    """The walk with a drift: a network of the state, with offsets of its own at each step."""
    num_dims, scale = target.num_dims, target.scale / math.sqrt(NUM_STEPS)
    slopes = pyro.param("slopes", lambda: torch.randn(num_dims, NUM_HIDDEN) / math.sqrt(num_dims))
    mixing = pyro.param(
        "mixing", lambda: torch.randn(NUM_HIDDEN, NUM_HIDDEN) / math.sqrt(NUM_HIDDEN)
    )
    offsets = pyro.param("offsets", lambda: torch.randn(NUM_STEPS, NUM_HIDDEN))
    weights = pyro.param("weights", torch.zeros(NUM_HIDDEN, num_dims))
    x = torch.zeros(num_dims)
    for t, name in enumerate(NAMES):
        hidden = torch.tanh(torch.tanh(x @ slopes + offsets[t]) @ mixing)
        x = pyro.sample(name, dist.Normal(x + scale * (hidden @ weights), scale).to_event(1))


def programs(target: Target) -> tuple[Any, Any]:
    """Of a target."""
    return partial(model, target), partial(guide, target)
