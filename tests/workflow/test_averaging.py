"""Means of iterates: `vi.IterateAverage`, and that the parameters of a fit are averaged."""

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import signal, stats

import vi_kit as vi
from vi_kit.workflow import averaging
from vi_kit.workflow.history import History
from vi_kit.workflow.series import split_rhat
from vi_kit.workflow.stopping import Decision

NUM, NOISE, STEP_SIZE = 40, 0.5, 0.1
FIRST, LAST = 200, 1200


def autoregressive(rng, num, rho, batch):
    shocks = rng.standard_normal((num + 500, *batch)) * (1 - rho**2) ** 0.5
    return signal.lfilter([1.0], [1.0, -rho], shocks, axis=0)[500:]


def history(x, every=10, averaging=-1):
    looks = [every * (i + 1) for i in range(len(x))]
    return History(losses=np.zeros(looks[-1]), iterates=list(x), looks=looks, averaging=averaging)


def run(rule, x):
    """As `fit` does: the steps at which averaging began and at which it stopped."""
    began = -1
    for num in range(1, len(x) + 1):
        decision = rule.decide(history(x[:num], rule.every, began))
        again = History.of(history(x[:num], rule.every, began).snapshot())
        assert rule.decide(again) == decision
        if decision.average:
            began = num * rule.every
        if decision.stop:
            return began, num * rule.every
    return began, None


def test_rhat_by_hand():
    # halves (0, 2) and (4, 6): within 2, between 2 * 8 = 16; (1/2 * 2 + 16 / 2) / 2
    assert split_rhat(np.array([0.0, 2.0, 4.0, 6.0])) == pytest.approx((9 / 2) ** 0.5)
    assert split_rhat(np.ones(10)) == 1.0


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_errors_of_means_are_those_of_autoregressions(rho):
    num, x = 2000, autoregressive(np.random.default_rng(0), 2000, rho, (200,))
    error, ess = averaging.errors_of(x)
    exact = ((1 + rho) / (1 - rho) / num) ** 0.5
    assert np.median(error) == pytest.approx(exact, rel=0.1)
    assert np.median(ess) == pytest.approx(num * (1 - rho) / (1 + rho), rel=0.2)
    # the means have that error; mutant: that of independent iterates
    z = x.mean(axis=0) / error
    assert stats.chi2.ppf(1e-4, 200) < (z**2).sum() < stats.chi2.ppf(1 - 1e-4, 200) * 1.2
    if rho:
        wrong = x.mean(axis=0) / (x.std(axis=0) / num**0.5)
        assert (wrong**2).sum() > 5 * stats.chi2.ppf(1 - 1e-4, 200)


def test_it_averages_when_stationary_and_stops_when_the_mean_is_known():
    rng = np.random.default_rng(0)
    rule = vi.IterateAverage(tolerance=0.02)
    x = 3.0 + autoregressive(rng, 4000, 0.8, (1, 5))
    began, stopped = run(rule, x)
    # windows of 25 iterates are worth three: some coordinate has a large R-hat; those of 200 do
    assert 500 < began <= 4000
    # sd sqrt(9 / n) <= .02 * 3: n = 2500 iterates, a test each tenth more, tau known to a fifth
    assert 2500 * 0.7 < (stopped - began) / 10 < 2500 * 1.5


def test_a_trend_is_not_stationary():
    rng = np.random.default_rng(0)
    trend = np.linspace(0.0, 30.0, 600)[:, None, None]
    noise = rng.standard_normal((600, 1, 3))
    assert run(vi.IterateAverage(), noise + trend) == (-1, None)
    assert run(vi.IterateAverage(), noise)[0] == 500


def test_all_restarts_must_be_stationary_but_those_that_failed():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2, 3))
    x[:, 1] += np.linspace(0.0, 30.0, 200)[:, None]
    assert run(vi.IterateAverage(), x) == (-1, None)
    x[:, 1] = np.nan
    assert run(vi.IterateAverage(), x)[0] == 500


def test_settings_that_cannot_be():
    with pytest.raises(vi.ObjectiveError, match="1 < max_rhat"):
        vi.IterateAverage(max_rhat=1.0)
    with pytest.raises(vi.ObjectiveError, match="min_looks"):
        vi.IterateAverage(min_looks=1)


# In fits: gradients are theta + noise, and the optimum is zero


@dataclass(frozen=True)
class From:
    """Averages from a step on."""

    first: int
    every: int = 100
    reads_iterates: bool = False
    shrinks: bool = False
    averages: bool = True

    def decide(self, history):
        return Decision(average=True) if history.num_steps == self.first else Decision()


def fit_of(lib, stop, num_steps, **settings):
    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0).expand([NUM]).to_event(1))

    def guide():
        loc = lib.theta(np.zeros(NUM))
        lib.sample("z", lib.dist.Normal(loc, NOISE).to_event(1))

    if lib.name == "pyro":
        import torch

        optimizer = lambda params: torch.optim.SGD(params, lr=STEP_SIZE)  # noqa: E731
    else:
        import optax

        optimizer = optax.sgd(STEP_SIZE)
    fit = importlib.import_module(f"vi_kit.{lib.name}").fit
    return fit(model, guide, optimizer=optimizer, num_steps=num_steps, stop=stop, **settings)


def test_averaging_cuts_the_error_of_a_fit_by_a_known_factor(lib):
    square = (np.asarray(fit_of(lib, From(FIRST), LAST).params["theta"]) ** 2).sum()
    # an autoregression with factor 1 - step size: its mean over n steps has about the variance
    # noise^2 / n, a single iterate has noise^2 times step size / (2 - step size): 53 times as much
    mean = NOISE**2 / (LAST - FIRST)
    single = NOISE**2 * STEP_SIZE / (2 - STEP_SIZE)
    assert single / mean > 50
    assert stats.chi2.ppf(1e-5, NUM) * 0.9 < square / mean < stats.chi2.ppf(1 - 1e-5, NUM)
    # mutant: the last iterate
    square = (np.asarray(fit_of(lib, From(-1), LAST).params["theta"]) ** 2).sum()
    assert square / single > stats.chi2.ppf(1e-5, NUM) > square / single / 10
    assert square / mean > 5 * stats.chi2.ppf(1 - 1e-5, NUM)


def test_a_fit_ends_by_it(lib):
    fit = fit_of(lib, vi.IterateAverage(tolerance=0.05, min_looks=40), 4000)
    assert "iterates is known to" in fit.stopped and fit.num_steps < 4000
    assert np.abs(np.asarray(fit.params["theta"])).max() < 5 * 0.05
