"""The changepoint in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints


def model(y: torch.Tensor) -> None:
    switch = pyro.sample("switch", dist.Categorical(logits=y.new_zeros(len(y))))
    early = pyro.sample("early", dist.Exponential(y.new_tensor(1.0)))
    late = pyro.sample("late", dist.Exponential(y.new_tensor(1.0)))
    with pyro.plate("years", len(y)):
        rate = torch.where(
            torch.arange(len(y)) < switch[..., None], early[..., None], late[..., None]
        )
        pyro.sample("y", dist.Poisson(rate), obs=y)


def guide(y: torch.Tensor) -> None:
    logits = pyro.param("logits", y.new_zeros(len(y)))
    pyro.sample("switch", dist.Categorical(logits=logits))
    for name in ("early", "late"):
        shape = pyro.param(f"{name}_shape", y.new_tensor(10.0), constraint=constraints.positive)
        rate = pyro.param(f"{name}_rate", y.new_tensor(5.0), constraint=constraints.positive)
        pyro.sample(name, dist.Gamma(shape, rate))
