"""The Bayesian neural network in Pyro, with an autoguide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from models.bayesian_neural_network import NUM_UNITS

__all__ = ["AutoNormal", "model"]


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    w1 = pyro.sample("w1", dist.Normal(x.new_zeros(x.shape[-1], NUM_UNITS), 1.0).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(x.new_zeros(NUM_UNITS), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(x.new_zeros(NUM_UNITS), NUM_UNITS**-0.5).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    hidden = torch.tanh(x @ w1 + b1[..., None, :])
    with pyro.plate("patients", len(y)):
        mean = (hidden * w2[..., None, :]).sum(-1) + b2[..., None]
        pyro.sample("y", dist.Normal(mean, noise[..., None]), obs=y)
