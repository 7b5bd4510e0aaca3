"""Steps that become smaller: `vi.DecreasingSteps`."""

from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.test_averaging import fit_of
from vi_kit.workflow.history import History
from vi_kit.workflow.stopping import Decision

NUM = 20
SD = 0.5
OPTIMUM = -(SD**2) / 2  # of the expected value of exp(z) - z for z ~ Normal(theta, SD)
RULE = vi.DecreasingSteps(vi.IterateAverage(tolerance=0.06, scale=0.1), tolerance=0.25)


class Descent:
    """Steepest descent by exp(z) - 1, as `fit` leads it: the mean is off by about -0.07 times the step size."""

    def __init__(self, step_size, seed):
        self.size, self.rng = step_size, np.random.default_rng(seed)
        self.theta, self.history = np.full(NUM, OPTIMUM), History()
        self.kept = []

    def follow(self, rule, most):
        history = self.history
        while history.num_steps < most:
            noise = self.rng.standard_normal((rule.every, NUM))
            for z in noise:
                self.theta = self.theta - self.size * (np.exp(self.theta + SD * z) - 1)
                self.kept.append(self.theta)
            history.add(np.zeros(rule.every), np.zeros(rule.every))
            history.looks.append(history.num_steps)
            history.iterates.append(self.theta[None])
            decision = rule.decide(history)
            assert rule.decide(History.of(history.snapshot())) == decision
            if decision.shrink is not None:
                history.shrunk.append(history.num_steps)
                self.size *= decision.shrink
            if decision.average is not None:
                history.averaging = history.num_steps if decision.average else -1
                history.begun += [history.num_steps] * decision.average
                self.kept = []
            if decision.stop:
                return decision.stop
        return ""

    @property
    def bias(self):
        return float(np.mean(self.kept) - OPTIMUM)


def test_it_stops_when_the_step_size_no_longer_moves_the_mean():
    most = RULE.tolerance * abs(OPTIMUM)
    for seed in range(3):
        descent = Descent(0.8, seed)
        assert "would change the mean" in descent.follow(RULE, 100_000)
        assert 1 <= len(descent.history.shrunk) <= 4
        assert abs(descent.bias) < most
        # mutant: the same average without smaller steps is off by more
        same = Descent(0.8, seed)
        assert same.follow(RULE.average, 100_000)
        assert same.bias < -1.5 * most


def test_what_is_left_is_that_of_a_bias_by_the_step_size():
    rule, rng = (
        vi.DecreasingSteps(vi.IterateAverage(), factor=0.25, tolerance=0.1),
        np.random.default_rng(0),
    )

    def around(mean, sd=1e-3):
        return History(iterates=list(mean + sd * rng.standard_normal((400, 1, NUM))))

    # at step size 1 off by .8, at a fourth by .2; parameters of size 2 count half
    assert rule.left(around(0.8), around(0.2)) == pytest.approx(0.2, rel=0.02)
    assert rule.left(around(4.8), around(4.2)) == pytest.approx(0.2 / 4.2, rel=0.02)
    # noise alone: not what two means differ by, but what may be behind it
    left = [rule.left(around(0.0, 1.0), around(0.0, 1.0)) for _ in range(50)]
    assert max(left) < 3 * 0.25 / 0.75 * (2 / 400) ** 0.5
    assert min(left) > 0.0


def test_all_restarts_count_but_those_that_failed():
    rule, rng = vi.DecreasingSteps(), np.random.default_rng(0)
    means = np.array([0.0, 1.0])[:, None]
    before = History(iterates=list(means + 1e-3 * rng.standard_normal((100, 2, NUM))))
    now = History(iterates=list(1e-3 * rng.standard_normal((100, 2, NUM))))
    assert rule.left(before, now) == pytest.approx(1.0, rel=0.01)
    now.iterates[7][1] = np.nan
    assert rule.left(before, now) < 0.01


@dataclass(frozen=True)
class Stands:
    """Makes steps so small after some that nothing moves any more."""

    first: int
    every: int = 100
    reads_iterates: bool = False
    shrinks: bool = True
    averages: bool = False

    def decide(self, history):
        return Decision(shrink=1e-9 if history.num_steps == self.first else None)


def test_steps_of_a_fit_become_smaller(lib):
    for first, moves in ((100, False), (-1, True)):
        seen = []
        fit_of(
            lib,
            Stands(first),
            200,
            callback_every=100,
            callbacks=[lambda now, seen=seen: seen.append(now.params()["theta"])],
        )
        assert (np.abs(np.asarray(seen[1]) - np.asarray(seen[0])).max() > 1e-4) == moves


def test_a_fit_ends_by_it(lib):
    rule = vi.DecreasingSteps(
        vi.IterateAverage(0.15, every=5, min_looks=20, max_rhat=1.5, min_ess=10), tolerance=0.8
    )
    fit = fit_of(lib, rule, 3000)
    assert "would change the mean" in fit.stopped
    # over a hundred steps at least, of noise 0.5 each
    assert np.abs(np.asarray(fit.params["theta"])).max() < 5 * 0.5 / 10


def test_settings_that_cannot_be():
    with pytest.raises(vi.ObjectiveError, match="0 < factor < 1"):
        vi.DecreasingSteps(factor=1.0)
    with pytest.raises(vi.ObjectiveError, match="IterateAverage"):
        vi.DecreasingSteps(average=0.01)
