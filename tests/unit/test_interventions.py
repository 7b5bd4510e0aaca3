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
