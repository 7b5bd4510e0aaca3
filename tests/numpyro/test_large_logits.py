"""Exact gradients of discrete sites stay finite, and right, where float32 has a probability of 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vi_kit as vi
from vi_kit.numpyro import Loss


def bits_model():
    z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(3)).to_event(1))
    numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=1.0)


def bits_guide():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", jnp.zeros(3))).to_event(1))


def value_model():
    z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(3)))
    numpyro.sample("x", dist.Normal(jax.nn.one_hot(z, 3) @ jnp.arange(3.0), 1.0), obs=1.0)


def value_guide():
    numpyro.sample("z", dist.Categorical(logits=numpyro.param("a", jnp.zeros(3))))


@functools.cache
def value_and_grad(model, guide, estimator):
    loss = Loss(vi.elbo(), estimator)
    return jax.jit(
        jax.value_and_grad(lambda a: loss.loss(jax.random.key(0), {"a": a}, model, guide))
    )


@pytest.mark.parametrize("size", [5.0, 20.0, 90.0, 200.0])
@pytest.mark.parametrize(
    "programs", [(bits_model, bits_guide), (value_model, value_guide)], ids=["bits", "value"]
)
def test_analytic_is_enumeration_at_large_logits(programs, size):
    a = jnp.asarray([size, 0.5, -size], jnp.float32)
    analytic, enumerated = (
        value_and_grad(*programs, e)(a) for e in (vi.Analytic(), vi.Enumerate())
    )
    for ours, exact in zip(analytic, enumerated, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=2e-6)
