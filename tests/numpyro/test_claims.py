"""What NumPyro's own losses do with a Bernoulli site, and what is right, by enumeration."""

import itertools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import gradients
from vi_kit.numpyro import Loss

LOGIT = np.array([0.3])


def model():
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)


def guide():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.3)))


def minus_bound(theta, particles):
    """E[-log mean_k w_k] by enumeration of the particles."""
    values = np.array([0.0, 1.0])
    log_q = oracles.log_bernoulli(theta[0], values)
    log_w = np.log(0.5) + oracles.log_normal(2.0, values, 1.0) - log_q
    total = 0.0
    for ks in itertools.product((0, 1), repeat=particles):
        weight = np.exp(sum(log_q[k] for k in ks))
        total = total - weight * np.log(sum(np.exp(log_w[k]) for k in ks) / particles)
    return total


def exact(particles):
    return oracles.gradient(lambda theta: minus_bound(theta, particles), LOGIT)


def draws(loss, num_draws):
    return gradients(loss, model, guide, {"a": 0.3}, num_draws)


def test_exact_gradients():
    assert exact(1)[0] == pytest.approx(-0.293, abs=1e-3)
    assert exact(2)[0] == pytest.approx(-0.150, abs=1e-3)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_numpyro_drops_the_score(loss):
    """What is left is the gradient of log q at the draw, whose mean is zero."""
    got = draws(loss(num_particles=10), 2000)
    assert abs(got.mean()) < 0.01
    assert oracles.largest_z(got, exact(1)) >= 8


def test_numpyro_has_the_wrong_sign_for_renyi():
    got = draws(RenyiELBO(alpha=0.0, num_particles=2), 20000)
    assert got.mean() == pytest.approx(0.131, abs=0.01)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), RenyiELBO(alpha=0.0, num_particles=2))
    with pytest.warns(UserWarning, match="does not support models with discrete latent variables"):
        svi.init(jax.random.key(0))


@pytest.mark.parametrize("particles", [1, 2])
def test_enumeration_is_exact(particles):
    objective = vi.elbo() if particles == 1 else vi.iwae(num_particles=particles)
    got = draws(Loss(objective), 1)[0]
    np.testing.assert_allclose(got, exact(particles), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "particles"),
    [
        (vi.Score(), 1),
        (vi.Score(vi.LeaveOneOut()), 1),
        (vi.Score(vi.LeaveOneOut()), 2),
        (vi.MeasureValued(), 1),
        (vi.MeasureValued(), 2),
    ],
    ids=repr,
)
def test_other_estimators_are_unbiased(estimator, particles):
    objective = vi.elbo() if particles == 1 else vi.iwae(num_particles=particles)
    loss = Loss(objective, estimator, num_samples=10)
    oracles.check_unbiased(draws(loss, 2000), exact(particles))
