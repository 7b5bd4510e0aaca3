"""`vi.auto` against a trial of all combinations, whose variances come from plain draws."""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.test_gradient_variance import coins
from vi_kit.workflow import auto


def belief_network(lib):
    """Two layers of three bits over three pixels."""
    w = np.array([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0], [-0.7, 0.2, 2.0]])
    pixels = np.array([1.0, 0.0, 1.0])

    def bits(name, logits, **given):
        return lib.sample(name, lib.dist.Bernoulli(logits=logits).to_event(1), **given)

    def model():
        z2 = bits("z2", lib.array(np.zeros(3)))
        z1 = bits("z1", z2 @ lib.array(w))
        bits("x", z1 @ lib.array(w.T), obs=lib.array(pixels))

    def guide():
        theta = lib.theta(np.array([0.4, -0.3, 0.2, -0.5, 0.1, 0.8]))
        z1 = bits("z1", theta[:3])
        bits("z2", theta[3:] + 0.5 * z1)

    return model, guide


ROWS = 400
"""Of a plate: as many gradients at once, whose variances are added."""


def three_kinds(lib):
    """Of each row a Categorical, a Normal and a Gamma site, which the data tie together."""
    x = np.linspace(0.0, 2.0, ROWS)
    at = {"kind": np.random.default_rng(0).normal(0.0, 0.5, (ROWS, 3)), "loc": 0.3 * x}
    at |= {n: np.full(ROWS, v) for n, v in (("scale", -0.5), ("shape", 1.5), ("rate", 0.9))}

    def model():
        with lib.plate("data", ROWS):
            k = lib.sample("k", lib.dist.Categorical(probs=lib.array(np.full(3, 1 / 3))))
            z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            g = lib.sample("g", lib.dist.Gamma(lib.array(2.0), 1.0))
            slope = lib.array(np.array([0.0, 0.5, 1.0]))[k]
            lib.sample("x", lib.dist.Normal(z + slope * g, 1.0), obs=lib.array(x))

    def guide():
        kind, loc, scale, shape, rate = (lib.theta(v, name) for name, v in at.items())
        with lib.plate("data", ROWS):
            lib.sample("k", lib.dist.Categorical(logits=kind))
            lib.sample("z", lib.dist.Normal(loc, lib.xp.exp(scale)))
            lib.sample("g", lib.dist.Gamma(lib.xp.exp(shape), lib.xp.exp(rate)))

    return model, guide


def tried(lib, programs, options, evaluations, num_draws):
    """Variance x evaluations of each combination that can be, and its standard error, from draws of its own."""
    found = {}
    for combination in itertools.product(*options.values()):
        own = dict(zip(options, combination, strict=True))
        loss = lib.Loss(estimators=own)
        replay = loss.replay(*programs, (), {}, None)
        draws = replay.estimates(loss, num_draws, 99)[:, 1:]
        squares = ((draws - draws.mean(axis=0)) ** 2).sum(axis=1) * num_draws / (num_draws - 1)
        error = squares.std(ddof=1) / np.sqrt(num_draws)
        found[combination] = evaluations(own) * np.array([squares.mean(), error])
    return found


def compared(lib, programs, options, evaluations, num_draws):
    """What `auto` chose of these options, all combinations, and which of them that is."""
    every = list(dict.fromkeys(itertools.chain(*options.values())))
    start = lib.Loss(estimators={name: own[-1] for name, own in options.items()})
    found = vi.auto(start, *programs, candidates=every, cost="evaluations", num_draws=num_draws[0])
    trial = tried(lib, programs, options, evaluations, num_draws[1])
    return found, trial, tuple(found[name] for name in options)


def checked(lib, programs, options, evaluations, num_draws, mutant):
    """The choice from these options is within 1.2 of the best combination, all of them tried; the worst is `mutant`
    away."""
    found, trial, choice = compared(lib, programs, options, evaluations, num_draws)
    best, best_error = min(trial.values(), key=lambda score: score[0])
    of_choice, its_error = trial[choice]
    assert of_choice <= 1.2 * best, (found.report(), trial)
    assert max(its_error / of_choice, best_error / best) < 0.07
    assert max(score for score, _ in trial.values()) > mutant * best  # any choice would do
    assert lib.Loss(estimators=found).settings.selection.patterns == tuple(found.items())
    assert found.measured.product == pytest.approx(of_choice, rel=0.25)
    return found


