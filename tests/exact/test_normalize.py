"""Posteriors as programs."""

import numpy as np
import pytest

import vi_kit as vi
from tests.exact.test_marginal import density, reciprocal

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


def coins(lib):
    """Two coins, four joint values."""

    def model():
        a = lib.sample("a", lib.dist.Bernoulli(lib.array(0.3)))
        b = lib.sample("b", lib.dist.Bernoulli(0.2 + 0.5 * a))
        lib.sample("x", lib.dist.Normal(a + b, 1.0), obs=lib.array(1.3))

    def guide():
        theta = lib.theta(START)
        a = lib.sample("a", lib.dist.Bernoulli(logits=theta[0]))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1] + theta[2] * a))

    def uniform():
        for name in ("a", "b"):
            lib.sample(name, lib.dist.Bernoulli(lib.array(0.5)))

    return model, guide, uniform


def means(lib, loss, model, guide):
    draws = lib.estimates(loss, model, guide, START, 8, 2)
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(8)


def test_the_density_of_a_posterior_and_its_reciprocal_have_no_bias(lib):
    model, guide, uniform = coins(lib)
    posterior = vi.normalize(model, vi.SIR(guide, num_particles=3))
    for objective, exact in ((reciprocal(), 4.0), (density(), 0.25)):
        loss = lib.Loss(objective, vi.Score(), num_samples=2000)
        mean, error = means(lib, loss, uniform, posterior)
        assert abs(mean[0] + exact) < 5 * error[0]
        assert error[0] < 0.02 * exact


def test_bounds_of_bounds(lib):
    """Two of three particles each are six: the gradient too, inside a nonlinear function of replicates."""
    model, guide, _ = coins(lib)
    posterior = vi.normalize(model, vi.SIR(guide, num_particles=3))
    twice = lib.Loss(vi.iwae(num_particles=2), vi.Score(), num_samples=1000)
    plain = lib.Loss(vi.iwae(num_particles=6), vi.Score(), num_samples=1000)
    (mean, error), (exact, other) = (
        means(lib, twice, model, posterior),
        means(lib, plain, model, guide),
    )
    assert (np.abs(mean - exact) < 5 * np.hypot(error, other)).all(), (mean, exact, error)


def test_refusals_of_posteriors(lib):
    model, guide, _ = coins(lib)
    several = {"a": vi.Enumerate(), "b": vi.Score()}
    with pytest.raises(vi.EstimatorError, match="of a particle, and has several values"):
        lib.value(lib.Loss(estimators=several), model, vi.normalize(model, vi.SIR(guide, 3)), 0)
    with pytest.raises(vi.ObjectiveError, match="no algorithm"):
        vi.normalize(model, guide)
    with pytest.raises(vi.ObjectiveError, match="num_particles"):
        vi.SIR(guide, 0)
    with pytest.raises(vi.ObjectiveError, match="the proposal is no program"):
        vi.SIR(None, 3)

    def lacking():
        lib.sample("a", lib.dist.Bernoulli(logits=lib.theta(START)[0]))

    with pytest.raises(vi.ObjectiveError, match="'b' is not in the draw"):
        lib.value(lib.Loss(), model, vi.normalize(model, vi.SIR(lacking, 3)), 0)


def test_a_model_with_sites_that_are_summed_out(lib):
    """Marked, named, or as a marginal program: the same bound as by weights."""

    def model(infer):
        def program():
            w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
            k = lib.sample("k", lib.dist.Bernoulli(lib.array(0.4)), infer=infer)
            lib.sample("x", lib.dist.Normal(w + k, 1.0), obs=lib.array(1.4))

        return program

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    marked, plain = model({"enumerate": "parallel"}), model({})
    summed = vi.marginal(plain, ["w"], vi.Exact())
    by_weights = lib.Loss(vi.iwae(num_particles=3))
    exact = lib.estimates(by_weights, marked, guide, START, 1, 4)
    for loss, program in (
        (lib.Loss(), marked),
        (lib.Loss(marginalize="k"), plain),
        (lib.Loss(), summed),
    ):
        posterior = vi.normalize(program, vi.SIR(guide, 3))
        found = lib.estimates(loss, program, posterior, START, 1, 4)
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_refusals_of_proposals_of_posteriors(lib):
    model, guide = vectors(lib)
    posterior = vi.normalize(model, vi.SIR(guide, 3))
    with pytest.raises(vi.ObjectiveError, match="a posterior by SIR itself"):
        vi.SIR(posterior, 3)
    with pytest.raises(vi.EstimatorError, match="varies a draw by its density"):
        lib.value(lib.Loss(vi.elbo(), vi.DoublyReparam()), model, posterior, 0)


def test_particles_whose_weights_underflow(lib):
    """Log weights thousands of nats apart: the gradient is still that of the bound by weights."""

    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(w, 0.005), obs=lib.array(1.3))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    found = [
        lib.estimates(loss, model, program, START, 2, 3)
        for loss, program in (
            (lib.Loss(), vi.normalize(model, vi.SIR(guide, 4))),
            (lib.Loss(vi.iwae(num_particles=4)), guide),
        )
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
