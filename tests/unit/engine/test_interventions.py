"""Models under `do`: the copy that an intervention leaves of a site is no term, unless the guide has it too."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

VALUES = np.array([0.3])
X, SET = 0.7, 1.5


def programs(lib):
    def model():
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(2.0 * a, 1.0))
            lib.sample("x", lib.dist.Normal(z + a, 1.0), obs=lib.array([X, X]))

    def guide(has_copy=False):
        a = lib.sample("a", lib.dist.Normal(lib.theta(VALUES)[0], 0.8))
        if has_copy:
            with lib.plate("data", 2):
                lib.sample("z", lib.dist.Normal(2.0 * a, 1.0))

    return lib.handlers.do(model, data={"z": lib.array(np.array([SET, SET]))}), guide


def loss_at(theta):
    """Up to a constant, of the intervened model."""
    return 0.5 * theta[0] ** 2 + (theta[0] + SET - X) ** 2


@pytest.mark.parametrize("how", ["left_out", "in_the_guide", "hidden"])
def test_the_copy_is_no_term(how, lib):
    model, guide = programs(lib)
    if how == "hidden":
        model = lib.handlers.block(model, hide=["z"])
    loss = lib.Loss(estimators=vi.Analytic())
    draws = lib.gradients(loss, model, lambda: guide(how == "in_the_guide"), VALUES, 2, 0)
    np.testing.assert_allclose(draws[:, 0], oracles.gradient(loss_at, VALUES)[0], rtol=1e-8)


def test_inside_a_nonlinear_function(lib):
    """Two particles, by quadrature over both; the copy is no noise of the program's own."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def minus_bound(theta):
        a = theta[0] + 0.8 * nodes
        log_w = oracles.log_normal(a, 0.0, 1.0) + 2 * oracles.log_normal(X, SET + a, 1.0)
        w = np.exp(log_w - oracles.log_normal(a, theta[0], 0.8))
        return -(weights * np.log((w[:, None] + w) / 2.0)).sum()

    model, guide = programs(lib)
    loss = lib.Loss(vi.iwae(2), num_samples=100)
    draws = lib.gradients(loss, model, guide, VALUES, 60, 0)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, VALUES))
    assert "after the other" not in loss.explain(model, guide)


def test_check_unbiased_leaves_it_out_too(lib):
    model, guide = programs(lib)
    params = {"params": {"theta": VALUES}} if lib.name == "numpyro" else {}
    loss = lib.Loss(estimators=vi.Analytic())
    found = vi.check_unbiased(loss, model, guide, num_draws=50, **params)
    assert "BIASED" not in str(found)


def test_what_an_intervention_leaves_of_an_observed_site_is_a_term(lib):
    def model():
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        x = lib.sample("x", lib.dist.Normal(a, 1.0), obs=lib.array(X))
        lib.sample("y", lib.dist.Normal(x + a, 1.0), obs=lib.array(1.0))

    def guide():
        lib.sample("a", lib.dist.Delta(lib.array(VALUES[0])))

    log_p = oracles.log_normal(VALUES[0], 0.0, 1.0) + oracles.log_normal(X, VALUES[0], 1.0)
    log_p += oracles.log_normal(1.0, SET + VALUES[0], 1.0)
    intervened = lib.handlers.do(model, data={"x": lib.array(SET)})
    assert lib.value(lib.Loss(), intervened, guide, 0) == pytest.approx(-log_p)


def given(lib, program, **values):
    """A program in which sites have values, as NumPyro's `substitute` and Pyro's `replay` put them there."""
    values = {name: lib.array(value) for name, value in values.items()}
    if lib.name == "numpyro":
        return lib.handlers.substitute(program, data=values)
    from pyro import poutine

    class Given(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in values:
                msg["value"] = values[msg["name"]]

    def with_values():
        with Given():
            program()

    return with_values


@pytest.mark.parametrize("where", ["guide", "both"])
def test_a_value_that_is_given_in_the_guide_counts_as_drawn(where, lib):
    """Its log densities are terms, and it is no constant of the model."""
    values, z = np.array([0.3, -0.2]), np.array([1.5, 0.4])
    x = np.array([X, -X])

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(0.3))
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(b, 1.0))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(x))

    def guide():
        theta = lib.theta(values)
        b = lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Normal(theta[0] + b, 0.8))

    def loss_at(theta):
        p, total = 1.0 / (1.0 + np.exp(-theta[1])), oracles.log_normal(x, z, 1.0).sum()
        for b, q, prior in ((1.0, p, 0.3), (0.0, 1.0 - p, 0.7)):
            fit = oracles.log_normal(z, b, 1.0) - oracles.log_normal(z, theta[0] + b, 0.8)
            total = total + q * (fit.sum() + np.log(prior) - np.log(q))
        return -total

    fixed = given(lib, guide, z=z)
    of_model = given(lib, model, z=z) if where == "both" else model
    loss = lib.Loss()
    draws = lib.estimates(loss, of_model, fixed, values, 1, 0)
    np.testing.assert_allclose(draws[0, 0], loss_at(values), rtol=1e-7)
    np.testing.assert_allclose(draws[0, 1:], oracles.gradient(loss_at, values), rtol=1e-6)
    params = {"params": {"theta": values}} if lib.name == "numpyro" else {}
    assert "BIASED" not in str(vi.check_unbiased(loss, of_model, fixed, num_draws=50, **params))


def test_a_value_that_is_given_in_the_model_only_is_refused(lib):
    model, guide = programs(lib)
    with pytest.raises(vi.ObjectiveError, match="guide site 'a' is not a latent site of the model"):
        lib.Loss().explain(given(lib, model, a=0.4), guide)
