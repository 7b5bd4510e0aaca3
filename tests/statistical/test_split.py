"""Each group of parameters ascends its own bound."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.cases import TwoLevelBernoulli
from tests.libraries import Renamed
from tests.statistical_cases import DISCRETE, ConjugateNormal, exact, expectation, variance


def gradients(lib, case, loss, num_draws, request):
    """By the whole of the model's `theta`, then by the whole of the guide's."""
    model = case(Renamed(lib, "of_model")).model
    guide = case(Renamed(lib, "of_guide")).guide
    seed = oracles.seed_of(request.node.name)
    names = ("of_model", "of_guide")
    return lib.gradients(loss, model, guide, case.values, num_draws, seed, names)


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


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize(
    "program",
    [one_set_of_draws, two_sets_of_draws, two_nonlinear, with_shared_cost],
    ids=lambda p: p.__name__,
)
def test_each_group_ascends_its_own_cost(program, estimator, lib, request):
    loss = lib.Loss(program(), DISCRETE[estimator], num_samples=1000)
    draws = gradients(lib, TwoLevelBernoulli, loss, 40, request)
    oracles.check_unbiased(draws, two_level(program))


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_normal_guide(estimator, lib, request):
    loss = lib.Loss(one_set_of_draws(), estimator, num_samples=1000)
    draws = gradients(lib, ConjugateNormal, loss, 60, request)
    expected = own_gradients(2, exact(ConjugateNormal, 2), exact(ConjugateNormal, 1))
    oracles.check_unbiased(draws, expected)


def test_reports_the_cost_of_the_model(lib):
    case = TwoLevelBernoulli
    model = case(Renamed(lib, "of_model")).model
    guide = case(Renamed(lib, "of_guide")).guide
    loss = lib.Loss(one_set_of_draws(), vi.Enumerate())
    value = oracles.expected_log_mean_exp(*case.table(case.values), 2)
    assert lib.value(loss, model, guide, 0) == pytest.approx(-value, rel=1e-10)


def test_a_parameter_of_both_is_refused(lib):
    case = TwoLevelBernoulli(lib)
    with pytest.raises(vi.ObjectiveError, match=r"\['theta'\] belong to model and guide"):
        case.gradients(lib.Loss(one_set_of_draws(), vi.Enumerate()), 1, 0)


def test_a_parameter_of_the_objective_alone(lib):
    @vi.objective
    def program(model, guide):
        bound = vi.elbo()(model, guide)
        power = lib.theta(np.array([1.0]), "power")[0]
        return vi.split_gradients(model=bound, guide=power * bound)

    case = TwoLevelBernoulli(lib)
    loss = lib.Loss(program(), vi.Score())
    with pytest.raises(
        vi.ObjectiveError, match=r"\['power'\] belong neither to model nor to guide"
    ):
        lib.gradients(loss, case.model, case.guide, case.values, 1, 0)


def test_a_parameter_of_the_objective_is_trained(lib):
    """Its gradient is that of the cost that it scales."""

    @vi.objective
    def program(model, guide):
        return lib.theta(np.array([1.0]), "power")[0] * vi.elbo()(model, guide)

    case = TwoLevelBernoulli(lib)
    draws = [
        lib.gradients(lib.Loss(o, vi.Enumerate()), case.model, case.guide, case.values, 1, 0, names)
        for o, names in ((program(), ("theta", "power")), (vi.elbo(), ("theta",)))
    ]
    size = len(case.values)
    assert abs(draws[0][0, size]) > 1.0
    np.testing.assert_allclose(draws[0][:, :size] / case.values[0], draws[1], rtol=1e-9)
