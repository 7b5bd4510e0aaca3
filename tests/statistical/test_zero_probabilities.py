"""A probability of exactly zero: its gradient by `probs` is what its value is worth; by logits it is zero."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

WORTH = np.array([3.0, 1.0, -2.0, 0.5])
PROBS = np.array([0.0, 0.2, 0.3, 0.5])
LOGITS = np.array([-np.inf, 0.2, 0.3, 0.5])


@vi.objective
def reward(model, guide):
    return vi.log_density(model, vi.simulate(guide))


def programs(lib, make):
    def model():
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(np.full(4, 0.25))))
        lib.factor("f", lib.array(WORTH)[z])

    return model, lambda: lib.sample("z", make(lib.theta))


def by_probs(lib):
    return lambda theta: lib.dist.Categorical(probs=theta(PROBS) / theta(PROBS).sum())


def expected(q):
    return q @ (WORTH + np.log(0.25))


SEEING = [
    vi.Enumerate(),
    vi.MeasureValued(),
    vi.WithoutReplacement(4),
    vi.SumAndSample(3),
]
"""Estimators that evaluate every value."""


@pytest.mark.parametrize("estimator", SEEING, ids=repr)
def test_by_probs(estimator, lib):
    loss = lib.Loss(reward(), estimator, num_samples=50)
    found = lib.gradients(loss, *programs(lib, by_probs(lib)), PROBS, 2, 0)
    exact = -oracles.gradient(lambda p: expected(p / p.sum()), PROBS)
    np.testing.assert_allclose(found.mean(axis=0), exact, atol=1e-6)


@pytest.mark.parametrize("zero", [0.0, 1.0])
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_of_two_bits(estimator, zero, lib):
    """An event of a bit that is certain and one that is not: E[2 a + b + 4 a b]."""
    values = np.array([zero, 0.4])

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array([0.5, 0.5])).to_event(1))
        lib.factor("f", 2.0 * z[..., 0] + z[..., 1] + 4.0 * z[..., 0] * z[..., 1])

    def guide():
        lib.sample("z", lib.dist.Bernoulli(probs=lib.theta(values)).to_event(1))

    loss = lib.Loss(reward(), estimator, num_samples=2000)
    found = lib.gradients(loss, model, guide, values, 20, 0)
    exact = -np.array([2.0 + 4.0 * values[1], 1.0 + 4.0 * values[0]])
    oracles.check_unbiased(found, exact)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_of_counts(estimator, p, lib, request):
    """E[0.7 z + 0.2 z^2] of a Binomial of 3."""
    values = np.array([p])

    def model():
        z = lib.sample("z", lib.dist.Binomial(3, lib.array(np.array(0.5))))
        lib.factor("f", 0.7 * z + 0.2 * z**2)

    def guide():
        lib.sample("z", lib.dist.Binomial(3, lib.theta(values)[0]))

    @vi.objective
    def factor(model, guide):
        z = vi.simulate(guide)
        return vi.evaluate(lambda v: 0.7 * v["z"] + 0.2 * v["z"] ** 2, z)

    loss = lib.Loss(factor(), estimator, num_samples=500)
    found = lib.gradients(loss, model, guide, values, 20, oracles.seed_of(request.node.name))
    oracles.check_unbiased(found, -np.array([2.1 + 0.2 * (3.0 + 12.0 * p)]))


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_rebar_of_what_is_certain(p, learn, lib):
    values = np.array([p])

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        lib.factor("f", 0.7 * z)

    def guide():
        lib.sample("z", lib.dist.Bernoulli(lib.theta(values)[0]))

    loss = lib.Loss(reward(), vi.Rebar(learn=learn))
    assert np.isfinite(lib.estimates(loss, model, guide, values, 2, 0)).all()


@pytest.mark.parametrize("objective", ["reward", "elbo"])
@pytest.mark.parametrize("estimator", [*SEEING, vi.WithoutReplacement(2), vi.Score()], ids=repr)
def test_by_logits(estimator, objective, lib, request):
    loss = lib.Loss({"reward": reward(), "elbo": vi.elbo()}[objective], estimator, num_samples=500)
    make = lambda theta: lib.dist.Categorical(logits=theta(LOGITS), validate_args=False)  # noqa: E731
    seed = oracles.seed_of(request.node.name)
    found = lib.gradients(loss, *programs(lib, make), LOGITS, 40, seed)
    q = np.exp(LOGITS[1:]) / np.exp(LOGITS[1:]).sum()
    worth = WORTH[1:] + np.log(0.25) - (objective == "elbo") * np.log(q)
    exact = -np.concatenate([[0.0], q * (worth - q @ worth)])
    oracles.check_unbiased(found, exact)


@pytest.mark.parametrize(
    "estimator", [vi.Enumerate(), vi.SumAndSample(2), vi.WithoutReplacement(3)], ids=repr
)
def test_by_logits_in_a_bound(estimator, lib, request):
    """IWAE of two particles, over the values that happen."""
    worth, logits = WORTH[:3], np.array([-np.inf, 0.2, 0.5])

    def model():
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(np.full(3, 1 / 3))))
        lib.factor("f", lib.array(worth)[z])

    def guide():
        lib.sample("z", lib.dist.Categorical(logits=lib.theta(logits), validate_args=False))

    def bound(logits):
        q = np.exp(logits) / np.exp(logits).sum()
        log_w = worth[1:] - np.log(3) - np.log(q)
        pairs = np.log((np.exp(log_w[:, None]) + np.exp(log_w[None])) / 2)
        return q @ pairs @ q

    loss = lib.Loss(vi.iwae(num_particles=2), estimator, num_samples=500)
    found = lib.gradients(loss, model, guide, logits, 40, oracles.seed_of(request.node.name))
    exact = -np.concatenate([[0.0], oracles.gradient(bound, logits[1:])])
    oracles.check_unbiased(found, exact)


def zeroed_in_weights(patch):
    from vi_kit.base.distributions import DistributionView

    patch.setattr(DistributionView, "support_probs", lambda self: None)


def test_mutant_is_found(lib, monkeypatch):
    zeroed_in_weights(monkeypatch)
    loss = lib.Loss(reward(), vi.Enumerate())
    found = lib.gradients(loss, *programs(lib, by_probs(lib)), PROBS, 1, 0)[0]
    exact = -oracles.gradient(lambda p: expected(p / p.sum()), PROBS)
    assert abs(found[0] - exact[0]) > 1.0


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued(), vi.Score()], ids=repr)
def test_a_zero_that_is_constant(estimator, lib, request):
    """What the value is worth is infinite, and nobody asks for it. Mutant: MeasureValued weighs it by nought."""
    start = np.array([0.3])

    def model():
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(np.full(4, 0.25))))
        lib.factor("f", lib.theta(start)[0] * lib.array(WORTH)[z])

    def guide():
        lib.sample("z", lib.dist.Categorical(probs=lib.array(PROBS)))

    loss = lib.Loss(vi.elbo(), estimator, num_samples=200)
    found = lib.estimates(loss, model, guide, start, 20, oracles.seed_of(request.node.name))
    q = PROBS[1:]
    value = q @ (start * WORTH[1:] + np.log(0.25) - np.log(q))
    oracles.check_unbiased(found, -np.array([value, q @ WORTH[1:]]))


@pytest.mark.parametrize("num_particles", [2, 4])
def test_a_baseline_that_sees_only_what_is_impossible(num_particles, lib):
    """It is left out: a step is in order where one of the particles is possible. Mutant: it is infinite."""
    values = np.array([0.0, 0.0, 1.0])

    def model():
        impossible = lib.array(np.array([0.0, 0.0, -np.inf]))
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(np.full(3, 1 / 3))))
        lib.factor("f", impossible[z])

    def guide():
        lib.sample("z", lib.dist.Categorical(logits=lib.theta(values)))

    def finite(baseline):
        loss = lib.Loss(vi.iwae(num_particles=num_particles), vi.Score(baseline))
        if lib.name == "numpyro":
            return np.isfinite(lib.estimates(loss, model, guide, values, 40, 0)).all(1).tolist()
        return [step_is_finite(loss, seed) for seed in range(40)]

    def step_is_finite(loss, seed):
        try:
            return bool(np.isfinite(lib.estimates(loss, model, guide, values, 1, seed)).all())
        except vi.NotFiniteError:
            return False

    plain = finite(vi.Constant(0.0))
    assert finite(vi.LeaveOneOut()) == plain
    assert sum(plain) > 10
    assert num_particles == 4 or sum(plain) < 40
