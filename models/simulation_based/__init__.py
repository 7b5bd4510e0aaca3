"""Two moons: a posterior for whatever a simulator may say, learned from simulations alone.

Two numbers place a crescent, by the absolute value of their sum and by their difference, and a noisy point of it is
seen. So two crescents of numbers explain a point. The guide is a mixture of Normals by a network of the point, fitted
by the forward KL divergence (`vi.forward_kl`): it is right for all points at once, and no density of the simulator is
asked for. The crescent is made of `NUM_POINTS` Normals, so that densities and entropies are known all the same.

References:
    Greenberg et al. 2019, Automatic Posterior Transformation for Likelihood-Free Inference.
    Papamakarios and Murray 2016, Fast Epsilon-free Inference of Simulation Models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import norm

import vi_kit as vi
from models.recipe import Recipe

PRIOR_SCALE, NOISE, RADIUS, NUM_POINTS = 0.7, 0.1, 0.4, 12
NUM_HIDDEN, NUM_PARTS = 48, 6

ANGLES = np.pi * (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS - np.pi / 2
CRESCENT = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
"""The middles of its Normals."""


def data() -> tuple[np.ndarray]:
    """The point that is seen."""
    return (np.array([0.0, 0.0], np.float32),)


def placed(theta: np.ndarray) -> np.ndarray:
    """Where the crescent is."""
    total, difference = theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]
    return np.stack([-np.abs(total), difference], -1) / math.sqrt(2)


def density(apart: np.ndarray) -> np.ndarray:
    """Of points so far from where the crescent is placed."""
    logs = norm.logpdf(apart[..., None, :], CRESCENT, NOISE).sum(-1)
    return np.exp(logs).mean(-1)


def posterior_grid(num_nodes: int = 161) -> tuple[np.ndarray, np.ndarray]:
    """The exact posterior at `data()`: the grid of either number, and the density, `(num_nodes, num_nodes)`."""
    grid = np.linspace(-1.5, 1.5, num_nodes)
    theta = np.stack(np.meshgrid(grid, grid), -1)
    joint = norm.pdf(theta, 0.0, PRIOR_SCALE).prod(-1) * density(data()[0] - placed(theta))
    return grid, joint / (joint.sum() * (grid[1] - grid[0]) ** 2)


def exact_minimum(num_nodes: int = 281) -> float:
    """The least forward KL objective: the mean entropy of the posterior, H(theta) + H(x | theta) - H(x), in nats.

    Sum and difference over sqrt(2) are independent Normals, so the density of points is a mixture of half-Normals with
    noise times Normals.
    """
    grid = np.linspace(-4.5, 4.0, num_nodes)
    cell = (grid[1] - grid[0]) ** 2
    x = np.stack(np.meshgrid(grid, grid), -1)
    wide = math.hypot(PRIOR_SCALE, NOISE)
    of_x = np.zeros(x.shape[:-1])
    for first, second in np.moveaxis(x[..., None, :] - CRESCENT, (-2, -1), (0, 1)):
        below = norm.cdf(-first * PRIOR_SCALE / (NOISE * wide))
        of_x += 2 * norm.pdf(first, 0, wide) * below * norm.pdf(second, 0, wide) / NUM_POINTS
    near = np.linspace(-1.0, 1.0, num_nodes)
    given = density(np.stack(np.meshgrid(near, near), -1))
    prior = 1 + math.log(2 * math.pi * PRIOR_SCALE**2)
    return prior + entropy(given, (near[1] - near[0]) ** 2) - entropy(of_x, cell)


def entropy(density: np.ndarray, cell: float) -> float:
    """Of a density on a grid (nats)."""
    return float(-(density * np.log(density + 1e-300)).sum() * cell)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Draws of the guide over the exact posterior."""
    grid, density = posterior_grid()
    ax.contourf(grid, grid, density, levels=12, cmap="Greys")
    ax.plot(*fit.sample(500)["theta"].T, ".", markersize=2)
    ax.set(xlabel="theta[0]", ylabel="theta[1]", xlim=grid[[0, -1]], ylim=grid[[0, -1]])


RECIPES = {
    "forward": Recipe(
        objectives=(vi.forward_kl(num_particles=100),),
        num_steps=3000,
        step_size=0.01,
    ),
}
