"""Objectives that a user writes in the language, on small models, against enumeration."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import vi_kit as vi
from tests import oracles
from tests.cases import TwoLevelBernoulli
from tests.libraries import in_turn
from tests.statistical_cases import (
    DISCRETE,
    ConjugateNormal,
    LocalBernoulli,
    SubsampledBernoulli,
    exact,
    expectation,
    log_mean_exp,
    variance,
)

POWER = 0.5
BETA = 0.3


@dataclass(frozen=True)
class Written:
    """A program and its expected value, from the parameters and those that are held fixed."""

    program: Callable[..., vi.Objective]
    value: Callable[[np.ndarray, np.ndarray], Any]
    case: Any = TwoLevelBernoulli

    def __repr__(self):
        return self.program.__name__

    @functools.cached_property
    def gradient(self):
        """Of the loss."""
        sign, fixed = -1.0 if self.program().maximised else 1.0, self.case.values
        return sign * oracles.gradient(lambda theta: self.value(theta, fixed), fixed)


def log_weight(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - z.log_density


def expected(fn, num_copies=1):
    """The expected value of a function of the log weights of independent draws."""

    def value(theta, fixed):
        log_q, log_w = TwoLevelBernoulli.table(theta)
        return expectation(log_q, num_copies, fn, log_w)

    return value


def expected_densities(fn):
    """The expected value of a function of log p and log q, each at the parameters and those held fixed."""

    def value(theta, fixed):
        tables = TwoLevelBernoulli.table(theta), TwoLevelBernoulli.table(fixed)
        columns = [(log_q + log_w, log_q) for log_q, log_w in tables]
        return fn(*itertools.chain(*columns))

    return value


@vi.objective
def total(model, guide):
    return vi.iid(lambda: log_weight(model, guide), 3).sum() / 2.0


@vi.objective
def tempered(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - BETA * z.log_density


@vi.objective
def spread(model, guide):
    return vi.iid(lambda: log_weight(model, guide), 3).variance()


@vi.divergence
def spread_descended(model, guide):
    return spread()(model, guide)


@vi.objective
def power_mean(model, guide):
    def densities():
        z = vi.simulate(guide)
        return vi.log_density(model, z), z.log_density

    def fn(log_p, log_q):
        xp = array_namespace(log_p, log_q)
        return xp.log(xp.mean(xp.exp(POWER * (log_p - log_q)), axis=0)) / POWER

    return vi.iid(densities, 2).reduce(fn)


@vi.objective
def product_of_one_draw(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) * z.log_density


@vi.objective
def product_of_two_draws(model, guide):
    return log_weight(model, guide) * log_weight(model, guide)


@vi.objective
def variance_of_means(model, guide):
    return vi.iid(lambda: vi.iid(lambda: log_weight(model, guide), 2).mean(), 2).variance()


@vi.objective
def bound_of_bounds(model, guide):
    return vi.iid(
        lambda: vi.iid(lambda: log_weight(model, guide), 2).log_mean_exp(), 2
    ).log_mean_exp()


@vi.objective
def bound_per_datum(model, guide):
    return vi.iid(lambda: log_weight(model, guide), 2).log_mean_exp()


@vi.objective
def bound_over_all(model, guide):
    return vi.iid(lambda: log_weight(model, guide), 2).log_mean_exp(plates=[])


@vi.divergence
def log_variance(model, guide):
    def weight():
        z = vi.stop_gradient(vi.simulate(guide))
        return vi.log_density(model, z) - vi.log_density(guide, z)

    return vi.iid(weight, 3).variance()


@vi.objective
def one_draw_held_and_not(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - 2.0 * vi.log_density(model, vi.stop_gradient(z))


@vi.objective
def held_model(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(vi.stop_gradient(model), z) - z.log_density


@vi.objective
def held_guide(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - vi.log_density(vi.stop_gradient(guide), z)


@vi.objective
def drawn_from_held_guide(model, guide):
    z = vi.simulate(vi.stop_gradient(guide))
    return vi.log_density(model, z) + vi.log_density(guide, z)


@vi.objective
def held_cost(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - vi.stop_gradient(z.log_density)


@vi.objective
def times_held_cost(model, guide):
    return log_weight(model, guide) * vi.stop_gradient(log_weight(model, guide))


def of_means_of_two(w):
    return variance(w.reshape(2, 2, *w.shape[1:]).mean(axis=1))


def of_two_elbos(theta, other):
    elbo = expected(sum)
    return elbo(theta, None) * elbo(other, None)


def bound_of_all_data(theta, fixed):
    log_q, log_w = LocalBernoulli.joint(theta)
    return expectation(log_q, 2, log_mean_exp, log_w)


def bounds_of_data(theta, fixed):
    return sum(expectation(q, 2, log_mean_exp, w) for q, w in LocalBernoulli.tables(theta))


def log_variance_value(theta, fixed):
    log_q, _ = TwoLevelBernoulli.table(fixed)
    return expectation(log_q, 3, variance, TwoLevelBernoulli.table(theta)[1])


PROGRAMS = [
    Written(total, lambda theta, fixed: 1.5 * expected(sum)(theta, fixed)),
    Written(tempered, expected_densities(lambda p, q, *_: np.exp(q) @ (p - BETA * q))),
    Written(spread, expected(variance, 3)),
    Written(spread_descended, expected(variance, 3)),
    Written(power_mean, expected(lambda w: log_mean_exp(POWER * w) / POWER, 2)),
    Written(product_of_one_draw, expected_densities(lambda p, q, *_: np.exp(q) @ (p * q))),
    Written(product_of_two_draws, lambda theta, fixed: of_two_elbos(theta, theta)),
    Written(variance_of_means, expected(of_means_of_two, 4)),
    Written(bound_of_bounds, expected(log_mean_exp, 4)),
    Written(bound_per_datum, bounds_of_data, LocalBernoulli),
    Written(bound_over_all, bound_of_all_data, LocalBernoulli),
    Written(log_variance, log_variance_value),
    Written(
        one_draw_held_and_not,
        expected_densities(lambda p, q, _, q0: np.exp(q) @ p - 2.0 * np.exp(q0) @ p),
    ),
    Written(held_model, expected_densities(lambda p, q, p0, q0: np.exp(q) @ (p0 - q))),
    Written(held_guide, expected(sum)),
    Written(drawn_from_held_guide, expected_densities(lambda p, q, _, q0: np.exp(q0) @ (p + q))),
    Written(held_cost, expected_densities(lambda p, q, p0, q0: np.exp(q) @ p)),
    Written(times_held_cost, of_two_elbos),
]


@pytest.mark.parametrize(
    ("lib", "written", "estimator"), in_turn(PROGRAMS, DISCRETE), indirect=["lib"], ids=str
)
def test_program_is_unbiased(written, estimator, lib, request):
    loss = lib.Loss(written.program(), DISCRETE[estimator], num_samples=1000)
    draws = written.case(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, written.gradient)


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("num_particles", [1, 2])
def test_minibatches_of_bounds_per_datum(num_particles, estimator, lib, request):
    program = vi.iwae(num_particles=num_particles)
    loss = lib.Loss(program, DISCRETE[estimator], num_samples=1000)
    draws = SubsampledBernoulli(lib).gradients(loss, 200, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(SubsampledBernoulli, num_particles))


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_sticking_the_landing(estimator, lib, request):
    loss = lib.Loss(held_guide(), estimator, num_samples=1000)
    draws = ConjugateNormal(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(ConjugateNormal, 1))


def test_the_two_bounds_differ():
    default, over_all = (w.gradient for w in PROGRAMS if w.case is LocalBernoulli)
    assert np.abs(default - over_all).max() > 0.01
