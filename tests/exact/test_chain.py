"""Chains of enumerated sites: exact, linear in their length, and longer than the dims of an array."""

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from vi_kit.engine.run import Run

VALUES = np.array([0.3, -0.6, 0.8, 0.2])


def chain(lib, length):
    dist = lib.dist

    def model():
        theta = lib.theta(VALUES)
        z = lib.array(0.0)
        for t in range(length):
            z = lib.sample(f"z{t}", dist.Bernoulli(logits=theta[2] - z))
            lib.sample(f"x{t}", dist.Normal(z * theta[3], 1.0), obs=lib.array(0.1 * t))

    def guide():
        theta = lib.theta(VALUES)
        z = lib.array(0.0)
        for t in range(length):
            z = lib.sample(f"z{t}", dist.Bernoulli(logits=theta[0] + theta[1] * z))

    return model, guide


def exact(length):
    """Gradient of the loss by dynamic programming in NumPy."""

    def bound(theta):
        value, before = 0.0, np.array([1.0, 0.0])
        for t in range(length):
            after = np.zeros(2, dtype=complex)
            for old in (0, 1):
                if t == 0 and old == 1:
                    continue
                for new in (0, 1):
                    log_q = oracles.log_bernoulli(theta[0] + theta[1] * old, new)
                    cost = oracles.log_bernoulli(theta[2] - old, new) - log_q
                    cost = cost + oracles.log_normal(0.1 * t, new * theta[3], 1.0)
                    joint = before[old] * np.exp(log_q)
                    value, after[new] = value + joint * cost, after[new] + joint
            before = after
        return value

    return -oracles.gradient(bound, VALUES)


@pytest.mark.parametrize("length", [1, 2, 10, 43])
def test_chain_is_exact(lib, length):
    model, guide = chain(lib, length)
    draws = lib.gradients(lib.Loss(vi.elbo(), vi.Enumerate()), model, guide, VALUES, 1, 0)
    np.testing.assert_allclose(draws[0], exact(length), rtol=1e-10)


def test_values_held_fixed_keep_their_dims(lib):
    @vi.objective
    def held(model, guide):
        z = vi.simulate(guide)
        return vi.log_density(model, vi.stop_gradient(z)) - z.log_density

    model, guide = chain(lib, 41)
    draws = lib.gradients(lib.Loss(held(), vi.Enumerate()), model, guide, VALUES, 1, 0)
    assert np.isfinite(draws).all()


def test_sites_far_apart_are_exact_or_refused(lib, monkeypatch):
    monkeypatch.setattr(Run, "max_world_dims", 3)

    dist = lib.dist

    def model():
        zs = [lib.sample(f"z{t}", dist.Bernoulli(0.5)) for t in range(4)]
        lib.sample("x", dist.Normal(zs[0] + zs[3], 1.0), obs=lib.array(0.0))

    def guide():
        theta = lib.theta(VALUES)
        for t in range(4):
            lib.sample(f"z{t}", dist.Bernoulli(logits=theta[0]))

    def gradient():
        return lib.gradients(lib.Loss(vi.elbo(), vi.Enumerate()), model, guide, VALUES, 1, 0)[0]

    if lib.name == "pyro":  # worlds are dims of the values, and there are so many of them
        with pytest.raises(vi.EstimatorError, match="successive enumerated sites"):
            gradient()
        return

    def minus_bound(theta):
        p = 1 / (1 + np.exp(-theta[0]))
        entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
        square = 4 * p**2 + 2 * p * (1 - p)
        return -(4 * (np.log(0.5) + entropy) - 0.5 * square - 0.5 * np.log(2 * np.pi))

    exact = oracles.gradient(minus_bound, VALUES)
    np.testing.assert_allclose(gradient(), exact, atol=1e-8)
