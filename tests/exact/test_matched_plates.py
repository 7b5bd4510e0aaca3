"""Sites whose elements are in plates of other names, or in plates in one program and in events in the other."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

X, VALUES = np.array([2.8, -1.5, 1.9]), np.array([-0.3, 0.6, 0.2])
PRIOR = 0.4


def model_in(lib, place, name="data"):
    """Three Bernoulli elements, and data for each."""

    def sites():
        z = lib.sample("z", bernoulli(lib, lib.array(np.full(3, PRIOR)), place))
        x = lib.dist.Normal(1.0 * z, 0.8)
        lib.sample("x", x.to_event(1) if place == "event" else x, obs=lib.array(X))

    def model():
        if place == "plate":
            with lib.plate(name, 3, dim=-1):
                sites()
        else:
            sites()

    return model


def bernoulli(lib, probs, place):
    d = lib.dist.Bernoulli(probs)
    return d.to_event(1) if place == "event" else d


def guide_in(lib, place, name="data"):
    def guide():
        q = 1 / (1 + lib.xp.exp(-lib.theta(VALUES)))
        if place == "plate":
            with lib.plate(name, 3, dim=-1):
                lib.sample("z", bernoulli(lib, q, place))
        else:
            lib.sample("z", bernoulli(lib, q, place))

    return guide


def elbo(theta):
    q = 1 / (1 + np.exp(-theta))
    total = 0.0
    for p, prior, value in ((q, PRIOR, 1.0), (1 - q, 1 - PRIOR, 0.0)):
        total = total + (p * (np.log(prior) - np.log(p) + oracles.log_normal(X, value, 0.8))).sum()
    return total


PLACES = {
    "another name": ("plate", "plate"),
    "event in the guide": ("plate", "event"),
    "event in the model": ("event", "plate"),
}


CASES = {
    "one": (None, 1, 600),
    "several": (None, 4, 300),
    "score": (vi.Score(vi.LeaveOneOut()), 200, 60),
}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_the_elbo_does_not_depend_on_names_and_places(places, case, lib):
    (of_model, of_guide), (estimator, num_samples, num_draws) = PLACES[places], CASES[case]
    model, guide = model_in(lib, of_model), guide_in(lib, of_guide, "rows")
    loss = lib.Loss(vi.elbo(), estimator, num_samples=num_samples)
    exact = -oracles.gradient(elbo, VALUES)
    if estimator is None and of_model == "plate":  # enumerated
        draws = lib.gradients(loss, model, guide, VALUES, 1, 0)
        np.testing.assert_allclose(draws[0], exact, rtol=1e-9)
    else:
        draws = lib.gradients(loss, model, guide, VALUES, num_draws, oracles.seed_of(places))
        oracles.check_unbiased(draws, exact)


@pytest.mark.parametrize("estimator", [None, vi.Score(vi.LeaveOneOut())], ids=["default", "loo"])
def test_a_bound_per_element_of_a_plate_with_two_names(estimator, lib):
    """One bound of two particles per element, by enumeration."""

    def bound(theta):
        total = 0.0
        for t, x in zip(theta, X, strict=True):
            log_q = np.array([oracles.log_bernoulli(t, v) for v in (0, 1)])
            log_p = np.log([1 - PRIOR, PRIOR]) + oracles.log_normal(x, np.array([0.0, 1.0]), 0.8)
            total = total + oracles.expected_log_mean_exp(log_q, log_p - log_q, 2)
        return total

    model, guide = model_in(lib, "plate"), guide_in(lib, "plate", "rows")
    loss = lib.Loss(vi.iwae(num_particles=2), estimator)
    draws = lib.gradients(loss, model, guide, VALUES, 1 if estimator is None else 600, 5)
    exact = -oracles.gradient(bound, VALUES)
    if estimator is None:
        np.testing.assert_allclose(draws[0], exact, rtol=1e-9)
    else:
        oracles.check_unbiased(draws, exact)


def test_minibatches_need_one_name(lib):
    def program(name):
        def run():
            with lib.plate(name, 12, subsample_size=3, dim=-1):
                lib.sample("z", lib.dist.Normal(lib.theta(VALUES), 1.0))

        return run

    with pytest.raises(vi.ObjectiveError, match="disagree about its plates"):
        lib.gradients(lib.Loss(), program("data"), program("rows"), VALUES, 1, 0)


def test_shapes_that_differ_are_refused(lib):
    def model():
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(lib.array(np.full(3, PRIOR))))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(lib.array(0.3) + 0 * lib.theta(VALUES)[0]))

    with pytest.raises(vi.ObjectiveError, match="disagree about its plates"):
        lib.gradients(lib.Loss(), model, guide, VALUES, 1, 0)


def test_plates_at_other_dims_are_named_with_these(lib):
    def program(first, second):
        def run():
            with lib.plate("a", 2, dim=first), lib.plate("d", 3, dim=second):
                lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

        return run

    text = r"got: .*model \['a at dim -2', 'd at dim -1'\], guide \['a at dim -1', 'd at dim -2'\]"
    with pytest.raises(vi.ObjectiveError, match=text):
        lib.value(lib.Loss(), program(-2, -1), program(-1, -2), 0)
