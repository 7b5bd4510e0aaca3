"""Pictures of fits, from both libraries."""

import importlib
import types

import matplotlib
import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import normals, posterior_of_normals
from vi_kit.engine.variance import GradientVariance, Part
from vi_kit.workflow import pictures

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def no_figures_are_left():
    yield
    plt.close("all")


def texts(ax):
    legend = ax.get_legend()
    return [] if legend is None else [t.get_text() for t in legend.get_texts()]


def rows(ax):
    return [t.get_text() for t in ax.get_yticklabels()]


def test_pictures_of_a_fit(lib):
    model, guide, args = normals(lib)
    fit = importlib.import_module(f"vi_kit.{lib.name}").fit(
        model, guide, *args, num_steps=60, optimizer=0.01
    )
    ax = vi.plot_bound(fit)
    assert isinstance(ax, plt.Axes)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == (
        "step",
        "objective, maximised",
        "60 steps",
    )
    assert texts(ax) == ["steps", "mean of 1 steps", "end"]
    own, ax = plt.subplots()[1], vi.plot_weights(fit, num_samples=200)
    assert vi.plot_weights(fit, num_samples=200, ax=own) is own
    assert ax.get_xlabel() == "weight (mean one)" and ax.get_title().startswith("Pareto k")
    ax = vi.plot_snr(fit.diagnose(num_samples=200, num_gradients=20, by_site=True))
    assert rows(ax) == ["theta", "noise of site z"] and ax.get_xscale() == "log"
    mean, scale = posterior_of_normals()
    exact = mean + scale * np.random.default_rng(0).standard_normal(500)
    ax = vi.plot_posterior(fit, {"z": exact, "of another model": exact}, num_samples=500)
    assert rows(ax) == ["z"] and texts(ax) == ["guide", "reference"]


def fit_of(losses, restarts=(), sign=-1.0):
    loss = types.SimpleNamespace(settings=types.SimpleNamespace(sign=sign))
    return vi.Fit(None, None, (), {}, loss, {}, losses, losses, "done", "", {}, {}, 0, (), {}, restarts)  # fmt: skip


def test_the_first_steps_do_not_press_the_others_flat():
    rng = np.random.default_rng(0)
    losses = 1e6 * np.exp(-np.arange(1000) / 5) + 10 + rng.standard_normal(1000)
    low, high = vi.plot_bound(fit_of(losses)).get_ylim()
    assert -16 < low < -12 and -9 < high < -5


def test_restarts_are_drawn_once():
    losses = np.random.default_rng(0).standard_normal((3, 200))
    ax = vi.plot_bound(fit_of(losses[1], tuple(losses)), window=20)
    assert texts(ax) == ["steps", "other restarts (2)", "mean of 20 steps", "end"]
    means = losses.reshape(3, 10, 20).mean(axis=2)
    np.testing.assert_allclose(ax.lines[1].get_ydata()[::20], -means[0])
    np.testing.assert_allclose(ax.lines[3].get_ydata()[::20], -means[1])


def test_weights_that_are_given_with_a_known_tail():
    rng = np.random.default_rng(0)
    weights = rng.pareto(1 / 0.4, 20_000) + 1  # k = .4
    ax = vi.plot_weights(np.log(weights))
    assert ax.get_title() == f"Pareto k = {float(ax.get_title()[11:15]):.2f}: good"
    assert abs(float(ax.get_title()[11:15]) - 0.4) < 0.1
    # the curve goes through the tail
    tail, curve = ax.lines[1].get_ydata(), ax.lines[2].get_ydata()
    assert np.max(abs(np.log(tail / curve))[10:]) < 0.5
    assert vi.plot_weights(np.zeros(100)).get_title() == "Pareto k = -inf: good"


def test_variances_by_site():
    part = Part("the gradient", 5.0, 0.1)
    found = GradientVariance(part, (), (Part("a", 4.0, 0.4), Part("b", 1.0, 0.1)), 100)
    ax = vi.plot_snr(found)
    assert rows(ax) == ["a", "b"]
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_xdata(), float), [2.0, 1.0])
    assert ax.get_xlim()[0] == 0.0


def test_many_rows_are_cut():
    x = np.random.default_rng(0).standard_normal((50, 40))
    ax = vi.plot_posterior({"z": x}, {"z": x})
    assert len(rows(ax)) == pictures.MOST_ROWS and rows(ax)[-1] == "z[29] (and 10 more)"


def test_what_cannot_be_drawn():
    with pytest.raises(vi.ObjectiveError, match="not of the same sites"):
        vi.plot_posterior({"z": np.zeros(3)}, {"y": np.zeros(3)})
    with pytest.raises(vi.ObjectiveError, match=r"\(2,\), \(\)"):
        vi.plot_posterior({"z": np.zeros((3, 2))}, {"z": np.zeros(3)})
    with pytest.raises(vi.ObjectiveError, match="nothing is known of the gradient's noise"):
        vi.plot_snr(np.zeros(3))
