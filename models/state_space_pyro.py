"""The programs of `state_space.py` in Pyro."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from models.state_space import MEAN, NOISE, OBS_NOISE, PERSISTENCE, STAY, VOLATILITY

Programs = tuple[Callable[[], None], Callable[[], None]]


def linear(data: torch.Tensor) -> Programs:
    """The linear-Gaussian model, and a proposal that goes part of the way from the prediction to the datum."""

    def model() -> None:
        state = torch.tensor(0.0)
        for t, datum in enumerate(data):
            state = pyro.sample(f"z{t}", dist.Normal(STAY * state, NOISE))
            pyro.sample(f"x{t}", dist.Normal(state, OBS_NOISE), obs=datum)

    def proposal() -> None:
        gain = pyro.param("gain", torch.tensor(0.5), constraint=constraints.unit_interval)
        scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
        state = torch.tensor(0.0)
        for t, datum in enumerate(data):
            ahead = STAY * state
            state = pyro.sample(f"z{t}", dist.Normal(ahead + gain * (datum - ahead), scale))

    return model, proposal


def stochastic_volatility(data: torch.Tensor) -> Programs:
    """Returns whose log variance is an autoregression; the proposal shifts the prediction by what a return says."""

    def model() -> None:
        state = torch.tensor(MEAN)
        for t, datum in enumerate(data):
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            state = pyro.sample(f"h{t}", dist.Normal(ahead, VOLATILITY))
            pyro.sample(f"y{t}", dist.Normal(0.0, torch.exp(0.5 * state)), obs=datum)

    def proposal() -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(VOLATILITY), constraint=constraints.positive)
        state = torch.tensor(MEAN)
        for t, datum in enumerate(data):
            ahead = MEAN + PERSISTENCE * (state - MEAN)
            surprise = datum**2 * torch.exp(-ahead) - 1.0
            state = pyro.sample(f"h{t}", dist.Normal(ahead + slope * torch.tanh(surprise), scale))

    return model, proposal
