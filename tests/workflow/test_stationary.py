"""When a bound no longer improves: `vi.Stationary`."""

import importlib
import itertools

import numpy as np
import pytest
from scipy import signal, stats

import vi_kit as vi
from vi_kit.workflow import series, stationary
from vi_kit.workflow.history import History

NUM_SEEDS = 200
NOMINAL = 0.05
TOO_MANY = int(stats.binom.ppf(1 - 1e-4, NUM_SEEDS, NOMINAL))
"""False stops, at the nominal rate, once in ten thousand tests."""


def autoregressive(rng, num, rho):
    shocks = rng.standard_normal(num) * (1 - rho**2) ** 0.5
    return signal.lfilter([1.0], [1.0, -rho], shocks, zi=[rho * rng.standard_normal()])[0]


def test_signed_ranks_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for num in (1, 5, 12, 25):
        x = rng.standard_normal(num) - 0.3
        exact = stats.wilcoxon(x, alternative="less", method="exact").pvalue
        np.testing.assert_allclose(series.signed_rank(x), exact, rtol=1e-10)


def test_signed_ranks_by_enumeration_and_against_rejection_where_equal():
    sizes = np.array([0.5, 1.0, 2.0, 3.0])
    sums = [sum(r for r, s in zip((1, 2, 3, 4), signs, strict=True) if s > 0)
            for signs in itertools.product((-1, 1), repeat=4)]  # fmt: skip
    for signs in itertools.product((-1, 1), repeat=4):
        own = sum(r for r, s in zip((1, 2, 3, 4), signs, strict=True) if s > 0)
        exact = np.mean([s <= own for s in sums])
        assert series.signed_rank(sizes * np.array(signs)) == pytest.approx(exact, rel=1e-12)
    assert series.signed_rank(np.zeros(5)) == 1.0
    assert series.signed_rank(np.array([-1.0, 1.0])) == 0.75  # as if the positive one were larger
    assert series.signed_rank(-np.ones(10)) == 2.0**-10


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_autocorrelation_time_is_that_of_an_autoregression(rho):
    exact = (1 + rho) / (1 - rho)
    x = autoregressive(np.random.default_rng(1), 200_000, rho)
    assert series.autocorrelation_time(x) == pytest.approx(exact, rel=0.1)
    both = series.autocorrelation_time(np.stack([x, np.ones_like(x)], axis=1))
    np.testing.assert_allclose(both, [series.autocorrelation_time(x), 1.0])


def test_a_line_is_taken_away_exactly():
    x = 3.0 - 0.5 * np.arange(11)
    np.testing.assert_allclose(series.without_line(x), 0.0, atol=1e-12)


# Decisions


