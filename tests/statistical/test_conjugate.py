"""Estimators x objectives on conjugate models and a mixture, against quadrature."""

import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import LIBRARIES, in_turn
from tests.statistical_cases import (
    ConjugateNormal,
    GammaPoisson,
    GammaPoissonRate,
    Mixture,
    ShiftedMixture,
    exact,
)

ESTIMATORS = {
    "reparam": vi.Reparam(),
    "score": vi.Score(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "constant": vi.Score(vi.Constant(-3.0)),
    "moving": vi.Score(vi.MovingAverage()),
    "measure": vi.MeasureValued(),
    "enumerate": vi.Enumerate(),
    "local": vi.Enumerate(max_worlds=3),
}
OBJECTIVES = {
    "elbo": (vi.elbo(), 1),
    "iwae": (vi.iwae(num_particles=2), 2),
    "miwae": (vi.miwae(num_outer=2, num_inner=2), 2),
}
CONTINUOUS = ["reparam", "score", "loo", "measure"]
DISCRETE = ["enumerate", "local", "score", "loo", "measure"]
SINGLE = [
    *itertools.product([ConjugateNormal, GammaPoissonRate], CONTINUOUS),
    *itertools.product([GammaPoisson], ["reparam", "score", "loo"]),
    *itertools.product([Mixture], DISCRETE),
    *itertools.product([ConjugateNormal, Mixture], ["constant", "moving"]),
]
PAIRS = [
    *in_turn(CONTINUOUS, DISCRETE, ["iwae"]),
    *itertools.product(LIBRARIES, ["reparam", "measure"], ["enumerate", "loo"], ["elbo"]),
    *((lib, "reparam", "enumerate", "miwae") for lib in LIBRARIES),
    *((lib, "score", "local", "miwae") for lib in LIBRARIES),
    *((lib, "loo", "loo", "miwae") for lib in LIBRARIES),
    *((lib, "measure", "measure", "miwae") for lib in LIBRARIES),
]


def check(lib, case, estimators, objective, num_draws, request):
    program, num_particles = OBJECTIVES[objective]
    loss = lib.Loss(program, estimators, num_samples=1000)
    draws = case(lib).gradients(loss, num_draws, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(case, num_particles))


@pytest.mark.parametrize(
    ("lib", "case", "estimator", "objective"), in_turn(SINGLE, OBJECTIVES), indirect=["lib"]
)
def test_one_site(case, estimator, objective, lib, request):
    num_draws = 25 if estimator == "reparam" else 80  # little noise, and implicit ones take long
    check(lib, case, ESTIMATORS[estimator], objective, num_draws, request)


@pytest.mark.parametrize(("lib", "first", "second", "objective"), PAIRS, indirect=["lib"])
def test_normal_then_categorical(first, second, objective, lib, request):
    estimators = {"m": ESTIMATORS[first], "z": ESTIMATORS[second]}
    check(lib, ShiftedMixture, estimators, objective, 50, request)


def test_quadrature_equals_the_closed_form():
    algebra = -oracles.gradient(ConjugateNormal.closed_form_elbo, ConjugateNormal.values)
    np.testing.assert_allclose(exact(ConjugateNormal, 1), algebra, rtol=1e-10)


@pytest.mark.parametrize("case", [ConjugateNormal, GammaPoisson])
def test_quadrature_has_converged(case, monkeypatch):
    coarse = exact(case, 2)
    monkeypatch.setattr(case, "step", case.step / 2)
    np.testing.assert_allclose(exact.__wrapped__(case, 2), coarse, rtol=1e-9)
