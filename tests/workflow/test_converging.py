"""Whether parameters are where the objective is best: on gradients, losses and fits whose answer is known."""

import importlib

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import normals, posterior_of_normals
from vi_kit.workflow.converging import direction, fall_of, gain_along, is_clear, noise_of

MEAN, SCALE = posterior_of_normals()


def test_signal_to_noise_is_not_raised_by_noise():
    """Its square is unbiased, and its error is what it varies by; the mutant takes the mean for its expectation."""
    rng = np.random.default_rng(0)
    mean, spread, num = np.array([0.3, 0.0, -0.4, 0.0]), np.array([1.0, 2.0, 0.5, 1.0]), 40
    exact = (mean**2).sum() / (spread**2).sum()
    draws = mean + spread * rng.standard_normal((4000, num, 4))
    naive = (draws.mean(axis=1) ** 2).sum(axis=1) / draws.var(axis=1, ddof=1).sum(axis=1)
    found = [noise_of(own) for own in draws]
    squares = np.array([n.signal**2 for n in found])
    some = squares > 0  # it is cut at zero, which only adds
    assert some.mean() > 0.8
    # E[1 / variance] is a little more than 1 / E[variance]; by NumPy, of independent draws
    inverse = (
        1 / (spread * rng.standard_normal((20_000, num, 4))).var(axis=1, ddof=1).sum(axis=1)
    ).mean()
    square = naive - 1 / num
    error = square.std() / len(square) ** 0.5
    expected = (mean**2).sum() * inverse
    assert abs(square.mean() - expected) < 5 * error
    assert abs(naive.mean() - expected) > 8 * error
    np.testing.assert_allclose(squares, np.maximum(square, 0.0), rtol=1e-6, atol=1e-9)
    assert abs(expected / exact - 1) < 0.05
    large = np.array([n.error for n, s in zip(found, squares, strict=True) if s > 0.02])
    told = np.sqrt(np.mean(large**2))
    assert 0.7 < told / np.sqrt(squares).std() < 1.4


def test_noise_alone_has_no_signal_and_is_not_clear():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((500, 50, 20))
    signals = np.array([noise_of(own).signal for own in draws])
    assert np.median(signals) < 0.1  # mutant: 1 / sqrt(50) = 0.14, always
    assert np.mean([is_clear(own) for own in draws]) < 0.03
    assert np.mean([is_clear(own + 0.7) for own in draws]) > 0.99
    assert noise_of(np.zeros((10, 3))).signal == 0.0
    assert noise_of(np.full((10, 3), 1e-8)).signal < 0.1  # what rounding leaves


@pytest.mark.parametrize("curvature", [1.0, 1e4, 1e-4])
def test_the_gain_of_a_step_is_found_and_never_more_than_there_is(curvature):
    """A quadratic in which noise moves the optimum, with gradients as of a Normal's: of variance `curvature`."""
    rng = np.random.default_rng(0)
    at = np.array([3.0, -2.0, 0.0]) / curvature**0.5
    centres = 1 / curvature**0.5 * rng.standard_normal((2, 60, 3))

    def values(shift):
        return 0.5 * curvature * ((at + shift - centres[1]) ** 2).sum(axis=1)

    gradients = curvature * (at - centres[0])
    exact = 0.5 * curvature * (at**2).sum()
    found = gain_along(values, direction(gradients))
    assert found.nats - 5 * found.error < exact and found.nats > 0.5 * exact
    assert found.is_over(0.5)
    # at the optimum
    found = gain_along(lambda shift: values(shift - at), direction(gradients - curvature * at))
    assert not found.is_over(0.1)


def test_a_step_that_leaves_the_programs_gains_nothing():
    found = gain_along(lambda shift: np.full(50, np.nan if shift.any() else 1.0), np.ones(2))
    assert found.nats == 0.0


