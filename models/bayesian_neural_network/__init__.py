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


def nuts() -> tuple[np.ndarray, np.ndarray]:
    """Of the patients held out, `(100,)`: posterior means and standard deviations of tanh(x w1 + b1) w2 + b2.

    By NUTS in NumPyro 0.22.0 on `numpyro.model`: double precision, 4 chains of 1000 steps of warm-up and 2000 draws,
    target acceptance 0.9, `random.key(0)`; no divergences, R-hat at most 1.001 for each patient and for the noise,
    whose mean is 0.645. The root mean square error is 0.734 and the log density -1.107 nats per patient.
    """
    # fmt: off
    means = [
        0.08, 0.10, -0.99, -1.00, -0.93, -0.88, -0.02, 0.07, -0.62, -0.56, 0.26, -0.25, 0.02, -0.64, 0.09, 1.34,
        1.06, 1.45, -0.81, 0.67, 0.16, -0.77, -0.35, -0.10, -0.36, 0.17, 0.49, -0.04, 0.39, 0.38, 0.57, -0.54,
        -0.95, -0.03, 0.79, 0.61, -1.01, -0.08, -0.39, -0.34, 0.75, 1.01, 0.09, 0.14, -0.70, 0.33, 0.90, -0.19,
        -0.90, 0.02, -0.29, -0.42, -1.19, -0.69, -1.10, 0.43, 0.41, -0.34, 0.01, -0.84, 1.46, 0.42, -0.57, -0.89,
        0.95, -0.87, 0.38, -0.05, 1.41, 0.95, -0.65, -0.67, 0.88, 0.70, 0.39, 0.51, -0.56, -1.13, -0.95, 0.67,
        -0.35, -0.14, -0.04, 0.02, 0.50, 1.78, -0.16, -0.70, -0.74, 0.48, -0.67, 0.26, 0.24, 0.00, -0.74, 0.31,
        -0.26, 0.99, 0.52, -0.29,
    ]
    deviations = [
        0.32, 0.34, 0.22, 0.19, 0.26, 0.25, 0.27, 0.28, 0.30, 0.28, 0.32, 0.27, 0.28, 0.24, 0.28, 0.33,
        0.29, 0.31, 0.28, 0.30, 0.35, 0.25, 0.31, 0.29, 0.29, 0.33, 0.30, 0.28, 0.30, 0.31, 0.24, 0.23,
        0.33, 0.30, 0.32, 0.36, 0.27, 0.29, 0.30, 0.21, 0.27, 0.33, 0.29, 0.28, 0.27, 0.28, 0.32, 0.31,
        0.25, 0.31, 0.29, 0.33, 0.25, 0.29, 0.28, 0.34, 0.34, 0.30, 0.28, 0.30, 0.23, 0.27, 0.34, 0.24,
        0.35, 0.34, 0.24, 0.30, 0.26, 0.27, 0.28, 0.35, 0.27, 0.23, 0.25, 0.31, 0.25, 0.24, 0.25, 0.30,
        0.30, 0.31, 0.29, 0.25, 0.23, 0.26, 0.34, 0.23, 0.28, 0.27, 0.34, 0.29, 0.36, 0.25, 0.24, 0.39,
        0.29, 0.27, 0.32, 0.30,
    ]
    # fmt: on
    return np.array(means), np.array(deviations)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Predictions for patients that were held out, with two standard deviations, and where NUTS has their means."""
    y, draws = held_out(fit)
    ax.plot(nuts()[0], y, "k.", ms=4, alpha=0.6, label="NUTS")
    ax.errorbar(draws.mean(0), y, xerr=2 * draws.std(0), fmt=".", alpha=0.4, label="guide")
    ax.plot([-2, 2], [-2, 2], "k:", lw=1)
    ax.set(xlabel="prediction", ylabel="progression, held out")
    ax.legend(fontsize="small")


RECIPES = {
    "mean-field": Recipe(
        lambda lib: (lib.model, lib.AutoNormal(lib.model, init_scale=0.05)),
        num_steps=4000,
        options={"num_samples": 2},
    ),
}
"""Its predictions are as good as those of NUTS, and not the same: the root mean square error is 0.72 (0.73 by NUTS,
0.92 by the mean of all), the log density -1.10 nats per patient (-1.11), but the noise is 0.73 (0.64), and means are
0.22 apart (root mean square), where their standard deviations are 0.29 by NUTS and 0.28 by the guide."""
