"""The linear-Gaussian series in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from models.state_space import NOISE, OBS_NOISE, STAY


def model(data: torch.Tensor) -> None:
    state = torch.tensor(0.0)
    for t, datum in enumerate(data):
        state = pyro.sample(f"z{t}", dist.Normal(STAY * state, NOISE))
        pyro.sample(f"x{t}", dist.Normal(state, OBS_NOISE), obs=datum)


def proposal(data: torch.Tensor) -> None:
    """Part of the way from the prediction to the datum."""
    gain = pyro.param("gain", torch.tensor(0.5), constraint=constraints.unit_interval)
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    state = torch.tensor(0.0)
    for t, datum in enumerate(data):
        ahead = STAY * state
        state = pyro.sample(f"z{t}", dist.Normal(ahead + gain * (datum - ahead), scale))
