"""`vi.auto` against a trial of all combinations, whose variances come from plain draws."""

import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.test_gradient_variance import coins


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


def tried(lib, programs, options, evaluations):
    """Variance x evaluations of each combination that can be, from draws of its own."""
    found = {}
    for combination in itertools.product(*options.values()):
        own = dict(zip(options, combination, strict=True))
        loss = lib.Loss(estimators=own)
        draws = loss.replay(*programs, (), {}, None).estimates(loss, 600, 99)[:, 1:]
        found[combination] = draws.var(axis=0, ddof=1).sum() * evaluations(own)
    return found


def checked(lib, programs, options, evaluations):
    """The choice from these options is within 1.2 of the best combination."""
    every = list(dict.fromkeys(itertools.chain(*options.values())))
    start = lib.Loss(estimators={name: own[-1] for name, own in options.items()})
    found = vi.auto(start, *programs, candidates=every, cost="evaluations", num_draws=300)
    trial = tried(lib, programs, options, evaluations)
    best, of_choice = min(trial.values()), trial[tuple(found[name] for name in options)]
    assert of_choice <= 1.2 * best, (found.report(), trial)
    assert max(trial.values()) > 3 * best  # a mutant: any choice would do
    assert lib.Loss(estimators=found).settings.selection.patterns == tuple(found.items())
    assert found.measured.product == pytest.approx(of_choice, rel=0.25)
    return found


def test_a_belief_network(lib):
    own = [vi.DisARM(), vi.MeasureValued(), vi.Score()]
    options = {"z1": own, "z2": own}

    def evaluations(own):
        sizes = {vi.DisARM: 1, vi.MeasureValued: 3, vi.Score: 0}
        return 1 + sum(sizes[type(e)] for e in own.values())

    found = checked(lib, belief_network(lib), options, evaluations)
    assert "on fresh draws" in found.report()
    assert [joint.chosen for joint in found.held_out].count(True) == 1
    assert found.held_out[0].estimators == dict(found)


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


def test_a_budget_that_is_none(lib):
    with pytest.raises(vi.ObjectiveError, match="auto: no such budget"):
        vi.auto(lib.Loss(), *coins(lib), budget="money")
