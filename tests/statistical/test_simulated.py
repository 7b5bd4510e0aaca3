"""Objectives that simulate from the model: expected values over every latent value and every data set."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import Renamed
from tests.statistical_cases import DISCRETE, expectation, log_mean_exp

VALUES = np.array([-0.3, 0.8, -0.6, 0.5, 1.1])
DATA = np.array([1.0, 0.0, 1.0])
NAMES = ("of_model", "of_guide")


class Amortised:
    """z and x in a plate of 3, all Bernoulli. theta of the model: logit of z, of x, its slope. theta of the
    guide: logit of z, its slope in x (the last two)."""

    def __init__(self, lib):
        self.lib = lib

    def model(self, x):
        lib, theta = self.lib, Renamed(self.lib, "of_model").theta(VALUES)
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(logits=theta[0]))
            lib.sample("x", lib.dist.Bernoulli(logits=theta[1] + theta[2] * z), obs=x)

    def guide(self, x):
        lib, theta = self.lib, Renamed(self.lib, "of_guide").theta(VALUES)
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=theta[3] + theta[4] * x))

    def gradients(self, loss, num_draws, request):
        lib, seed = self.lib, oracles.seed_of(request.node.name)
        args = (lib.array(DATA),)
        return lib.gradients(loss, self.model, self.guide, VALUES, num_draws, seed, NAMES, args)


def log_prior(theta, z):
    return oracles.log_bernoulli(theta[0], z)


def log_likelihood(theta, z, x):
    return oracles.log_bernoulli(theta[1] + theta[2] * z, x)


def log_q(theta, z, x):
    return oracles.log_bernoulli(theta[3] + theta[4] * x, z)


def cross_entropy(theta):
    """-E log q(z | x) for a plate of 3, the model's parameters held."""
    z, x = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    mass = np.exp(log_prior(VALUES, z) + log_likelihood(VALUES, z, x))
    return -3 * (mass * log_q(theta, z, x)).sum()


def over_data(value):
    """The sum over the data of `value(theta, z, x)`, z being both values."""
    z = np.array([0.0, 1.0])
    return lambda theta: sum(value(theta, z, x) for x in DATA)


def two_particles(theta, z, x):
    log_w = log_prior(theta, z) + log_likelihood(theta, z, x) - log_q(theta, z, x)
    return expectation(log_q(theta, z, x), 2, log_mean_exp, log_w)


def weighted(theta, z, draws, log_w, x):
    """The guide's part of a wake phase with two particles, draws and weights held."""

    def total(w, q):
        return (np.exp(w - log_mean_exp(w)) / 2 * q).sum(axis=0)

    return expectation(draws, 2, total, log_w, log_q(theta, z, x))


def wake(theta, z, x):
    own = log_q(VALUES, z, x)
    return weighted(theta, z, own, log_prior(VALUES, z) + log_likelihood(VALUES, z, x) - own, x)


def from_prior(theta, z, x):
    return weighted(theta, z, log_prior(VALUES, z), log_likelihood(VALUES, z, x), x)


def exact(of_model, of_guide):
    """Gradients of the loss by the parameters of model and guide, each ascending its own value."""
    is_model = np.arange(5) < 3
    gradients = [-oracles.gradient(f, VALUES) for f in (of_model, of_guide)]
    return np.concatenate(
        [np.where(is_model, gradients[0], 0.0), np.where(is_model, 0.0, gradients[1])]
    )


CASES = {
    "forward_kl": (
        vi.forward_kl(num_particles=2),
        lambda theta: 0.0 * theta[0],
        lambda theta: -cross_entropy(theta),
    ),
    "sleep": (
        vi.wake_sleep(num_particles=2, insomnia=0.0),
        over_data(two_particles),
        lambda theta: -cross_entropy(theta),
    ),
    "wake_and_sleep": (
        vi.wake_sleep(num_particles=2, insomnia=0.3, num_sleep_particles=2),
        over_data(two_particles),
        lambda theta: 0.3 * over_data(wake)(theta) - 0.7 * cross_entropy(theta),
    ),
    "multi_trace": (
        vi.multi_trace(num_particles=2),
        over_data(two_particles),
        over_data(from_prior),
    ),
}
ESTIMATORS = {"default": None, **DISCRETE}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CASES)
def test_simulations_from_the_model(name, estimator, lib, request):
    objective, of_model, of_guide = CASES[name]
    loss = lib.Loss(objective, ESTIMATORS[estimator], num_samples=1000)
    draws = Amortised(lib).gradients(loss, 30, request)
    oracles.check_unbiased(draws, exact(of_model, of_guide))


