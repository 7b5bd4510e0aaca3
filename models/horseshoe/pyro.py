"""The horseshoe in Pyro, with autoguides."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_median

__all__ = ["AutoMultivariateNormal", "AutoNormal", "init_to_median", "model"]


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    overall = pyro.sample("overall", dist.HalfCauchy(0.1))
    own = pyro.sample("own", dist.HalfCauchy(x.new_ones(x.shape[-1])).to_event(1))
    raw = pyro.sample("raw", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    # Several draws are in dims on the left of the plate, so the event of each scalar gets a dim of its own.
    weights = pyro.deterministic("weights", overall[..., None] * own * raw)
    with pyro.plate("patients", len(y)):
        pyro.sample("y", dist.Normal((weights * x).sum(-1), noise), obs=y)
