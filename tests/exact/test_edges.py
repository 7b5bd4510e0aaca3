"""Numbers at the edge: infinite and huge log weights, probabilities of zero and one, plates of no element and of one,
one particle, one datum, masked data that are no numbers, and half precision."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.ways import HOW, estimates


@pytest.fixture(params=HOW)
def run(request, lib, monkeypatch):
    """`tests.ways.estimates` of a library, in each way."""
    return partial(estimates, lib, request.param, monkeypatch)


@vi.objective
def reward(model, guide):
    return vi.log_density(model, vi.simulate(guide))


# Weights that are huge, or none

VALUES = np.array([0.3, -0.4])
BOUNDS = {
    "iwae": (vi.iwae(num_particles=4), 1.0),
    "renyi": (vi.renyi(alpha=0.5, num_particles=4), 0.5),
    "renyi below": (vi.renyi(alpha=-30.0, num_particles=4), 31.0),
    "renyi above": (vi.renyi(alpha=30.0, num_particles=4), -29.0),
    "largest": (vi.renyi(alpha=-math.inf, num_particles=4), 1.0),
    "smallest": (vi.renyi(alpha=math.inf, num_particles=4), 1.0),
    "cubo": (vi.cubo(order=2.0, num_particles=4), 2.0),
    "cubo of high order": (vi.cubo(order=30.0, num_particles=4), 30.0),
    "thermodynamic": (vi.thermodynamic(num_particles=4), 1.0),
}
"""Objectives, each with the highest power of a weight."""
DRAWN = {"b0": vi.Score(vi.LeaveOneOut()), "b1": vi.MeasureValued(), "b2": vi.Enumerate()}


def cast(lib, x, dtype):
    """An array of a parameter in another type, with its gradient."""
    kind = getattr(lib.xp, np.dtype(dtype).name)
    return x.to(kind) if lib.name == "pyro" else x.astype(kind)


def shifted(lib, shift, dtype=np.float64):
    """A model whose log density is higher by a constant."""

    def number(x):
        return lib.array(np.array(x, dtype))

    def model():
        bits = [lib.sample(name, lib.dist.Bernoulli(number(0.5))) for name in DRAWN]
        z = lib.sample("z", lib.dist.Normal(number(0.0), number(1.0)))
        lib.sample("x", lib.dist.Normal(z + sum(bits), number(0.5)), obs=number(1.0))
        lib.factor("shift", number(shift))

    def guide():
        theta = cast(lib, lib.theta(VALUES), dtype)
        for name in DRAWN:
            lib.sample(name, lib.dist.Bernoulli(logits=theta[1]))
        lib.sample("z", lib.dist.Normal(theta[0], number(0.8)))

    return model, guide


def check_shift(lib, run, name, shift, dtype):
    objective, power = BOUNDS[name]
    given = {"objective": objective, "estimators": DRAWN}
    plain = run(*shifted(lib, 0.0, dtype), VALUES, **given)
    found = run(*shifted(lib, shift, dtype), VALUES, **given)
    slopes, unit = np.abs(plain[:, 1:]).max(), float(np.finfo(dtype).eps)
    assert slopes > 1e-3
    sign = 1.0 if objective.maximised is False else -1.0
    rounding = 4.0 * unit * abs(shift)
    np.testing.assert_allclose(found[:, 0], plain[:, 0] + sign * shift, atol=rounding)
    # weights are relative to each other as exp(power * log w), and log w is rounded
    rounding *= abs(power) * (1.0 + slopes) * 10.0
    assert rounding < 0.1 * slopes
    np.testing.assert_allclose(found[:, 1:], plain[:, 1:], rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("name", "shift"), [(name, (-1) ** i * 1e6) for i, name in enumerate(BOUNDS)]
)
def test_a_constant_shifts_a_bound_and_no_gradient(name, shift, lib, run):
    """Weights of exp(30,000,000) and of nothing: the same draws have the same gradient."""
    check_shift(lib, run, name, shift, np.float64)


@pytest.mark.parametrize("name", ["iwae", "renyi below", "renyi above", "cubo of high order"])
def test_the_same_in_single_precision(name, lib, run):
    """A weight of exp(100) is infinite there."""
    check_shift(lib, run, name, 100.0, np.float32)


MANY, ODDS, WORTH = 30, 1.2, 0.7
"""Particles, logit of the one value that the model has, and its log density."""


def sometimes(lib):
    """A model that has one of two values: half of the weights are zero."""

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        lib.factor("f", lib.xp.where(b > 0.5, WORTH, -math.inf))

    return model, lambda: lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(np.array([ODDS]))[0]))


def bound_of_sometimes(power):
    """`E[log(mean(w ** power))] / power` over the numbers of particles that have a weight; that none has one does not
    happen (probability 1e-19)."""

    def bound(theta):
        q = 1.0 / (1.0 + np.exp(-theta[0]))
        log_w = math.log(0.5) + WORTH - np.log(q)
        return sum(
            math.comb(MANY, n)
            * q**n
            * (1.0 - q) ** (MANY - n)
            * (math.log(n / MANY) / power + log_w)
            for n in range(1, MANY + 1)
        )

    return bound


@pytest.mark.parametrize("estimator", [vi.Score(vi.LeaveOneOut()), vi.MeasureValued()], ids=repr)
@pytest.mark.parametrize("name", ["iwae", "renyi", "cubo"])
def test_weights_that_are_zero(name, estimator, lib, run, request):
    power = {"iwae": 1.0, "renyi": 0.5, "cubo": 2.0}[name]
    objective = {
        "iwae": vi.iwae(num_particles=MANY),
        "renyi": vi.renyi(alpha=0.5, num_particles=MANY),
        "cubo": vi.cubo(order=2.0, num_particles=MANY),
    }[name]
    seed = oracles.seed_of(request.node.name)
    given = {"objective": objective, "estimators": estimator, "num_samples": 400}
    found = run(*sometimes(lib), np.array([ODDS]), num_draws=40, seed=seed, **given)
    bound, theta = bound_of_sometimes(power), np.array([ODDS])
    sign = 1.0 if name == "cubo" else -1.0
    exact = sign * np.concatenate([[bound(theta).real], oracles.gradient(bound, theta)])
    oracles.check_unbiased(found, exact)


def test_that_all_weights_are_zero_is_told(lib, run):
    """Of two particles none has a weight in a quarter of the draws."""

    def model():
        lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        lib.factor("f", lib.array(np.array(-math.inf)))

    _, guide = sometimes(lib)
    given = {"objective": vi.iwae(num_particles=2), "estimators": vi.Score(), "num_draws": 1}
    if lib.name == "pyro":
        with pytest.raises(vi.NotFiniteError, match="'f' is not finite"):
            run(model, guide, np.array([ODDS]), **given)
    else:  # under a transform of JAX a number is all that there is: none that is finite
        assert not np.isfinite(run(model, guide, np.array([ODDS]), **given)).any()


# Probabilities of zero and one


@pytest.mark.parametrize(
    "estimator",
    [vi.Enumerate(), vi.MeasureValued(), vi.WithoutReplacement(4), vi.SumAndSample(3)],
    ids=repr,
)
def test_by_a_probability_of_zero(estimator, lib, run):
    """Its gradient is what its value is worth. Mutant: a world without probability has no gradient."""
    probs, worth = np.array([0.0, 0.2, 0.3, 0.5]), np.array([3.0, 1.0, -2.0, 0.5])

    def model():
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(np.full(4, 0.25))))
        lib.factor("f", lib.array(worth)[z])

    def guide():
        theta = lib.theta(probs)
        lib.sample("z", lib.dist.Categorical(probs=theta / theta.sum()))

    given = {"objective": reward(), "estimators": estimator, "num_samples": 50}
    found = run(model, guide, probs, **given)
    exact = -oracles.gradient(lambda p: p @ (worth + math.log(0.25)) / p.sum(), probs)
    assert abs(exact[0]) > 1.0
    np.testing.assert_allclose(found[:, 1:].mean(axis=0), exact, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_by_the_probability_of_a_bit_that_is_certain(estimator, p, lib, run):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        lib.factor("f", 2.0 * b)

    def guide():
        lib.sample("b", lib.dist.Bernoulli(probs=lib.theta(np.array([p]))[0]))

    found = run(model, guide, np.array([p]), objective=reward(), estimators=estimator)
    exact = [-(2.0 * p + math.log(0.5)), -2.0]
    np.testing.assert_allclose(found, [exact] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "logit"), [(vi.elbo(), -800.0), (vi.iwae(num_particles=3), 800.0)], ids=repr
)
@pytest.mark.parametrize(
    "estimator",
    [vi.Enumerate(), vi.MeasureValued(), vi.DisARM(), vi.Score(vi.LeaveOneOut())],
    ids=repr,
)
def test_by_the_logit_of_a_bit_that_is_certain(estimator, logit, objective, lib, run):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.25))))
        lib.sample("x", lib.dist.Normal(b, 1.0), obs=lib.array(np.array(2.0)))

    def guide():
        lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(np.array([logit]))[0]))

    given = {"objective": objective, "estimators": estimator, "num_samples": 2}
    found = run(model, guide, np.array([logit]), **given)
    b = float(logit > 0)
    exact = math.log(0.25 if b else 0.75) + oracles.log_normal(2.0, b, 1.0)
    np.testing.assert_allclose(found, [[-exact, 0.0]] * 3, atol=1e-6)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_a_value_that_neither_program_has(objective, lib, run):
    """Its log weight is no number, and it does not happen."""
    logits, prior = np.array([-math.inf, 0.2, 0.5]), np.array([0.0, 0.4, 0.6])

    def model():
        z = lib.sample("z", lib.dist.Categorical(probs=lib.array(prior)))
        lib.sample("x", lib.dist.Normal(1.0 * z, 1.0), obs=lib.array(np.array(1.5)))

    def guide():
        lib.sample("z", lib.dist.Categorical(logits=lib.theta(logits), validate_args=False))

    def bound(logits):
        log_q = logits - np.log(np.exp(logits).sum())
        log_w = np.log(prior[1:]) + oracles.log_normal(1.5, np.array([1.0, 2.0]), 1.0) - log_q
        if objective == "elbo":
            return np.exp(log_q) @ log_w
        return oracles.expected_log_mean_exp(log_q, log_w, 2)

    objectives = {"elbo": vi.elbo(), "iwae": vi.iwae(num_particles=2)}
    found = run(model, guide, logits, objective=objectives[objective], estimators=vi.Enumerate())
    exact = -np.concatenate([[bound(logits[1:]).real, 0.0], oracles.gradient(bound, logits[1:])])
    np.testing.assert_allclose(found, [exact] * 3, atol=1e-6)


@pytest.mark.parametrize("observed", [0.0, 1.0])
def test_data_that_were_certain(observed, lib, run):
    """The probability of what is observed is a parameter at its edge: the gradient of log p is 1 / p there."""

    def model():
        theta = lib.theta(np.array([observed]))[0]
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        lib.sample("x", lib.dist.Bernoulli(probs=theta), obs=lib.array(np.array(observed)))
        lib.factor("f", z * 1.0)

    def guide():
        lib.sample("z", lib.dist.Bernoulli(lib.array(np.array(0.5))))

    found = run(model, guide, np.array([observed]), estimators=vi.Enumerate())
    np.testing.assert_allclose(found[:, 0], -0.5, atol=1e-6)


# Plates of no element and of one, one particle, one datum

DATA = np.random.default_rng(0).normal(size=(3, 3))


def in_plates(lib, sizes, data):
    """A bit for each element of nested plates, the left one the outer one; and one outside them."""

    def nested(body):
        def inside(i, plates):
            if i == len(sizes):
                return body()
            with lib.plate(f"plate_{i}", sizes[i], dim=i - len(sizes)):
                return inside(i + 1, plates)

        return inside(0, ())

    def model():
        a = lib.sample("a", lib.dist.Bernoulli(lib.array(np.array(0.3))))

        def body():
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.array(0.4))))
            lib.sample("x", lib.dist.Normal(z + 0.5 * a, 1.0), obs=data)

        nested(body)

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("a", lib.dist.Bernoulli(logits=theta[0]))
        nested(lambda: lib.sample("z", lib.dist.Bernoulli(logits=theta[1])))

    return model, guide


def elbo_in_plates(data):
    """In closed form."""

    def bound(theta):
        total = 0.0
        for a in (0, 1):
            log_a = oracles.log_bernoulli(theta[0], a)
            inner = math.log(0.3 if a else 0.7) - log_a
            for x in data.ravel():
                for z in (0, 1):
                    log_z = oracles.log_bernoulli(theta[1], z)
                    log_w = math.log(0.4 if z else 0.6) - log_z
                    inner += np.exp(log_z) * (log_w + oracles.log_normal(x, z + 0.5 * a, 1.0))
            total += np.exp(log_a) * inner
        return total

    return bound


def by_value(bound):
    return np.concatenate([[bound(VALUES).real], oracles.gradient(bound, VALUES)])


SIZES = [(1,), (1, 3), (3, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_plates_enumerated(sizes, lib, run):
    data = DATA[tuple(slice(n) for n in sizes)] if len(sizes) == 2 else DATA[0, : sizes[0]]
    assert data.shape == sizes
    programs = in_plates(lib, sizes, lib.array(data))
    found = run(*programs, VALUES, estimators=vi.Enumerate())
    np.testing.assert_allclose(found, [-by_value(elbo_in_plates(data))] * 3, atol=1e-9)


@pytest.mark.parametrize("sizes", [(0,), (3, 0)], ids=str)
def test_empty_plates_are_refused_in_the_words_of_the_library(sizes, lib, run):
    refused = {
        "pyro": (ZeroDivisionError, "size cannot be zero"),
        "numpyro": (AssertionError, "size of plate should be positive"),
    }
    error, text = refused[lib.name]
    with pytest.raises(error, match=text):
        run(*in_plates(lib, sizes, lib.array(np.zeros(sizes))), VALUES, estimators=vi.Enumerate())


@pytest.mark.parametrize(
    ("objective", "estimator"),
    [(vi.elbo(), vi.Enumerate()), (vi.iwae(num_particles=2), vi.Enumerate())],
    ids=["elbo", "iwae"],
)
def test_plates_of_which_nothing_is_seen(objective, estimator, lib, run):
    """What stands for an empty plate: all is masked, latent sites too, and only the other site is left."""
    nothing = lib.array(np.zeros(3, dtype=bool))

    def model():
        a = lib.sample("a", lib.dist.Bernoulli(lib.array(np.array(0.3))))
        with lib.plate("rows", 3), lib.handlers.mask(mask=nothing):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.array(0.4))))
            likelihood = lib.dist.Normal(z + 0.5 * a, 1.0, validate_args=False)
            lib.sample("x", likelihood, obs=lib.array(np.full(3, math.nan)))

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("a", lib.dist.Bernoulli(logits=theta[0]))
        with lib.plate("rows", 3), lib.handlers.mask(mask=nothing):
            lib.sample("z", lib.dist.Bernoulli(logits=theta[1]))

    def bound(theta):
        log_q = np.array([oracles.log_bernoulli(theta[0], a) for a in (0, 1)])
        return oracles.expected_bound(log_q, np.log([0.7, 0.3]) - log_q, particles)

    particles = 1 if objective == vi.elbo() else 2
    found = run(model, guide, VALUES, objective=objective, estimators=estimator)
    np.testing.assert_allclose(found, [-by_value(bound)] * 3, atol=1e-9)


@pytest.mark.parametrize(("sizes", "particles"), [((1, 3), 2), ((3, 1), 2), ((1,), 1)], ids=str)
@pytest.mark.parametrize(
    "estimator", [vi.Score(vi.LeaveOneOut()), vi.MeasureValued(), vi.DisARM()], ids=repr
)
def test_plates_in_a_bound(estimator, particles, sizes, lib, run, request):
    data = DATA[tuple(slice(n) for n in sizes)] if len(sizes) == 2 else DATA[0, : sizes[0]]

    def bound(theta):
        q_a, q_z = (np.array([oracles.log_bernoulli(t, v) for v in (0, 1)]) for t in theta)
        prior_a, prior_z = np.log([0.7, 0.3]), np.log([0.6, 0.4])
        num = data.size
        joint = np.indices((2,) * (1 + num)).reshape(1 + num, -1)
        log_q = sum((q_z[v] for v in joint[1:]), q_a[joint[0]])
        log_p = sum((prior_z[v] for v in joint[1:]), prior_a[joint[0]])
        for x, z in zip(data.ravel(), joint[1:], strict=True):
            log_p = log_p + oracles.log_normal(x, z + 0.5 * joint[0], 1.0)
        return oracles.expected_bound(log_q, log_p - log_q, particles)

    seed = oracles.seed_of(request.node.name)
    found = run(
        *in_plates(lib, sizes, lib.array(data)),
        VALUES,
        objective=vi.iwae(num_particles=particles),
        estimators=estimator,
        num_samples=300,
        num_draws=30,
        seed=seed,
    )
    oracles.check_unbiased(found, -by_value(bound))


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score()], ids=repr)
@pytest.mark.parametrize("name", ["iwae", "renyi", "cubo", "thermodynamic", "miwae", "piwae"])
def test_one_particle_is_the_elbo(name, estimator, lib, run, request):
    objective = {
        "iwae": vi.iwae(num_particles=1),
        "renyi": vi.renyi(alpha=-2.0, num_particles=1),
        "cubo": vi.cubo(order=3.0, num_particles=1),
        "thermodynamic": vi.thermodynamic(num_particles=1),
        "miwae": vi.miwae(num_outer=1, num_inner=1),
        "piwae": vi.piwae(num_outer=1, num_inner=1),
    }[name]
    exact = by_value(elbo_in_plates(DATA[0, :1])) * (1.0 if name == "cubo" else -1.0)
    programs = in_plates(lib, (1,), lib.array(DATA[0, :1]))
    given = {"objective": objective, "estimators": estimator}
    if estimator == vi.Enumerate():
        np.testing.assert_allclose(run(*programs, VALUES, **given), [exact] * 3, atol=1e-9)
        return
    seed = oracles.seed_of(request.node.name)
    found = run(*programs, VALUES, num_samples=300, num_draws=30, seed=seed, **given)
    oracles.check_unbiased(found, exact)


def test_one_particle_has_no_variance(lib):
    with pytest.raises(vi.ObjectiveError, match="num_particles"):
        lib.Loss(vi.log_variance(num_particles=1)).explain(*shifted(lib, 0.0))


# Data

ROWS = np.array([0.3, -0.8, 1.7, 0.2])
SEEN = np.array([True, False, True, False])


def masked(lib, how, rows):
    """Rows of which some are not seen."""
    rows, seen = lib.array(rows), lib.array(SEEN)

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(np.array(0.0)), 1.0))
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        if how == "inside an event":
            each = normal((z + b)[..., None], z[..., None] + lib.array(np.zeros(len(ROWS))))
            lib.sample("x", each.mask(seen).to_event(1), obs=rows)
            return
        with lib.plate("rows", len(ROWS)):
            if how == "distribution":
                lib.sample("x", normal(z + b, z).mask(seen), obs=rows)
                return
            with lib.handlers.mask(mask=seen):
                if how == "handler":
                    lib.sample("x", normal(z + b, z), obs=rows)
                else:
                    two = lib.xp.stack([rows, rows + 1.0], -1)
                    locs = (z + b)[..., None] + lib.array(np.array([0.0, 1.0]))
                    lib.sample("x", normal(locs, z[..., None]).to_event(1), obs=two)

    def normal(loc, z):
        return lib.dist.Normal(loc, lib.xp.exp(0.1 * z), validate_args=False)

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return model, guide


@pytest.mark.parametrize("how", ["handler", "distribution", "event", "inside an event"])
@pytest.mark.parametrize(
    ("objective", "estimator"),
    [(vi.elbo(), vi.Score()), (vi.iwae(num_particles=2), vi.Enumerate())],
    ids=["elbo", "iwae"],
)
def test_masked_data_that_are_no_numbers(objective, estimator, how, lib, run):
    """The same draws have the same numbers as with any other data there."""
    given = {"objective": objective, "estimators": {"b": estimator}}
    other = np.where(SEEN, ROWS, 7.0)
    exact = run(*masked(lib, how, other), VALUES, **given)
    assert np.isfinite(exact).all() and np.abs(exact[:, 1:]).min() > 1e-6
    for spoilt in (math.nan, math.inf):
        found = run(*masked(lib, how, np.where(SEEN, ROWS, spoilt)), VALUES, **given)
        np.testing.assert_array_equal(found, exact)


SUPPORTS = {
    "Gamma": ([0.3, -1.0, 1.7, -2.0], 1.0),
    "Poisson": ([1.0, math.nan, 3.0, -1.0], 1.0),
    "Dirichlet": ([[0.2, 0.8], [math.nan, 0.5], [0.6, 0.4], [-1.0, 2.0]], 0.5),
}
"""Rows of which those that are not seen are no values, and what they might be."""


@pytest.mark.parametrize("name", SUPPORTS)
def test_masked_data_that_are_no_values(name, lib, run):
    """Of a support that is not all numbers."""
    given, other = SUPPORTS[name]
    spoilt = np.array(given)
    seen = SEEN.reshape(-1, *(1,) * (spoilt.ndim - 1))

    def programs(rows):
        rows, mask = lib.array(rows), lib.array(SEEN)

        def model():
            z = lib.sample("z", lib.dist.Normal(lib.array(np.array(0.0)), 1.0))
            with lib.plate("rows", len(SEEN)), lib.handlers.mask(mask=mask):
                rate = lib.xp.exp(0.3 * z)
                ones = lib.array(np.ones(2))
                likelihood = {
                    "Gamma": lambda: lib.dist.Gamma(rate, 2.0, validate_args=False),
                    "Poisson": lambda: lib.dist.Poisson(rate, validate_args=False),
                    "Dirichlet": lambda: lib.dist.Dirichlet(
                        rate[..., None] * ones, validate_args=False
                    ),
                }
                lib.sample("x", likelihood[name](), obs=rows)

        def guide():
            theta = lib.theta(VALUES)
            lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

        return model, guide

    exact = run(*programs(np.where(seen, spoilt, other)), VALUES)
    assert np.isfinite(exact).all() and np.abs(exact[:, 1:]).min() > 1e-6
    np.testing.assert_array_equal(run(*programs(spoilt), VALUES), exact)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)])
def test_data_of_low_precision(objective, dtype, lib, run):
    """They are numbers like others: half precision has no sum of squares above 65504."""
    rows = np.linspace(-30.0, 30.0, 200).astype(dtype)

    def programs(rows):
        def model():
            z = lib.sample("z", lib.dist.Normal(lib.array(np.array(0.0)), 1.0))
            with lib.plate("rows", len(rows)):
                lib.sample("x", lib.dist.Normal(z, 0.5), obs=rows)

        def guide():
            lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 0.5))

        return model, guide

    exact = run(*programs(lib.array(rows.astype(np.float64))), VALUES, objective=objective)
    found = run(*programs(lib.array(rows)), VALUES, objective=objective)
    np.testing.assert_allclose(found, exact, rtol=1e-9)
