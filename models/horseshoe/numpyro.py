"""The horseshoe in NumPyro, with autoguides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import init_to_median
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

__all__ = ["AutoMultivariateNormal", "AutoNormal", "init_to_median", "model"]


def model(x: jax.Array, y: jax.Array) -> None:
    overall = numpyro.sample("overall", dist.HalfCauchy(0.1))
    own = numpyro.sample("own", dist.HalfCauchy(jnp.ones(x.shape[-1])).to_event(1))
    raw = numpyro.sample("raw", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    # Several draws are in dims on the left, so the event of each scalar gets a dim of its own.
    weights = numpyro.deterministic("weights", overall[..., None] * own * raw)
    with numpyro.plate("patients", len(y)):
        mean = (weights[..., None, :] * x).sum(-1)
        numpyro.sample("y", dist.Normal(mean, noise[..., None]), obs=y)
