"""Sums of baselines leave the gradient alone: by enumeration of all draws in Pyro, and by many draws in both
libraries. That no baseline sees the draw that it serves is tested by itself in `tests/unit`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

THETA, PRIOR, SLOPE = 0.4, 0.3, 1.7


def log_weights(theta, z):
    log_p = z * np.log(PRIOR) + (1 - z) * np.log(1 - PRIOR) + 1.0 + SLOPE * z
    return log_p - oracles.log_bernoulli(theta, z)


def exact(num_particles):
    """Gradient of minus the bound of one Bernoulli."""
    z = np.array([0.0, 1.0])

    def bound(theta):
        log_q = oracles.log_bernoulli(theta[0], z)
        return oracles.expected_log_mean_exp(log_q, log_weights(theta[0], z), num_particles)

    return -oracles.gradient(bound, np.array([THETA]))


def programs(lib):
    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(PRIOR)))
        lib.factor("f", 1.0 + SLOPE * z)

    def guide():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.array([THETA]))[0]))

    return model, guide


ONE = 1 / (1 + math.exp(-THETA))
FOUR = [([1.0] * n + [0.0] * (4 - n), math.comb(4, n)) for n in range(5)]
"""Draws of four replicates, and how many there are like each."""
PAIRS = [([0.0, 0.0], 1), ([1.0, 0.0], 2), ([1.0, 1.0], 1)]


def three_pairs():
    """The same of three pairs of replicates."""
    for three in itertools.combinations_with_replacement(PAIRS, 3):
        like = math.factorial(3) / math.prod(math.factorial(three.count(p)) for p in PAIRS)
        yield [draw for draw, _ in three], like * math.prod(n for _, n in three)


OBJECTIVES = {
    "elbo": (vi.elbo(), 4, FOUR, 1),
    "iwae": (vi.iwae(num_particles=4), 1, FOUR, 4),
    "miwae": (vi.miwae(num_outer=3, num_inner=2), 1, list(three_pairs()), 2),
}


def expected_gradient(loss, draws, programs):
    """The expectation over all draws of what a Pyro loss says, from its value at each of them."""
    import pyro
    import torch

    from vi_kit.pyro.distributions import PyroDistribution

    total = 0.0
    for z, number in draws:
        value = torch.tensor(np.array(z).T)
        probability = number * math.prod(ONE if x else 1 - ONE for x in np.ravel(z))
        loss.state = {"vi_kit.baseline.z": torch.tensor([2.1, 0.7], dtype=torch.float64)}
        pyro.clear_param_store()
        with pytest.MonkeyPatch.context() as patch:

            def fixed(self, fn, value=value):
                return value.reshape(fn.batch_shape) if fn.batch_shape else torch.tensor(1.0)

            patch.setattr(PyroDistribution, "sample_elements", fixed)
            loss.loss_and_grads(*programs)
        grad = pyro.get_param_store()._params["theta"].grad
        total += probability * grad.item()
    return total


def network(lib):
    def bias(x):
        return lib.theta(np.array([0.8]), "vi_kit.network.bias") * x

    return vi.NeuralBaseline(bias, inputs=lambda: lib.array(np.ones(1)))


PARTS = {
    "copies": lambda lib: vi.LeaveOneOut(),
    "average": lambda lib: vi.MovingAverage(),
    "one": lambda lib: vi.Constant(1.0),
    "scaled_one": lambda lib: vi.ScaledBaseline(vi.Constant(1.0)),
    "scaled_average": lambda lib: vi.ScaledBaseline(vi.MovingAverage()),
    "learned": lambda lib: vi.LearnedConstant(0.6),
    "network": network,
}


def made(names, lib):
    first, *rest = (PARTS[name](lib) for name in names)
    return sum(rest, first)


def sums(size):
    kept = ({"average", "scaled_average", "learned"}, {"network"})
    for names in itertools.product(PARTS, repeat=size):
        if all(sum(name in group for name in names) <= 1 for group in kept):
            yield names


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_sum_by_enumeration(objective, size):
    from tests.libraries import PyroWords

    lib, (bound, num_samples, draws, num_particles) = PyroWords(), OBJECTIVES[objective]
    step = 1 if size < 3 else 5
    for names in list(sums(size))[::step]:
        loss = lib.Loss(bound, vi.Score(made(names, lib)), num_samples=num_samples)
        found = expected_gradient(loss, draws, programs(lib))
        np.testing.assert_allclose(found, exact(num_particles), rtol=1e-9, err_msg=f"{names}")


@dataclass(frozen=True)
class OthersOfThePlate(vi.Baseline):
    """That of the README."""

    def subtracted(self, others):
        return others.mean(others.plates[-1])


class Together:
    """Two elements in a plate and a term outside it. theta: guide logits."""

    values = np.array([0.4, -0.8])

    def __init__(self, lib):
        self.lib = lib

    def model(self):
        lib = self.lib
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(PRIOR)))
        lib.factor("f", 3.0 * z[..., :1] * z[..., 1:] + z[..., :1])

    def guide(self):
        lib = self.lib
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(self.values)))

    @classmethod
    def exact(cls):
        z = np.array(list(itertools.product([0.0, 1.0], repeat=2)))

        def elbo(theta):
            log_q = oracles.log_bernoulli(theta, z).sum(1)
            log_p = (z * np.log(PRIOR) + (1 - z) * np.log(1 - PRIOR)).sum(1)
            return (np.exp(log_q) * (log_p + 3.0 * z[:, 0] * z[:, 1] + z[:, 0] - log_q)).sum()

        return -oracles.gradient(elbo, cls.values)


@pytest.mark.parametrize(
    "baseline",
    [
        OthersOfThePlate(),
        OthersOfThePlate() + vi.LeaveOneOut(),
        vi.LeaveOneOut() + vi.LeaveOneOut(),
        vi.ScaledBaseline(vi.MovingAverage()) + vi.LeaveOneOut(),
    ],
    ids=["plate", "plate+copies", "copies+copies", "scaled+copies"],
)
def test_with_a_term_outside_the_plate(baseline, lib, request):
    @vi.objective
    def many(model, guide):
        return vi.iid(lambda: vi.iid(lambda: vi.elbo()(model, guide), 3).mean(), 400).mean()

    case, seed = Together(lib), oracles.seed_of(request.node.name)
    loss = lib.Loss(many(), vi.Score(baseline))
    draws = lib.gradients(loss, case.model, case.guide, case.values, 100, seed)
    oracles.check_unbiased(draws, case.exact())
