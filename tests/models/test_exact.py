"""The exact answers of the models, by other ways."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from models import (
    changepoint,
    eight_schools,
    gaussian_mixture,
    hmm,
    radon,
    state_space,
    stochastic_volatility,
)


def test_eight_schools_by_quadrature_over_mu_and_tau():
    effects, errors = eight_schools.data()

    mu, u = np.linspace(-30, 30, 601)[:, None], (np.arange(2000) + 0.5) / 2000
    tau = 5 * np.tan(np.pi * u / 2)
    logs = stats.norm(0, 5).logpdf(mu) - np.log(2000) + np.log(0.1)
    for effect, error in zip(effects, errors, strict=True):
        logs = logs + stats.norm(mu, np.sqrt(tau**2 + error**2)).logpdf(effect)
    assert eight_schools.exact() == pytest.approx(logsumexp(logs), abs=1e-5)


def test_a_mixture_by_quadrature_over_the_means():
    (x,), grid = gaussian_mixture.data(), np.linspace(-15, 15, 601)
    likelihood = stats.norm(grid[:, None], 1).pdf(x)
    first, second = (w * likelihood for w in gaussian_mixture.WEIGHTS)
    logs = np.log(first[:, None] + second[None]).sum(-1)
    prior = stats.norm(0, gaussian_mixture.PRIOR_SCALE).logpdf(grid)
    total = logsumexp(logs + prior[:, None] + prior) + 2 * np.log(grid[1] - grid[0])
    assert gaussian_mixture.exact() == pytest.approx(total, abs=1e-8)


def test_a_hidden_markov_model_by_enumeration():
    (x,), (evidence, posterior) = hmm.data(), hmm.filtered()
    z = np.array(list(itertools.product(range(3), repeat=len(x))))
    logs = stats.norm(hmm.MEANS[z], 1).logpdf(x).sum(-1) - np.log(3)
    logs = logs + np.log(hmm.TRANSITION[z[:, :-1], z[:, 1:]]).sum(-1)
    assert evidence == pytest.approx(logsumexp(logs), abs=1e-10)
    weights = np.exp(logs - logsumexp(logs))
    means = [weights @ (z == k) for k in range(3)]
    np.testing.assert_allclose(posterior, np.stack(means, -1), atol=1e-10)


def test_a_changepoint_by_quadrature_over_the_rates():
    (y,), rate = changepoint.data(), 5e-4 * (np.arange(60_000) + 0.5)

    def part(of):
        logs = stats.poisson(rate).logpmf(of[:, None]).sum(0) - rate
        return logsumexp(logs) + np.log(5e-4)

    assert len(y) == 111
    for switch in (0, 41, 100):
        exact = part(y[:switch]) + part(y[switch:]) - np.log(111)
        assert changepoint.log_joint()[switch] == pytest.approx(exact, abs=1e-6)


def test_radon_by_a_dense_covariance():
    county, uranium, floor, y = radon.data()
    design = np.stack([np.ones_like(floor), uranium[county], floor], -1)
    for tau, sigma in ((0.2, 0.75), (0.5, 0.7)):
        same = county[:, None] == county
        covariance = 4 * design @ design.T + tau**2 * same + sigma**2 * np.eye(len(y))
        exact = stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
        found = radon.log_likelihood(np.array(tau), np.array(sigma))
        assert found == pytest.approx(exact, rel=1e-9)
    # The grid holds all of it, and is fine enough.
    edge = radon.log_likelihood(np.array([0.7, 0.15, 0.15]), np.array([0.75, 0.6, 0.95]))
    assert edge.max() < radon.log_likelihood(np.array(0.15), np.array(0.75)) - 20
    assert radon.exact() == pytest.approx(radon.exact(121), abs=1e-6)


def test_a_linear_series_by_its_covariance():
    (x,) = state_space.data()
    steps = np.arange(len(x))
    lag = np.tril(state_space.STAY ** (steps[:, None] - steps).clip(0))
    covariance = state_space.NOISE**2 * lag @ lag.T + state_space.OBS_NOISE**2 * np.eye(len(x))
    exact = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(x)
    assert state_space.exact() == pytest.approx(exact, abs=1e-10)


def test_stochastic_volatility_by_quadrature_over_two_steps():
    sv = stochastic_volatility
    y = sv.returns(2)

    first = np.linspace(-5, 3, 801)[:, None]
    second = first.T
    ahead = sv.MEAN + sv.PERSISTENCE * (first - sv.MEAN)
    logs = stats.norm(sv.MEAN, sv.VOLATILITY).logpdf(first) + 2 * np.log(0.01)
    logs = logs + stats.norm(ahead, sv.VOLATILITY).logpdf(second)
    for h, datum in ((first, y[0]), (second, y[1])):
        logs = logs + stats.norm(0, np.exp(h / 2)).logpdf(datum)
    assert sv.forward(y)[0] == pytest.approx(logsumexp(logs), abs=1e-8)
