"""The gradient of a draw's own log density, zero in the mean, is left out where draw and cost allow it."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

ESTIMATORS = {
    "loo": vi.Score(vi.LeaveOneOut()),
    "disarm": vi.DisARM(),
    "measure": vi.MeasureValued(),
    "rebar": vi.Rebar(),
}
X, VALUES = 0.7, np.array([0.0])


def posterior_logit():
    log_p = oracles.log_normal(X, np.array([0.0, 1.0]), 0.8)
    return log_p[1] - log_p[0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_noise_at_the_posterior(estimator, lib):
    """A constant cost has a constant gradient: of no draw is anything left but rounding."""

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
        lib.sample("x", lib.dist.Normal(1.0 * z, 0.8), obs=lib.array(X))

    def guide():
        logit = lib.array(posterior_logit()) + lib.theta(VALUES)[0]
        lib.sample("z", lib.dist.Bernoulli(logits=logit))

    loss = lib.Loss(vi.elbo(), ESTIMATORS[estimator], num_samples=2)
    draws = lib.gradients(loss, model, guide, VALUES, 30, 0)
    if estimator == "rebar":  # the relaxed cost is not constant
        assert draws.std() < 0.3
    else:
        np.testing.assert_allclose(draws, 0.0, atol=1e-12)


def test_a_scale_with_a_gradient_keeps_it(lib, request):
    """Scaled by a parameter, a log density has a gradient that is not zero in the mean."""
    values = np.array([0.4, 1.3])

    def model():
        with lib.handlers.scale(scale=lib.theta(values)[1]):
            lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))

    def guide():
        theta = lib.theta(values)
        with lib.handlers.scale(scale=theta[1]):
            lib.sample("z", lib.dist.Bernoulli(logits=theta[0]))

    def elbo(theta):
        log_q = oracles.log_bernoulli(theta[0], np.array([0.0, 1.0]))
        return theta[1] * (np.exp(log_q) * (np.log([0.7, 0.3]) - log_q)).sum()

    loss = lib.Loss(vi.elbo(), vi.Score(vi.LeaveOneOut()), num_samples=1000)
    draws = lib.gradients(loss, model, guide, values, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(elbo, values))
