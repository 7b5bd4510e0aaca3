"""Every objective and estimator through `marginal` and `normalize`, against exact gradients."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.conformance.estimated import SIZE, Filtered, Hierarchical, Posterior, Resampled
from tests.conformance.families import FAMILIES
from tests.conformance.test_shapes import ESTIMATORS, SHAPES, SUBSAMPLED
from tests.libraries import LIBRARIES, Renamed
from tests.statistical.test_objectives import (
    GENERATORS,
    OF_WEIGHTS,
    Normalised,
    sign,
    softmax,
)
from tests.statistical_cases import expectation, log_mean_exp, variance
from vi_kit.costs.cost import Cost
from vi_kit.language import marginal, normalize, replicates

wake_sleep = importlib.import_module("vi_kit.objectives.wake_sleep")  # hidden by the objective
WRAPPERS = {"marginal": Hierarchical, "normalize": Posterior}
PROGRAMS = {**WRAPPERS, "filter": Filtered}
PRIORS = {
    name: type(f"{case.__name__}Prior", (case, Normalised), {}) for name, case in PROGRAMS.items()
}
SQUARED = vi.generators.squared_hellinger


def reward(values, *args):
    return 1.5 * values["z"]


@dataclass(frozen=True)
class OfWeights:
    """The mean of a function of the log weights of several draws, as they were drawn."""

    objective: vi.Objective
    num_copies: int
    fn: Any

    def exact(self, case):
        def value(theta):
            return sum(
                expectation(mass, self.num_copies, self.fn, log_p - log_q)
                for mass, _, log_p, log_q in case.drawn(theta)
            )

        return sign(self.objective) * oracles.gradient(value, case.values)


@dataclass(frozen=True)
class AtHeldDraws(OfWeights):
    """The same with draws that are held, at which the guide's density is estimated anew."""

    def exact(self, case):
        def value(theta):
            held, now, anew = case.drawn(case.values), case.drawn(theta), case.anew(theta)
            total = 0.0
            for (mass, z, *_), (*_, log_p, _), (log_m, log_q) in zip(held, now, anew, strict=True):
                w = log_p[:, None] - log_q[z]
                joint = (mass[:, None] + log_m[z]).ravel()
                total += expectation(joint, self.num_copies, self.fn, w.ravel())
            return total

        return sign(self.objective) * oracles.gradient(value, case.values)


@dataclass(frozen=True)
class Rewarded(OfWeights):
    """`expected_reward`, whose model is held."""

    def exact(self, case):
        held = [log_p for *_, log_p, _ in case.drawn(case.values)]

        def value(theta):
            total = 0.0
            for log_p, (mass, z, _, log_q) in zip(held, case.drawn(theta), strict=True):
                ratio = log_p - log_q
                total += (np.exp(mass) * (1.5 * z + ratio - np.expm1(ratio))).sum()
            return total

        return -oracles.gradient(value, case.values)


SINGLE = {"score": vi.Score(), "loo": vi.Score(vi.LeaveOneOut()), "default": None}
INSIDE = {
    "marginal": {
        **{name: ESTIMATORS[name] for name in ("enumerate", "measure", "disarm", "average")},
        **SINGLE,
    },
    "normalize": {**SINGLE, "average": ESTIMATORS["average"]},
    "filter": SINGLE,
}
OBJECTIVES = {
    "elbo": OfWeights(vi.elbo(), 1, lambda w: w[0]),
    "iwae": OfWeights(vi.iwae(num_particles=2), 2, log_mean_exp),
    "miwae": OfWeights(vi.miwae(num_outer=2, num_inner=2), 2, log_mean_exp),
    **{
        name: OfWeights(*OF_WEIGHTS[name])
        for name in ("renyi_half", "vr_max", "cubo", "ciwae", "thermodynamic", "f_jensen_shannon")
    },
    "f_normalised": OfWeights(
        vi.f_divergence(generator=SQUARED, num_particles=2, normalized=True),
        1,
        lambda w: GENERATORS["squared_hellinger"][1](np.exp(w[0])),
    ),
    "expected_reward": Rewarded(vi.expected_reward(reward=reward, normalized=False), 1, None),
    "log_variance": AtHeldDraws(vi.log_variance(num_particles=2), 2, lambda w: variance(w) / 2),
    "trajectory_balance": AtHeldDraws(vi.trajectory_balance(), 1, lambda w: w[0] ** 2 / 2),
}
OF_PRIORS = ("f_normalised", "expected_reward")


