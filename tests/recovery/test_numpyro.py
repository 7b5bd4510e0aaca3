"""SVI of NumPyro reaches exact posteriors, as in `test_conjugate`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from scipy import special, stats

import vi_kit as vi
from vi_kit.numpyro import Loss

POSITIVE = dist.constraints.positive


@pytest.fixture(autouse=True)
def double_precision():
    numpyro.enable_x64()


def fit(loss, model, guide, num_steps, lr):
    """Parameters after training with a learning rate that falls to a hundredth, and the bound there."""
    optim = optax.adam(optax.exponential_decay(lr, num_steps, 0.01))
    svi = SVI(model, guide, optim, loss)
    result = svi.run(jax.random.key(0), num_steps, progress_bar=False)
    assert np.isfinite(result.losses).all()
    final = Loss(loss.settings.objective, loss.settings.estimators, num_samples=4000)
    return result.params, -float(final.loss(jax.random.key(1), result.params, model, guide))


def test_beta_bernoulli():
    """Posterior Beta(2 + 6, 3 + 2); concentrations to 10%, the bound to 0.01 nats."""
    flips = np.array([1.0, 1, 0, 1, 1, 1, 0, 1])

    def model():
        rate = numpyro.sample("rate", dist.Beta(2.0, 3.0))
        with numpyro.plate("flips", len(flips)):
            numpyro.sample("flip", dist.Bernoulli(rate), obs=flips)

    def guide():
        a = numpyro.param("a", 2.0, constraint=POSITIVE)
        b = numpyro.param("b", 2.0, constraint=POSITIVE)
        numpyro.sample("rate", dist.Beta(a, b))

    params, bound = fit(Loss(num_samples=16), model, guide, 600, lr=0.2)
    assert float(params["a"]) == pytest.approx(8.0, rel=0.1)
    assert float(params["b"]) == pytest.approx(5.0, rel=0.1)
    assert bound == pytest.approx(special.betaln(8, 5) - special.betaln(2, 3), abs=0.01)


def test_mean_of_normals():
    """Posterior by AutoNormal; location to 0.02, scale to 5%, the bound to 0.01 nats."""
    x = np.array([0.3, 1.2, -0.4, 0.9, 2.1])
    noise, prior = 0.8, 2.0

    def model():
        loc = numpyro.sample("loc", dist.Normal(0.0, prior))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(loc, noise), obs=x)

    params, bound = fit(Loss(num_samples=64), model, AutoNormal(model), 400, lr=0.05)
    precision = 1 / prior**2 + len(x) / noise**2
    mean = x.sum() / noise**2 / precision
    assert float(params["loc_auto_loc"]) == pytest.approx(mean, abs=0.02)
    assert float(params["loc_auto_scale"]) == pytest.approx(precision**-0.5, rel=0.05)
    covariance = noise**2 * np.eye(len(x)) + prior**2
    evidence = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(x)
    assert bound == pytest.approx(evidence, abs=0.01)


def test_gamma_poisson():
    """Posterior Gamma(2 + sum x, 1 + n); mean to 5%, the bound to 0.01 nats."""
    counts = np.array([3, 5, 2, 4])

    def model():
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("counts", len(counts)):
            numpyro.sample("count", dist.Poisson(rate), obs=counts)

    def guide():
        a = numpyro.param("a", 10.0, constraint=POSITIVE)
        b = numpyro.param("b", 2.0, constraint=POSITIVE)
        numpyro.sample("rate", dist.Gamma(a, b))

    params, bound = fit(Loss(num_samples=16), model, guide, 600, lr=0.2)
    a, b = float(params["a"]), float(params["b"])
    assert a / b == pytest.approx(16 / 5, rel=0.05)
    assert a == pytest.approx(16, rel=0.15)
    evidence = special.gammaln(16) - special.gammaln(2) - 16 * math.log(5)
    assert bound == pytest.approx(evidence - special.gammaln(counts + 1).sum(), abs=0.01)


X = np.array([-1.3, 0.4, 1.1, 2.2])
LOCS = np.array([-1.0, 2.0])


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(vi.LeaveOneOut())], ids=repr)
def test_assignments_of_a_bernoulli_mixture(estimator):
    """Posterior probabilities to 0.02, the bound to 0.01 nats."""

    def model():
        with numpyro.plate("data", len(X)):
            z = numpyro.sample("z", dist.Bernoulli(0.7))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, *LOCS[::-1]), 1.0), obs=X)

    def guide():
        logits = numpyro.param("logits", jnp.zeros(len(X)))
        with numpyro.plate("data", len(X)):
            numpyro.sample("z", dist.Bernoulli(logits=logits))

    params, bound = fit(Loss(estimators=estimator, num_samples=16), model, guide, 600, lr=0.3)
    joint = np.array([0.3, 0.7]) * stats.norm(LOCS, 1.0).pdf(X[:, None])
    posterior = special.expit(np.asarray(params["logits"]))
    np.testing.assert_allclose(posterior, joint[:, 1] / joint.sum(-1), atol=0.02)
    assert bound == pytest.approx(np.log(joint.sum(-1)).sum(), abs=0.01)
