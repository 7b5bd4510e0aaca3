"""Costs that jump in continuous values: the default against quadrature; reparameterised they are biased."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

VALUES = np.array([0.3, -0.2, 1.5, -0.5])
NODES = np.linspace(-12.0, 12.0, 24001)
X = np.array([0.7, -0.4])


def programs(lib, outside):
    """A threshold in each of two values of a plate; or in both together, outside of it."""

    def model():
        theta = lib.theta(VALUES)
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            high = lib.xp.where(z > 0.4, theta[2], theta[3])
            if not outside:
                lib.sample("x", lib.dist.Normal(high, 1.0), obs=lib.array(X))
        if outside:
            lib.sample("x", lib.dist.Normal(high.sum(-1, keepdims=True), 1.0), obs=lib.array(X[0]))

    def guide():
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[:2], 1.0))

    return model, guide


def bound(theta, outside):
    """E[log p - log q], by quadrature for what jumps."""
    total, above = 0.0, []
    for i in range(2):
        q = np.exp(oracles.log_normal(NODES, theta[i], 1.0))
        above.append((q * (NODES > 0.4)).sum() * (NODES[1] - NODES[0]))
        total = total - theta[i] ** 2 / 2.0
    if not outside:
        for x, p in zip(X, above, strict=True):
            for level, weight in ((theta[2], p), (theta[3], 1.0 - p)):
                total = total + weight * oracles.log_normal(x, level, 1.0)
        return total
    for a in (0, 1):
        for b in (0, 1):
            weight = (above[0] if a else 1.0 - above[0]) * (above[1] if b else 1.0 - above[1])
            loc = sum(theta[2] if one else theta[3] for one in (a, b))
            total = total + weight * oracles.log_normal(X[0], loc, 1.0)
    return total


@pytest.mark.parametrize("objective", [vi.iwae(2), vi.renyi(0.5, 2)], ids=repr)
def test_the_default_is_right_inside_a_nonlinear_function(objective, lib, request):
    """Two particles, of which each is above the threshold or not: by quadrature over both."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(lib.xp.where(z > 0.4, 2.0, -1.0), 1.0), obs=lib.array(X[0]))

    def guide():
        theta = lib.theta(VALUES[:2])
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    nodes = np.linspace(-7.0, 7.0, 1401) + 0.0025
    power = 1.0 - dict(objective.settings).get("alpha", 0.0)

    def minus_bound(theta):
        log_q = oracles.log_normal(nodes, theta[0], np.exp(theta[1]))
        likelihood = oracles.log_normal(X[0], np.where(nodes > 0.4, 2.0, -1.0), 1.0)
        log_w = oracles.log_normal(nodes, 0.0, 1.0) + likelihood - log_q
        q, w = np.exp(log_q) * (nodes[1] - nodes[0]), np.exp(power * log_w)
        return -(np.outer(q, q) * np.log((w[:, None] + w) / 2.0)).sum() / power

    loss = lib.Loss(objective, num_samples=50)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, model, guide, VALUES[:2], 300, seed)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, VALUES[:2]))


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_the_default_is_right(outside, lib, request):
    loss = lib.Loss(vi.elbo(), num_samples=100)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *programs(lib, outside), VALUES, 300, seed)
    exact = -oracles.gradient(lambda theta: bound(theta, outside), VALUES)
    oracles.check_unbiased(draws, exact)


def test_mutant_reparam(lib, request):
    loss = lib.Loss(vi.elbo(), vi.Reparam(biased=True), num_samples=100)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *programs(lib, False), VALUES, 300, seed)
    exact = -oracles.gradient(lambda theta: bound(theta, False), VALUES)
    assert oracles.largest_z(draws, exact) >= 8.0
