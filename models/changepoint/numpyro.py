"""The changepoint in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def model(y: jax.Array) -> None:
    switch = numpyro.sample("switch", dist.Categorical(logits=jnp.zeros(len(y))))
    early = numpyro.sample("early", dist.Exponential(jnp.array(1.0)))
    late = numpyro.sample("late", dist.Exponential(jnp.array(1.0)))
    with numpyro.plate("years", len(y)):
        rate = jnp.where(jnp.arange(len(y)) < switch[..., None], early[..., None], late[..., None])
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def guide(y: jax.Array) -> None:
    logits = numpyro.param("logits", jnp.zeros(len(y)))
    numpyro.sample("switch", dist.Categorical(logits=logits))
    for name in ("early", "late"):
        shape = numpyro.param(f"{name}_shape", jnp.array(10.0), constraint=constraints.positive)
        rate = numpyro.param(f"{name}_rate", jnp.array(5.0), constraint=constraints.positive)
        numpyro.sample(name, dist.Gamma(shape, rate))