def trace(seed, kind, num=2000):
    """Losses that improve at each test by 2 % more than the tolerance."""
    rng = np.random.default_rng(seed)
    time = np.log(np.arange(1.0, num + 1))
    slope = time[-num // 4 :].mean() - time[-num // 2 : -num // 4].mean()
    return 1000.0 - 1.02 * time / slope + 3 * kind(rng, num)


def first_stop(rule, losses):
    for step in itertools.takewhile(lambda s: s <= len(losses), rule.tests()):
        if rule.decide(History(losses=losses[:step])).stop:
            return step
    return None


def num_false(kind):
    rule = vi.Stationary(false_positive_rate=NOMINAL)
    return sum(first_stop(rule, trace(seed, kind)) is not None for seed in range(NUM_SEEDS))


def correlated(rng, num):
    return autoregressive(rng, num, 0.9)


KINDS = {
    "normal": lambda rng, num: rng.standard_normal(num),
    "autocorrelated": correlated,
    "heavy": lambda rng, num: rng.standard_t(1.5, num) / 3,
    "skewed": lambda rng, num: np.exp(1.5 * rng.standard_normal(num)) / 3,
}


@pytest.mark.parametrize("kind", KINDS)
def test_stops_while_the_bound_improves_are_no_more_than_the_nominal_rate(kind):
    assert num_false(KINDS[kind]) <= TOO_MANY


def test_that_rate_is_broken_where_autocorrelation_is_ignored(monkeypatch):
    monkeypatch.setattr(stationary, "autocorrelation_time", lambda x: 1.0)
    assert num_false(correlated) > 2 * TOO_MANY


def test_that_rate_is_broken_where_each_test_has_all_of_it(monkeypatch):
    monkeypatch.setattr(vi.Stationary, "level", lambda self, num_steps: NOMINAL)
    assert num_false(KINDS["normal"]) > 1.5 * TOO_MANY


def test_it_stops_soon_after_the_bound_has_converged():
    rng, rule = np.random.default_rng(0), vi.Stationary()
    for _ in range(20):
        losses = 1000 * (1 + np.exp(-np.arange(3000) / 100)) + rng.standard_normal(3000)
        stop = first_stop(rule, losses)
        # from then on the halves of the window differ by less than a nat
        assert stop is not None and 1000 <= stop <= 2000


def test_levels_add_up_to_the_rate():
    rule = vi.Stationary(every=10, min_steps=25, false_positive_rate=0.2)
    tests = list(itertools.islice(rule.tests(), 300))
    assert tests[0] == 30 and all(t % 10 == 0 for t in tests)
    levels = [rule.level(t) for t in tests]
    assert sum(levels) == pytest.approx(0.2, rel=1e-6) and sum(levels) <= 0.2
    assert rule.level(31) is None and rule.level(20) is None


def test_losses_that_do_not_change_and_losses_that_rise_are_done():
    rule = vi.Stationary()
    for losses in (np.zeros(400), np.linspace(0.0, 100.0, 400)):
        assert rule.decide(History(losses=losses)).stop
    text = rule.decide(History(losses=np.full(400, 5000.0))).stop
    assert text == "the bound no longer improves by 5 nats"
    assert not rule.decide(History(losses=np.linspace(100.0, 0.0, 400))).stop


def test_all_restarts_must_agree_but_those_that_failed():
    flat, falling = np.zeros(400), np.linspace(100.0, 0.0, 400)
    rule = vi.Stationary()
    assert not rule.decide(History(losses=np.stack([flat, falling], axis=1))).stop
    assert rule.decide(History(losses=np.stack([flat, flat], axis=1))).stop
    failed = np.where(np.arange(400) < 9, falling, np.nan)
    assert rule.decide(History(losses=np.stack([flat, failed], axis=1))).stop
    assert not rule.decide(History(losses=np.stack([failed, failed], axis=1))).stop


def test_decisions_are_the_same_after_a_checkpoint():
    rule, stops = vi.Stationary(), 0
    for seed, step in itertools.product(range(10), range(100, 2001, 100)):
        losses = 3 * np.random.default_rng(seed).standard_normal(step)
        history = History(losses=losses, looks=list(range(100, step + 1, 100)))
        again = History.of(history.snapshot())
        assert rule.decide(history) == rule.decide(again)
        stops += bool(rule.decide(history).stop)
    assert rule == vi.Stationary() and "tolerance=0.001" in repr(rule)


def test_settings_that_cannot_be():
    with pytest.raises(vi.ObjectiveError, match="0 < tolerance"):
        vi.Stationary(tolerance=0.0)
    with pytest.raises(vi.ObjectiveError, match="0 < false_positive_rate < 1"):
        vi.Stationary(false_positive_rate=1.0)
    with pytest.raises(vi.ObjectiveError, match="every must be a whole number"):
        vi.Stationary(every=0)


# In fits


def fits_of(lib):
    return importlib.import_module(f"vi_kit.{lib.name}").fit


def normal_mean(lib):
    """A Normal mean that a guide of the right width has to find."""
    array = lib.array

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=array(2.0))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(np.array([8.0]))[0], 0.3))

    return model, guide


def test_a_fit_ends_by_it(lib):
    model, guide = normal_mean(lib)
    fit = fits_of(lib)(model, guide, num_steps=5000, optimizer=0.1, stop=vi.Stationary())
    assert fit.stopped.startswith("the bound no longer improves by")
    assert fit.stopped.endswith(f"after {fit.num_steps} steps") and fit.num_steps < 5000
    # the optimum is a mean of one
    assert abs(float(np.asarray(fit.params["theta"])[0]) - 1.0) < 0.3
