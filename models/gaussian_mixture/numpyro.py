"""The mixture of Gaussians in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from models.gaussian_mixture import PRIOR_SCALE, WEIGHTS


def model(x: jax.Array) -> None:
    with numpyro.plate("components", 2):
        means = numpyro.sample("means", dist.Normal(0.0, PRIOR_SCALE))
    with numpyro.plate("points", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
        numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


def guide_of_means(x: jax.Array) -> None:
    loc = numpyro.param("loc", jnp.array([-1.0, 1.0]))
    scale = numpyro.param("scale", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("components", 2):
        numpyro.sample("means", dist.Normal(loc, scale))


def guide(x: jax.Array) -> None:
    guide_of_means(x)
    logits = numpyro.param("logits", jnp.zeros((len(x), 2)))
    with numpyro.plate("points", len(x)):
        numpyro.sample("z", dist.Categorical(logits=logits))
