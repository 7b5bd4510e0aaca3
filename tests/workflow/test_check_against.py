"""`vi.check_unbiased(against=...)`, and what it says of the user's own estimators, baselines and objectives."""

from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.test_gradient_variance import AT, coins, gradients


def exact():
    probs, values = gradients()
    return probs @ values


def test_enumeration_and_given_gradients(lib):
    programs, loss = coins(lib), lib.Loss(estimators=vi.Score())
    found = vi.check_unbiased(loss, *programs, num_draws=200, against="enumeration")
    np.testing.assert_allclose([r.reference for r in found.rows[1:]], exact(), rtol=1e-9)
    by_name = dict(zip("ab", exact(), strict=True))
    for against in (exact(), by_name, lambda: by_name):
        found = vi.check_unbiased(loss, *programs, num_draws=200, against=against)
        assert not found.biased and found.reference == "a gradient that was given"
        assert found.rows[0].verdict == "no reference"
    wrong = vi.check_unbiased(loss, *programs, num_draws=200, against=-exact() - 3.0)
    assert len(wrong.biased) == 2


def test_differences(lib):
    loss = lib.Loss(estimators=vi.Enumerate())
    found = vi.check_unbiased(loss, *coins(lib), num_draws=3, against="differences")
    np.testing.assert_allclose([r.reference for r in found.rows[1:]], exact(), rtol=1e-3)
    assert found.passed


def test_what_cannot_be_a_reference(lib):
    programs, loss = coins(lib), lib.Loss(estimators=vi.Score())
    with pytest.raises(vi.ObjectiveError, match="no such reference"):
        vi.check_unbiased(loss, *programs, against="faith")
    for given in (np.zeros(3), {"a": 0.0}, {"a": 0.0, "b": np.zeros(2)}):
        with pytest.raises(vi.ObjectiveError, match="not that of these parameters"):
            vi.check_unbiased(loss, *programs, against=given)
    other = lib.Loss(vi.log_variance(num_particles=2))
    with pytest.raises(vi.ObjectiveError, match="there is nothing to enumerate"):
        vi.check_unbiased(other, *programs, num_draws=2, against="enumeration")


def test_sites_that_are_summed_out(lib):
    x = np.array([-2.0, 1.8, 2.3])

    def model():
        m = lib.sample("m", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            lib.sample("x", lib.dist.Normal(m + 4.0 * z - 2.0, 1.0), obs=lib.array(x))

    def guide():
        lib.sample("m", lib.dist.Normal(lib.theta(np.ones(1))[0], 0.5))

    at = np.linspace(-6.0, 8.0, 4001)
    density = np.exp(-((at - 1.0) ** 2) / 0.5) / (0.5 * np.sqrt(2 * np.pi))
    parts = [-((x[:, None] - at - c) ** 2) / 2 for c in (-2.0, 2.0)]
    evidence = (np.logaddexp(*parts) - np.log(2 * np.sqrt(2 * np.pi))).sum(axis=0)
    cost = np.log(density + 1e-300) + at**2 / 2 + np.log(2 * np.pi) / 2 - evidence
    exact = (density * cost).sum() * (at[1] - at[0])  # 7.305; with z drawn from its prior 17.5
    found = vi.check_unbiased(lib.Loss(), model, guide, num_draws=400)
    assert found.passed and "the same objective with Score()" in found.reference
    assert abs(found.rows[0].reference - exact) < 0.2
    with pytest.raises(vi.ObjectiveError, match=r"(?s)nothing to enumerate.*sums out"):
        vi.check_unbiased(lib.Loss(), model, guide, num_draws=2, against="enumeration")


def test_draws_that_power_needs(lib):
    loss = lib.Loss(estimators=vi.Score())
    few = vi.check_unbiased(loss, *coins(lib), num_draws=5)
    assert not few.passed and f"needs about {max(few.draws_needed, 6)} draws" in repr(few)
    enough = vi.check_unbiased(loss, *coins(lib), num_draws=1000, against=exact())
    assert enough.draws_needed is None or enough.draws_needed <= 1000 or not enough.passed


@dataclass(frozen=True)
class Unscored(vi.Score):
    """No score term: biased."""

    def contract(self, downstream):
        return downstream.terms


def test_an_own_estimator_that_is_biased(lib):
    programs = coins(lib)
    right = vi.check_unbiased(lib.Loss(estimators=vi.Score()), *programs, num_draws=400)
    wrong = vi.check_unbiased(lib.Loss(estimators=Unscored()), *programs, num_draws=400)
    assert not right.biased and wrong.biased and len(AT) == 2


@dataclass(frozen=True)
class OthersOfThePlate(vi.Baseline):
    """That of the README: right."""

    def subtracted(self, others):
        return others.mean(others.plates[-1])


@dataclass(frozen=True)
class OwnValue(vi.Baseline):
    """Twice the value that the site has drawn, which goes past `others` by way of the guide: wrong."""

    drawn: dict

    def subtracted(self, others):
        return others.per_plate(2.0 * self.drawn["z"])


LOGITS = np.array([0.4, -0.8, 0.1])


def coins_in_a_plate(lib, drawn):
    """Three coins; the guide leaves in `drawn` what it drew."""

    def model():
        with lib.plate("coins", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.2)))
            lib.sample("x", lib.dist.Normal(3.0 * z, 1.0), obs=lib.array(np.array([0.0, 2.0, 3.5])))

    def guide():
        with lib.plate("coins", 3):
            drawn["z"] = lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(LOGITS)))

    return model, guide


def test_an_own_baseline(lib):
    drawn = {}
    programs = coins_in_a_plate(lib, drawn)
    right = lib.Loss(estimators=vi.Score(OthersOfThePlate()))
    found = vi.check_unbiased(right, *programs, num_draws=400, against="enumeration")
    assert found.passed, found
    wrong = lib.Loss(estimators=vi.Score(OwnValue(drawn)))
    found = vi.check_unbiased(wrong, *programs, num_draws=400, against="enumeration")
    probs = 1 / (1 + np.exp(-LOGITS))
    assert len(found.biased) >= 1 and not found.passed, found
    for row, bias in zip(found.rows[1:], 2.0 * probs * (1 - probs), strict=True):
        assert abs(row.mean - row.reference - bias) <= 5 * row.error, (bias, found)


@vi.objective
def own_bound(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) - z.log_density


@vi.objective
def sign_slip(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) + z.log_density


@vi.objective
def held_slip(model, guide):
    """The value of the bound, but the model does not see the guide's parameters."""
    z = vi.simulate(guide)
    return vi.log_density(model, vi.stop_gradient(z)) - z.log_density


def test_an_own_objective(lib):
    """Without noise, so that what is right is exact; the value of the second wrong one is right, too."""
    programs = coins(lib)

    def found(objective, against):
        loss = lib.Loss(objective(), vi.Enumerate())
        return vi.check_unbiased(loss, *programs, num_draws=2, against=against)

    for against in (exact(), "differences"):
        right = found(own_bound, against)
        assert right.passed, right
    assert len(found(sign_slip, exact()).biased) == 2
    for against in (exact(), "differences"):
        assert len(found(held_slip, against).biased) == 2
