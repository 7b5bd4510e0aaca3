"""Every family of distributions with every estimator that accepts it, in a plate of 2."""

import dataclasses

import numpy as np
import pytest

import vi_kit as vi
from tests.conformance import shapes
from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Independent, VectorEvent
from tests.conformance.test_shapes import ESTIMATORS, OBJECTIVES
from tests.oracles import seed_of

ACCEPTED = {
    "bernoulli": ("enumerate", "measure", "loo"),
    "categorical": ("enumerate", "measure", "loo"),
    "one_hot": ("enumerate", "measure", "loo"),
    "binomial": ("enumerate", "measure", "loo"),
    "binomial_counts": ("measure", "loo"),
    "poisson": ("measure", "loo"),
    "geometric": ("measure", "loo"),
    "geometric_probs": ("measure",),
    "negative_binomial": ("measure", "loo"),
    "negative_binomial_probs": ("measure",),
    "normal": ("reparam", "measure", "loo"),
    "laplace": ("reparam", "measure", "loo"),
    "log_normal": ("reparam", "measure", "loo"),
    "logit_normal": ("reparam", "measure", "loo"),
    "exponential": ("reparam", "measure", "loo"),
    "gamma": ("reparam", "loo"),
    "gamma_rate": ("reparam", "measure", "loo"),
    "weibull": ("reparam", "loo"),
    "weibull_scale": ("reparam", "measure", "loo"),
    "beta": ("reparam", "measure", "loo"),
    "dirichlet": ("reparam", "loo"),
}
WITH_IWAE = [
    *[("one_hot", estimator) for estimator in ACCEPTED["one_hot"]],
    ("poisson", "loo"),
    ("gamma", "reparam"),
    *[
        (family, "measure")
        for family in ("binomial_counts", "poisson", "negative_binomial", "laplace", "beta")
    ],
]
IN_EVENTS = ("binomial_counts", "beta")
CASES = {
    "-".join((family, estimator, objective)): (family, estimator, objective)
    for family, accepted in ACCEPTED.items()
    for estimator in accepted
    for objective in OBJECTIVES
    if objective == "elbo" or (family, estimator) in WITH_IWAE
}
ENUMERABLE = [family for family, accepted in ACCEPTED.items() if "enumerate" in accepted]
NEGATIVE_BINOMIAL = dataclasses.replace(
    FAMILIES["negative_binomial"],
    build=lambda lib, a, b: lib.dist.NegativeBinomial(lib.xp.exp(a), logits=b),
    guide=(0.9, -0.7),
    prior=(0.8, -0.2),
)


def skip_what_a_library_lacks(family, lib):
    if family == "one_hot" and not hasattr(lib.dist, "OneHotCategorical"):
        pytest.skip(f"{lib.name} has no OneHotCategorical")


@pytest.mark.parametrize("case", CASES)
def test_estimator_is_unbiased(case, lib, request):
    family, estimator, objective = CASES[case]
    skip_what_a_library_lacks(family, lib)
    program, particles = OBJECTIVES[objective]
    # Implicit gradients have little noise, and take long.
    loss = lib.Loss(
        program, ESTIMATORS[estimator], num_samples=500 if estimator == "reparam" else 2000
    )
    shape = Independent(FAMILIES[family], sizes=(2,))
    shape.check(lib, loss, particles, 40, seed_of(request.node.name))


@pytest.mark.parametrize("family", IN_EVENTS)
def test_measure_valued_in_an_event(family, lib, request, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    loss = lib.Loss(vi.elbo(), vi.MeasureValued(), num_samples=500)
    VectorEvent(FAMILIES[family]).check(lib, loss, 1, 40, seed_of(request.node.name))


@pytest.mark.parametrize(
    ("family", "parameter"),
    [
        ("gamma", "concentration of Gamma"),
        ("weibull", "concentration of Weibull"),
        (NEGATIVE_BINOMIAL, "total_count of NegativeBinomial"),
    ],
    ids=("gamma", "weibull", "negative_binomial"),
)
def test_measure_valued_refuses_a_parameter(family, parameter, lib):
    shape = Independent(FAMILIES.get(family, family), sizes=(2,))
    loss = lib.Loss(vi.elbo(), vi.MeasureValued())
    with pytest.raises(vi.EstimatorError, match=f"no weak derivative for the {parameter}"):
        shape.gradients(lib, loss, 1, 0)


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
