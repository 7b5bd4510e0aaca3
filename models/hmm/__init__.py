"""A hidden Markov model: a chain of three states, seen through Normal noise.

z[0] is uniform, z[t] ~ Categorical(TRANSITION[z[t-1]]), and x[t] ~ Normal(MEANS[z[t]], 1); eight simulated steps. A
guide that is a chain too has the posterior among its members, so its bound reaches the log evidence, which the
forward recursion gives. Enumerated, a step costs what the recursion does, T K^2. One with independent states does
not.

References:
    Rabiner 1989, A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

MEANS = np.array([-1.5, 0.0, 1.5])
TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])


def data(num_steps: int = 8, seed: int = 0) -> tuple[np.ndarray]:
    """A simulated series."""
    rng, z, x = np.random.default_rng(seed), 0, []
    for _ in range(num_steps):
        z = rng.choice(3, p=TRANSITION[z])
        x.append(MEANS[z] + rng.normal())
    return (np.array(x),)


def filtered() -> tuple[float, np.ndarray]:
    """By the forward recursion: the log evidence (nats), and the posterior of each state given all data, `(T, 3)`."""
    (x,) = data()
    likelihood = np.exp(-0.5 * (x[:, None] - MEANS) ** 2) / np.sqrt(2 * np.pi)
    forward, backward = np.zeros_like(likelihood), np.ones_like(likelihood)
    forward[0] = likelihood[0] / 3
    for t in range(1, len(x)):
        forward[t] = forward[t - 1] @ TRANSITION * likelihood[t]
    for t in range(len(x) - 1, 0, -1):
        backward[t - 1] = TRANSITION @ (likelihood[t] * backward[t])
    evidence = forward[-1].sum()
    return float(np.log(evidence)), forward * backward / evidence


def exact() -> float:
    """The log evidence (nats)."""
    return filtered()[0]


def picture(fit: vi.Fit, ax: Any) -> None:
    """The mean of each state's height, by the guide and by the forward recursion, among the data."""
    (x,), (_, posterior) = data(), filtered()
    draws = fit.sample(200)
    z = np.stack([draws[f"z{t}"] for t in range(len(x))], -1)
    ax.plot(x, "k.", label="data")
    ax.plot(posterior @ MEANS, label="exact mean")
    ax.plot(MEANS[z].mean(0), "--", label="mean of the guide")
    ax.set(xlabel="t")
    ax.legend(fontsize="small")


RECIPES = {
    "chain": Recipe(
        objectives=(vi.elbo(),), estimators=vi.Enumerate(), step_size=0.1, num_steps=300
    ),
    "independent": Recipe(
        attrgetter("model", "guide_of_independent_states"),
        objectives=(vi.elbo(),),
        estimators=vi.Enumerate(),
        step_size=0.1,
        num_steps=300,
    ),
    "sampled": Recipe(
        objectives=(vi.elbo(), vi.iwae(num_particles=10)),
        estimators=vi.Score(baseline=vi.LeaveOneOut()),
        options={"num_samples": 10},
    ),
}
"""Guides with enumerated states, and the chain with drawn ones."""
