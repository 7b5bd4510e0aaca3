"""NumPyro's own log densities of Bernoulli and Binomial have a wrong gradient at a logit of exactly zero; ours not."""

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


W, N, K = np.zeros(2), 4, 3.0
"""Logits, and the trials and successes of a Binomial."""


def bernoulli(z, w):
    return z * w - np.log1p(np.exp(w))


def two_components(w):
    """Log density of a one under a mixture of two Bernoulli with weights 0.3 and 0.7."""
    return np.log(0.3 * np.exp(bernoulli(1.0, w[0])) + 0.7 * np.exp(bernoulli(1.0, w[1])))


MIX = dist.Categorical(probs=jnp.array([0.3, 0.7]))
KINKS = {
    "binomial": (
        lambda w: dist.Binomial(N, logits=w[0]),
        K,
        lambda w: K * w[0] - N * np.log1p(np.exp(w[0])),
    ),
    "same_family": (
        lambda w: dist.MixtureSameFamily(MIX, dist.Bernoulli(logits=w)),
        1.0,
        two_components,
    ),
    "general": (
        lambda w: dist.MixtureGeneral(MIX, [dist.Bernoulli(logits=w[i]) for i in range(2)]),
        1.0,
        two_components,
    ),
    "masked": (
        lambda w: dist.Bernoulli(logits=w).mask(jnp.array([True, False])).to_event(1),
        jnp.array([1.0, 1.0]),
        lambda w: bernoulli(1.0, w[0]),
    ),
    "expanded": (
        lambda w: dist.Binomial(N, logits=w[0]).expand([3]).to_event(1),
        jnp.full(3, K),
        lambda w: 3 * (K * w[0] - N * np.log1p(np.exp(w[0]))),
    ),
    "zero_inflated": (
        lambda w: dist.ZeroInflatedDistribution(dist.Binomial(N, logits=w[0]), gate=0.2),
        0.0,
        lambda w: np.log(0.2 + 0.8 * np.exp(-N * np.log1p(np.exp(w[0])))),
    ),
    "transformed": (
        lambda w: dist.TransformedDistribution(
            dist.Bernoulli(logits=w[0]), dist.transforms.IdentityTransform()
        ),
        1.0,
        lambda w: bernoulli(1.0, w[0]),
    ),
}
"""A distribution by its logits, an observation, and the log density up to what does not depend on them."""


@pytest.mark.parametrize("kink", KINKS)
def test_observed_at_zero(kink):
    make, value, log_density = KINKS[kink]

    def observed():
        numpyro.sample("x", make(numpyro.param("w", jnp.zeros(2))), obs=jnp.asarray(value))

    def guide():
        numpyro.sample("unrelated", dist.Delta(0.0))

    def model():
        numpyro.sample("unrelated", dist.Delta(0.0))
        observed()

    def loss(w):
        return Loss().loss(jax.random.key(0), {"w": w}, model, guide)

    found = jax.grad(loss)(jnp.zeros(2))
    np.testing.assert_allclose(found, -oracles.gradient(log_density, W), atol=1e-6)


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_binomial_guide_at_zero(estimator):
    def binomial_model():
        z = numpyro.sample("z", dist.Binomial(N, probs=0.3))
        numpyro.factor("f", 0.5 * z**2)

    def binomial_guide():
        numpyro.sample("z", dist.Binomial(N, logits=numpyro.param("w", jnp.zeros(1))[0]))

    def loss(w, key):
        return Loss(vi.elbo(), estimator).loss(key, {"w": w}, binomial_model, binomial_guide)

    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    draws = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros(1), keys)
    z = np.arange(N + 1)
    orders = np.array([1.0, 4.0, 6.0, 4.0, 1.0])

    def elbo(w):
        log_q = np.log(orders) + z * w[0] - N * np.log(1 + np.exp(w[0]))
        log_p = np.log(orders) + z * np.log(0.3) + (N - z) * np.log(0.7)
        return (np.exp(log_q) * (log_p + 0.5 * z**2 - log_q)).sum()

    exact = -oracles.gradient(elbo, np.zeros(1))
    oracles.check_unbiased(np.asarray(draws, dtype=float), exact)


def test_what_is_certain():
    """At infinite logits, of either sign: a log probability of zero for what is certain, no nan."""
    from vi_kit.numpyro.distributions import smooth

    logits = jnp.array([-jnp.inf, jnp.inf])
    fn = smooth(dist.Bernoulli(logits=logits, validate_args=False))
    np.testing.assert_array_equal(fn.log_prob(jnp.array([0.0, 1.0])), [0.0, 0.0])
    assert (fn.log_prob(jnp.array([1.0, 0.0])) < -1e30).all()
    slopes = jax.grad(
        lambda w: (
            smooth(dist.Binomial(2, logits=w, validate_args=False))
            .log_prob(jnp.array([0, 2]))
            .sum()
        )
    )(logits)
    np.testing.assert_array_equal(slopes, [0.0, 0.0])
