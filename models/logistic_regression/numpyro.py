"""Hierarchical logistic regression in NumPyro, with autoguides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

__all__ = ["AutoMultivariateNormal", "AutoNormal", "model"]


def model(x: jax.Array, y: jax.Array) -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 3.0))
    # Several draws are in dims on the left, so the event of each scalar gets a dim of its own.
    prior = dist.Normal(jnp.zeros(x.shape[-1]), scale[..., None]).to_event(1)
    weights = numpyro.sample("weights", prior)
    logits = intercept[..., None] + (weights[..., None, :] * x).sum(-1)
    with numpyro.plate("tumours", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
