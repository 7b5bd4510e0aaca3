"""Two estimators of one expectation, mixed by a weight that depends on the step."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical.test_quadrature import elbo_of_chain
from tests.statistical_cases import TwoNormals


def half(step):
    return 0.0 * step + 0.5


def first_step_only(step):
    return 1.0 * (step < 0.5)


EXACT = -oracles.gradient(elbo_of_chain, TwoNormals.values)
MIXTURES = {
    "analytic and reparam": vi.Annealed(vi.Analytic(), vi.Reparam(), half),
    "score and quadrature": vi.Annealed(vi.Score(vi.MovingAverage()), vi.Quadrature(2), half),
    "one site": {"second": vi.Annealed(vi.Score(vi.LeaveOneOut()), vi.Analytic(), half)},
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_unbiased(mixture, lib, request):
    loss = lib.Loss(vi.elbo(), MIXTURES[mixture], num_samples=1000)
    draws = TwoNormals(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, EXACT)


def test_the_weights_multiply_the_noise(lib):
    """The mutant that forgets the weights would have four times the variance."""
    plain = TwoNormals(lib).gradients(lib.Loss(vi.elbo(), vi.Reparam()), 600, 0)
    mixed = vi.Annealed(vi.Analytic(), vi.Reparam(), half)
    draws = TwoNormals(lib).gradients(lib.Loss(vi.elbo(), mixed), 600, 1)
    ratio = draws.var(0).sum() / plain.var(0).sum()
    assert 0.25 / 1.6 < ratio < 0.25 * 1.6


def test_the_schedule_counts_steps(lib):
    annealed = vi.Annealed(vi.Analytic(), vi.Reparam(), first_step_only)
    first, *later = TwoNormals(lib).gradients(lib.Loss(vi.elbo(), annealed), 4, 0)
    np.testing.assert_allclose(first, EXACT, rtol=1e-9)
    assert all(np.abs(draw - EXACT).max() > 1e-3 for draw in later)


def test_both_are_explained(lib):
    case, annealed = TwoNormals(lib), MIXTURES["one site"]["second"]
    loss = lib.Loss(vi.elbo(), {"second": annealed}, num_samples=2)
    case.gradients(loss, 1, 0)
    if lib.name == "numpyro":
        from numpyro.handlers import seed

        text = loss.explain(seed(case.model, 0), seed(case.guide, 0))
    else:
        text = loss.explain(case.model, case.guide)
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "Score(baseline=LeaveOneOut())" in rows["second"]
    assert "Analytic()" in rows["second (second estimator)"]
    assert "Reparam()" in rows["first (second estimator)"]


def test_errors(lib):
    with pytest.raises(vi.EstimatorError, match="two estimators and a function"):
        vi.Annealed(vi.Analytic(), vi.Reparam(), 0.5)  # type: ignore[arg-type]
    with pytest.raises(vi.EstimatorError, match="two estimators and a function"):
        vi.Annealed(vi.Analytic(), MIXTURES["analytic and reparam"], half)
    other = vi.Annealed(vi.Analytic(), vi.Reparam(), first_step_only)
    with pytest.raises(vi.EstimatorError, match="must share a schedule"):
        lib.Loss(vi.elbo(), {"a": other, "b": MIXTURES["analytic and reparam"]})

    def program():
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0), infer={"estimator": other})

    with pytest.raises(vi.EstimatorError, match="changes the whole estimate"):
        lib.gradients(lib.Loss(vi.elbo()), program, program, np.zeros(1), 1, 0)
