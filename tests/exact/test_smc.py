"""Particle filters: the bound and its gradient against an enumeration of all particles and ancestors."""

import contextlib
import functools
import importlib
import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import vi_kit as vi
import vi_kit.engine.particles as particles
from models import state_space
from tests.exact.test_marginal import density, reciprocal
from vi_kit.language.programs import Resampling
from vi_kit.language.smc import Dropped

START = np.array([-0.5, 2.0, 0.5])
MILD, NEAR = {"least": 0.3, "more": 0.4, "sd": 0.7}, np.array([0.5, -0.4, 0.8])
"""Little hangs on resampling, and this proposal is near the posterior."""
DATA = np.array([0.3, 1.6, -0.2])
NUM = 2


def coins(lib, series=None, start=START, least=0.05, more=0.9, sd=0.5):
    """A chain of coins, each with a datum of its own; `series`: so many of them in a plate."""
    data = DATA if series is None else DATA[:, None] + np.arange(series)
    within = (lambda: lib.plate("series", series)) if series else contextlib.nullcontext

    def model():
        z = lib.array(0.0)
        with within():
            for t, x in enumerate(data):
                z = lib.sample(f"z{t}", lib.dist.Bernoulli(least + more * z))
                lib.sample(f"x{t}", lib.dist.Normal(z, sd), obs=lib.array(x))

    def guide():
        theta = lib.theta(start)
        z = lib.array(0.0)
        with within():
            for t, x in enumerate(data):
                logits = theta[0] + theta[1] * z + theta[2] * lib.array(x)
                z = lib.sample(f"z{t}", lib.dist.Bernoulli(logits=logits))

    return model, guide


def bernoulli(p, z):
    return p if z else 1.0 - p


def chances(theta, z, t, data, least=0.05, more=0.9, **_):
    """Of a one at step t: under the proposal and under the model."""
    logit = theta[0] + theta[1] * z + theta[2] * data[t]
    return 1.0 / (1.0 + np.exp(-logit)), least + more * z


def weight(theta, before, z, t, data, sd=0.5, **chain):
    q, p = chances(theta, before, t, data, **chain)
    likelihood = np.exp(-0.5 * ((data[t] - z) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    return bernoulli(p, z) * likelihood / bernoulli(q, z)


def bound(theta, data=DATA, threshold=1.0, **chain):
    """The mean of the log of the estimate of the evidence, by enumeration."""

    def after(before, carried, t):
        if t == len(data):
            return 0.0
        total = 0.0
        for z in itertools.product((0, 1), repeat=NUM):
            chance = np.prod(
                [
                    bernoulli(chances(theta, b, t, data)[0], x)
                    for b, x in zip(before, z, strict=True)
                ]
            )
            w = np.array(carried) * [
                weight(theta, b, x, t, data, **chain) for b, x in zip(before, z, strict=True)
            ]
            own = w / w.sum()
            later = 0.0
            if threshold == 1.0 or 1.0 / (own**2).sum() < threshold * NUM:
                if t + 1 < len(data):
                    for a in itertools.product(range(NUM), repeat=NUM):
                        taken = tuple(z[i] for i in a)
                        later += np.prod(own[list(a)]) * after(taken, (1.0,) * NUM, t + 1)
            else:
                later = after(z, tuple(own * NUM), t + 1)
            total += chance * (np.log(w.mean()) + later)
        return total

    return after((0,) * NUM, (1.0,) * NUM, 0)


def gradient(fn, theta, step=1e-5):
    return np.array(
        [(fn(theta + d) - fn(theta - d)) / (2 * step) for d in step * np.eye(len(theta))]
    )


def evidence(data=DATA, **chain):
    total = 0.0
    for path in itertools.product((0, 1), repeat=len(data)):
        before, p = 0, 1.0
        for t, z in enumerate(path):
            q, _ = chances(np.zeros(3), before, t, data)
            p *= weight(np.zeros(3), before, z, t, data, **chain) * bernoulli(q, z)
            before = z
        total += p
    return np.log(total)


@functools.cache
def estimated(lib, threshold, series=None, num_samples=4000):
    model, guide = coins(lib, series)
    posterior = vi.normalize(model, vi.SMC(guide, NUM, ess_threshold=threshold))
    loss = lib.Loss(vi.elbo(), vi.Score(), num_samples=num_samples)
    draws = -lib.estimates(loss, model, posterior, START, 14, 3)
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))


