"""Every objective of the library with every estimator, against its expected value by enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import Renamed, in_turn
from tests.statistical_cases import (
    ConjugateNormal,
    LocalBernoulli,
    TwoNormals,
    expectation,
    log_mean_exp,
    variance,
)
from vi_kit import generators

DISCRETE = {
    "score": vi.Score(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "enumerate": vi.Enumerate(),
    "local": vi.Enumerate(max_worlds=2),
    "measure": vi.MeasureValued(),
}
CONTINUOUS = {
    "reparam": vi.Reparam(),
    "doubly": vi.DoublyReparam(),
    "score": vi.Score(),
    "measure": vi.MeasureValued(),
}


def power(alpha):
    return lambda w: log_mean_exp((1 - alpha) * w) / (1 - alpha)


def largest(w):
    return np.take_along_axis(w, w.real.argmax(axis=0)[None], axis=0)[0]


def softmax(w):
    return np.exp(w - log_mean_exp(w)) / len(w)


def riemann_sum(w):
    points = ((0.0, 0.1), (0.1, 0.4), (0.5, 0.5))
    return sum(width * (softmax(beta * w) * w).sum(axis=0) for beta, width in points)


def divergence_of(f):
    return lambda w: f(np.exp(w - log_mean_exp(w))).mean(axis=0)


def absolute(x):
    return np.where(x.real > 0, x, -x)


GENERATORS = {
    "forward_kl": (generators.forward_kl, lambda u: u * np.log(u)),
    "reverse_kl": (generators.reverse_kl, lambda u: -np.log(u)),
    "jensen_shannon": (
        generators.jensen_shannon,
        lambda u: (u * np.log(u) - (u + 1) * np.log((u + 1) / 2)) / 2,
    ),
    "squared_hellinger": (generators.squared_hellinger, lambda u: u - 2 * u**0.5 + 1),
    "pearson": (generators.pearson, lambda u: u**2 - 2 * u + 1),
    "neyman": (generators.neyman, lambda u: u - 2 + 1 / u),
    "total_variation": (generators.total_variation, lambda u: absolute(u - 1) / 2),
    "alpha": (generators.alpha(0.5), lambda u: 2 * (u + 1) - 4 * u**0.5),
    "tsallis": (generators.tsallis(1.5), lambda u: 2 * (u**1.5 - u)),
}
OF_WEIGHTS = {
    "renyi_negative": (vi.renyi(alpha=-1.0, num_particles=2), 2, power(-1.0)),
    "renyi_zero": (vi.renyi(alpha=0.0, num_particles=2), 2, log_mean_exp),
    "renyi_half": (vi.renyi(alpha=0.5, num_particles=3), 3, power(0.5)),
    "renyi_one": (vi.renyi(alpha=1.0, num_particles=2), 2, lambda w: w.mean(axis=0)),
    "renyi_two": (vi.renyi(alpha=2.0, num_particles=2), 2, power(2.0)),
    "vr_max": (vi.renyi(alpha=-math.inf, num_particles=2), 2, largest),
    "cubo": (vi.cubo(order=2.0, num_particles=2), 2, power(-1.0)),
    "ciwae": (
        vi.ciwae(num_particles=2, beta=0.3),
        2,
        lambda w: 0.3 * w.mean(axis=0) + 0.7 * log_mean_exp(w),
    ),
    "thermodynamic": (
        vi.thermodynamic(num_particles=2, partition=(0.0, 0.1, 0.5)),
        2,
        riemann_sum,
    ),
    **{
        f"f_{name}": (vi.f_divergence(generator=generator, num_particles=2), 2, divergence_of(f))
        for name, (generator, f) in GENERATORS.items()
    },
}


def sign(objective):
    return -1.0 if objective.maximised else 1.0


def gradient_of_loss(case, objective, num_copies, fn, *, fixed=None):
    """By enumeration; `fixed` are the parameters of the draws, if they are held."""

    def value(theta):
        return sum(
            expectation(at[0], num_copies, fn, own[1])
            for at, own in zip(
                case.tables(theta if fixed is None else fixed), case.tables(theta), strict=True
            )
        )

    return sign(objective) * oracles.gradient(value, case.values)


@pytest.mark.parametrize(
    ("lib", "name", "estimator"), in_turn(OF_WEIGHTS, DISCRETE), indirect=["lib"]
)
def test_bernoulli_sites_in_a_plate(name, estimator, lib, request):
    objective, num_copies, fn = OF_WEIGHTS[name]
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, gradient_of_loss(LocalBernoulli, objective, num_copies, fn))


SMOOTH = ("renyi_half", "renyi_two", "cubo", "ciwae", "thermodynamic", "f_squared_hellinger")


@pytest.mark.parametrize("estimator", CONTINUOUS)
@pytest.mark.parametrize("name", [n for n in SMOOTH if OF_WEIGHTS[n][1] == 2])
def test_normal_site(name, estimator, lib, request):
    objective, num_copies, fn = OF_WEIGHTS[name]
    loss = lib.Loss(objective, CONTINUOUS[estimator], num_samples=1000)
    draws = ConjugateNormal(lib).gradients(loss, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, gradient_of_loss(ConjugateNormal, objective, num_copies, fn))


@pytest.mark.parametrize("name", ["renyi_zero", "ciwae"])
def test_double_reparameterisation_of_two_sites(name, lib, request):
    objective, num_copies, fn = OF_WEIGHTS[name]
    loss = lib.Loss(objective, vi.DoublyReparam(), num_samples=1000)
    draws = TwoNormals(lib).gradients(loss, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, gradient_of_loss(TwoNormals, objective, num_copies, fn))


OF_LOG_DENSITIES = {
    "log_variance": (vi.log_variance(num_particles=3), 3, lambda w: variance(w) / 2),
    "trajectory_balance": (
        vi.trajectory_balance(num_particles=2),
        2,
        lambda w: (w * w).mean(axis=0) / 2,
    ),
}


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("name", OF_LOG_DENSITIES)
def test_draws_are_held(name, estimator, lib, request):
    objective, num_copies, fn = OF_LOG_DENSITIES[name]
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    case = LocalBernoulli
    exact = gradient_of_loss(case, objective, num_copies, fn, fixed=case.values)
    oracles.check_unbiased(draws, exact)


def test_log_variance_has_the_gradient_of_the_kl_divergence():
    case, objective = LocalBernoulli, vi.log_variance(num_particles=2)
    exact = gradient_of_loss(case, objective, 2, lambda w: variance(w) / 2, fixed=case.values)
    elbo = gradient_of_loss(case, vi.elbo(), 1, lambda w: w[0])
    np.testing.assert_allclose(exact[:3], elbo[:3], rtol=1e-9)


@pytest.mark.parametrize("name", OF_LOG_DENSITIES)
def test_draws_of_a_reference(name, lib, request):
    given, num_copies, fn = OF_LOG_DENSITIES[name]
    case = LocalBernoulli(lib)
    elsewhere = np.concatenate([[0.1, 0.5, -0.8], case.values[3:]])

    def reference():
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.array(elsewhere[:3])))

    settings = {**dict(given.settings), "reference": reference}
    objective = getattr(vi, name)(**settings)
    draws = case.gradients(
        lib.Loss(objective, vi.Score(), num_samples=1000), 50, oracles.seed_of(request.node.name)
    )
    exact = gradient_of_loss(LocalBernoulli, objective, num_copies, fn, fixed=elsewhere)
    oracles.check_unbiased(draws, exact)


def test_a_reference_that_lacks_a_site(lib):
    objective = vi.log_variance(num_particles=2, reference=lambda: None)
    with pytest.raises(vi.ObjectiveError, match="site 'z' is not in the draw"):
        LocalBernoulli(lib).gradients(lib.Loss(objective), 1, 0)


class Normalised(LocalBernoulli):
    """Prior against guide, nothing observed."""

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate():
            lib.sample("z", lib.dist.Bernoulli(logits=theta[3]))

    @classmethod
    def tables(cls, theta):
        z = np.array([0.0, 1.0])
        log_qs = [oracles.log_bernoulli(logit, z) for logit in theta[:3]]
        return [(log_q, oracles.log_bernoulli(theta[3], z) - log_q) for log_q in log_qs]


@pytest.mark.parametrize("estimator", DISCRETE)
@pytest.mark.parametrize("generator", ["forward_kl", "jensen_shannon", "total_variation"])
def test_between_normalised_programs(generator, estimator, lib, request):
    ours, f = GENERATORS[generator]
    objective = vi.f_divergence(generator=ours, num_particles=1, normalized=True)
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=1000)
    draws = Normalised(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    exact = gradient_of_loss(Normalised, objective, 1, lambda w: f(np.exp(w)).mean(axis=0))
    oracles.check_unbiased(draws, exact)


def two_gradients(lib, loss, num_draws, seed):
    """By the model's parameters, then by the guide's."""
    model = LocalBernoulli(Renamed(lib, "of_model")).model
    guide = LocalBernoulli(Renamed(lib, "of_guide")).guide
    names = ("of_model", "of_guide")
    return lib.gradients(loss, model, guide, LocalBernoulli.values, num_draws, seed, names)


def own(of_model, of_guide):
    """Of the model the last two parameters are its own, of the guide the first three."""
    is_guide = np.arange(5) < 3
    return np.concatenate([np.where(is_guide, 0.0, of_model), np.where(is_guide, of_guide, 0.0)])


@pytest.mark.parametrize("estimator", DISCRETE)
def test_piwae(estimator, lib, request):
    objective = vi.piwae(num_outer=2, num_inner=2)
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=500)
    draws = two_gradients(lib, loss, 60, oracles.seed_of(request.node.name))
    of_model, of_guide = (
        gradient_of_loss(LocalBernoulli, objective, k, log_mean_exp) for k in (4, 2)
    )
    oracles.check_unbiased(draws, own(of_model, of_guide))


def gradient_of_held_weights(case, num_copies):
    """Of minus the guide's log density by the weights of `num_copies` draws, both of which are held."""
    fixed = case.values

    def weighted_density(theta):
        return sum(
            expectation(log_q, num_copies, lambda w, q: (softmax(w) * q).sum(axis=0), log_w, at[0])
            for (log_q, log_w), at in zip(case.tables(fixed), case.tables(theta), strict=True)
        )

    return -oracles.gradient(weighted_density, fixed)


