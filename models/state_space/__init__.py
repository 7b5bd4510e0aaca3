"""A linear-Gaussian series, whose evidence the Kalman filter knows, by weights of whole series and by particle filters.

z[t] ~ Normal(0.9 z[t-1], 1) from zero, and x[t] ~ Normal(z[t], 0.5), second arguments being standard deviations; the
data are simulated. The proposal goes part of the way from the prediction to the datum. Importance weights of whole
series spread with their length; a particle filter as the guide resamples on the way, and its bound stays tight.

References:
    Maddison et al. 2017, Filtering Variational Objectives.
    Naesseth et al. 2018, Variational Sequential Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

STAY, NOISE, OBS_NOISE = 0.9, 1.0, 0.5
"""Autoregression, and the standard deviations of states and data."""


def linear_data(num_steps: int, seed: int = 0) -> np.ndarray:
    """Simulated data, shape `(num_steps,)`."""
    rng, state, data = np.random.default_rng(seed), 0.0, []
    for _ in range(num_steps):
        state = STAY * state + NOISE * rng.normal()
        data.append(state + OBS_NOISE * rng.normal())
    return np.array(data)


def kalman(data: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The log evidence (nats), and mean and variance of each state given the data so far."""
    mean, variance, total, means, variances = 0.0, 0.0, 0.0, [], []
    for datum in data:
        mean, variance = STAY * mean, STAY**2 * variance + NOISE**2
        predicted = variance + OBS_NOISE**2
        total -= 0.5 * (math.log(2 * math.pi * predicted) + (datum - mean) ** 2 / predicted)
        gain = variance / predicted
        mean, variance = mean + gain * (datum - mean), variance * (1.0 - gain)
        means.append(mean)
        variances.append(variance)
    return total, np.array(means), np.array(variances)


def linear_log_evidence(data: np.ndarray) -> float:
    """The exact log evidence (nats)."""
    return kalman(data)[0]


def data() -> tuple[np.ndarray]:
    """Ten steps."""
    return (linear_data(10),)


def exact() -> float:
    """The log evidence (nats)."""
    return linear_log_evidence(*data())


def picture(fit: vi.Fit, ax: Any) -> None:
    """Data, and the band of two standard deviations in which the Kalman filter has each state."""
    (x,) = data()
    _, means, variances = kalman(x)
    steps, wide = np.arange(len(x)), 2 * np.sqrt(variances)
    ax.fill_between(steps, means - wide, means + wide, alpha=0.2, label="given the data so far")
    ax.plot(steps, x, "k.", label="data")
    ax.set(
        xlabel="t", title=f"proposal: {', '.join(f'{k} {v:.2f}' for k, v in fit.params.items())}"
    )
    ax.legend(fontsize="small")


def _filter(lib: Any) -> tuple[Any, Any]:
    return lib.model, vi.normalize(lib.model, vi.SMC(lib.proposal, 16, biased=True))


RECIPES = {
    "filter": Recipe(_filter, objectives=(vi.elbo(),), num_steps=300),
    "series": Recipe(
        lambda lib: (lib.model, lib.proposal),
        objectives=(vi.iwae(num_particles=16), vi.elbo()),
        num_steps=300,
    ),
}
"""The filter's gradient leaves out the score of resampling (`biased=True`): less noise, as published."""
