"""Every pair of discrete estimators on a two-level Bernoulli model with a plate."""

import itertools

import numpy as np
import pytest
import torch

import vi_kit as vi
from tests.oracles import check_unbiased, seed_of
from tests.pyro_cases import TwoLevelBernoulli, gradients
from vi_kit.pyro import Loss

ESTIMATORS = {
    "score": vi.Score(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "enumerate": vi.Enumerate(),
    "local": vi.Enumerate(max_worlds=255),
    "measure": vi.MeasureValued(),
}
OBJECTIVES = {
    "elbo": (vi.elbo(), 1),
    "iwae": (vi.iwae(num_particles=2), 2),
    "miwae": (vi.miwae(num_outer=2, num_inner=2), 2),
}
CASE = TwoLevelBernoulli()


@pytest.fixture(scope="module")
def exact():
    return {particles: CASE.exact(particles) for particles in (1, 2)}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("first", "second"), [*itertools.product(ESTIMATORS, repeat=2)])
def test_pair_is_unbiased(objective, first, second, exact, request):
    program, particles = OBJECTIVES[objective]
    loss = Loss(
        program,
        {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]},
        num_samples=1000,
    )
    draws = gradients(loss, CASE.model, CASE.guide, CASE.values, 30, seed_of(request.node.name))
    check_unbiased(draws, exact[particles])


@pytest.mark.parametrize("num_samples", [1, 3])
def test_enumeration_equals_the_closed_form(num_samples, exact):
    loss = Loss(vi.elbo(), vi.Enumerate(), num_samples=num_samples)
    draws = gradients(loss, CASE.model, CASE.guide, CASE.values, 2, 0)
    np.testing.assert_allclose(draws, np.stack([exact[1]] * 2), rtol=0, atol=1e-10)
    assert torch.get_default_dtype() is torch.float64


def test_replicates_one_after_the_other(exact):
    loss = Loss(vi.elbo(), vi.Enumerate(), num_samples=2, vectorize=False)
    draws = gradients(loss, CASE.model, CASE.guide, CASE.values, 1, 0)
    np.testing.assert_allclose(draws[0], exact[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("first", "second"), [("enumerate", "enumerate"), ("measure", "loo")])
def test_nonlinear_replicates_one_after_the_other(first, second, exact, request):
    loss = Loss(
        vi.iwae(num_particles=2),
        {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]},
        vectorize=False,
    )
    draws = gradients(loss, CASE.model, CASE.guide, CASE.values, 800, seed_of(request.node.name))
    check_unbiased(draws, exact[2], power=first == second)


@pytest.mark.parametrize("objective", ["iwae", "miwae"])
def test_enumeration_is_exact_inside_a_nonlinear_function_too(objective, exact):
    program, particles = OBJECTIVES[objective]
    loss = Loss(program, vi.Enumerate(max_worlds=256))
    draws = gradients(loss, CASE.model, CASE.guide, CASE.values, 2, 0)
    np.testing.assert_allclose(draws, np.stack([exact[particles]] * 2), rtol=0, atol=1e-10)
