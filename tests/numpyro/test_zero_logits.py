"""NumPyro's own log density of a Bernoulli has a wrong gradient at a logit of exactly zero; ours has not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vi_kit as vi
from tests import oracles
from vi_kit.numpyro import Loss

NUM_DRAWS = 20_000


def model():
    z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(3)).to_event(1))
    numpyro.factor("f", 3.0 * z.sum(-1))


def guide():
    logits = numpyro.param("logits", jnp.zeros(3))
    numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


@pytest.mark.parametrize("estimator", [vi.Score(), vi.DisARM(), vi.MeasureValued()], ids=repr)
def test_gradient_at_zero(estimator):
    def loss(logits, key):
        return Loss(vi.elbo(), estimator).loss(key, {"logits": logits}, model, guide)

    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    draws = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros(3), keys)
    exact = np.full(3, -0.25 * 3.0)
    oracles.check_unbiased(np.asarray(draws, dtype=float), exact)
