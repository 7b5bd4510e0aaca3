"""Each group of parameters ascends its own bound. Pyro only: the shared words have one parameter."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pytest
import torch

import vi_kit as vi
from tests import oracles
from tests.cases import TwoLevelBernoulli
from tests.libraries import PyroWords
from tests.statistical_cases import ConjugateNormal, exact, expectation, variance
from vi_kit.pyro import Loss

ESTIMATORS = {
    "score": vi.Score(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "enumerate": vi.Enumerate(),
    "local": vi.Enumerate(max_worlds=4),
    "measure": vi.MeasureValued(),
}


class OwnParameter(PyroWords):
    """Words whose `theta` has a name of its own."""

    def __init__(self, parameter):
        super().__init__()
        self.parameter = parameter

    def theta(self, values):
        return pyro.param(self.parameter, torch.tensor(values))


def gradients(case, loss, num_draws, request):
    """By the whole of the model's `theta`, then by the whole of the guide's."""
    words = [OwnParameter("model"), OwnParameter("guide")]
    model, guide = case(words[0]).model, case(words[1]).guide
    leaves = [w.theta(case.values) for w in words]
    pyro.set_rng_seed(oracles.seed_of(request.node.name) % 2**31)
    draws = []
    for _ in range(num_draws):
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        loss.loss_and_grads(model, guide)
        draws.append(np.concatenate([leaf.grad.numpy() for leaf in leaves]))
    return np.array(draws)


def own_gradients(num_guide, model, guide):
    """Of two bounds, as `gradients` has them, where the first `num_guide` of `theta` are the guide's."""
    of_guide = np.arange(len(model)) < num_guide
    return np.concatenate([np.where(of_guide, 0.0, model), np.where(of_guide, guide, 0.0)])


def log_weights(model, guide):
    return vi.iid(lambda: vi.elbo()(model, guide), 2)


@vi.objective
def one_set_of_draws(model, guide):
    copies = log_weights(model, guide)
    return vi.split_gradients(model=copies.log_mean_exp(), guide=copies.mean())


@vi.objective
def two_sets_of_draws(model, guide):
    return vi.split_gradients(
        model=log_weights(model, guide).log_mean_exp(), guide=vi.elbo()(model, guide)
    )


@vi.objective
def two_nonlinear(model, guide):
    copies = log_weights(model, guide)
    return vi.split_gradients(model=copies.log_mean_exp(), guide=-copies.variance())


@vi.objective
def with_shared_cost(model, guide):
    return one_set_of_draws()(model, guide) + vi.elbo()(model, guide)


@functools.cache
def of_variance():
    def value(theta):
        log_q, log_w = TwoLevelBernoulli.table(theta)
        return expectation(log_q, 2, variance, log_w)

    return oracles.gradient(value, TwoLevelBernoulli.values)


@functools.cache
def two_level(program):
    elbo, iwae = TwoLevelBernoulli.exact(1), TwoLevelBernoulli.exact(2)
    if program is two_nonlinear:
        return own_gradients(5, iwae, of_variance())
    if program is with_shared_cost:
        return own_gradients(5, iwae + elbo, 2.0 * elbo)
    return own_gradients(5, iwae, elbo)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "program",
    [one_set_of_draws, two_sets_of_draws, two_nonlinear, with_shared_cost],
    ids=lambda p: p.__name__,
)
def test_each_group_ascends_its_own_cost(program, estimator, request):
    loss = Loss(program(), ESTIMATORS[estimator], num_samples=1000)
    draws = gradients(TwoLevelBernoulli, loss, 40, request)
    oracles.check_unbiased(draws, two_level(program))


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_normal_guide(estimator, request):
    loss = Loss(one_set_of_draws(), estimator, num_samples=1000)
    draws = gradients(ConjugateNormal, loss, 60, request)
    expected = own_gradients(2, exact(ConjugateNormal, 2), exact(ConjugateNormal, 1))
    oracles.check_unbiased(draws, expected)


def test_reports_the_cost_of_the_model():
    case = TwoLevelBernoulli(PyroWords())
    loss = Loss(one_set_of_draws(), vi.Enumerate())
    value = oracles.expected_log_mean_exp(*case.table(case.values), 2)
    assert loss.loss(case.model, case.guide) == pytest.approx(-value, rel=1e-10)
