"""A Bayesian neural network: the progression of diabetes by body mass, blood pressure and eight other measurements.

A layer of twenty units: weights w1, b1, w2 ~ Normal(0, 1), the last scaled by the root of the number of units, b2 ~
Normal(0, 1), noise ~ HalfNormal(1), and y ~ Normal(tanh(x w1 + b1) w2 + b2, noise). The data are scikit-learn's
`load_diabetes`, standardised, of which 100 patients are held out.

References:
    Neal 1996, Bayesian Learning for Neural Networks.
    Blundell, Cornebise, Kavukcuoglu and Wierstra 2015, Weight Uncertainty in Neural Networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_UNITS, NUM_HELD_OUT = 20, 100


def patients(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Measurements, `(442, 10)`, and the progression, standardised, in random order; the last 100 are held out."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = np.asarray(x), np.asarray(y)
    order = np.random.default_rng(seed).permutation(len(x))
    return ((x - x.mean(0)) / x.std(0))[order], ((y - y.mean()) / y.std())[order]


def data() -> tuple[np.ndarray, np.ndarray]:
    """Those to train on."""
    x, y = patients()
    return x[:-NUM_HELD_OUT], y[:-NUM_HELD_OUT]


def held_out(fit: vi.Fit, num_samples: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """The progression of the patients held out, `(100,)`, and draws of it by the guide, `(num_samples, 100)`."""
    x, y = patients()
    like = fit.args[0]
    new = [vi.array_namespace(like).asarray(a[-NUM_HELD_OUT:], dtype=like.dtype) for a in (x, y)]
    return y[-NUM_HELD_OUT:], fit.predictive(*new, num_samples=num_samples)["y"]


def picture(fit: vi.Fit, ax: Any) -> None:
    """Predictions for patients that were held out, with two standard deviations."""
    y, draws = held_out(fit)
    ax.errorbar(draws.mean(0), y, xerr=2 * draws.std(0), fmt=".", alpha=0.4)
    ax.plot([-2, 2], [-2, 2], "k:", lw=1)
    ax.set(xlabel="prediction", ylabel="progression, held out")


RECIPES = {
    "mean-field": Recipe(
        lambda lib: (lib.model, lib.AutoNormal(lib.model, init_scale=0.05)),
        options={"num_samples": 2},
    ),
}
