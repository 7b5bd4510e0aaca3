"""What users stumble over when they write estimators of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import ConjugateNormal, LocalBernoulli, exact
from vi_kit.backend import current
from vi_kit.credit import contract_differences, contract_score
from vi_kit.estimators.score import WithBaseline


@dataclass(frozen=True)
class IndependentPair(vi.Estimator):
    """A second draw, independent of the first, with the score of the first as its weight: a baseline."""

    forgets: bool = False
    says: int = 1

    def num_slots(self, dist):
        return self.says

    def reason_against(self, dist):
        return None

    def expand(self, dist):
        value, other = dist.sample(), dist.sample()
        score = dist.log_prob(value)
        held = 0.0 if self.forgets else current().backend.stop_gradient(score)
        return vi.Expansion(value, alternatives=other[None], coefficients=-(score - held)[None])

    def contract(self, site, terms):
        return contract_differences(site, terms)


@pytest.mark.parametrize("forgets", [False, True])
def test_two_draws_in_one_site(forgets, lib, request):
    """They are independent; and a coefficient counts by its gradient only, whatever its value."""
    loss = lib.Loss(vi.elbo(), IndependentPair(forgets), num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(LocalBernoulli, 1))


@dataclass(frozen=True)
class PathOfTheLocation(WithBaseline):
    """A Normal by its deviation from the location: a path for the location, a score for the scale."""

    scores_noise = True

    def reason_against(self, dist):
        return None if dist.name == "Normal" else "needs a Normal"

    def expand(self, dist):
        loc, value = dist.elementary().params["loc"], dist.sample()
        stop = current().backend.stop_gradient
        value = stop(value - loc) + loc
        return vi.Expansion(value, log_noise=dist.log_prob(value))

    def contract(self, site, terms):
        return contract_score(site, terms, site.log_noise, self.baseline)


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("baseline", [vi.Constant(), vi.LeaveOneOut()], ids=repr)
def test_noise_with_a_density(num_particles, baseline, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=num_particles)
    loss = lib.Loss(objective, PathOfTheLocation(baseline=baseline), num_samples=1000)
    draws = ConjugateNormal(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(ConjugateNormal, num_particles))


@pytest.mark.parametrize("says", [0, 2])
def test_another_number_of_alternatives(says, lib):
    text = rf"IndependentPair.num_slots disagree\n  got:      1 alternatives\n  expected: {says}"
    with pytest.raises(vi.EstimatorError, match=text):
        LocalBernoulli(lib).gradients(lib.Loss(vi.elbo(), IndependentPair(says=says)), 1, 0)


def test_the_value_is_not_touched(lib):
    """A weight of a value that is not zero leaves the loss as it is."""
    case = LocalBernoulli(lib)
    lib.theta(case.values)
    values = [
        np.mean(
            [
                lib.value(lib.Loss(vi.elbo(), e, num_samples=4000), case.model, case.guide, seed)
                for seed in range(5)
            ]
        )
        for e in (vi.Enumerate(), IndependentPair(forgets=True))
    ]
    assert abs(values[0] - values[1]) < 0.1
