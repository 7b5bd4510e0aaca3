"""Double reparameterisation: no noise at the optimum, and what it refuses."""

import numpy as np
import pytest

import vi_kit as vi
from tests.cases import TwoLevelBernoulli

X = 1.3
POSTERIOR = np.array([X / 2.0, np.log(0.5) / 2.0])
BOUNDS = [vi.elbo(), vi.iwae(num_particles=5), vi.renyi(alpha=0.5, num_particles=3)]


def conjugate(lib):
    """z ~ Normal(0, 1), x ~ Normal(z, 1); at `POSTERIOR` the guide is the posterior."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(X))

    def guide():
        theta = lib.theta(POSTERIOR)
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return model, guide


@pytest.mark.parametrize("objective", BOUNDS, ids=repr)
def test_no_noise_where_the_guide_is_the_posterior(objective, lib):
    model, guide = conjugate(lib)
    loss = lib.Loss(objective, vi.DoublyReparam(), num_samples=2)
    draws = lib.gradients(loss, model, guide, POSTERIOR, 5, 0)
    np.testing.assert_allclose(draws, 0.0, atol=1e-12)
    plain = lib.Loss(objective, vi.Reparam(), num_samples=2)
    assert lib.gradients(plain, model, guide, POSTERIOR, 5, 0).std(axis=0).max() > 1e-3


def two_normals(lib):
    def model():
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        b = lib.sample("b", lib.dist.Normal(a, 1.0))
        lib.sample("x", lib.dist.Normal(b, 1.0), obs=lib.array(X))

    def guide():
        theta = lib.theta(POSTERIOR)
        a = lib.sample("a", lib.dist.Normal(theta[0], 1.0))
        lib.sample("b", lib.dist.Normal(a + theta[1], 1.0))

    return model, guide


def test_several_sites_in_a_nonlinear_function(lib):
    loss = lib.Loss(vi.iwae(num_particles=2), vi.DoublyReparam())
    with pytest.raises(vi.EstimatorError, match=r"sites \['a', 'b'\]: a nonlinear function"):
        lib.gradients(loss, *two_normals(lib), POSTERIOR, 1, 0)


def test_a_score_site_drawn_given_it(lib):
    loss = lib.Loss(vi.elbo(), {"a": vi.DoublyReparam(), "b": vi.Score()})
    with pytest.raises(vi.EstimatorError, match=r"DoublyReparam\(\) with Score\(\) at site 'b'"):
        lib.gradients(loss, *two_normals(lib), POSTERIOR, 1, 0)


def test_no_sampler(lib):
    with pytest.raises(vi.EstimatorError, match="needs a reparameterised sampler"):
        TwoLevelBernoulli(lib).gradients(lib.Loss(vi.elbo(), vi.DoublyReparam()), 1, 0)
