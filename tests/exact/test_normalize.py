"""Posteriors as programs."""

import numpy as np
import pytest

import vi_kit as vi

START = np.array([0.4, -0.3, 0.2])
DATA = np.array([0.3, -1.2, 2.0])


def one(lib):
    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
        lib.sample("x", lib.dist.Normal(w + b, 1.0), obs=lib.array(1.3))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[2]))

    return model, guide


def in_plate(lib):
    def model():
        with lib.plate("n", 3):
            w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
            lib.sample("x", lib.dist.Normal(w * w, 1.0), obs=lib.array(DATA))

    def guide():
        theta = lib.theta(START)
        with lib.plate("n", 3):
            lib.sample("w", lib.dist.Normal(theta[0] + 0.1 * lib.array(DATA), lib.xp.exp(theta[1])))

    return model, guide


def vectors(lib):
    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        with lib.plate("n", 3):
            lib.sample("x", lib.dist.Normal(w[..., 0] * w[..., 1], 1.0), obs=lib.array(DATA))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[:2], lib.xp.exp(theta[2])).to_event(1))

    return model, guide


@pytest.mark.parametrize("estimators", [None, {"w": vi.Reparam(), "*": vi.Score()}])
@pytest.mark.parametrize("case", [one, in_plate, vectors])
def test_iwae_is_the_elbo_of_a_posterior_by_resampling(case, estimators, lib):
    """Draw by draw, value and gradient."""
    model, guide = case(lib)
    if case is not one and estimators is not None:
        estimators = {"w": vi.Score()}
    by_score = estimators or {"w": vi.Reparam(), **({"b": vi.Score()} if case is one else {})}
    posterior = vi.normalize(model, vi.SIR(guide, num_particles=4))
    found = [
        lib.estimates(loss, model, program, START, 2, 3)
        for loss, program in (
            (lib.Loss(vi.elbo(), by_score), posterior),
            (lib.Loss(vi.iwae(num_particles=4), by_score), guide),
        )
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
