"""A global site above a plate of local ones, one Bernoulli and the other Normal, in both orders."""

import itertools

import pytest

from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Hierarchy
from tests.conformance.test_shapes import DISCRETE, ESTIMATORS, OBJECTIVES
from tests.oracles import seed_of

NORMAL = ("reparam", "loo", "measure")
PAIRS = {
    ("bernoulli", "normal"): [*itertools.product(DISCRETE, NORMAL)],
    ("normal", "bernoulli"): [*itertools.product(NORMAL, DISCRETE)],
}
CASES = {
    "-".join((*families, *estimators, objective)): (families, estimators, objective)
    for families, pairs in PAIRS.items()
    for estimators in pairs
    for objective in OBJECTIVES
}


@pytest.mark.parametrize("case", CASES)
def test_mix_is_unbiased(case, lib, request):
    (upper, lower), (first, second), objective = CASES[case]
    program, particles = OBJECTIVES[objective]
    estimators = {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]}
    loss = lib.Loss(program, estimators, num_samples=2000)
    shape = Hierarchy(FAMILIES[upper], FAMILIES[lower], local=False)
    num_draws = 100 if "score" in (first, second) else 40
    shape.check(lib, loss, particles, num_draws, seed_of(request.node.name))