@pytest.mark.parametrize("estimator", DISCRETE)
def test_wake_sleep(estimator, lib, request):
    objective = vi.wake_sleep(num_particles=2)
    loss = lib.Loss(objective, DISCRETE[estimator], num_samples=1000)
    draws = two_gradients(lib, loss, 60, oracles.seed_of(request.node.name))
    of_model = gradient_of_loss(LocalBernoulli, objective, 2, log_mean_exp)
    of_guide = gradient_of_held_weights(LocalBernoulli, 2)
    oracles.check_unbiased(draws, own(of_model, of_guide))


def weighted_mean(w):
    return (softmax(w) * w).sum(axis=0)


def of_tables(case, num_copies, fn):
    return sum(expectation(log_q, num_copies, fn, w) for log_q, w in case.tables(case.values))


@pytest.mark.parametrize("num_particles", [2, 3])
def test_value_and_gradients_of_eubo(num_particles, lib, request):
    """Of model and guide with parameters of their own: the model's have none."""
    case = LocalBernoulli
    loss = lib.Loss(vi.eubo(num_particles=num_particles), vi.Score(), num_samples=1000)
    model, guide = (case(Renamed(lib, name)) for name in ("of_model", "of_guide"))
    seed, names = oracles.seed_of(request.node.name), ("of_model", "of_guide")
    draws = lib.estimates(loss, model.model, guide.guide, case.values, 50, seed, names)
    assert not draws[:, 1:6].any()
    bound = of_tables(case, num_particles, weighted_mean)
    of_guide = gradient_of_held_weights(case, num_particles)
    oracles.check_unbiased(np.delete(draws, range(1, 6), 1), np.array([bound, *of_guide]))


