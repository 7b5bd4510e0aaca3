"""Objectives of log densities at held draws, from the guide or elsewhere; and weights of a path that are held."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import DISCRETE, ConjugateNormal, LocalBernoulli, variance


class Chain:
    """Two Bernoulli sites, each with an observation before the next.

    theta of the guide: log normaliser, logit of the first, flow and its slope, logit of the second, its slope.
    """

    values = np.array([-2.1, 0.4, -0.8, 0.3, 0.2, 0.5])
    x = np.array([0.7, 1.9])

    def __init__(self, lib):
        self.lib = lib

    def model(self):
        lib = self.lib
        first = lib.sample("first", lib.dist.Bernoulli(lib.array(0.4)))
        lib.sample("x", lib.dist.Normal(first, 0.8), obs=lib.array(self.x[0]))
        second = lib.sample("second", lib.dist.Bernoulli(logits=0.3 + first))
        lib.sample("y", lib.dist.Normal(first + second, 0.8), obs=lib.array(self.x[1]))

    def model_with_data_last(self):
        lib = self.lib
        first = lib.sample("first", lib.dist.Bernoulli(lib.array(0.4)))
        second = lib.sample("second", lib.dist.Bernoulli(logits=0.3 + first))
        lib.sample("x", lib.dist.Normal(first, 0.8), obs=lib.array(self.x[0]))
        lib.sample("y", lib.dist.Normal(first + second, 0.8), obs=lib.array(self.x[1]))

    def guide(self, last=None):
        lib, theta = self.lib, self.lib.theta(self.values)
        lib.guide_factor("log_normaliser", theta[0])
        first = lib.sample("first", lib.dist.Bernoulli(logits=theta[1]))
        lib.guide_factor("flow", theta[2] + theta[3] * first)
        lib.sample("second", lib.dist.Bernoulli(logits=theta[4] + theta[5] * first))

    @classmethod
    def table(cls, theta):
        """Log probability of the draws, and log weights of the first site and of both."""
        rows = []
        for first, second in itertools.product((0.0, 1.0), repeat=2):
            q = oracles.log_bernoulli(theta[1], first)
            p = np.log(0.4 if first else 0.6) + oracles.log_normal(cls.x[0], first, 0.8)
            both_q = q + oracles.log_bernoulli(theta[4] + theta[5] * first, second)
            both_p = p + oracles.log_bernoulli(0.3 + first, second)
            both_p = both_p + oracles.log_normal(cls.x[1], first + second, 0.8)
            rows.append((both_q, p - q + theta[2] + theta[3] * first, both_p - both_q))
        return rows

    @classmethod
    def exact(cls, lambda_):
        def loss(theta):
            value = 0.0
            for (log_q, *_), (_, one, both) in zip(
                cls.table(cls.values), cls.table(theta), strict=True
            ):
                zero = theta[0]
                pairs = lambda_ * ((one - zero) ** 2 + (both - one) ** 2)
                pairs = pairs + lambda_**2 * (both - zero) ** 2
                value = value + np.exp(log_q) * pairs / (2 * lambda_ + lambda_**2) / 2
            return value

        return oracles.gradient(loss, cls.values)


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("lambda_", [0.5, 2.0])
def test_sub_trajectory_balance(lambda_, estimator, lib, request):
    case, objective = Chain(lib), vi.sub_trajectory_balance(lambda_=lambda_, num_particles=2)
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, case.model, case.guide, case.values, 30, seed)
    oracles.check_unbiased(draws, case.exact(lambda_))


@pytest.mark.parametrize("estimator", DISCRETE)
def test_data_after_all_sites_belong_to_the_states_that_know_enough(estimator, lib):
    case = Chain(lib)
    objective = vi.sub_trajectory_balance(lambda_=0.5, num_particles=2)
    loss = lib.Loss(objective, DISCRETE[estimator])
    draws = [
        lib.gradients(loss, model, case.guide, case.values, 5, 0)
        for model in (case.model, case.model_with_data_last)
    ]
    np.testing.assert_allclose(*draws, rtol=1e-9)


def test_normal_sites_belong_to_their_states(lib):
    """No estimator asks here of what a term depends on."""

    def programs(data_last):
        def data(name, z, x):
            lib.sample(name, lib.dist.Normal(z, 0.8), obs=lib.array(x))

        def model():
            first = lib.sample("first", lib.dist.Normal(lib.array(0.0), 1.0))
            if not data_last:
                data("x", first, 1.2)
            second = lib.sample("second", lib.dist.Normal(first, 1.0))
            if data_last:
                data("x", first, 1.2)
            data("y", second, -0.4)

        def guide():
            theta = lib.theta(np.array([0.3, -0.2]))
            first = lib.sample("first", lib.dist.Normal(theta[0], 1.0))
            lib.sample("second", lib.dist.Normal(theta[1] + first, 1.0))

        return model, guide

    loss = lib.Loss(vi.sub_trajectory_balance(lambda_=0.5))
    draws = [
        lib.gradients(loss, *programs(last), np.array([0.3, -0.2]), 5, 0) for last in (True, False)
    ]
    np.testing.assert_allclose(*draws, rtol=1e-9)


def test_without_flows_the_sum_over_one_site_is_trajectory_balance(lib):
    case = LocalBernoulli(lib)
    draws = [
        case.gradients(lib.Loss(objective, vi.Enumerate()), 1, 0)
        for objective in (vi.sub_trajectory_balance(lambda_=0.9), vi.trajectory_balance())
    ]
    np.testing.assert_allclose(*draws, rtol=1e-9)


def test_a_flow_after_the_last_site(lib):
    case = Chain(lib)

    def guide():
        case.guide()
        lib.guide_factor("last", lib.theta(case.values)[0])

    loss = lib.Loss(vi.sub_trajectory_balance(lambda_=0.9))
    with pytest.raises(vi.ObjectiveError, match="guide factor 'last' is after the last site"):
        lib.gradients(loss, case.model, guide, case.values, 1, 0)


BUFFER = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
PRIORITIES = np.array([0.1, 0.4, 0.2, 0.3])


def test_draws_of_a_replay_buffer(lib, request):
    """A program that draws one of the stored values, by its priority."""
    case, objective_of = LocalBernoulli(lib), vi.log_variance

    def replay():
        log_priorities = lib.array(np.log(PRIORITIES))
        row = lib.sample(
            "row", lib.dist.Categorical(logits=log_priorities), infer={"is_auxiliary": True}
        )
        with lib.plate("data", 3):
            stored = lib.array(BUFFER)[row]
            stored = stored.reshape((*stored.shape[:-2], 3)) if stored.ndim > 1 else stored
            lib.sample("z", lib.dist.Delta(stored))

    objective = objective_of(num_particles=2, reference=replay)
    draws = case.gradients(
        lib.Loss(objective, num_samples=1000), 50, oracles.seed_of(request.node.name)
    )

    def value(theta):
        log_w = np.array(
            [
                [table[1][int(z)] for table, z in zip(case.tables(theta), row, strict=True)]
                for row in BUFFER
            ]
        )
        rows = np.indices((4, 4))
        mass = PRIORITIES[rows].prod(axis=0)
        return (mass[..., None] * variance(log_w[rows]) / 2).sum()

    oracles.check_unbiased(draws, oracles.gradient(value, case.values))


def tail_adaptive(beta):
    """Gradient of the loss with two particles; nodes of a trapezoidal rule for the noise."""
    case, step = ConjugateNormal, 0.25
    noise = np.arange(-7.0, 7.0 + step / 2, step)
    mass = np.exp(oracles.log_normal(noise, 0.0, 1.0)) * step
    z = case.values[0] + np.exp(case.values[1]) * noise

    def log_w(theta, z):
        log_p = oracles.log_normal(z, theta[2], 1.3)
        log_p = log_p + oracles.log_normal(case.x, z[:, None], 0.9).sum(axis=1)
        return log_p - oracles.log_normal(z, case.values[0], np.exp(case.values[1]))

    held = log_w(case.values, z)
    first, second = held[:, None], held[None, :]
    shares = [np.where(first >= second, np.where(first == second, 1.0, 0.5), 1.0)]
    shares.append(np.where(second >= first, np.where(first == second, 1.0, 0.5), 1.0))
    total = shares[0] ** beta + shares[1] ** beta

    def value(theta):
        w = log_w(theta, theta[0] + np.exp(theta[1]) * noise)
        parts = shares[0] ** beta * w[:, None] + shares[1] ** beta * w[None, :]
        return (mass[:, None] * mass[None, :] * parts / total).sum()

    return -oracles.gradient(value, case.values)


@pytest.mark.parametrize("beta", [-1.0, 0.5])
def test_tail_adaptive_weights(beta, lib, request):
    objective = vi.tail_adaptive(num_particles=2, beta=beta)
    loss = lib.Loss(objective, vi.Reparam(), num_samples=1000)
    draws = ConjugateNormal(lib).gradients(loss, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, tail_adaptive(beta))


@pytest.mark.parametrize("estimator", [vi.Score(), vi.DoublyReparam()], ids=repr)
def test_tail_adaptive_weights_with_another_estimator(estimator, lib):
    loss = lib.Loss(vi.tail_adaptive(num_particles=2), estimator)
    with pytest.raises(vi.EstimatorError, match="site 'z': tail_adaptive is biased with"):
        ConjugateNormal(lib).gradients(loss, 1, 0)


def test_log_variance_varies_less_than_the_score_function(lib, request):
    """With the same number of draws; both have the gradient of the KL divergence in the mean."""
    seed = oracles.seed_of(request.node.name)
    losses = (
        lib.Loss(vi.log_variance(num_particles=10), vi.Score()),
        lib.Loss(vi.elbo(), vi.Score(), num_samples=10),
    )
    spread = [
        ConjugateNormal(lib).gradients(loss, 400, seed)[:, :2].var(axis=0).sum() for loss in losses
    ]
    assert spread[0] < 0.5 * spread[1]
