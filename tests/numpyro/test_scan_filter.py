"""Particle filters over NumPyro's `scan`, against enumerations and against the same series in a Python loop."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vi_kit as vi
from tests.exact import test_smc as loop
from tests.exact.test_marginal import density, reciprocal
from tests.libraries import LIBRARIES
from tests.exact.test_smc import DATA, MILD, NEAR, NUM, START, evidence
from vi_kit.numpyro.filter import Filtering

LIBRARY = LIBRARIES["numpyro"]()
KINDS = ("inside", "first outside", "start outside", "datum after", "backwards")
"""Of programs with the same joint density, and with the same filter: what is in the scan."""


def coins(lib, kind, start=START, least=0.05, more=0.9, sd=0.5):
    """`tests.exact.test_smc.coins` with its steps in a scan."""
    data = jnp.asarray(DATA)

    def datum(name, z, x, mask=True):
        numpyro.sample(name, dist.Normal(z, sd).mask(mask), obs=x)

    def sites(transition, observes):
        def step(z, x):
            number, x = x
            z = transition(z, x, "z").astype(float)
            if observes:
                mask = number < 2 if kind == "datum after" else True
                datum("x", z, x, mask)
            return z, None

        z, xs = jnp.array(0.0), (jnp.arange(3), data)
        if kind.endswith("outside"):
            z = transition(z, data[0], "first").astype(float)
            if observes:
                datum("x first", z, data[0])
            xs = (jnp.arange(1, 3), data[1:])
        if kind == "backwards":
            xs = (xs[0], data[::-1])
        z, _ = scan(step, z, xs, reverse=kind == "backwards")
        if kind == "datum after" and observes:
            datum("x after", z, data[2])

    def model():
        sites(lambda z, x, name: numpyro.sample(name, dist.Bernoulli(least + more * z)), True)

    def guide():
        theta = lib.theta(start)

        def transition(z, x, name):
            logits = theta[0] + theta[1] * z + theta[2] * x
            return numpyro.sample(name, dist.Bernoulli(logits=logits))

        sites(transition, False)

    return model, guide


@pytest.fixture
def lib():
    return LIBRARY


@functools.cache
def estimated(lib, kind, threshold, num_samples=4000):
    model, guide = coins(lib, kind)
    posterior = vi.normalize(model, vi.SMC(guide, NUM, ess_threshold=threshold))
    loss = lib.Loss(vi.elbo(), vi.Score(), num_samples=num_samples)
    draws = -lib.estimates(loss, model, posterior, START, 8, 3)
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("kind", "threshold"), [*((k, 1.0) for k in KINDS if k != "start outside"), ("inside", 0.8)]
)
def test_bound_and_gradient(kind, threshold, lib):
    mean, error = estimated(lib, kind, threshold)
    bound = functools.partial(loop.bound, threshold=threshold)
    exact = [bound(START), *loop.gradient(bound, START)]
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.01
    assert (error[1:] < 0.1).all()


@vi.objective
def estimate(model, guide):
    """The mean of the estimate of the evidence, and of its reciprocal at draws of the posterior."""
    return vi.apply(lambda x: jnp.exp(x), vi.log_density(model, z := vi.simulate(guide)) - z.log_density)


def uniform(kind):
    def program():
        def step(z, x):
            return numpyro.sample("z", dist.Bernoulli(jnp.array(0.5))).astype(float), None

        z = jnp.array(0.0)
        if kind.endswith("outside"):
            numpyro.sample("first", dist.Bernoulli(0.5))
        scan(step, z, jnp.arange(2 if kind.endswith("outside") else 3), reverse=kind == "backwards")

    return program


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_and_its_reciprocal_have_no_bias(kind, lib):
    model, guide = coins(lib, kind, start=NEAR, **MILD)
    for how in ({}, {"ess_threshold": 0.8}):
        posterior = vi.normalize(model, vi.SMC(guide, 3, **how))
        for objective, exact in ((reciprocal(), 8.0), (density(), 0.125)):
            loss = lib.Loss(objective, vi.Score(), num_samples=2000)
            draws = -lib.estimates(loss, uniform(kind), posterior, NEAR, 8, 2)[:, 0]
            error = draws.std(ddof=1) / np.sqrt(len(draws))
            assert abs(draws.mean() - exact) < 5 * error, (how, draws.mean(), exact, error)
            assert error < 0.03 * exact


def test_bounds_from_both_sides(lib):
    model, guide = coins(lib, "first outside", start=NEAR, **MILD)
    posterior = vi.normalize(model, vi.SMC(guide, 4))
    sides = []
    for objective in (vi.elbo(), vi.eubo(num_particles=8)):
        loss = lib.Loss(objective, vi.Score(), num_samples=1000)
        draws = lib.estimates(loss, model, posterior, NEAR, 4, 5)[:, 0]
        sides.append((draws.mean(), draws.std(ddof=1) / 2))
    (minus_low, first), (high, second) = sides
    low = -minus_low
    assert low - 5 * first < evidence(**MILD) < high + 5 * second
    assert high - low < 0.5
