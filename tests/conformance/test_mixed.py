"""A global site above a plate of local ones, one Bernoulli and the other Normal, in both orders."""

import pytest

from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Hierarchy
from tests.conformance.test_shapes import DISCRETE, ESTIMATORS, OBJECTIVES
from tests.libraries import in_turn
from tests.oracles import seed_of

NORMAL = ("reparam", "loo", "measure")
COLUMNS = ("lib", "upper", "lower", "first", "second", "objective")
CASES = [
    *in_turn([("bernoulli", "normal")], DISCRETE, NORMAL, OBJECTIVES),
    *in_turn([("normal", "bernoulli")], NORMAL, DISCRETE, OBJECTIVES),
]


@pytest.mark.parametrize(COLUMNS, CASES, indirect=["lib"])
def test_mix_is_unbiased(lib, upper, lower, first, second, objective, request):
    program, particles = OBJECTIVES[objective]
    estimators = {"z1": ESTIMATORS[first], "z2": ESTIMATORS[second]}
    loss = lib.Loss(program, estimators, num_samples=2000)
    shape = Hierarchy(FAMILIES[upper], FAMILIES[lower], local=False)
    num_draws = 100 if "score" in (first, second) else 40
    shape.check(lib, loss, particles, num_draws, seed_of(request.node.name))
