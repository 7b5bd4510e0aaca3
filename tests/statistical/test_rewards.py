"""Expected reward less each of the four divergences from a reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import Renamed
from tests.statistical_cases import DISCRETE

KINDS = list(itertools.product(("reverse", "forward"), (True, False)))
BETA = 0.7


def objective(kind, reward, num_particles=1):
    kl, normalized = kind
    return vi.expected_reward(
        reward=reward, kl=kl, normalized=normalized, beta=BETA, num_particles=num_particles
    )


class Actions:
    """Three independent binary actions, each with its reward. theta: logits of the policy."""

    values = np.array([0.9, -0.4, 0.2])
    worth = np.array([1.5, -0.8, 0.6])
    reference = np.array([0.3, 0.5, -0.7])

    def __init__(self, lib):
        self.lib = lib

    def program(self, theta):
        with self.lib.plate("actions", 3):
            self.lib.sample("z", self.lib.dist.Bernoulli(logits=theta))

    def policy(self):
        self.program(self.lib.theta(self.values))

    def prior(self):
        self.program(Renamed(self.lib, "of_model").theta(self.reference))

    def reward(self, values):
        return self.lib.array(self.worth) * values["z"]

    def gradients(self, loss, num_draws, request):
        """By the parameters of the policy, then by those of the reference."""
        seed, names = oracles.seed_of(request.node.name), ("theta", "of_model")
        return self.lib.gradients(
            loss, self.prior, self.policy, self.values, num_draws, seed, names
        )


def divergence(kind, theta, reference):
    z = np.array([[0.0], [1.0]])
    log_q, log_p = (oracles.log_bernoulli(logits, z) for logits in (theta, reference))
    own, other = (log_q, log_p) if kind[0] == "reverse" else (log_p, log_q)
    return (np.exp(own) * (own - other)).sum()


def exact(kind, reward):
    """In the tests the reference has the parameters that the policy starts from."""

    def value(theta):
        return reward(theta) - BETA * divergence(kind, theta, Actions.values + 0j)

    return np.concatenate([-oracles.gradient(value, Actions.values), np.zeros(3)])


def expected_worth(theta):
    return (Actions.worth / (1 + np.exp(-theta))).sum()


def square_of_number(theta):
    """E[(number of actions)^2]."""
    probs = 1 / (1 + np.exp(-theta))
    return probs.sum() ** 2 + (probs * (1 - probs)).sum()


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_reward_of_each_element_of_a_plate(kind, estimator, lib, request):
    case = Actions(lib)
    loss = lib.Loss(objective(kind, case.reward), DISCRETE[estimator], num_samples=1000)
    draws = case.gradients(loss, 30, request)
    oracles.check_unbiased(draws, exact(kind, expected_worth))


@pytest.mark.parametrize("estimator", ["score", "loo"])
def test_reward_of_all_elements_together(estimator, lib, request):
    case = Actions(lib)

    def reward(values):
        return values["z"].sum(-1, keepdims=True) ** 2

    program = objective(KINDS[0], reward, num_particles=2)
    draws = case.gradients(lib.Loss(program, DISCRETE[estimator], num_samples=1000), 60, request)
    oracles.check_unbiased(draws, exact(KINDS[0], square_of_number))


def test_all_values_at_once_outside_the_plate(lib):
    case = Actions(lib)
    program = objective(KINDS[0], lambda values: values["z"].sum(-1, keepdims=True))
    with pytest.raises(
        vi.EstimatorError, match="cannot serve function '<lambda>', which is outside"
    ):
        lib.gradients(lib.Loss(program, vi.Enumerate()), case.prior, case.policy, case.values, 1, 0)


NORMAL = np.array([0.4, 0.1])


def continuous(lib):
    def prior():
        lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    def policy(context):
        theta = lib.theta(NORMAL)
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return lambda context: prior(), policy


def closed_form(kind):
    def value(theta):
        loc, square = theta[0], np.exp(2 * theta[1])
        kl = {
            "reverse": -theta[1] + (square + loc**2) / 2,
            "forward": theta[1] + (1 + loc**2) / (2 * square),
        }[kind[0]]
        return -(square + (loc - 1) ** 2) - BETA * kl

    return -oracles.gradient(value, NORMAL)


@pytest.mark.parametrize(
    "estimator", [vi.Reparam(), vi.DoublyReparam(), vi.Score(vi.LeaveOneOut())], ids=repr
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_differentiable_reward_of_a_context(kind, estimator, lib, request):
    def reward(values, context):
        return -((values["z"] - context) ** 2)

    loss = lib.Loss(objective(kind, reward), estimator, num_samples=2000)
    seed, args = oracles.seed_of(request.node.name), (lib.array(1.0),)
    draws = lib.gradients(loss, *continuous(lib), NORMAL, 40, seed, args=args)
    oracles.check_unbiased(draws, closed_form(kind))


def test_closed_form_of_a_differentiable_reward(lib):
    """Moments of the policy reach its parameters, also in the log density under the reference that is held."""

    def reward(values, context):
        return -((values["z"] - context) ** 2)

    loss, args = lib.Loss(objective(KINDS[0], reward), vi.Analytic()), (lib.array(1.0),)
    (draw,) = lib.gradients(loss, *continuous(lib), NORMAL, 1, 0, args=args)
    np.testing.assert_allclose(draw, closed_form(KINDS[0]), rtol=1e-10)


@vi.objective
def squared_mean(model, guide):
    """The square of the mean reward of two draws: a function of values inside a nonlinear one."""

    def square(x):
        return x.mean(0) ** 2

    return vi.iid(lambda: vi.evaluate(lambda v: v["z"], vi.simulate(guide)), 2).reduce(square)


@pytest.mark.parametrize("estimator", DISCRETE)
def test_values_inside_a_nonlinear_function(estimator, lib, request):
    def mean_square(theta):
        probs = 1 / (1 + np.exp(-theta))
        return (probs**2 + probs * (1 - probs) / 2).sum()

    loss = lib.Loss(squared_mean(), DISCRETE[estimator], num_samples=1000)
    draws = Actions(lib).gradients(loss, 30, request)
    wanted = -oracles.gradient(mean_square, Actions.values)
    oracles.check_unbiased(draws, np.concatenate([wanted, np.zeros(3)]))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kl": "both"}, "kl is out of range"),
        ({"beta": -1.0}, r"beta in \[0, "),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(vi.ObjectiveError, match=text):
        vi.expected_reward(reward=len, **settings)


def test_a_reference_with_data(lib):
    prior, policy = continuous(lib)

    def model(context):
        prior(context)
        lib.sample("x", lib.dist.Normal(lib.array(0.0), 1.0), obs=context)

    loss = lib.Loss(objective(KINDS[0], lambda values, context: values["z"]))
    with pytest.raises(vi.ObjectiveError, match="site 'x' is observed or a factor"):
        lib.gradients(loss, model, policy, NORMAL, 1, 0, args=(lib.array(1.0),))
