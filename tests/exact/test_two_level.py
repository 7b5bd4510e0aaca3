"""Every pair of discrete estimators on a two-level Bernoulli model with a plate."""

import numpy as np
import pytest

import vi_kit as vi
from tests.cases import TwoLevelBernoulli
from tests.libraries import in_turn
from tests.oracles import check_unbiased, seed_of

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
EXACT = TwoLevelBernoulli.exact


@pytest.mark.parametrize(
    ("lib", "first", "second", "objective"),
    in_turn(ESTIMATORS, ESTIMATORS, OBJECTIVES),
    indirect=["lib"],
)
def test_pair_is_unbiased(objective, first, second, lib, request):
    program, particles = OBJECTIVES[objective]
    loss = lib.Loss(
        program,
        {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]},
        num_samples=1000,
    )
    draws = TwoLevelBernoulli(lib).gradients(loss, 30, seed_of(request.node.name))
    check_unbiased(draws, EXACT(particles))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_enumeration_equals_the_closed_form(num_samples, lib):
    loss = lib.Loss(vi.elbo(), vi.Enumerate(), num_samples=num_samples)
    draws = TwoLevelBernoulli(lib).gradients(loss, 2, 0)
    np.testing.assert_allclose(draws, np.stack([EXACT(1)] * 2), rtol=0, atol=1e-10)


def test_replicates_one_after_the_other(lib):
    loss = lib.Loss(vi.elbo(), vi.Enumerate(), num_samples=2, vectorize=False)
    draws = TwoLevelBernoulli(lib).gradients(loss, 1, 0)
    np.testing.assert_allclose(draws[0], EXACT(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("first", "second"), [("enumerate", "measure"), ("score", "loo")])
def test_nonlinear_replicates_one_after_the_other(first, second, lib, request):
    loss = lib.Loss(
        vi.iwae(num_particles=2),
        {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]},
        vectorize=False,
    )
    draws = TwoLevelBernoulli(lib).gradients(loss, 450, seed_of(request.node.name))
    check_unbiased(draws, EXACT(2))


def test_nonlinear_enumeration_one_after_the_other_is_exact(lib):
    loss = lib.Loss(vi.iwae(num_particles=2), vi.Enumerate(), vectorize=False)
    draws = TwoLevelBernoulli(lib).gradients(loss, 2, 0)
    np.testing.assert_allclose(draws, np.stack([EXACT(2)] * 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", ["iwae", "miwae"])
def test_enumeration_is_exact_inside_a_nonlinear_function_too(objective, lib):
    program, particles = OBJECTIVES[objective]
    loss = lib.Loss(program, vi.Enumerate(max_worlds=256))
    draws = TwoLevelBernoulli(lib).gradients(loss, 2, 0)
    np.testing.assert_allclose(draws, np.stack([EXACT(particles)] * 2), rtol=0, atol=1e-10)
