"""A mixture of two Gaussians: which component is each point from, and where are the components?

mean[k] ~ Normal(0, 3) for two components, z[i] ~ Categorical(0.4, 0.6), and x[i] ~ Normal(mean[z[i]], 1), second
arguments being standard deviations; twelve simulated points. The guide has Normal means and a probability for each
assignment. The assignments are enumerated, or drawn with the score function, or the model sums them out and the guide
has none. The exact evidence is a sum over all 2^12 assignments, with the means in closed form; the guide covers one
of two orders of the components, so its bound is below by about log 2.
"""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

WEIGHTS, PRIOR_SCALE = np.array([0.4, 0.6]), 3.0


def data(num_points: int = 12, seed: int = 0) -> tuple[np.ndarray]:
    """Simulated points."""
    rng = np.random.default_rng(seed)
    z = rng.choice(2, num_points, p=WEIGHTS)
    return (np.array([-2.0, 2.0])[z] + rng.normal(size=num_points),)


def exact() -> float:
    """The log evidence (nats), by enumeration of the assignments."""
    (x,) = data()
    z = np.array(list(itertools.product((0, 1), repeat=len(x))))
    log_joint = np.log(WEIGHTS)[z].sum(-1)
    for k in range(2):
        own = z == k
        count, total, square = own.sum(-1), own @ x, own @ x**2
        precision = 1 / PRIOR_SCALE**2 + count
        log_joint -= 0.5 * (square - total**2 / precision + count * np.log(2 * np.pi))
        log_joint -= 0.5 * np.log(precision * PRIOR_SCALE**2)
    return float(np.logaddexp.reduce(log_joint))


def picture(fit: vi.Fit, ax: Any) -> None:
    """The points, and the guide's densities of the two means."""
    means = fit.sample(2000)["means"]
    for k in range(2):
        ax.hist(means[:, k], bins=40, density=True, alpha=0.5, label=f"mean {k}")
    ax.plot(*data(), [0.0] * len(data()[0]), "k|", markersize=20)
    ax.set(xlabel="x", ylabel="density")
    ax.legend(fontsize="small")


RECIPES = {
    "enumerated": Recipe(estimators={"z": vi.Enumerate()}, step_size=0.1),
    "sampled": Recipe(
        estimators={"z": vi.Score(baseline=vi.LeaveOneOut())},
        step_size=0.1,
        options={"num_samples": 5},
    ),
    "summed": Recipe(
        attrgetter("model", "guide_of_means"),
        options={"marginalize": ["z"]},
        objectives=(vi.elbo(), vi.iwae(num_particles=10)),
    ),
}
