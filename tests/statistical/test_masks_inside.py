"""Masks inside events: a hidden element adds nothing to the log density, and is drawn all the same."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

SHOWN = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
"""Which of the two elements of an event are not masked, in a plate of three."""
X = np.array([0.6, -0.3, 1.4])
VALUES = np.array([0.3, -0.5, 0.8])


def masked(lib, dist):
    """As events, with the masks below `expand` and `to_event`, and one that hides nothing around it."""
    first = lib.array(SHOWN[:, :1] + SHOWN[:, 1:] > 0)  # hides whole events of the plate
    inner = dist.expand((3, 2)).mask(first).mask(lib.array(SHOWN > 0))
    return inner.to_event(1).mask(lib.array(np.ones(3) > 0))


def programs(lib, own, prior):
    """The guide's elements by `own(theta)`, the model's by `prior`; the event enters a likelihood."""

    def model():
        theta = lib.theta(VALUES)
        with lib.plate("data", 3):
            z = lib.sample("z", masked(lib, prior))
            loc = theta[2] * z[..., 0] + 0.5 * z[..., 1]
            lib.sample("x", lib.dist.Normal(loc, 0.8), obs=lib.array(X))

    def guide():
        with lib.plate("data", 3):
            lib.sample("z", masked(lib, own(lib.theta(VALUES))))

    return model, guide


def bernoulli(lib):
    return programs(
        lib, lambda theta: lib.dist.Bernoulli(logits=theta[:2]), lib.dist.Bernoulli(lib.array(0.4))
    )


def normal(lib):
    return programs(
        lib, lambda theta: lib.dist.Normal(theta[:2], 0.7), lib.dist.Normal(lib.array(0.1), 1.0)
    )


def exact(particles):
    """Gradient of the loss of the Bernoulli site, by enumeration of the four events of each datum."""
    z = np.array(list(np.ndindex(2, 2)))

    def bound(theta):
        log_q = oracles.log_bernoulli(theta[:2], z)
        log_p = oracles.log_bernoulli(np.log(0.4 / 0.6), z)
        total = 0.0
        for shown, x in zip(SHOWN, X, strict=True):
            log_w = ((log_p - log_q) * shown).sum(-1)
            log_w = log_w + oracles.log_normal(x, theta[2] * z[:, 0] + 0.5 * z[:, 1], 0.8)
            total = total + oracles.expected_log_mean_exp(log_q.sum(-1), log_w, particles)
        return total

    return -oracles.gradient(bound, VALUES)


def exact_normal():
    """Gradient of the elbo's loss of the Normal site, by algebra."""

    def bound(theta):
        loc, variance = theta[:2], 0.7**2
        log_q = -np.log(0.7) - 0.5 * np.log(2 * np.pi) - 0.5
        log_p = -0.5 * np.log(2 * np.pi) - 0.5 * ((loc - 0.1) ** 2 + variance)
        mean = theta[2] * loc[0] + 0.5 * loc[1]
        spread = variance * (theta[2] ** 2 + 0.25)
        likelihood = -0.5 * ((X - mean) ** 2 + spread) / 0.8**2
        return ((log_p - log_q) * SHOWN).sum() + likelihood.sum()

    return -oracles.gradient(bound, VALUES)


@pytest.mark.parametrize("particles", [1, 2])
def test_worlds_are_weighted_by_all_of_q(particles, lib):
    """By default, and without noise."""
    loss = lib.Loss(vi.iwae(num_particles=particles))
    (gradient,) = lib.gradients(loss, *bernoulli(lib), VALUES, 1, 0)
    np.testing.assert_allclose(gradient, exact(particles), rtol=1e-9)
    assert "Enumerate" in loss.explain(*bernoulli(lib))


@pytest.mark.parametrize(
    "estimator", [vi.Score(vi.LeaveOneOut()), vi.MeasureValued(), vi.DisARM()], ids=repr
)
def test_draws_are_scored_by_all_of_q(estimator, lib, request):
    loss = lib.Loss(vi.elbo(), estimator, num_samples=300)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *bernoulli(lib), VALUES, 40, seed)
    oracles.check_unbiased(draws, exact(1))


@pytest.mark.parametrize("estimator", [None, vi.DoublyReparam(), vi.MeasureValued()], ids=repr)
def test_a_normal_keeps_its_sampler(estimator, lib, request):
    loss = lib.Loss(vi.elbo(), estimator, num_samples=100)
    draws = lib.gradients(loss, *normal(lib), VALUES, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact_normal())
    if estimator is None:
        assert "Normal has a reparameterised sampler" in loss.explain(*normal(lib))


def test_closed_forms_of_what_is_shown(lib):
    loss = lib.Loss(vi.elbo(), vi.Analytic())
    (gradient,) = lib.gradients(loss, *normal(lib), VALUES, 1, 0)
    np.testing.assert_allclose(gradient, exact_normal(), rtol=1e-9)


def test_a_path_that_is_not_that_of_the_score_is_refused(lib):
    """The score of some elements is reparameterised by these elements only."""
    loss = lib.Loss(vi.iwae(num_particles=2), vi.DoublyReparam())
    with pytest.raises(vi.EstimatorError, match=r"site 'z': DoublyReparam\(\).*with masks"):
        lib.gradients(loss, *normal(lib), VALUES, 1, 0)


def test_a_mask_that_is_drawn(lib, request):
    """An object that is there or not, and hides where it is: the first step of Attend, Infer, Repeat."""

    def where(there, loc):
        shown = lib.xp.ones(2) * there[..., None] > 0
        return lib.dist.Normal(loc * lib.array(np.ones(2)), 0.7).mask(shown).to_event(1)

    def model():
        there = lib.sample("there", lib.dist.Bernoulli(lib.array(0.4)))
        z = lib.sample("z", where(there, 0.1))
        loc = lib.theta(VALUES)[2] * there * z.sum(-1)
        lib.sample("x", lib.dist.Normal(loc, 0.8), obs=lib.array(X[0]))

    def guide():
        theta = lib.theta(VALUES)
        there = lib.sample("there", lib.dist.Bernoulli(logits=theta[0]))
        lib.sample("z", where(there, theta[1]))

    def bound(theta):
        log_q = oracles.log_bernoulli(theta[0], np.arange(2.0))
        log_p = np.log([0.6, 0.4])
        hidden = oracles.log_normal(X[0], 0.0, 0.8)
        shown = hidden + (X[0] ** 2 - (X[0] - 2 * theta[1] * theta[2]) ** 2) / (2 * 0.8**2)
        shown = shown - 0.49 * theta[2] ** 2 / 0.8**2 - (theta[1] - 0.1) ** 2 / 0.7**2
        return (np.exp(log_q) * (log_p - log_q + np.array([hidden, shown]))).sum()

    loss = lib.Loss(num_samples=300)
    draws = lib.gradients(loss, model, guide, VALUES, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(bound, VALUES))