@pytest.mark.parametrize("estimator", DISCRETE)
def test_eubo_of_bernoulli_sites(estimator, lib, request):
    loss = lib.Loss(vi.eubo(num_particles=3), DISCRETE[estimator], num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, gradient_of_held_weights(LocalBernoulli, 3))


@pytest.mark.parametrize("estimator", CONTINUOUS)
def test_eubo_has_the_gradient_of_the_wake_phase(estimator, lib):
    """Draw by draw, at a continuous site."""
    programs = [ConjugateNormal(Renamed(lib, name)) for name in ("of_model", "of_guide")]
    of_guide = []
    for objective in (vi.eubo(num_particles=3), vi.wake_sleep(num_particles=3)):
        loss = lib.Loss(objective, CONTINUOUS[estimator])
        model, guide = programs[0].model, programs[1].guide
        names = ("of_model", "of_guide")
        draws = lib.estimates(loss, model, guide, ConjugateNormal.values, 5, 0, names)
        of_guide.append(draws[:, 1 + len(ConjugateNormal.values) :])
    assert of_guide[0].any()
    np.testing.assert_allclose(*of_guide, rtol=1e-5, atol=1e-7)


def test_eubo_and_iwae_bracket_the_log_evidence(lib, request):
    case, seed = LocalBernoulli(lib), oracles.seed_of(request.node.name)
    tables = case.tables(case.values)
    evidence = [np.exp(log_q + w).sum() for log_q, w in tables]
    exact = sum((np.exp(q + w) * w).sum() / z for (q, w), z in zip(tables, evidence, strict=True))

    def value(objective):
        loss = lib.Loss(objective, vi.Score(), num_samples=100)
        draws = lib.estimates(loss, case.model, case.guide, case.values, 10, seed)[:, 0]
        return sign(objective) * draws.mean(), draws.std(ddof=1) / len(draws) ** 0.5

    lower, of_lower = value(vi.iwae(num_particles=200))
    upper, of_upper = value(vi.eubo(num_particles=200))
    assert lower - 5 * of_lower <= np.log(evidence).sum() < upper - 5 * of_upper
    assert abs(upper - exact) <= 5 * of_upper + 0.02  # consistent only


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: vi.ciwae(num_particles=2, beta=1.5), r"ciwae: beta is out of range"),
        (lambda: vi.cubo(num_particles=2, order=0.5), r"cubo: order is out of range"),
        (lambda: vi.renyi(alpha=math.nan, num_particles=2), r"renyi: alpha is out of range"),
        (lambda: vi.renyi(alpha="1", num_particles=2), r"expected: alpha in \[-inf, inf\]"),
        (lambda: vi.Generator("f", lambda u: -((u - 1) ** 2)), r"generator 'f' is not convex"),
        (lambda: vi.Generator("f", lambda u: u), r"generator 'f' is 1 at 1"),
        (lambda: vi.log_variance(num_particles=0), r"num_particles >= 1"),
        (lambda: vi.eubo(num_particles=1), r"eubo: num_particles is out of range"),
    ],
)
def test_settings_out_of_range(make, text):
    with pytest.raises(vi.ObjectiveError, match=text):
        make()