@pytest.mark.parametrize("threshold", [1.0, 0.8])
def test_bound_and_gradient(threshold, lib):
    mean, error = estimated(lib, threshold)
    exact = [
        bound(START, threshold=threshold),
        *gradient(functools.partial(bound, threshold=threshold), START),
    ]
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.01
    assert (error[1:] < 0.05).all()
    assert mean[0] < evidence()


def test_series_in_a_plate_are_resampled_apart(lib):
    """The bound is the sum of those of each series, and so is its gradient."""
    mean, error = estimated(lib, 1.0, series=2)
    series = [DATA, DATA + 1.0]
    exact = sum(
        np.array([bound(START, data), *gradient(functools.partial(bound, data=data), START)])
        for data in series
    )
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.02


def walk(lib, sites="zyx"):
    """Values on a line, of which each has the mean of the one before; drawn at random, held against a datum."""

    def model():
        z = lib.array(0.0)
        for t, x in enumerate(DATA):
            z = lib.sample(f"z{t}", lib.dist.Normal(0.8 * z, 1.0))
            lib.sample(f"x{t}", lib.dist.Normal(z, 0.6), obs=lib.array(x))

    def guide():
        theta = lib.theta(START)
        z = lib.array(0.0)
        for t, x in enumerate(DATA):
            mean = theta[0] * z + theta[1] * lib.array(x)
            z = lib.sample(f"z{t}", lib.dist.Normal(mean, lib.xp.exp(0.3 * theta[2])))

    return model, guide


def uniform(lib):
    def program():
        for t in range(len(DATA)):
            lib.sample(f"z{t}", lib.dist.Bernoulli(lib.array(0.5)))

    return program


def test_the_density_and_its_reciprocal_have_no_bias(lib):
    model, guide = coins(lib, start=NEAR, **MILD)
    for how in ({}, {"ess_threshold": 0.8}):
        posterior = vi.normalize(model, vi.SMC(guide, 3, **how))
        for objective, exact in ((reciprocal(), 8.0), (density(), 0.125)):
            loss = lib.Loss(objective, vi.Score(), num_samples=2000)
            draws = -lib.estimates(loss, uniform(lib), posterior, NEAR, 8, 2)[:, 0]
            error = draws.std(ddof=1) / np.sqrt(len(draws))
            assert abs(draws.mean() - exact) < 5 * error, (how, draws.mean(), exact, error)
            assert error < 0.03 * exact


def test_one_particle_is_the_proposal(lib):
    model, guide = walk(lib)
    for objective in (vi.elbo(), vi.wake_sleep(num_particles=2)):
        found = [
            lib.estimates(lib.Loss(objective), model, program, START, 2, 3)
            for program in (guide, vi.normalize(model, vi.SMC(guide, 1)))
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def estimates_of_evidence(theta, data, **chain):
    """All that the log of the estimate can be, and how probable each is; the last resampling is of no account."""
    found = []

    def after(before, chance, log_mean, t):
        if t == len(data):
            found.append((chance, log_mean))
            return
        for z in itertools.product((0, 1), repeat=NUM):
            steps = list(zip(before, z, strict=True))
            p = np.prod([bernoulli(chances(theta, b, t, data)[0], x) for b, x in steps])
            w = np.array([weight(theta, b, x, t, data, **chain) for b, x in steps])
            log_w, ends = log_mean + np.log(w.mean()), t + 1 == len(data)
            for a in [(0,) * NUM] if ends else itertools.product(range(NUM), repeat=NUM):
                taken = 1.0 if ends else np.prod((w / w.sum())[list(a)])
                after(tuple(z[i] for i in a), chance * p * taken, log_w, t + 1)

    after((0,) * NUM, 1.0, 0.0, 0)
    return np.array(found).T


def test_inside_a_nonlinear_bound(lib, monkeypatch):
    """Two independent filters, and a mean under a logarithm."""
    monkeypatch.setattr("tests.exact.test_smc.DATA", DATA[:2])
    model, guide = coins(lib, start=NEAR, **MILD)
    posterior = vi.normalize(model, vi.SMC(guide, NUM))
    loss = lib.Loss(vi.iwae(num_particles=2), vi.Score(), num_samples=1000)
    draws = -lib.estimates(loss, model, posterior, NEAR, 8, 5)
    mean, error = draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))

    def twice(theta):
        p, log_z = estimates_of_evidence(theta, DATA[:2], **MILD)
        return (p[:, None] * p * (np.logaddexp(log_z[:, None], log_z) - np.log(2))).sum()

    exact = [twice(NEAR), *gradient(twice, NEAR)]
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert (error[1:] < 0.08).all()


