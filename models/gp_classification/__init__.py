"""Gaussian-process classification with inducing points: on which of two moons is a point, and how sure can one be?

f ~ GP(0, k) with k(a, b) = variance exp(-sum_d (a[d] - b[d])^2 / (2 length[d]^2)), y[n] ~ Bernoulli(logit = f(x[n])).
The function at 20 inducing points is L u, where L L' is their covariance and u ~ Normal(0, 1). The guide has u ~
MultivariateNormal, and f(x[n]) given u as in the model, so that its terms cancel; rows come in minibatches. That is the
bound of Hensman et al.: it has f at one point at a time, so that programs may draw these independently given u, which
they are not in the process. Variance, lengths and the places of the inducing points are parameters of the model. The
points are scikit-learn's `make_moons`: 400 to train on, 400 held out.

References:
    Titsias 2009, Variational Learning of Inducing Variables in Sparse Gaussian Processes.
    Hensman, Matthews and Ghahramani 2015, Scalable Variational Gaussian Process Classification.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit

import vi_kit as vi
from models.recipe import Recipe

NUM_INDUCING, NUM_TRAIN = 20, 400
JITTER = 1e-4
"""Noise of the function at each point, relative to its variance: the covariance of near points is singular without."""


def points(num: int = 2 * NUM_TRAIN) -> tuple[np.ndarray, np.ndarray]:
    """Points in the plane, `(num, 2)`, and on which moon each is."""
    from sklearn.datasets import make_moons

    x, y = make_moons(num, noise=0.3, random_state=0)
    return np.asarray(x), np.asarray(y, float)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Those to train on."""
    x, y = points()
    return x[:NUM_TRAIN], y[:NUM_TRAIN]


@cache
def inducing_points() -> np.ndarray:
    """Where they are at first: the centres of 20 clusters of the points."""
    from sklearn.cluster import KMeans

    return KMeans(NUM_INDUCING, n_init=1, random_state=0).fit(data()[0]).cluster_centers_


def probability(fit: vi.Fit, x: np.ndarray, num_samples: int = 200) -> np.ndarray:
    """Of the second moon at each point, `(len(x),)`, by draws of the guide."""
    like = fit.args[0]
    new = [vi.array_namespace(like).asarray(a, dtype=like.dtype) for a in (x, np.zeros(len(x)))]
    return expit(vi.sample(fit, *new, num_samples=num_samples)["f"]).mean(0)


def held_out(fit: vi.Fit) -> tuple[float, float]:
    """Of the points held out: the share that is classified rightly, and the log density (nats per point)."""
    x, y = (a[NUM_TRAIN:] for a in points())
    of_second = probability(fit, x)
    of_own = np.where(y, of_second, 1 - of_second)
    return float((of_own > 0.5).mean()), float(np.log(of_own).mean())


def picture(fit: vi.Fit, ax: Any) -> None:
    """The probability of the second moon in the plane, the points held out, and the inducing points."""
    across, up = np.meshgrid(np.linspace(-2.2, 3.2, 55), np.linspace(-1.7, 2.2, 40))
    of_second = probability(fit, np.stack([across, up], -1).reshape(-1, 2)).reshape(across.shape)
    levels = ax.contourf(across, up, of_second, np.linspace(0, 1, 11), cmap="RdBu")
    ax.figure.colorbar(levels, ax=ax, label="probability of the second moon")
    ax.contour(across, up, of_second, [0.5], colors="k")
    x, y = (a[NUM_TRAIN:] for a in points())
    ax.scatter(*x.T, c=y, cmap="RdBu", s=8, edgecolors="k", linewidths=0.3)
    ax.plot(*np.asarray(fit.params["inducing"]).T, "k+", ms=9, label="inducing points")
    ax.set(xlabel="x[0]", ylabel="x[1]")
    ax.legend(fontsize="small")


RECIPES = {
    "reparam": Recipe(objectives=(vi.elbo(),), double=True, options={"batch_size": 100}),
    "quadrature": Recipe(
        objectives=(vi.elbo(),),
        estimators={"f": vi.Quadrature(10, biased=True), "u": vi.Reparam()},
        double=True,
        options={"batch_size": 100},
    ),
}
"""The second has f at ten nodes of its Normal, given u. Either classifies 0.92 of the points held out rightly, with a
log density of -0.20 nats per point, as the exact process does by Laplace's approximation (scikit-learn's
`GaussianProcessClassifier`: 0.93, -0.20)."""
