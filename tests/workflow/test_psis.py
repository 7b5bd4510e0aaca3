"""Pareto's k of weights whose tail is known."""

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.workflow.psis import MIN_TIES, effective_sample_size, pareto_smoothed

NUM = 2000


def tails(k, share, scale=1.0, num_rows=200, seed=0):
    """Log weights around one, and a share of them with a tail of that k."""
    rng = np.random.default_rng(seed)
    clump = 1 + 0.001 * rng.normal(size=(num_rows, NUM))
    heavy = rng.uniform(size=clump.shape) ** -k
    in_tail = rng.uniform(size=clump.shape) < share
    return np.log(np.where(in_tail, clump + scale * (heavy - 1), clump))


@pytest.mark.parametrize("share", [0.05, 0.02, 0.01])
def test_a_light_tail_over_a_clump_of_equal_weights(share):
    """The threshold of 134 draws lies in the clump: without a second look at most have a k over 0.7."""
    assert (pareto_smoothed(tails(0.2, share))[1] < 0.7).mean() > 0.8


@pytest.mark.parametrize(
    ("share", "scale", "least"),
    [(1.0, 1.0, 0.75), (0.2, 1.0, 0.75), (1.0, 0.05, 0.75), (0.05, 1.0, 0.97), (0.02, 1.0, 0.97)],
)
def test_a_heavy_tail_is_not_passed(share, scale, least):
    """Of a k of 0.9, of which ArviZ itself has a sixth of rows under 0.7 where the threshold is in the tail."""
    assert (pareto_smoothed(tails(0.9, share, scale))[1] > 0.7).mean() > least


def test_what_a_tail_can_hide_that_is_hardly_there():
    """Under half a percent of the sum is in excess: the mean is what it is, to 0.05 nats, even of k = 0.9."""
    log_weights = tails(0.9, 1.0, scale=0.0005)
    k = pareto_smoothed(log_weights)[1]
    exact = np.log(1 + 0.0005 * (1 / (1 - 0.9) - 1))
    estimates = np.logaddexp.reduce(log_weights, axis=1) - np.log(NUM)
    assert (k < 0.7).mean() > 0.9 and (abs(estimates - exact)[k < 0.7] < 0.05).all()


def test_rows_without_a_tail_change_no_other_row():
    some = np.random.default_rng(0).normal(size=400)
    equal = np.full(400, -3.0)
    smoothed, k = pareto_smoothed(np.stack([equal, some, equal]))
    alone, alone_k = pareto_smoothed(some)
    np.testing.assert_array_equal(k, [-np.inf, alone_k, -np.inf])
    np.testing.assert_allclose(smoothed[1], alone, rtol=1e-12)
    np.testing.assert_allclose(smoothed[[0, 2]], -np.log(400), rtol=1e-12)
    assert np.isfinite(alone_k)


def test_of_too_few_draws_k_is_infinite():
    log_weights = np.log(np.arange(1.0, 13.0))  # the tail has three
    smoothed, k = pareto_smoothed(log_weights)
    assert k == np.inf
    np.testing.assert_allclose(smoothed, log_weights - np.log(78.0), rtol=1e-12)


def test_the_largest_weight_of_many_draws_ends_the_tail():
    """By row: equal, two values, the larger rare, very rare, and rare but hardly larger."""
    two = np.zeros((5, NUM))
    two[1, : NUM // 3] = 1.0
    two[2, :MIN_TIES] = 6.0
    two[3, : MIN_TIES - 1] = 6.0
    two[4, :2] = 0.4
    smoothed, k = pareto_smoothed(two)
    np.testing.assert_array_equal(k, [-np.inf, -np.inf, -np.inf, np.inf, -np.inf])
    raw = two - np.logaddexp.reduce(two, axis=1, keepdims=True)
    np.testing.assert_allclose(smoothed, raw, atol=1e-12)
    # the error of the rare one is told by the effective number
    assert effective_sample_size(two[2]) < 25


def bernoulli(lib, probability, size=None):
    """A Bernoulli of prior 0.3 and a datum of one around it, alone or as rows."""
    one = lib.array(np.ones(() if size is None else size))

    def program(site):
        if size is None:
            return site()
        with lib.plate("data", size):
            return site()

    def model():
        def site():
            b = lib.sample("b", lib.dist.Bernoulli(0.3))
            lib.sample("x", lib.dist.Normal(b, 1.0), obs=one)

        program(site)

    def guide():
        program(lambda: lib.sample("b", lib.dist.Bernoulli(probability)))

    return model, guide


WEIGHTS = np.array([0.7 * np.exp(-0.5), 0.3]) / (2 * np.pi) ** 0.5
POSTERIOR = WEIGHTS[1] / WEIGHTS.sum()


@pytest.mark.parametrize("size", [None, 3])
def test_a_discrete_guide_that_is_good(lib, size):
    """Weights of 0.7 and 1.7 of the mean: the larger is drawn by a quarter of the draws."""
    found = vi.heldout(lib.Loss(), *bernoulli(lib, 0.25, size))
    assert found.pareto_k == -np.inf and "warning" not in repr(found)
    assert abs(found.log_prob - (size or 1) * np.log(WEIGHTS.sum())) <= 5 * found.error
    if size is None:
        own = vi.diagnose(lib.Loss(), *bernoulli(lib, POSTERIOR + 0.001), num_gradients=0)
        assert own.verdict == "trust" and own.pareto_k == -np.inf


@pytest.mark.parametrize("size", [None, 3])
def test_a_discrete_guide_that_gives_a_value_too_little(lib, size):
    """A posterior probability of 0.41 where the guide has 0.001, which draws it some two times of 2000."""
    found = vi.heldout(lib.Loss(), *bernoulli(lib, 0.001, size), num_samples=NUM)
    assert found.ess < 25  # it is drawn
    assert found.pareto_k == np.inf and "warning: Pareto k" in repr(found)
    if size is None:
        own = vi.diagnose(lib.Loss(), *bernoulli(lib, 0.001), num_gradients=0)
        assert own.verdict == "richer guide"
