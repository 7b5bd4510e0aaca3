"""State-space models: data, settings, and the exact evidence of the linear-Gaussian one (Kalman filter)."""

from __future__ import annotations

import math

import numpy as np

STAY, NOISE, OBS_NOISE = 0.9, 1.0, 0.5
"""Of the linear-Gaussian model: autoregression, and the standard deviations of states and data."""

MEAN, PERSISTENCE, VOLATILITY = -1.0, 0.95, 0.3
"""Of stochastic volatility: the log variance's mean, autoregression, and the standard deviation of its steps."""


def linear_data(num_steps: int, seed: int = 0) -> np.ndarray:
    """Simulated data, shape `(num_steps,)`."""
    rng, state, data = np.random.default_rng(seed), 0.0, []
    for _ in range(num_steps):
        state = STAY * state + NOISE * rng.normal()
        data.append(state + OBS_NOISE * rng.normal())
    return np.array(data)


def linear_log_evidence(data: np.ndarray) -> float:
    """The exact log evidence of the linear-Gaussian model (nats)."""
    mean, variance, total = 0.0, 0.0, 0.0
    for datum in data:
        mean, variance = STAY * mean, STAY**2 * variance + NOISE**2
        predicted = variance + OBS_NOISE**2
        total -= 0.5 * (math.log(2 * math.pi * predicted) + (datum - mean) ** 2 / predicted)
        gain = variance / predicted
        mean, variance = mean + gain * (datum - mean), variance * (1.0 - gain)
    return total


def returns(num_steps: int, seed: int = 1) -> np.ndarray:
    """Simulated returns of stochastic volatility, shape `(num_steps,)`."""
    rng, state, data = np.random.default_rng(seed), MEAN, []
    for _ in range(num_steps):
        state = MEAN + PERSISTENCE * (state - MEAN) + VOLATILITY * rng.normal()
        data.append(math.exp(0.5 * state) * rng.normal())
    return np.array(data)