def test_bounds_from_both_sides(lib):
    model, guide = coins(lib, start=NEAR, **MILD)
    posterior = vi.normalize(model, vi.SMC(guide, 4))
    sides = []
    for objective in (vi.elbo(), vi.eubo(num_particles=8)):
        loss = lib.Loss(objective, vi.Score(), num_samples=1000)
        draws = lib.estimates(loss, model, posterior, NEAR, 4, 5)[:, 0]
        sides.append((draws.mean(), draws.std(ddof=1) / 2))
    (minus_low, first), (high, second) = sides
    low = -minus_low
    assert low - 5 * first < evidence(**MILD) < high + 5 * second
    assert high - low < 0.5


def test_refusals(lib):
    model, guide = walk(lib)

    def value(algorithm, estimators=None):
        posterior = vi.normalize(model, algorithm)
        return lib.value(lib.Loss(vi.elbo(), estimators), model, posterior, 0, compiled=True)

    def backwards():
        for t in reversed(range(len(DATA))):
            lib.sample(f"z{t}", lib.dist.Normal(lib.theta(START)[0], 1.0))

    with pytest.raises(vi.ObjectiveError, match="does not draw 'z0' next"):
        value(vi.SMC(backwards, 2))
    with pytest.raises(vi.EstimatorError, match="a jump in the values of \\['z0'\\]"):
        value(vi.SMC(guide, 3, ess_threshold=0.5))
    assert np.isfinite(value(vi.SMC(guide, 3, ess_threshold=0.5, biased=True)))
    with pytest.raises(vi.EstimatorError, match="of a particle, and has several values"):
        value(vi.SMC(guide, 3), {"z0": vi.Quadrature(3, biased=True)})
    with pytest.raises(
        vi.ObjectiveError, match="proposal site 'q' is not a latent site of the model"
    ):

        def more():
            guide()
            lib.sample("q", lib.dist.Normal(lib.array(0.0), 1.0))

        value(vi.SMC(more, 3))
    assert np.isfinite(value(vi.SMC(guide, 3, vi.Score(vi.LeaveOneOut()))))
    for wrong, text in (
        ({"num_particles": 0}, "num_particles"),
        ({"resample": vi.Reparam()}, "resample is the estimator"),
        ({"ess_threshold": 2.0}, "ess_threshold is a share"),
        ({"proposal": None}, "the proposal is no program"),
    ):
        with pytest.raises(vi.ObjectiveError, match=text):
            vi.SMC(**{"proposal": guide, "num_particles": 2, **wrong})
    with pytest.raises(vi.ObjectiveError, match="has no steps"):
        marginal = vi.marginal(model, ["z*"], vi.Exact())
        lib.value(lib.Loss(), marginal, vi.normalize(marginal, vi.SMC(guide, 2)), 0)


MUTANTS = {
    "weights go on after resampling": ("vi_kit.engine.run.resampled", "with_weights"),
    "ancestors have no score": ("vi_kit.language.smc.SMC._how", "without_score"),
    "ancestors are any": ("vi_kit.engine.particles._normalised", "flat"),
}


def with_weights(run, program, swarm, into, how, **others):
    given, _ = particles.resampled(run, program, swarm, into, how, **others)
    return given, particles.first_left(run, swarm, replace(how, ess_threshold=0.0))


def flat(run, swarm, how):
    weight, is_due = RIGHT(run, swarm, how)
    return replace(weight, base=weight.base.scaled(0.0)), is_due


RIGHT = particles._normalised
without_score = property(lambda self: Resampling(Dropped(), self.ess_threshold, held=False))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name, lib, monkeypatch):
    where, mutant = MUTANTS[name]
    monkeypatch.setattr(where, globals()[mutant])
    estimated.cache_clear()
    with pytest.raises(AssertionError):
        test_bound_and_gradient(1.0, lib)
    estimated.cache_clear()


