"""Stochastic volatility in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from models.stochastic_volatility import MEAN, PERSISTENCE, VOLATILITY


def model(data: torch.Tensor) -> None:
    state = torch.tensor(MEAN)
    for t, datum in enumerate(data):
        ahead = MEAN + PERSISTENCE * (state - MEAN)
        state = pyro.sample(f"h{t}", dist.Normal(ahead, VOLATILITY))
        pyro.sample(f"y{t}", dist.Normal(0.0, torch.exp(0.5 * state)), obs=datum)


def proposal(data: torch.Tensor) -> None:
    """The prediction, shifted by what a return says."""
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(VOLATILITY), constraint=constraints.positive)
    state = torch.tensor(MEAN)
    for t, datum in enumerate(data):
        ahead = MEAN + PERSISTENCE * (state - MEAN)
        surprise = datum**2 * torch.exp(-ahead) - 1.0
        state = pyro.sample(f"h{t}", dist.Normal(ahead + slope * torch.tanh(surprise), scale))