def series(rng, num, correlation=0.0):
    noise = rng.standard_normal(num)
    if not correlation:
        return noise
    for i in range(1, num):
        noise[i] = correlation * noise[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    return noise


def test_losses_that_have_come_to_rest_do_not_fall():
    rng, falls = np.random.default_rng(0), []
    for i in range(400):
        rest = 10 * np.exp(-np.arange(1500) / 100)
        falls.append(fall_of(rest + 3 * series(rng, 1500, 0.3 * (i % 2))))
    assert all(f.num_steps for f in falls)
    assert np.mean([f.chance <= 1e-3 for f in falls]) < 0.01
    assert np.mean([f.is_over(0.5) for f in falls]) < 0.005


def test_losses_that_still_fall_do():
    rng = np.random.default_rng(0)
    found = [fall_of(-0.02 * np.arange(1500) + series(rng, 1500, 0.3)) for _ in range(50)]
    assert np.mean([f.is_over(0.5) for f in found]) > 0.95
    assert abs(np.mean([f.nats for f in found]) - 0.02 * 200) < 0.2
    assert fall_of(np.arange(30.0)[::-1]).num_steps == 0  # too few to tell


def at_offset(lib, offset):
    """The exact posterior's guide, its mean so many standard deviations off: offset squared over two nats are lost."""
    return normals(lib, loc=MEAN + offset * SCALE)


def test_parameters_on_their_way_are_not_converged(lib):
    model, guide, args = at_offset(lib, 4.0)
    found = vi.diagnose(lib.Loss(), model, guide, *args, by_site=True)
    assert found.verdict == "not converged" and "more steps" in found.advice
    assert found.gain is not None and 4.0 < found.gain.nats < 8.0 + 5 * found.gain.error
    assert "one more step" in repr(found) and "by noise of site" in repr(found)
    # the gradient by the mean is (mean - draw) / variance: its signal is the offset, and all noise is z's
    for own in (found.noise["theta"], found.site_noise["z"]):
        assert abs(own.signal - 4.0) < 5 * own.error < 4.0


def test_what_a_step_gains_little_is_no_reason(lib):
    model, guide, args = at_offset(lib, 0.3)
    found = vi.diagnose(lib.Loss(), model, guide, *args, num_samples=1000)
    assert found.verdict != "not converged"
    assert found.gain is not None and found.gain.nats < 0.5


@pytest.mark.parametrize(
    "stop", [None, vi.IterateAverage(tolerance=0.1, every=5)], ids=["adam", "averaged"]
)
def test_a_fit_that_has_converged_is_not_accused(lib, stop):
    model, _, args = normals(lib)

    def guide(x):
        theta = lib.theta(np.array([0.0]))
        lib.sample("z", lib.dist.Normal(theta[0], SCALE))

    fit = importlib.import_module(f"vi_kit.{lib.name}").fit
    settings = {"optimizer": 0.03, "stop": stop}
    early = vi.diagnose(fit(model, guide, *args, num_steps=5, **settings), num_samples=1000)
    assert early.verdict == "not converged"
    text = " ".join(early.reasons)
    assert "the fit ended: 5 steps" in text and ("before its rule" in text) is (stop is not None)
    found = vi.diagnose(fit(model, guide, *args, num_steps=700, **settings), num_samples=1000)
    assert found.verdict in ("trust", "correct by importance sampling")
    assert found.gain is not None and found.gain.nats < 0.1
    assert found.fall is not None and found.fall.num_steps > 0


def test_a_guide_that_is_far_off_is_not_called_too_poor(lib):
    """Bounds are thousands of nats apart, of which a step need not close much: it is a matter of steps all the same."""

    def model(x):
        z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(2)), 1e3).to_event(1))
        lib.sample("x", lib.dist.Normal(z, lib.array(np.array([1.0, 0.001]))).to_event(1), obs=x)

    def guide(x):
        theta = lib.theta(np.array([1.0, 1.0]))
        lib.sample("z", lib.dist.Normal(theta, lib.array(np.array([1.0, 0.001]))).to_event(1))

    found = vi.diagnose(lib.Loss(), model, guide, lib.array(np.array([400.0, 2.0])))
    assert found.verdict == "not converged" and found.gap > 1e3