def in_turn():
    """Each objective through each wrapper, with estimators and libraries in turn."""
    for i, (name, objective) in enumerate(OBJECTIVES.items()):
        for j, wrapper in zip((i, i + 1, i // 2), [*WRAPPERS, *["filter"] * (i % 2)], strict=False):
            allowed = SINGLE if isinstance(objective, AtHeldDraws) else INSIDE[wrapper]
            estimator = list(allowed)[i % len(allowed)]
            yield list(LIBRARIES)[j % 2], wrapper, name, estimator


CASES = {"-".join(case): case for case in in_turn()}


@pytest.mark.parametrize("name", CASES)
def test_estimator_is_unbiased(name):
    lib, wrapper, objective, estimator = CASES[name]
    case = (PRIORS if objective in OF_PRIORS else PROGRAMS)[wrapper](LIBRARIES[lib]())
    chosen = INSIDE[wrapper][estimator]
    loss = case.lib.Loss(OBJECTIVES[objective].objective, chosen, num_samples=1000)
    seed = oracles.seed_of(name)
    draws = case.lib.gradients(loss, case.model, case.program(case.model), case.values, 30, seed)
    oracles.check_unbiased(draws, OBJECTIVES[objective].exact(type(case)))


PHASES = {
    "wake_sleep": vi.wake_sleep(num_particles=2),
    "multi_trace": vi.multi_trace(num_particles=2),
    "eubo": vi.eubo(num_particles=2),
}


def of_phases(case, name):
    """The value, and the gradients of the loss by the parameters of the model and of the guide.

    Weights are those of the draws as they were drawn, log q is estimated anew at them.
    """
    drawn = list(case.drawn(case.values))
    own = [(mass, z, log_p - log_q) for mass, z, log_p, log_q in drawn]
    of_guide = own
    if name == "multi_trace":  # draws from the prior, weighted by the likelihood
        z, theta = np.arange(2), case.values
        prior = oracles.log_bernoulli(theta[3], z)
        of_guide = [(prior, z, oracles.log_normal(x, theta[4] * z, 0.8)) for x in case.x]

    def log_q(theta):
        total = 0.0
        for (mass, z, log_w), (log_m, log_q) in zip(of_guide, case.anew(theta), strict=True):
            log_q = (np.exp(log_m) * log_q).sum(-1)[z]
            total += expectation(mass, 2, lambda w, q: (softmax(w) * q).sum(0), log_w, log_q)
        return total

    guide = -oracles.gradient(log_q, case.values)
    is_model = np.isin(np.arange(len(guide)), (3, 4))
    if name == "eubo":
        log_p = sum(
            expectation(mass, 2, lambda w, p: (softmax(w) * p).sum(0), log_w, log_p)
            for (mass, _, log_w), (_, _, log_p, _) in zip(own, drawn, strict=True)
        )
        value = log_p - log_q(case.values)  # a posterior's model is part of the guide
        return value, np.where(is_model, guide, 0.0), np.where(is_model, 0.0, guide)
    value = -sum(expectation(mass, 2, log_mean_exp, w) for mass, _, w in own)
    model = OBJECTIVES["iwae"].exact(case)
    return value, np.where(is_model, model, 0.0), np.where(is_model, 0.0, guide)


def draws_of_phases(lib, wrapper, name, num_draws):
    """Estimates, and what they are to be."""
    names = ("of_model", "of_guide")
    model, guide = (WRAPPERS[wrapper](Renamed(lib, n)) for n in names)
    loss = lib.Loss(PHASES[name], vi.Score(), num_samples=1000)
    program, seed = guide.program(model.model), oracles.seed_of(f"{wrapper}-{name}")
    draws = lib.estimates(loss, model.model, program, guide.values, num_draws, seed, names)
    value, of_model, of_guide = of_phases(WRAPPERS[wrapper], name)
    return draws, np.array([value, *of_model, *of_guide])


def alternating(cases):
    """With a library each, in turn."""
    return [(lib, *case) for lib, case in zip(itertools.cycle(LIBRARIES), cases, strict=False)]


@pytest.mark.parametrize(
    ("lib", "name", "wrapper"),
    [*alternating(itertools.product(PHASES, WRAPPERS)), ("numpyro", "wake_sleep", "marginal")],
)
def test_phases_of_wake_and_sleep(lib, name, wrapper):
    """The value is the bound, though log q at draws that are held is no estimate of its reciprocal."""
    draws, exact = draws_of_phases(LIBRARIES[lib](), wrapper, name, 30)
    oracles.check_unbiased(draws, exact)


SITES = [("bernoulli", "loo"), ("normal", "reparam"), ("normal", "loo")]
RESAMPLED = ("scalar", "nested", "vector", "masked", "scaled", "subsampled", "hierarchy")
SHAPE_CASES = {
    "-".join(case): case
    for case in alternating(
        (shape, *site) for shape, site in zip(RESAMPLED, itertools.cycle(SITES), strict=False)
    )
}


@pytest.mark.parametrize("name", SHAPE_CASES)
def test_posterior_of_each_shape(name):
    lib, shape, family, estimator = SHAPE_CASES[name]
    lib = LIBRARIES[lib]()
    num_draws = 120 if shape in SUBSAMPLED else 40
    loss = lib.Loss(vi.elbo(), ESTIMATORS[estimator], num_samples=500)
    Resampled(SHAPES[shape](FAMILIES[family])).check(lib, loss, 1, num_draws, oracles.seed_of(name))


class Nested(Hierarchical):
    """Resampled draws of a marginal guide, whose proposal is the marginal of a program with a site of its own."""

    def proposal(self, kept):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate():
            v = lib.sample("v", lib.dist.Bernoulli(logits=theta[7] * kept["z"]))
            lib.sample("u", lib.dist.Bernoulli(logits=theta[7] * v - 0.3))

    @staticmethod
    def log_proposal(theta, z, u):
        v = [(oracles.log_bernoulli(theta[7] * z, v), theta[7] * v - 0.3) for v in (0, 1)]
        return oracles.log_add_exp(*(m + oracles.log_bernoulli(logit, u) for m, logit in v))

    def program(self, model):
        proposal = vi.marginal(self.proposal, ["u"], vi.Exact())
        guide = vi.marginal(self.guide, ["z"], vi.ImportanceSampling(SIZE, proposal))
        return vi.normalize(model, vi.SIR(guide, 2))


def test_three_deep(lib, request):
    objective = vi.elbo()
    exact = OfWeights(objective, 2, log_mean_exp).exact(Nested)
    case, loss = Nested(lib), lib.Loss(objective, num_samples=1000)
    draws = lib.gradients(
        loss,
        case.model,
        case.program(case.model),
        case.values,
        40,
        oracles.seed_of(request.node.name),
    )
    oracles.check_unbiased(draws, exact)


# Mistakes


def own_particle_left_out(patch):
    for module in (marginal, normalize):
        patch.setattr(module, "with_others", lambda n: lambda own, others: others + 0.0 * own)


def sum_with_others(patch):
    """1/K is missing where one particle is what the program itself has drawn."""
    mean = marginal.with_others
    for module in (marginal, normalize):
        patch.setattr(
            module, "with_others", lambda n: lambda own, others: mean(n)(own, others) + math.log(n)
        )


def sum_of_replicates(patch):
    """1/K is missing elsewhere."""
    mean = replicates.log_mean_exp
    patch.setattr(replicates, "log_mean_exp", lambda x: mean(x) + math.log(x.shape[0]))


def proposal_left_out(patch):
    def weight(self, program, kept, names=None):
        rest = marginal.draw_of(self._given(program, kept))
        return marginal.log_density_of(program, kept.joined(rest))

    patch.setattr(vi.ImportanceSampling, "_weight", weight)


def proposal_left_out_of_own(patch):
    density = marginal.log_density_of

    def log_density_of(program, draw):
        of_proposal = program.role.endswith("proposal")
        return 0.0 * density(program, draw) if of_proposal else density(program, draw)

    patch.setattr(marginal, "log_density_of", log_density_of)


def plain_for_reciprocal(patch):
    patch.setattr(
        vi.ImportanceSampling, "drawn", lambda self, program, draw, kept: self.at(program, kept)
    )


def reciprocal_for_plain(patch):
    def at(self, program, draw):
        return -marginal.iid(
            lambda: -self._weight(program, draw), self.num_particles
        ).log_mean_exp()

    patch.setattr(vi.ImportanceSampling, "at", at)


def of_a_marginal_guide(case):
    """Programs, and the exact bound as a function of the parameters."""

    def bound(theta):
        return sum((np.exp(m) * (log_p - q)).sum() for m, _, log_p, q in case.drawn(theta))

    return case.model, case.program(case.model), bound


def of_a_marginal_model(case):
    def bound(theta):
        total = 0.0
        for logit, (log_m, log_p) in zip(theta[:3], case.anew(theta), strict=True):
            log_q = oracles.log_bernoulli(logit, np.arange(2))
            total += np.exp(log_q) @ ((np.exp(log_m) * log_p).sum(-1) - log_q)
        return total

    return case.program(case.model), super(Hierarchical, case).guide, bound


MISTAKES = [
    (own_particle_left_out, of_a_marginal_guide),
    (sum_with_others, of_a_marginal_guide),
    (sum_of_replicates, of_a_marginal_model),
    (proposal_left_out, of_a_marginal_guide),
    (proposal_left_out, of_a_marginal_model),
    (proposal_left_out_of_own, of_a_marginal_guide),
    (plain_for_reciprocal, of_a_marginal_guide),
    (reciprocal_for_plain, of_a_marginal_model),
]


@pytest.mark.parametrize(
    ("lib", "mistake", "programs"),
    alternating(MISTAKES),
    ids=["-".join(f.__name__ for f in case) for case in MISTAKES],
)
def test_mistake_is_rejected(lib, mistake, programs, monkeypatch):
    """By the bound, which enumeration gives without noise."""
    lib = LIBRARIES[lib]()
    case = Hierarchical(lib)
    model, guide, bound = programs(case)
    exact = -np.array([bound(case.values), *oracles.gradient(bound, case.values)])

    def found():
        return lib.estimates(lib.Loss(estimators=vi.Enumerate()), model, guide, case.values, 1, 0)

    np.testing.assert_allclose(found()[0], exact, rtol=1e-9, atol=1e-9)
    mistake(monkeypatch)
    assert np.abs(found()[0] - exact).max() > 1e-2


def weights_estimated_anew(patch):
    """At draws that are held, where the estimate is of the density and not of its reciprocal."""

    def densities(model, guide):
        z = wake_sleep.held_draw(guide)
        log_q = wake_sleep.log_density(guide, z)
        return wake_sleep.log_density(model, z), log_q, log_q

    patch.setattr(wake_sleep, "densities", densities)


def proposal_left_out_of_weights(patch):
    density = normalize.draw_of
    patch.setattr(normalize, "draw_of", lambda p: replace(density(p), density=Cost(())))


@pytest.mark.parametrize(
    ("lib", "mistake", "wrapper", "name"),
    alternating(
        [
            (weights_estimated_anew, "marginal", "wake_sleep"),
            (weights_estimated_anew, "marginal", "eubo"),
            (sum_with_others, "normalize", "eubo"),
            (own_particle_left_out, "normalize", "eubo"),
            (proposal_left_out_of_weights, "normalize", "wake_sleep"),
        ]
    ),
)
def test_mistake_in_a_phase_is_rejected(lib, mistake, wrapper, name, monkeypatch):
    mistake(monkeypatch)
    draws, exact = draws_of_phases(LIBRARIES[lib](), wrapper, name, 15)
    assert oracles.largest_z(draws, exact) >= 8
