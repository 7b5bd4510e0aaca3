"""Pyro's straight-through distributions: rounded values, with the density of what was rounded."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import PyroWords

T, GUIDE_T = 0.7, 0.5
VALUES = np.array([0.3, -0.5, 0.8])
NODES = np.linspace(-30.0, 30.0, 20001)
"""Logits of the values before rounding."""


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def log_concrete(logit, theta, temperature):
    """Log density of the logit of a binary Concrete variable: a logistic one, of scale 1/temperature."""
    at = temperature * logit - theta
    return np.log(temperature) + log_sigmoid(at) + log_sigmoid(-at)


def one(theta, likelihood):
    """E[log p - log q] of an element, with a function of the rounded value."""
    log_q = log_concrete(NODES, theta, GUIDE_T)
    log_w = log_concrete(NODES, -0.4, T) - log_q + likelihood(1.0 * (NODES > 0))
    return (np.exp(log_q) * log_w).sum() * (NODES[1] - NODES[0])


def rounded(lib, temperature, logits):
    fn = lib.dist.RelaxedBernoulliStraightThrough
    return fn(lib.xp.tensor(temperature), logits=logits)


@pytest.fixture
def pyro():
    return PyroWords()


@pytest.mark.parametrize("estimators", [None, vi.Score(vi.LeaveOneOut())], ids=["default", "loo"])
@pytest.mark.parametrize("is_event", [False, True])
def test_bernoulli(pyro, estimators, is_event, request):
    x = np.array([0.6, -0.3])

    def among(fn):
        return fn.to_event(1) if is_event else fn

    def observed(loc, lib=pyro):
        lib.sample("x", among(lib.dist.Normal(loc, 0.8)), obs=lib.array(x))

    def model():
        with pyro.plate("data", 2 if not is_event else 1):
            z = pyro.sample("z", among(rounded(pyro, T, pyro.array(np.full(2, -0.4)))))
            observed(pyro.theta(VALUES)[2] * z)

    def guide():
        with pyro.plate("data", 2 if not is_event else 1):
            pyro.sample("z", among(rounded(pyro, GUIDE_T, pyro.theta(VALUES)[:2])))

    def bound(theta):
        return sum(
            one(theta[i], lambda z, i=i: oracles.log_normal(x[i], theta[2] * z, 0.8))
            for i in range(2)
        )

    loss = pyro.Loss(vi.elbo(), estimators, num_samples=500)
    draws = pyro.gradients(loss, model, guide, VALUES, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(bound, VALUES))


def test_a_reward_sees_rounded_values_that_know_what_was_rounded(pyro):
    """In functions of a draw, held or not, and beside a site with alternatives."""
    seen = []

    def reward(values):
        seen.append(values["z"])
        return values["z"] * values["other"]

    @vi.objective
    def program(model, guide):
        draw = vi.simulate(guide)
        held = vi.stop_gradient(draw)
        return vi.evaluate(reward, draw) + vi.evaluate(reward, held) + vi.log_density(model, draw)

    def model():
        z = pyro.sample("z", rounded(pyro, T, pyro.array(0.2)))
        pyro.sample("other", pyro.dist.Bernoulli(logits=z))

    def guide():
        logits = pyro.theta(VALUES)
        pyro.sample("other", pyro.dist.Bernoulli(logits=logits[1]))
        pyro.sample("z", rounded(pyro, GUIDE_T, logits[0]))

    loss = pyro.Loss(program(), {"other": vi.MeasureValued()})
    (gradient,) = pyro.gradients(loss, model, guide, VALUES, 1, 0)
    assert np.isfinite(gradient).all()
    assert all(set(np.unique(z.detach().numpy())) <= {0.0, 1.0} for z in seen)


def test_one_hot(pyro, request):
    """The mean of the rounded value: the probabilities, whatever the temperature."""
    reward = np.array([1.0, -2.0, 4.0])

    @vi.objective
    def expected(model, guide):
        return vi.evaluate(lambda v: (v["z"] * pyro.array(reward)).sum(-1), vi.simulate(guide))

    def guide():
        fn = pyro.dist.RelaxedOneHotCategoricalStraightThrough
        pyro.sample("z", fn(pyro.xp.tensor(0.1), logits=pyro.theta(VALUES)))

    def bound(theta):
        return (np.exp(theta) * reward).sum() / np.exp(theta).sum()

    loss = pyro.Loss(expected(), num_samples=500)
    draws = pyro.gradients(
        loss, lambda: None, guide, VALUES, 60, oracles.seed_of(request.node.name)
    )
    oracles.check_unbiased(draws, -oracles.gradient(bound, VALUES))


def test_a_one_hot_of_torch_is_enumerated(pyro):
    reward = np.array([1.0, -2.0, 4.0])

    @vi.objective
    def expected(model, guide):
        return vi.evaluate(lambda v: (v["z"] * pyro.array(reward)).sum(-1) ** 2, vi.simulate(guide))

    def guide():
        fn = pyro.dist.OneHotCategoricalStraightThrough
        pyro.sample("z", fn(logits=pyro.theta(VALUES)))

    def bound(theta):
        return (np.exp(theta) * reward**2).sum() / np.exp(theta).sum()

    (gradient,) = pyro.gradients(pyro.Loss(expected()), lambda: None, guide, VALUES, 1, 0)
    np.testing.assert_allclose(gradient, -oracles.gradient(bound, VALUES), rtol=1e-9)


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.DoublyReparam()], ids=repr)
def test_its_own_path_is_refused(pyro, estimator):
    def program():
        pyro.sample("z", rounded(pyro, GUIDE_T, pyro.theta(VALUES)[0]))

    with pytest.raises(vi.EstimatorError) as caught:
        pyro.gradients(pyro.Loss(vi.elbo(), estimator), program, program, VALUES, 1, 0)
    name = type(estimator).__name__
    assert f"site 'z': {name}() is biased: RelaxedBernoulliStraightThrough rounds" in str(
        caught.value
    )
    assert 'estimators={"z": vi.Score()}' in str(caught.value)
