"""Every family of distributions with every estimator that accepts it, in a plate of 2."""

import dataclasses

import numpy as np
import pytest

from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Independent
from tests.conformance.test_shapes import ESTIMATORS, OBJECTIVES
from tests.oracles import seed_of

ACCEPTED = {
    "bernoulli": ("enumerate", "measure", "loo"),
    "categorical": ("enumerate", "measure", "loo"),
    "one_hot": ("enumerate", "measure", "loo"),
    "binomial": ("enumerate", "loo"),
    "poisson": ("measure", "loo"),
    "geometric": ("loo",),
    "normal": ("reparam", "measure", "loo"),
    "log_normal": ("reparam", "measure", "loo"),
    "logit_normal": ("reparam", "measure", "loo"),
    "exponential": ("reparam", "measure", "loo"),
    "gamma": ("reparam", "loo"),
    "gamma_rate": ("reparam", "measure", "loo"),
    "beta": ("reparam", "loo"),
    "dirichlet": ("reparam", "loo"),
}
WITH_IWAE = ("one_hot", "binomial", "poisson", "gamma", "beta")
CASES = {
    "-".join((family, estimator, objective)): (family, estimator, objective)
    for family, accepted in ACCEPTED.items()
    for estimator in accepted
    for objective in OBJECTIVES
    if objective == "elbo" or family in WITH_IWAE
}
ENUMERABLE = [family for family, accepted in ACCEPTED.items() if "enumerate" in accepted]


def skip_what_a_library_lacks(family, lib):
    if family == "one_hot" and not hasattr(lib.dist, "OneHotCategorical"):
        pytest.skip(f"{lib.name} has no OneHotCategorical")


@pytest.mark.parametrize("case", CASES)
def test_estimator_is_unbiased(case, lib, request):
    family, estimator, objective = CASES[case]
    skip_what_a_library_lacks(family, lib)
    program, particles = OBJECTIVES[objective]
    loss = lib.Loss(program, ESTIMATORS[estimator], num_samples=2000)
    shape = Independent(FAMILIES[family], sizes=(2,))
    shape.check(lib, loss, particles, 40, seed_of(request.node.name))


@pytest.mark.parametrize("family", ENUMERABLE)
def test_enumeration_is_exact(family, lib):
    skip_what_a_library_lacks(family, lib)
    shape = Independent(FAMILIES[family], sizes=(2,))
    loss = lib.Loss(OBJECTIVES["elbo"][0], ESTIMATORS["enumerate"])
    draws = shape.gradients(lib, loss, 2, 0)
    np.testing.assert_allclose(draws, np.stack([shape.exact(1)] * 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_nodes_change_no_exact_gradient(family):
    family = FAMILIES[family]
    finer = dataclasses.replace(family, num_nodes=family.num_nodes * 5 // 4)
    exact = [Independent(f, sizes=(2,)).exact(particles=1) for f in (family, finer)]
    np.testing.assert_allclose(*exact, rtol=0, atol=1e-6)


def test_every_family_has_cases():
    assert set(ACCEPTED) == set(FAMILIES)