BITS = {name: [vi.DisARM(), vi.MeasureValued(), vi.Score()] for name in ("z1", "z2")}


def evaluations_of_bits(own):
    sizes = {vi.DisARM: 1, vi.MeasureValued: 3, vi.Score: 0}
    return 1 + sum(sizes[type(e)] for e in own.values())


@dataclass(frozen=True)
class OthersOfThePlate(vi.Baseline):
    """The mean of what the other rows are worth."""

    def subtracted(self, others):
        return others.mean(others.plates[-1])


AVERAGE = vi.Score(OthersOfThePlate())
KINDS = {
    "k": [vi.Enumerate(), AVERAGE],
    "z": [vi.Reparam(), AVERAGE],
    "g": [vi.Reparam(), vi.RejectionReparam(), AVERAGE],
}


def evaluations_of_kinds(own):
    return 3 if own["k"] == vi.Enumerate() else 1


def test_a_belief_network(lib):
    programs = belief_network(lib)
    found = checked(lib, programs, BITS, evaluations_of_bits, num_draws=(300, 600), mutant=3.0)
    assert "on fresh draws" in found.report()
    assert [joint.chosen for joint in found.held_out].count(True) == 1
    assert found.held_out[0].estimators == dict(found)


def test_a_categorical_a_normal_and_a_gamma_site(lib):
    programs = three_kinds(lib)
    checked(lib, programs, KINDS, evaluations_of_kinds, num_draws=(20, 40), mutant=2.0)


def test_biased_estimators_must_be_asked_for(lib):
    loss = lib.Loss(estimators=vi.Score())
    candidates = [vi.StraightThrough(biased=True)]
    settings = {"candidates": candidates, "num_draws": 60, "cost": "evaluations"}
    plain = vi.auto(loss, *coins(lib), budget="variance", **settings)
    assert plain == {"z1": vi.Score(), "z2": vi.Score()}
    assert repr(plain) == repr(dict(plain))
    asked = vi.auto(loss, *coins(lib), budget="variance", biased=True, **settings)
    assert asked["z1"] == candidates[0]


def test_equal_ones_go_to_the_simpler(lib):
    """Both are exact here: `Score` of a coin whose cost is nothing, and `Enumerate`, which takes more evaluations."""

    def program(name):
        def run():
            logit = lib.array(0.3) if name is None else lib.theta(np.array([0.3]), name)[0]
            lib.sample("z", lib.dist.Bernoulli(logits=logit))

        return run

    found = vi.auto(
        lib.Loss(), program(None), program("theta"), candidates=[vi.Score()], cost="evaluations"
    )
    assert found == {"z": vi.Score()}


def test_the_report_marks_what_fresh_draws_chose(lib, monkeypatch):
    """Both parts of it, where these change the choice."""
    programs = coins(lib)
    final = auto.Search.final

    def other(self, chosen, start, names):
        joints = final(self, chosen, start, names)
        assert len(joints) > 1 and joints[0].chosen
        swapped = [replace(joint, chosen=i == 1) for i, joint in enumerate(joints)]
        return tuple(swapped)

    monkeypatch.setattr(auto.Search, "final", other)
    loss = lib.Loss(estimators=vi.Score())
    found = vi.auto(loss, *programs, budget="variance", candidates=[vi.Enumerate()], num_draws=20)
    marked = {row.site: row.estimator for row in found.profile.rows if row.chosen}
    assert marked.items() <= found.items()


def test_what_is_about_as_good_goes_to_the_simpler_and_no_more():
    """A difference that noise hides is no reason to take what looks twice as bad."""

    def runner(score, evaluations):
        measured = SimpleNamespace(score=lambda budget: (score, 1.0))
        estimators = {"z": vi.Score()}
        return SimpleNamespace(
            measured=lambda: measured, evaluations=evaluations, estimators=estimators
        )

    search = auto.Search(None, "variance", False, 20, None)
    best, worse, same = runner(1.0, 2), runner(2.2, 1), runner(1.05, 1)
    assert search.best([best, worse]) is best
    assert search.best([best, worse, same]) is same


def test_a_budget_that_is_none(lib):
    with pytest.raises(vi.ObjectiveError, match="auto: no such budget"):
        vi.auto(lib.Loss(), *coins(lib), budget="money")
