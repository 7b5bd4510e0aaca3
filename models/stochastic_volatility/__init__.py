"""Stochastic volatility: returns whose log variance is an autoregression, with a particle filter as the guide.

h[t] ~ Normal(-1 + 0.95 (h[t-1] + 1), 0.3) from -1, and y[t] ~ Normal(0, exp(h[t] / 2)); the data are simulated. The
proposal shifts the prediction by how surprising the return is. The exact log evidence is by quadrature over a grid
of h, forward in time.

References:
    Kim, Shephard and Chib 1998, Stochastic Volatility: Likelihood Inference and Comparison with ARCH Models.
    Naesseth et al. 2018, Variational Sequential Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import vi_kit as vi
from models import state_space

MEAN, PERSISTENCE, VOLATILITY = -1.0, 0.95, 0.3
"""The log variance's mean, autoregression, and the standard deviation of its steps."""


def returns(num_steps: int, seed: int = 1) -> np.ndarray:
    """Simulated returns, shape `(num_steps,)`."""
    rng, state, data = np.random.default_rng(seed), MEAN, []
    for _ in range(num_steps):
        state = MEAN + PERSISTENCE * (state - MEAN) + VOLATILITY * rng.normal()
        data.append(math.exp(0.5 * state) * rng.normal())
    return np.array(data)


def data() -> tuple[np.ndarray]:
    """Twelve returns."""
    return (returns(12),)


def forward(y: np.ndarray, num_nodes: int = 801) -> tuple[float, np.ndarray, np.ndarray]:
    """By the trapezoid rule, step by step.

    Returns:
        The log evidence (nats), the grid of h, and the density of each h there given the returns so far,
        `(len(y), num_nodes)`.
    """
    grid = MEAN + np.linspace(-6.0, 6.0, num_nodes)
    weight = grid[1] - grid[0]

    def normal(x: Any, scale: Any) -> np.ndarray:
        return np.exp(-0.5 * (x / scale) ** 2) / (scale * math.sqrt(2 * math.pi))

    ahead = MEAN + PERSISTENCE * (grid - MEAN)
    step = normal(grid[:, None] - ahead, VOLATILITY)  # to, from
    density, total, densities = normal(grid - MEAN, VOLATILITY), 0.0, []
    for t, datum in enumerate(y):
        if t > 0:
            density = step @ density * weight
        density = density * normal(datum, np.exp(0.5 * grid))
        evidence = density.sum() * weight
        density, total = density / evidence, total + math.log(evidence)
        densities.append(density)
    return total, grid, np.array(densities)


def exact() -> float:
    """The log evidence (nats)."""
    return forward(*data())[0]


def picture(fit: vi.Fit, ax: Any) -> None:
    """The sizes of returns, over the exact density of the standard deviation given the returns so far."""
    (y,) = data()
    _, grid, densities = forward(y)
    ax.pcolormesh(np.arange(len(y)), np.exp(0.5 * grid), densities.T, cmap="Greys")
    ax.plot(np.abs(y), ".", label="|return|")
    ax.set(xlabel="t", ylabel="standard deviation", ylim=(0.0, 2.0))
    ax.set_title(", ".join(f"{k} {v:.2f}" for k, v in fit.params.items()), fontsize="medium")
    ax.legend(fontsize="small")


RECIPES = state_space.RECIPES
"""A series is fitted in the same ways, whichever its law."""