def test_enumeration_of_simulations_is_exact(lib, request):
    loss = lib.Loss(vi.forward_kl(), vi.Enumerate())
    draws = Amortised(lib).gradients(loss, 2, request)
    wanted = exact(*CASES["forward_kl"][1:])
    np.testing.assert_allclose(draws, [wanted] * 2, rtol=0, atol=1e-10)


@vi.objective
def expected_log_likelihood(model, guide):
    """Of data that the guide's draws predict: nothing is held."""
    joint = vi.simulate(vi.uncondition(model))
    return vi.log_density(vi.given(guide, joint), joint)


def both_live(theta):
    z, x = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    mass = np.exp(log_prior(theta, z) + log_likelihood(theta, z, x))
    return 3 * (mass * log_q(theta, z, x)).sum()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_through_simulations(estimator, lib, request):
    loss = lib.Loss(expected_log_likelihood(), ESTIMATORS[estimator], num_samples=1000)
    draws = Amortised(lib).gradients(loss, 30, request)
    oracles.check_unbiased(draws, exact(both_live, both_live))


def test_data_inside_other_arguments(lib, request):
    case = Amortised(lib)
    model = lambda given: case.model(given["data"][0])  # noqa: E731
    guide = lambda given: case.guide(given["data"][0])  # noqa: E731
    args = ({"data": [lib.array(DATA)]},)
    loss = lib.Loss(vi.forward_kl(), vi.Enumerate())
    draws = lib.gradients(loss, model, guide, VALUES, 1, 0, NAMES, args)
    np.testing.assert_allclose(draws[0], exact(*CASES["forward_kl"][1:]), rtol=0, atol=1e-10)


def test_explain_tells_the_sites_of_the_model_apart(lib):
    case = Amortised(lib)
    loss = lib.Loss(vi.wake_sleep(num_particles=2, insomnia=0.5))
    table = loss.explain(case.model, case.guide, lib.array(DATA))
    assert "z (model)" in table and "x (model)" in table and "a draw from the model" in table


def raises(lib, text, objective=None, model=None, guide=None):
    case = Amortised(lib)
    loss = lib.Loss(objective or vi.forward_kl())
    with pytest.raises(vi.ObjectiveError, match=text):
        lib.gradients(
            loss, model or case.model, guide or case.guide, VALUES, 1, 0, NAMES, (lib.array(DATA),)
        )


def test_data_that_are_not_an_argument(lib):
    model = lambda x: Amortised(lib).model(x + 0.0)  # noqa: E731
    raises(lib, "model site 'x': what it observes is not an argument of its own", model=model)


def test_a_model_with_a_factor(lib):
    def model(x):
        Amortised(lib).model(x)
        lib.factor("f", lib.array(1.0))

    raises(lib, "model factor 'f': one cannot draw from a program with factors", model=model)


def test_a_guide_that_lacks_a_site(lib):
    raises(lib, "model site 'z' is not a latent site of the guide", guide=lambda x: None)


def test_insomnia_out_of_range():
    with pytest.raises(vi.ObjectiveError, match=r"insomnia in \[0, 1\]"):
        vi.wake_sleep(num_particles=2, insomnia=1.5)


class AmortisedNormal:
    """z ~ Normal(0, 1), x ~ Normal(z, 1/2) in a plate of 3. theta: slope, mean and log scale of the guide."""

    values = np.array([0.6, 0.2, -0.5])

    def __init__(self, lib):
        self.lib = lib

    def model(self, x):
        lib = self.lib
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            lib.sample("x", lib.dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        lib, theta = self.lib, self.lib.theta(self.values)
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Normal(theta[0] * x + theta[1], lib.xp.exp(theta[2])))

    @classmethod
    def cross_entropy(cls, theta):
        """E[z^2] = 1, E[z x] = 1, E[x^2] = 1.25."""
        square = 1 - 2 * theta[0] + theta[0] ** 2 * 1.25 + theta[1] ** 2
        return 3 * (theta[2] + square * np.exp(-2 * theta[2]) / 2)


@pytest.mark.parametrize("estimator", [None, vi.Score(), vi.DoublyReparam()], ids=repr)
def test_simulations_of_normal_sites(estimator, lib, request):
    case = AmortisedNormal(lib)
    loss = lib.Loss(vi.forward_kl(), estimator, num_samples=1000)
    seed, args = oracles.seed_of(request.node.name), (lib.array(DATA),)
    draws = lib.gradients(loss, case.model, case.guide, case.values, 40, seed, args=args)
    oracles.check_unbiased(draws, oracles.gradient(case.cross_entropy, case.values))
