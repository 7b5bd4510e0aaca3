"""Hierarchical logistic regression in Pyro, with autoguides."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

__all__ = ["AutoMultivariateNormal", "AutoNormal", "model"]


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 3.0))
    # Several draws are in dims on the left of the plate, so the event of the scale gets a dim of its own.
    prior = dist.Normal(x.new_zeros(x.shape[-1]), scale[..., None]).to_event(1)
    weights = pyro.sample("weights", prior)
    logits = intercept + (weights * x).sum(-1)
    with pyro.plate("tumours", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
