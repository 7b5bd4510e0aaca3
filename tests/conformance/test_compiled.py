"""Captured steps against steps that are run as they are written: equal on the same noise, for each estimator.

By default few; `VI_KIT_IDIOMS=all` takes every shape, estimator and objective, families and idioms
among them."""

import os

import numpy as np
import pytest

import vi_kit as vi
from tests.conformance import idioms
from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Independent
from tests.conformance.test_families import ACCEPTED
from tests.conformance.test_idioms import covering
from tests.conformance.test_shapes import CASES, ESTIMATORS, OBJECTIVES, SHAPES
from tests.libraries import PyroWords
from vi_kit.pyro import Loss, capture

NUM_DRAWS = 4
WIDE = os.environ.get("VI_KIT_IDIOMS") == "all"


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setattr(capture, "compiled", lambda graph, inputs: graph)


def check(gradients, *loss, num_samples=3):
    """The gradients of a loss and of a compiled one are equal, and all but the first two came of a captured step."""
    eager = gradients(Loss(*loss, num_samples=num_samples))
    compiled = Loss(*loss, num_samples=num_samples, compile=True)
    np.testing.assert_allclose(gradients(compiled), eager, rtol=1e-9, atol=1e-12)
    assert len(compiled._compiler.seconds) == 1
    assert compiled._compiler.num_eager == 0


SAMPLE = [
    "subsampled-normal-reparam-iwae",
    "nested-bernoulli-rebar-elbo",
    "masked-bernoulli-measure-iwae",
    "hierarchy-bernoulli-enumerate-iwae",
    "vector-bernoulli-disarm-iwae",
    "scaled-normal-doubly-iwae",
]


@pytest.mark.parametrize("case", CASES if WIDE else SAMPLE)
def test_shape(case):
    shape, family, estimator, objective = CASES[case]
    made = SHAPES[shape](FAMILIES[family])
    check(
        lambda loss: made.gradients(PyroWords(), loss, NUM_DRAWS, 1),
        OBJECTIVES[objective][0],
        ESTIMATORS[estimator],
    )


FAMILY_CASES = [(f, e) for f, estimators in ACCEPTED.items() for e in estimators]


@pytest.mark.parametrize(("family", "estimator"), FAMILY_CASES if WIDE else [("gamma", "reparam")])
def test_family(family, estimator):
    made = Independent(FAMILIES[family], sizes=(2,))
    check(
        lambda loss: made.gradients(PyroWords(), loss, NUM_DRAWS, 1),
        vi.iwae(num_particles=2),
        ESTIMATORS[estimator],
    )


IDIOM_CASES = [c for c in covering() if c.lib == "pyro"]


@pytest.mark.parametrize("case", IDIOM_CASES if WIDE else IDIOM_CASES[:1], ids=str)
def test_idiom(case):
    """Where values are taken one after the other, the numbers are others, and so is the noise."""
    lib = PyroWords()
    program = idioms.Program(lib, case.idiom, case.site)
    estimator = idioms.ESTIMATORS[case.site][case.estimator]

    def gradients(compile):
        loss = idioms.loss_of(lib, case.objective, estimator)
        loss.compile = compile
        made = lib.gradients(loss, program.model, program.guide, program.values, NUM_DRAWS, 1)
        return made, next(iter(next(iter(loss._plans.kept.values())).values()))

    try:
        eager, plan = gradients(False)
        compiled, _ = gradients(True)
    except vi.CaptureError as error:
        assert "is asked for at" in str(error) or "the shape of a result" in str(error)
    except vi.ViKitError as error:
        pytest.skip(f"refused: {error}".splitlines()[0])
    else:
        if not plan.in_turn:
            np.testing.assert_allclose(compiled, eager, rtol=1e-9, atol=1e-12)
        assert np.isfinite(compiled).all()
