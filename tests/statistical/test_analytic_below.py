"""`Analytic` at a Normal site in a plate, below a global and a local Bernoulli site with estimators of their own."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

X = np.array([0.5, -1.0, 1.3])
VALUES = np.array([0.4, 0.3, -0.2, 0.6, 0.1, -0.3, 0.8])
PRIOR_SCALE, NOISE = 1.2, 0.8


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def model(lib):
    slope = lib.theta(VALUES)[6]
    b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
    with lib.plate("data", 3):
        c = lib.sample("c", lib.dist.Bernoulli(0.3 + 0.2 * b))
        z = lib.sample("z", lib.dist.Normal(b + 0.5 * c, PRIOR_SCALE))
        lib.sample("x", lib.dist.Normal(slope * z + b, NOISE), obs=lib.array(X))


def guide(lib):
    theta = lib.theta(VALUES)
    b = lib.sample("b", lib.dist.Bernoulli(logits=theta[0]))
    with lib.plate("data", 3):
        c = lib.sample("c", lib.dist.Bernoulli(logits=theta[1] + theta[2] * b))
        scale = lib.xp.exp(theta[5] + 0.2 * c)
        lib.sample("z", lib.dist.Normal(theta[3] + theta[4] * b + 0.3 * c, scale))


def elbo(theta):
    total = 0.0
    for b in (0, 1):
        q_b, p_b = sigmoid((2 * b - 1) * theta[0]), (0.6, 0.4)[b]
        cost = np.log(p_b) - np.log(q_b)
        for c in (0, 1):
            q_c = sigmoid((2 * c - 1) * (theta[1] + theta[2] * b))
            p_c = (0.7 - 0.2 * b, 0.3 + 0.2 * b)[c]
            loc, scale = theta[3] + theta[4] * b + 0.3 * c, np.exp(theta[5] + 0.2 * c)
            apart = (scale**2 + (loc - b - 0.5 * c) ** 2) / PRIOR_SCALE**2
            kl = np.log(PRIOR_SCALE) - np.log(scale) + (apart - 1) / 2
            fit = oracles.log_normal(X, theta[6] * loc + b, NOISE)
            fit = fit - (theta[6] * scale) ** 2 / (2 * NOISE**2)
            cost = cost + q_c * (len(X) * (np.log(p_c) - np.log(q_c) - kl) + fit.sum())
        total = total + q_b * cost
    return total


EXACT = -oracles.gradient(elbo, VALUES)


def gradients(lib, loss, num_draws, seed):
    return lib.gradients(loss, lambda: model(lib), lambda: guide(lib), VALUES, num_draws, seed)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("vectorize", [True, False])
def test_no_noise_with_enumeration(num_samples, vectorize, lib):
    estimators = {"z": vi.Analytic(), "*": vi.Enumerate()}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=num_samples, vectorize=vectorize)
    np.testing.assert_allclose(gradients(lib, loss, 2, 0), [EXACT] * 2, rtol=1e-9)


ABOVE = {
    "score": vi.Score(vi.LeaveOneOut()),
    "measure": vi.MeasureValued(),
    "disarm": vi.DisARM(),
}


@pytest.mark.parametrize("above", ABOVE)
@pytest.mark.parametrize("own", [vi.Analytic(), vi.Analytic(fallback=vi.Reparam())], ids=repr)
def test_unbiased(above, own, lib, request):
    loss = lib.Loss(vi.elbo(), {"z": own, "*": ABOVE[above]}, num_samples=1000)
    draws = gradients(lib, loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, EXACT)
