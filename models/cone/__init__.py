"""The noisy cone: which points (x, y) explain the height z that was observed?

x, y ~ Normal(0, 10) and z ~ Normal(x^2 + y^2, 0.1 + (x^2 + y^2) / 100), second arguments being standard
deviations. The posterior is a thin ring, which no mean-field Normal guide can cover.

References:
    Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

Z_OBS = 5.0
PRIOR_SCALE = 10.0
HIDDEN = 16


def exact_log_evidence(z_obs: float = Z_OBS, num_nodes: int = 200_001) -> float:
    """log p(z), in nats, by the trapezoid rule in NumPy.

    The squared radius s = x^2 + y^2 is Exponential with mean 2 * PRIOR_SCALE^2, so one integral is left.
    """
    mean = 2 * PRIOR_SCALE**2
    s = np.linspace(0.0, 4 * abs(z_obs) + 20.0, num_nodes)
    noise = 0.1 + s / 100
    likelihood = np.exp(-0.5 * ((z_obs - s) / noise) ** 2) / (noise * np.sqrt(2 * np.pi))
    return float(np.log(np.trapezoid(likelihood * np.exp(-s / mean) / mean, s)))


def posterior_grid(
    z_obs: float = Z_OBS, half_width: float = 3.5, num_nodes: int = 301
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior density on a square grid, for pictures.

    Returns:
        The grid of either coordinate, `(num_nodes,)`, and the density, `(num_nodes, num_nodes)`, whose
        first axis is y (as `imshow` and `contour` expect).
    """
    grid = np.linspace(-half_width, half_width, num_nodes)
    height = grid[None, :] ** 2 + grid[:, None] ** 2
    noise = 0.1 + height / 100
    log_joint = -np.log(2 * np.pi * PRIOR_SCALE**2) - height / (2 * PRIOR_SCALE**2)
    log_joint -= 0.5 * ((z_obs - height) / noise) ** 2 + np.log(noise * np.sqrt(2 * np.pi))
    return grid, np.exp(log_joint - exact_log_evidence(z_obs))


def data() -> tuple[()]:
    """The height is a default of the programs."""
    return ()


def exact() -> float:
    """The log evidence (nats)."""
    return exact_log_evidence()


def picture(fit: vi.Fit, ax: Any) -> None:
    """Draws of the guide over the posterior."""
    grid, density = posterior_grid()
    ax.contourf(grid, grid, density, levels=12, cmap="Greys")
    draws = fit.sample(500)
    ax.plot(draws["x"], draws["y"], ".", markersize=2)
    ax.set(xlabel="x", ylabel="y", xlim=grid[[0, -1]], ylim=grid[[0, -1]], aspect="equal")


RECIPES = {
    "mean-field": Recipe(options={"num_samples": 8}),
    "autoregressive": Recipe(
        attrgetter("model", "guide_autoregressive"), options={"num_samples": 8}
    ),
    "hierarchical": Recipe(lambda lib: (lib.model, lib.ring(5)), options={"num_samples": 8}),
    "semi-implicit": Recipe(
        lambda lib: (lib.model, lib.semi_implicit(20)), options={"num_samples": 8}
    ),
}
"""The last two have guides with an angle that is summed out of their density, by an estimate."""
