"""Random numbers that a program draws besides its sites, as dropout does, are the same wherever it is evaluated
again at one draw."""

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

X, SHIFT = 1.5, 0.3
VALUES = np.array([SHIFT])
OFFSETS = np.array([-2.0, 2.0])


def coin(lib, like):
    """Zero or one with equal probability, from no sample statement."""
    if lib.name == "pyro":
        return (lib.xp.rand(like.shape) < 0.5) * 1.0
    import jax
    import numpyro

    return 1.0 * jax.random.bernoulli(numpyro.prng_key(), shape=like.shape)


def programs(lib):
    """a ~ Normal(0, 1), z ~ Normal(0, 1), x ~ Normal(z + theta + c, 1) with c of random sign; the guide's z is normal
    about one of two places. In both a coin is tossed between the sites."""

    def model(x):
        theta = lib.theta(VALUES)[0]
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        offset = OFFSETS[0] + 4.0 * coin(lib, a)
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z + theta + offset, 1.0), obs=x)

    def guide(x):
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        loc = lib.theta(VALUES, "loc")[0] + 4.0 * coin(lib, a)
        lib.sample("z", lib.dist.Normal(loc, 1.0))

    return model, guide


def exact(num_nodes=81):
    """Gradient by `theta` and `loc` of E[log mean of two weights], by quadrature: each draw has coins of its own."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()

    def bound(values):
        theta, loc = values
        log_mass, log_w = [], []
        for c_model in OFFSETS:
            for c_guide in (0.0, 4.0):
                z = loc + c_guide + nodes
                log_p = oracles.log_normal(z, 0.0, 1.0)
                log_p = log_p + oracles.log_normal(X, z + theta + c_model, 1.0)
                log_w.append(log_p - oracles.log_normal(nodes, 0.0, 1.0))
                log_mass.append(np.log(weights / 4.0))
        return oracles.expected_bound(np.concatenate(log_mass), np.concatenate(log_w), 2)

    return -oracles.gradient(bound, np.array([SHIFT, SHIFT]))


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.DoublyReparam()], ids=repr)
def test_unbiased(lib, estimator, request):
    model, guide = programs(lib)
    # each replicate has noise of its own, and whether they are computed apart cannot be tested
    loss = lib.Loss(vi.iwae(num_particles=2), estimator, num_samples=500, vectorize=True)
    x, seed = lib.array(X), oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, model, guide, VALUES, 40, seed, names=("theta", "loc"), args=(x,))
    oracles.check_unbiased(draws, exact())


def test_what_held_draws_come_from(lib, request):
    """Weights of wake phases are of the density that the draws came from: here p / q, of which the mean is p(x)."""

    @vi.objective
    def mean_weight(model, guide):
        z = vi.stop_gradient(vi.simulate(vi.stop_gradient(guide)))
        log_w = vi.log_density(model, z) - vi.log_density(guide, z)
        return vi.apply(lib.xp.exp, log_w)

    def model():
        lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(X))

    def guide():
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("z", lib.dist.Normal(0.75 + 2.0 * (coin(lib, a) - 0.5), 1.5))

    loss = lib.Loss(mean_weight(), num_samples=2000, vectorize=True)
    seed = oracles.seed_of(request.node.name)
    values = -lib.estimates(loss, model, guide, VALUES, 20, seed)[:, :1]
    oracles.check_unbiased(values, np.exp([oracles.log_normal(X, 0.0, 2**0.5)]))
