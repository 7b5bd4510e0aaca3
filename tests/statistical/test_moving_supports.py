"""Supports that depend on parameters: right by default, and refused where a gradient goes by the density alone."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

VALUES = np.array([0.5, 0.8])


def shifted(lib, base, loc, scale=1.0):
    transforms = lib.transforms
    return lib.dist.TransformedDistribution(base, [transforms.AffineTransform(loc, scale)])


SHAPES = {
    "uniform": lambda lib, t: lib.dist.Uniform(t[0], t[0] + t[1]),
    "uniform_event": lambda lib, t: lib.dist.Uniform(t, t + 1.0).to_event(1),
    "pareto": lambda lib, t: lib.dist.Pareto(t[1], lib.array(3.0)),
    "shifted_exponential": lambda lib, t: shifted(
        lib, lib.dist.Exponential(lib.array(2.0)), t[0], t[1]
    ),
    "shifted_log_normal": lambda lib, t: shifted(
        lib, lib.dist.LogNormal(lib.array(0.0), 1.0), t[0]
    ),
    "scaled_beta": lambda lib, t: shifted(lib, lib.dist.Beta(lib.array(2.0), 2.0), 0.0, t[1]),
}
STAY = {
    "gamma": lambda lib, t: lib.dist.Gamma(t[0], t[1]),
    "log_normal": lambda lib, t: lib.dist.LogNormal(t[0], t[1]),
    "scaled_exponential": lambda lib, t: shifted(
        lib, lib.dist.Exponential(lib.array(2.0)), 0.0, t[1]
    ),
    "normal": lambda lib, t: shifted(lib, lib.dist.Normal(lib.array(0.0), 1.0), t[0], t[1]),
    "uniform": lambda lib, t: lib.dist.Uniform(lib.array(0.0), 1.0),
    "weibull": lambda lib, t: lib.dist.Weibull(t[0], t[1]),
}
"""Distributions whose support stays, though they have parameters."""


def programs(lib, make):
    def guide():
        lib.sample("z", make(lib, lib.theta(VALUES)))

    def model():
        event = make(lib, lib.array(VALUES)).event_shape
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0).expand(event).to_event(len(event)))
        lib.factor("f", z.sum(-1) if event else 1.0 * z)

    return model, guide


@pytest.mark.parametrize(
    "estimator", [vi.Score(), vi.Score(vi.LeaveOneOut()), vi.DoublyReparam()], ids=repr
)
@pytest.mark.parametrize("shape", SHAPES)
def test_refused(shape, estimator, lib):
    loss = lib.Loss(vi.elbo(), estimator, num_samples=2)
    with pytest.raises(
        vi.EstimatorError, match=r"a support that stays where it is(.|\n)*vi.Reparam\(\)"
    ):
        lib.gradients(loss, *programs(lib, SHAPES[shape]), VALUES, 1, 0)


@pytest.mark.parametrize("shape", STAY)
def test_not_refused(shape, lib):
    def model():
        lib.sample("z", STAY[shape](lib, lib.array(VALUES)))

    def guide():
        lib.sample("z", STAY[shape](lib, lib.theta(VALUES)))

    lib.gradients(lib.Loss(vi.elbo(), vi.Score()), model, guide, VALUES, 1, 0)


def test_a_bound_that_depends_on_a_draw(lib):
    def both(loc):
        a = lib.sample("a", lib.dist.Normal(loc, 1.0))
        lib.sample("b", lib.dist.Uniform(a, a + 1.0))

    def programs(score):
        loss = lib.Loss(vi.elbo(), {"b": vi.Score(), "a": score})
        theta = lambda: lib.theta(VALUES)[0]  # noqa: E731
        lib.gradients(loss, lambda: both(lib.array(0.0)), lambda: both(theta()), VALUES, 1, 0)

    with pytest.raises(vi.EstimatorError, match="that of Uniform moves"):
        programs(vi.Reparam())


@pytest.mark.parametrize(
    "objective",
    [
        vi.log_variance(num_particles=2),
        vi.trajectory_balance(),
        vi.wake_sleep(num_particles=2),
        vi.eubo(num_particles=2),
    ],
    ids=repr,
)
def test_objectives_by_densities_alone(objective, lib):
    with pytest.raises(vi.ViKitError, match="goes by the density of the guide at draws of its own"):
        lib.gradients(lib.Loss(objective), *programs(lib, SHAPES["uniform"]), VALUES, 1, 0)


def test_right_by_default(lib, request):
    """The entropy of Uniform(a, a + b) is log b; E[z - z^2 / 2] is by the moments of the two ends."""

    def elbo(t):
        low, high = t[0], t[0] + t[1]
        mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
        return mean - square / 2 + np.log(t[1])

    loss = lib.Loss(vi.elbo(), num_samples=1000)
    draws = lib.gradients(
        loss, *programs(lib, SHAPES["uniform"]), VALUES, 40, oracles.seed_of(request.node.name)
    )
    oracles.check_unbiased(draws, -oracles.gradient(elbo, VALUES))


@pytest.mark.parametrize("estimator", [vi.MeasureValued(), vi.Score(), vi.Reparam()], ids=repr)
def test_parameters_of_a_transform(estimator, lib, request):
    """Of a Normal: the value has a gradient by them with every estimator that maps what it draws, and so has the
    entropy."""

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", shifted(lib, lib.dist.Normal(lib.array(0.0), 1.0), theta[0], theta[1]))

    def model():
        lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    loss = lib.Loss(vi.elbo(), estimator, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, model, guide, VALUES, 40, seed)
    exact = np.array([VALUES[0], VALUES[1] - 1 / VALUES[1]])
    oracles.check_unbiased(draws, exact)
