"""Data, models and guides of fits whose work several devices share."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

ROWS, DIM = 48, 7
X = np.random.default_rng(0).normal(size=(ROWS, DIM))


def model(x):
    weights = numpyro.param("weights", jnp.ones((2, DIM)) / 3)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)


def amortised(x):
    encoder = numpyro.param("encoder", jnp.ones((DIM, 2)) / 9)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(x @ encoder, 0.3).to_event(1))


def row_by_row(x):
    loc = numpyro.param("loc", jnp.zeros((len(x), 2)))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(loc, 0.3).to_event(1))


def mixture(x):
    means = numpyro.param("means", jnp.linspace(-1.0, 1.0, 3)[:, None] * jnp.ones(DIM))
    with numpyro.plate("rows", len(x)):
        k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)


def assigned(x):
    encoder = numpyro.param("encoder", jnp.ones((DIM, 3)) * jnp.arange(3) / 9)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("k", dist.Categorical(logits=x @ encoder))


def with_minibatch_inside(x):
    weights = numpyro.param("weights", jnp.ones((2, DIM)) / 3)
    with numpyro.plate("rows", len(x), subsample_size=16) as rows:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x[rows])


def of_minibatch_inside(x):
    loc = numpyro.param("loc", jnp.zeros((len(x), 2)))
    with numpyro.plate("rows", len(x), subsample_size=16) as rows:
        numpyro.sample("z", dist.Normal(loc[rows], 0.3).to_event(1))