def test_the_bound_of_a_filter_is_near_the_evidence(lib):
    """A linear-Gaussian model, whose evidence the Kalman filter knows; weights of whole series are far off."""
    programs = importlib.import_module(f"models.state_space.{lib.name}")
    data = state_space.linear_data(10)
    exact = state_space.linear_log_evidence(data)
    x = lib.array(data)
    model, proposal = partial(programs.model, x), partial(programs.proposal, x)
    lib.theta(START)
    bounds = {}
    for name, objective, guide in (
        ("filter", vi.elbo(), vi.normalize(model, vi.SMC(proposal, 32, biased=True))),
        ("series", vi.iwae(num_particles=32), proposal),
    ):
        loss = lib.Loss(objective, num_samples=50)
        bounds[name] = -lib.value(loss, model, guide, 0, compiled=True)
    assert exact - 0.5 < bounds["filter"] < exact + 0.1
    assert bounds["series"] < bounds["filter"] - 0.1


def test_series_that_see_each_other_are_resampled_together(lib):
    """The mean of the estimates of the evidence is the evidence."""
    data = np.array([[0.3, 1.4], [0.9, -0.2]])

    def model():
        z = lib.array([0.0, 0.0])
        for t, x in enumerate(data):
            with lib.plate("series", 2):
                both = z[..., :1] + z[..., 1:]
                z = lib.sample(f"z{t}", lib.dist.Bernoulli(0.2 + 0.3 * both + 0.0 * z))
                lib.sample(f"x{t}", lib.dist.Normal(z, 0.6), obs=lib.array(x))

    def guide():
        for t in range(len(data)):
            with lib.plate("series", 2):
                lib.sample(f"z{t}", lib.dist.Bernoulli(lib.array([0.4, 0.6])))

    exact = 0.0
    for path in itertools.product((0, 1), repeat=4):
        before, p = 0.0, 1.0
        for t in range(2):
            z = path[2 * t : 2 * t + 2]
            chance = 0.2 + 0.3 * before
            for one, x in zip(z, data[t], strict=True):
                likelihood = np.exp(-0.5 * ((x - one) / 0.6) ** 2) / (0.6 * np.sqrt(2 * np.pi))
                p *= bernoulli(chance, one) * likelihood
            before = sum(z)
        exact += p
    posterior = vi.normalize(model, vi.SMC(guide, 2))
    loss = lib.Loss(vi.iwae(num_particles=1500))
    mean = -lib.value(loss, model, posterior, 0, compiled=True)
    assert abs(mean - np.log(exact)) < 0.05, (mean, np.log(exact))


@pytest.mark.parametrize("algorithm", [vi.SIR, vi.SMC])
def test_a_check_of_a_posterior_is_not_one_of_its_proposal(algorithm, lib):
    model, guide = coins(lib, start=NEAR, **MILD)
    lib.theta(NEAR)
    kwargs = {} if lib.name == "pyro" else {"params": {"theta": lib.array(NEAR)}}
    posterior = vi.normalize(model, algorithm(guide, 2))
    loss = lib.Loss(vi.elbo(), vi.Score())
    found = vi.check_unbiased(loss, model, posterior, num_draws=60, **kwargs)
    assert max(abs(row.z) for row in found.rows) < 5, found
    if algorithm is vi.SMC:
        exact = -bound(NEAR, **MILD)
        assert abs(found.rows[0].reference - exact) < 0.3


@pytest.mark.parametrize("least", [0.0, 100.0])
def test_particles_that_are_impossible(least, lib):
    """Weights of zero: of some particles, or of all, whose estimate of the evidence is zero."""

    def model():
        z = lib.array(0.0)
        for t in range(2):
            z = lib.sample(f"z{t}", lib.dist.Normal(0.5 * z, 1.0))
            lib.factor(f"f{t}", lib.xp.where(z > least, 0.0 * z, -lib.xp.inf + 0.0 * z))

    def guide():
        theta, z = lib.theta(START), lib.array(0.0)
        for t in range(2):
            z = lib.sample(f"z{t}", lib.dist.Normal(theta[2] * z, 1.0))

    loss = lib.Loss(vi.elbo(), vi.Score())
    posterior = vi.normalize(model, vi.SMC(guide, 40))
    if least == 0.0:
        assert np.isfinite(lib.estimates(loss, model, posterior, START, 1, 0)).all()
    elif lib.name == "pyro":
        with pytest.raises(vi.ObjectiveError, match="'f0' is not finite"):
            lib.estimates(loss, model, posterior, START, 1, 0)
    else:
        assert not np.isfinite(lib.estimates(loss, model, posterior, START, 1, 0)[0, 0])
