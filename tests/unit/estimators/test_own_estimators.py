"""What users stumble over when they write estimators of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import ConjugateNormal, LocalBernoulli, exact
from vi_kit.estimators.score import WithBaseline
from vi_kit.extend import Alternatives, ContinuousBetween, Gradient, Worlds, current


@dataclass(frozen=True)
class IndependentPair(vi.Estimator):
    """A second draw, independent of the first, with the score of the first as its weight: a baseline."""

    forgets: bool = False
    says: int = 1

    def layout(self, dist):
        return Alternatives(self.says)

    def reason_against(self, dist):
        return None

    def expand(self, dist):
        value, other = dist.sample(), dist.sample()
        score = dist.log_prob(value)
        held = 0.0 if self.forgets else current().backend.stop_gradient(score)
        return vi.Expansion(value, alternatives=other[None], coefficients=-(score - held)[None])

    def contract(self, downstream):
        return downstream.by_differences()


@pytest.mark.parametrize("forgets", [False, True])
def test_two_draws_in_one_site(forgets, lib, request):
    """They are independent; and a coefficient counts by its gradient only, whatever its value."""
    loss = lib.Loss(vi.elbo(), IndependentPair(forgets), num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(LocalBernoulli, 1))


@dataclass(frozen=True)
class PathOfTheLocation(WithBaseline):
    """A Normal by its deviation from the location: a path for the location, a score for the scale."""

    def reason_against(self, dist):
        return None if dist.name == "Normal" else "needs a Normal"

    def expand(self, dist):
        loc, value = dist.elementary().params["loc"], dist.sample()
        stop = current().backend.stop_gradient
        value = stop(value - loc) + loc
        return vi.Expansion(value, log_noise=dist.log_prob(value))

    def contract(self, downstream):
        return self.score(downstream, downstream.site.log_noise)


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("baseline", [vi.Constant(), vi.LeaveOneOut()], ids=repr)
def test_noise_with_a_density(num_particles, baseline, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=num_particles)
    loss = lib.Loss(objective, PathOfTheLocation(baseline=baseline), num_samples=1000)
    draws = ConjugateNormal(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(ConjugateNormal, num_particles))


@pytest.mark.parametrize("says", [0, 2])
def test_another_number_of_alternatives(says, lib):
    text = rf"IndependentPair.layout disagree\n  got:      1 alternatives\n  expected: {says}"
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


@dataclass(frozen=True)
class Wrong(vi.Estimator):
    """An estimator that hands back what `make` makes of a draw, the support and a coefficient."""

    make: Callable
    slots: int = 1
    worlds: int = 1

    def layout(self, dist):
        return Worlds(self.worlds) if self.worlds > 1 else Alternatives(self.slots)

    def reason_against(self, dist):
        return None

    def expand(self, dist):
        value, log_prob = dist.sample(), dist.log_prob(dist.sample())
        zero = log_prob - current().backend.stop_gradient(log_prob)
        return self.make(value, dist.support(), zero)

    def contract(self, downstream):
        if self.worlds > 1:
            return downstream.by_worlds()
        if self.slots:
            return downstream.by_differences()
        return vi.Score().contract(downstream)


E = vi.Expansion
SHAPES = {
    "no coefficients": (
        Wrong(lambda z, all, c: E(z, alternatives=z[None])),
        "gives no coefficients",
    ),
    "no alternatives": (
        Wrong(lambda z, all, c: E(z, coefficients=c[None])),
        "gives no alternatives",
    ),
    "alternatives": (
        Wrong(lambda z, all, c: E(z, alternatives=z, coefficients=c[None]), slots=3),
        r"alternatives of a wrong shape\n  got:      shape \(3,\)\n  expected: shape \(num, 3\)",
    ),
    "coefficients": (
        Wrong(lambda z, all, c: E(z, alternatives=z[None], coefficients=c)),
        "coefficients of a wrong shape",
    ),
    "one coefficient": (
        Wrong(lambda z, all, c: E(z, alternatives=z[None], coefficients=c.sum()[None, None])),
        r"coefficients of a wrong shape\n  got:      shape \(1, 1\)",
    ),
    "too few coefficients": (
        Wrong(lambda z, all, c: E(z, alternatives=all[:, None] + 0 * z, coefficients=c[None]), 2),
        r"wrong shape\n  got:      1 coefficients, 2 alternatives",
    ),
    "value": (Wrong(lambda z, all, c: E(z[None]), slots=0), r"value of a wrong shape\n.*\(1, 3\)"),
    "one value": (Wrong(lambda z, all, c: E(z[:1]), slots=0), r"value of a wrong shape\n.*\(1,\)"),
    "worlds": (
        Wrong(
            lambda z, all, c: E(all[:, None, None, None, None], is_worlds=True), slots=0, worlds=2
        ),
        r"value of a wrong shape\n  got:      shape \(2, 1, 1, 1, 1\)\n  expected: shape \(num, 3\)",
    ),
    "number of worlds": (
        Wrong(lambda z, all, c: E(all, is_worlds=True), slots=0, worlds=3),
        r"layout disagree\n  got:      2 worlds\n  expected: 3",
    ),
}


@dataclass(frozen=True)
class Outside(vi.Score):
    """Halves between the values."""

    def expand(self, dist):
        return E(dist.sample() + 0.5)


OUTSIDE = {
    "value": Outside(),
    "alternatives": Wrong(lambda z, all, c: E(z, alternatives=z[None] + 2, coefficients=c[None])),
    "worlds": Wrong(lambda z, all, c: E(all + 0.5, is_worlds=True), slots=0, worlds=2),
}


def three(lib):
    def model():
        with lib.plate("d", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.full(3, 0.3))))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(np.ones(3)))

    def guide():
        logits = lib.theta(np.zeros(3))
        with lib.plate("d", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=logits))

    return model, guide, np.zeros(3)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
@pytest.mark.parametrize("name", SHAPES)
def test_what_expand_hands_back(name, objective, lib):
    """Everything there and in shape, or one clear error."""
    estimator, text = SHAPES[name]
    if objective != vi.elbo() and "shape" in text:
        text = text.split(r"\n")[0]  # replicates are dims too in Pyro
    with pytest.raises(vi.EstimatorError, match=rf"site 'z': Wrong.expand .*{text}"):
        lib.gradients(lib.Loss(objective, estimator), *three(lib), 1, 0)


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_the_support(name, lib):
    """An error; where values are traced, a loss or a gradient that is not a number, but never one that ignores them."""
    model, guide, _ = three(lib)
    lib.theta(np.zeros(3))
    text = "expand makes values outside the support of Bernoulli"
    if lib.name == "numpyro" and name != "value":
        loss = lib.Loss(vi.iwae(num_particles=2), OUTSIDE[name])
        assert not np.isfinite(lib.gradients(loss, *three(lib), 1, 0)).any()
        return
    with pytest.raises(vi.EstimatorError, match=text) as caught:
        lib.value(lib.Loss(vi.elbo(), OUTSIDE[name]), model, guide, 0)
    assert "leaves_support=True" in str(caught.value)


@dataclass(frozen=True)
class MuProp(vi.Estimator):
    r"""The score function with the cost's Taylor expansion about the mean m as its control variate,
    $(f(z) - f(m) - f'(m) (z - m)) \nabla \log q(z) + f'(m) \nabla m$ (Gu et al. 2016)."""

    gradient = Gradient.NONE
    slope: float = 1.0

    def layout(self, dist):
        return Alternatives(2, are_live=True, leaves_support=True)

    def demand(self, dist):
        return ContinuousBetween(lambda dist, zero: dist.elementary().params["probs"] + zero)

    def reason_against(self, dist):
        return None if dist.name == "Bernoulli" else "needs a Bernoulli"

    def expand(self, dist):
        stop, mean = current().backend.stop_gradient, dist.elementary().params["probs"]
        value, xp = dist.sample(), vi.array_namespace(mean)
        log_q = dist.log_prob(value)
        step = self.slope * stop(value - mean) * (log_q - stop(log_q))  # zero, with a gradient
        return vi.Expansion(value, alternatives=xp.stack([mean - step, stop(mean)]))

    def contract(self, downstream):
        site, at_mean = downstream.site, downstream.alternatives()
        live, held = (at_mean.index(site.slots, i) for i in range(2))
        return [
            *downstream.terms,
            downstream.weighted(site.log_q, downstream.worth() - held),
            downstream.weighted(live - held),  # the gradient of other parameters cancels
        ]


@pytest.mark.parametrize("num_particles", [1, 2])
def test_muprop(num_particles, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=num_particles)
    reference, seed = exact(LocalBernoulli, num_particles), oracles.seed_of(request.node.name)
    loss = lib.Loss(objective, MuProp(), num_samples=500)
    oracles.check_unbiased(LocalBernoulli(lib).gradients(loss, 40, seed), reference)
    loss = lib.Loss(objective, MuProp(slope=0.0), num_samples=500)
    biased = LocalBernoulli(lib).gradients(loss, 40, seed)
    assert oracles.largest_z(biased, reference) >= 8
