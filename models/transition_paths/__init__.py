"""Transition paths: how a particle gets over the barriers of the Mueller-Brown potential, which it rarely does.

The model is a walk in the potential (Euler steps of Langevin dynamics) from one well, weighted by how near its end is
to the other. The guide adds a learned drift. The log variance is taken at paths from the guide, or at those of a
hotter one (`vi.log_variance` with a `reference`), which see more ways. Evidence, marginals and the probability to
arrive from a point (for this many steps what the committor is for any) are known by quadrature on a grid.

References:
    Müller and Brown 1979, Location of Saddle Points and Minimum Energy Paths by a Constrained Simplex Optimization
    Procedure.
    Seong et al. 2025, Transition Path Sampling with Improved Off-Policy Training of Diffusion Path Samplers.
"""

from __future__ import annotations

import math
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
from scipy.stats import norm

import vi_kit as vi
from models.recipe import Recipe

NUM_STEPS, NUM_HIDDEN = 16, 32
NOISE, HOTTER = 0.16, 1.3
"""The standard deviation of a step, and how much wider those of the hotter guide are."""

START, END, WIDTH = (-0.558, 1.442), (0.623, 0.028), 0.15
"""The two wells, and how near the end has to be."""

LONGEST = 0.3
"""By so much the force moves the particle in a step, at the most."""

DEPTHS = np.array([-200.0, -100.0, -170.0, 15.0]) / 25.0
XX, XY, YY = (
    np.array([-1, -1, -6.5, 0.7]),
    np.array([0, 0, 11, 0.6]),
    np.array([-10, -10, -6.5, 0.7]),
)
CENTRES = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])


def parts(z: Any) -> tuple[Any, Any, Any]:
    """The four parts of the potential (in units of the temperature), and how far `z` is from their centres."""
    xp = vi.array_namespace(z)
    depths, xx, xy, yy, x0, y0 = (
        xp.asarray(own, dtype=z.dtype) for own in (DEPTHS, XX, XY, YY, *CENTRES.T)
    )
    x, y = z[..., :1] - x0, z[..., 1:] - y0
    own = depths * xp.exp(xx * x * x + xy * x * y + yy * y * y)
    return own, own * (2 * xx * x + xy * y), own * (xy * x + 2 * yy * y)


def ahead(z: Any) -> Any:
    """Where the force moves the particle in a step."""
    xp = vi.array_namespace(z)
    _, x, y = parts(z)
    move = -0.5 * NOISE**2 * xp.stack([x.sum(-1), y.sum(-1)], -1)
    length = xp.sqrt((move * move).sum(-1) + 1e-12)[..., None]
    return z + move * LONGEST / (LONGEST + length)


def log_arrived(z: Any) -> Any:
    """The log weight of an end."""
    x, y = z[..., 0] - END[0], z[..., 1] - END[1]
    return -0.5 * (x * x + y * y) / WIDTH**2


def data() -> tuple[()]:
    """There are none."""
    return ()


class Grid:
    """The plane, and the walk on it."""

    def __init__(self, apart: float = 0.05) -> None:
        self.x, self.y = np.arange(-1.9, 1.8, apart), np.arange(-0.9, 2.4, apart)
        self.points = np.stack(np.meshgrid(self.x, self.y, indexing="ij"), -1).reshape(-1, 2)
        middle = ahead(np.concatenate([self.points, [START]]))
        self.cell = apart**2
        self.to_x = norm.pdf(self.x, middle[:, :1], NOISE)
        self.to_y = norm.pdf(self.y, middle[:, 1:], NOISE)

    def arriving(self) -> list[np.ndarray]:
        """Before each step and after the last: the expected weight of the end from each point, and (last) from the
        start."""
        values = [np.exp(log_arrived(np.concatenate([self.points, [START]])))]
        for _ in range(NUM_STEPS):
            later = values[0][:-1].reshape(len(self.x), len(self.y))
            values.insert(0, self.cell * ((self.to_x @ later) * self.to_y).sum(-1))
        return values

    def marginal(self, num_steps: int) -> np.ndarray:
        """Density of where a path that arrives is after some steps, `(len(x), len(y))`."""
        here = self.to_x[-1][:, None] * self.to_y[-1]
        for _ in range(num_steps - 1):
            here = self.cell * self.to_x[:-1].T @ (here.reshape(-1, 1) * self.to_y[:-1])
        joint = here * self.arriving()[num_steps][:-1].reshape(here.shape)
        return joint / (joint.sum() * self.cell)


@cache
def exact() -> float:
    """The log evidence (nats), by quadrature."""
    return math.log(Grid().arriving()[0][-1])


def picture(fit: vi.Fit, ax: Any) -> None:
    """Paths of the guide over the potential."""
    draws = fit.sample(30)
    grid = Grid()
    height = parts(grid.points)[0].sum(-1).reshape(len(grid.x), len(grid.y))
    ax.contourf(grid.x, grid.y, np.minimum(height.T, 4.0), levels=20, cmap="Greys")
    for path in draws["path"]:
        ax.plot(*path.T, lw=0.7)
    ax.plot(*zip(START, END, strict=True), "k*")
    ax.set(xlabel="x", ylabel="y", xlim=(-1.6, 1.3), ylim=(-0.5, 2.1))


SETTINGS = {
    "num_steps": 3000,
    "step_size": 0.01,
    "options": {"num_samples": 2},
}

RECIPES = {
    "hotter": Recipe(
        objectives=(vi.log_variance(num_particles=16),),
        reference=attrgetter("hotter_guide"),
        **SETTINGS,
    ),
    "own": Recipe(objectives=(vi.log_variance(num_particles=16), vi.elbo()), **SETTINGS),
}
"""After 3000 steps in NumPyro with seed 0 (35 s), where the log evidence is -7.059: by the hotter guide the ELBO is
-7.88, Pareto k 0.43, and the weights of 4000 draws say -7.061; by the log variance at its own paths -7.73, 0.58 and
-7.117; by the ELBO -8.11 and 0.87, and 37 draws count: it misses a way."""
