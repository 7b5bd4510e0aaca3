"""Relaxations: each has the gradient of its own surrogate, by quadrature, and is refused without `biased=True`."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

VALUES = np.array([0.6])
TEMPERATURE = 0.7


def coin(lib, size=()):
    """A cost that is a cubic of one Bernoulli value, or of each element of an event."""

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.full(size, 0.5))).to_event(len(size)))
        value = (b - 0.3) ** 3 + 2.0 * b
        lib.factor("f", value.sum(-1) if size else value)

    def guide():
        logits = lib.theta(VALUES)[0] + lib.array(np.zeros(size))
        lib.sample("b", lib.dist.Bernoulli(logits=logits).to_event(len(size)))

    return model, guide


def worth(b, logit):
    """Log weight, with the log densities of Bernoulli values continued linearly."""
    log_q = b * -np.log(1 + np.exp(-logit)) - (1 - b) * np.log(1 + np.exp(logit))
    return (b - 0.3) ** 3 + 2 * b - np.log(2) - log_q


def slope(b, logit):
    """By the value."""
    return 3 * (b - 0.3) ** 2 + 2 - logit


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


U = (np.arange(200_000) + 0.5) / 200_000
PROB = sigmoid(VALUES[0])


def density_part(b):
    """The explicit derivative of the log weight by the logit."""
    return -(b - PROB)


def relaxed_gradient(straight_through):
    noisy = VALUES[0] + np.log(U) - np.log1p(-U)
    soft = sigmoid(noisy / TEMPERATURE)
    seen = (noisy > 0) * 1.0 if straight_through else soft
    change = soft * (1 - soft) / TEMPERATURE
    return (slope(seen, VALUES[0]) * change + density_part(seen)).mean()


def straight_through_gradient():
    b, mass = np.array([0.0, 1.0]), np.array([1 - PROB, PROB])
    return (mass * (slope(b, VALUES[0]) * PROB * (1 - PROB) + density_part(b))).sum()


def second_order_gradient():
    """Half the slope at each value, times the difference of probabilities (Heun)."""
    b, mass = np.array([0.0, 1.0]), np.array([1 - PROB, PROB])
    middle = (b + PROB) / 2
    change = 2 * middle * (1 - middle) - PROB * (1 - PROB) / 2
    return (mass * (slope(b, VALUES[0]) * change + density_part(b))).sum()


CASES = {
    "relaxed": (vi.Relaxed(TEMPERATURE, biased=True), lambda: relaxed_gradient(False)),
    "gumbel_rao": (
        vi.Relaxed(TEMPERATURE, straight_through=True, num_rao=3, biased=True),
        lambda: relaxed_gradient(True),
    ),
    "straight_through_gumbel": (
        vi.Relaxed(TEMPERATURE, straight_through=True, biased=True),
        lambda: relaxed_gradient(True),
    ),
    "straight_through": (vi.StraightThrough(biased=True), straight_through_gradient),
    "second_order": (
        vi.StraightThrough(second_order=True, biased=True),
        second_order_gradient,
    ),
}


@pytest.mark.parametrize("size", [(), (3,)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_surrogate(name, size, lib, request):
    estimator, exact = CASES[name]
    loss = lib.Loss(vi.elbo(), estimator, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *coin(lib, size), VALUES, 60, seed)
    oracles.check_unbiased(draws, -np.array([exact()]) * max(1, *size, 0))


def test_second_order_is_exact_for_a_square(lib, request):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)))
        lib.factor("f", 3.0 * b**2 - b)

    def guide():
        lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(VALUES)[0]))

    estimator = vi.StraightThrough(second_order=True, biased=True)
    seed = oracles.seed_of(request.node.name)
    loss = lib.Loss(vi.elbo(), estimator, num_samples=1000)
    draws = lib.gradients(loss, model, guide, VALUES, 60, seed)
    exact = -PROB * (1 - PROB) * (2.0 - VALUES[0])
    oracles.check_unbiased(draws, np.array([exact]))


def test_fewer_relaxed_values_are_noisier(lib, request):
    seed = oracles.seed_of(request.node.name)
    spread = [
        lib.gradients(
            lib.Loss(vi.elbo(), CASES[name][0], num_samples=10), *coin(lib), VALUES, 300, seed
        ).var()
        for name in ("gumbel_rao", "straight_through_gumbel")
    ]
    assert spread[0] < 0.9 * spread[1]


def test_one_hot_values_in_pyro(request):
    """The mean of a straight-through gradient for a linear cost is exact."""
    import torch

    from tests.libraries import PyroWords

    lib, values = PyroWords(), np.array([0.2, -0.5, 0.9])
    worths = torch.tensor([1.0, -2.0, 0.5])

    def model():
        z = lib.sample("z", lib.dist.OneHotCategorical(logits=torch.zeros(3)))
        lib.factor("f", (worths * z).sum(-1))

    def guide():
        lib.sample("z", lib.dist.OneHotCategorical(logits=lib.theta(values)))

    def elbo(theta):
        log_q = theta - np.log(np.exp(theta).sum())
        return (np.exp(log_q) * (worths.numpy() - np.log(3) - log_q)).sum()

    for estimator in (vi.StraightThrough(biased=True), vi.Relaxed(0.5, num_rao=2, biased=True)):
        loss = lib.Loss(vi.elbo(), estimator, num_samples=1000)
        draws = lib.gradients(loss, model, guide, values, 60, oracles.seed_of(request.node.name))
        if isinstance(estimator, vi.StraightThrough):
            oracles.check_unbiased(draws, -oracles.gradient(elbo, values))
        assert np.isfinite(draws).all()


def test_annealing(lib):
    """The temperature is a function of the steps so far."""
    seen = []

    def schedule(step):
        seen.append(step)
        return 1.0 / (1.0 + step)

    loss = lib.Loss(vi.elbo(), vi.Relaxed(schedule, biased=True))
    lib.gradients(loss, *coin(lib), VALUES, 3, 0)
    if lib.name == "pyro":
        assert [float(step) for step in seen] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("make", [vi.Relaxed, vi.StraightThrough])
def test_only_for_who_says_so(make):
    text = r"the gradient is biased\n.*\n  expected: biased=True, or an unbiased estimator: Enumerate\(\)"
    with pytest.raises(vi.EstimatorError, match=text):
        make()


def test_settings_out_of_range():
    with pytest.raises(vi.ObjectiveError, match="the temperature must be positive"):
        vi.Relaxed(0.0, biased=True)
    with pytest.raises(vi.ObjectiveError, match="num_rao must be a whole number"):
        vi.Relaxed(0.5, num_rao=0, biased=True)


def test_values_that_have_no_relaxation(lib):
    def program():
        lib.sample("z", lib.dist.Categorical(logits=lib.theta(np.zeros(3))))

    loss = lib.Loss(vi.elbo(), vi.Relaxed(biased=True))
    with pytest.raises(vi.EstimatorError, match="needs Bernoulli or OneHotCategorical elements"):
        lib.gradients(loss, program, program, np.zeros(3), 1, 0)
