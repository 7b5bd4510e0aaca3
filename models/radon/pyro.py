"""Radon in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from models.radon import NUM_COUNTIES

__all__ = ["AutoNormal", "guide", "model"]


def model(county: torch.Tensor, u: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    """County of each house, uranium of each county, floor and log radon of each house."""
    a = pyro.sample("a", dist.Normal(x.new_zeros(3), 2.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("counties", NUM_COUNTIES):
        level = pyro.sample("level", dist.Normal(a[..., :1] + a[..., 1:2] * u, tau[..., None]))
    with pyro.plate("houses", len(y)):
        mean = level[..., county] + a[..., 2:] * x
        pyro.sample("y", dist.Normal(mean, sigma[..., None]), obs=y)


def sums(county: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Of each county."""
    return values.new_zeros(NUM_COUNTIES).index_add(0, county, values)


def guide(county: torch.Tensor, u: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    """Given the rest, the levels are Normal, with means and variances that are known."""
    loc = pyro.param("loc", y.new_tensor([1.4, 0.7, -0.6]))
    scale = pyro.param("scale", y.new_tensor([0.05, 0.1, 0.1]), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(loc, scale).to_event(1))
    values = {}
    for name, start in (("tau", -1.8), ("sigma", -0.3)):
        middle = pyro.param(f"{name}_loc", y.new_tensor(start))
        spread = pyro.param(f"{name}_scale", y.new_tensor(0.1), constraint=constraints.positive)
        values[name] = pyro.sample(name, dist.LogNormal(middle, spread))[..., None]
    before, inside = values["tau"] ** -2, values["sigma"] ** -2
    precision = before + inside * sums(county, 0 * y + 1)
    residual = sums(county, y) - a[..., 2:] * sums(county, x)
    mean = (before * (a[..., :1] + a[..., 1:2] * u) + inside * residual) / precision
    with pyro.plate("counties", NUM_COUNTIES):
        pyro.sample("level", dist.Normal(mean, precision**-0.5))
