"""Particle filters: the bound and its gradient against an enumeration of all particles and ancestors."""

import contextlib
import functools
import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests.exact.test_marginal import density, reciprocal

START = np.array([0.5, -0.4, 0.8])
DATA = np.array([0.3, 1.6, -0.2])
NUM = 2


def coins(lib, series=None):
    """A chain of coins, each with a datum of its own; `series`: so many of them in a plate."""
    data = DATA if series is None else DATA[:, None] + np.arange(series)
    within = (lambda: lib.plate("series", series)) if series else contextlib.nullcontext

    def model():
        z = lib.array(0.0)
        with within():
            for t, x in enumerate(data):
                z = lib.sample(f"z{t}", lib.dist.Bernoulli(0.3 + 0.4 * z))
                lib.sample(f"x{t}", lib.dist.Normal(z, 0.7), obs=lib.array(x))

    def guide():
        theta = lib.theta(START)
        z = lib.array(0.0)
        with within():
            for t, x in enumerate(data):
                logits = theta[0] + theta[1] * z + theta[2] * lib.array(x)
                z = lib.sample(f"z{t}", lib.dist.Bernoulli(logits=logits))

    return model, guide


def bernoulli(p, z):
    return p if z else 1.0 - p


def chances(theta, z, t, data):
    """Of a one at step t: under the proposal and under the model."""
    logit = theta[0] + theta[1] * z + theta[2] * data[t]
    return 1.0 / (1.0 + np.exp(-logit)), 0.3 + 0.4 * z


def weight(theta, before, z, t, data):
    q, p = chances(theta, before, t, data)
    likelihood = np.exp(-0.5 * ((data[t] - z) / 0.7) ** 2) / (0.7 * np.sqrt(2 * np.pi))
    return bernoulli(p, z) * likelihood / bernoulli(q, z)


def bound(theta, data=DATA, threshold=1.0):
    """The mean of the log of the estimate of the evidence, by enumeration."""

    def after(before, carried, t):
        if t == len(data):
            return 0.0
        total = 0.0
        for z in itertools.product((0, 1), repeat=NUM):
            chance = np.prod(
                [
                    bernoulli(chances(theta, b, t, data)[0], x)
                    for b, x in zip(before, z, strict=True)
                ]
            )
            w = np.array(carried) * [
                weight(theta, b, x, t, data) for b, x in zip(before, z, strict=True)
            ]
            own = w / w.sum()
            later = 0.0
            if threshold == 1.0 or 1.0 / (own**2).sum() < threshold * NUM:
                if t + 1 < len(data):
                    for a in itertools.product(range(NUM), repeat=NUM):
                        taken = tuple(z[i] for i in a)
                        later += np.prod(own[list(a)]) * after(taken, (1.0,) * NUM, t + 1)
            else:
                later = after(z, tuple(own * NUM), t + 1)
            total += chance * (np.log(w.mean()) + later)
        return total

    return after((0,) * NUM, (1.0,) * NUM, 0)


def gradient(fn, theta, step=1e-5):
    return np.array(
        [(fn(theta + d) - fn(theta - d)) / (2 * step) for d in step * np.eye(len(theta))]
    )


def evidence(data=DATA):
    total = 0.0
    for path in itertools.product((0, 1), repeat=len(data)):
        before, p = 0, 1.0
        for t, z in enumerate(path):
            q, _ = chances(np.zeros(3), before, t, data)
            p *= weight(np.zeros(3), before, z, t, data) * bernoulli(q, z)
            before = z
        total += p
    return np.log(total)


@functools.cache
def estimated(lib, threshold, series=None):
    model, guide = coins(lib, series)
    posterior = vi.normalize(model, vi.SMC(guide, NUM, ess_threshold=threshold))
    loss = lib.Loss(vi.elbo(), vi.Score(), num_samples=2000)
    draws = -lib.estimates(loss, model, posterior, START, 8, 3)
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))


@pytest.mark.parametrize("threshold", [1.0, 0.8])
def test_bound_and_gradient(threshold, lib):
    mean, error = estimated(lib, threshold)
    exact = [
        bound(START, threshold=threshold),
        *gradient(functools.partial(bound, threshold=threshold), START),
    ]
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.01
    assert (error[1:] < 0.03).all()
    assert mean[0] < evidence()


def test_series_in_a_plate_are_resampled_apart(lib):
    """The bound is the sum of those of each series, and so is its gradient."""
    mean, error = estimated(lib, 1.0, series=2)
    series = [DATA, DATA + 1.0]
    exact = sum(
        np.array([bound(START, data), *gradient(functools.partial(bound, data=data), START)])
        for data in series
    )
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.01


def walk(lib, sites="zyx"):
    """Values on a line, of which each has the mean of the one before; drawn at random, held against a datum."""

    def model():
        z = lib.array(0.0)
        for t, x in enumerate(DATA):
            z = lib.sample(f"z{t}", lib.dist.Normal(0.8 * z, 1.0))
            lib.sample(f"x{t}", lib.dist.Normal(z, 0.6), obs=lib.array(x))

    def guide():
        theta = lib.theta(START)
        z = lib.array(0.0)
        for t, x in enumerate(DATA):
            mean = theta[0] * z + theta[1] * lib.array(x)
            z = lib.sample(f"z{t}", lib.dist.Normal(mean, lib.xp.exp(0.3 * theta[2])))

    return model, guide


def uniform(lib):
    def program():
        for t in range(len(DATA)):
            lib.sample(f"z{t}", lib.dist.Bernoulli(lib.array(0.5)))

    return program


def test_the_density_and_its_reciprocal_have_no_bias(lib):
    model, guide = coins(lib)
    for how in ({}, {"ess_threshold": 0.8}):
        posterior = vi.normalize(model, vi.SMC(guide, 3, **how))
        for objective, exact in ((reciprocal(), 8.0), (density(), 0.125)):
            loss = lib.Loss(objective, vi.Score(), num_samples=2000)
            draws = -lib.estimates(loss, uniform(lib), posterior, START, 8, 2)[:, 0]
            error = draws.std(ddof=1) / np.sqrt(len(draws))
            assert abs(draws.mean() - exact) < 5 * error, (how, draws.mean(), exact, error)
            assert error < 0.02 * exact


def test_one_particle_is_the_proposal(lib):
    model, guide = walk(lib)
    for objective in (vi.elbo(), vi.wake_sleep(num_particles=2)):
        found = [
            lib.estimates(lib.Loss(objective), model, program, START, 2, 3)
            for program in (guide, vi.normalize(model, vi.SMC(guide, 1)))
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
