"""Diffusion samplers: draws of a density that is known up to its normaliser, by a controlled random walk.

The guide is a walk of `NUM_STEPS` Euler steps with a learned drift. The model is the walk without a drift, whose end is
weighted by the target over its own density, so that the end's marginal is the target and the evidence its normaliser
(1 here). The reverse KL divergence (`vi.elbo`) goes through all steps and may drop modes; the log variance
(`vi.log_variance`) does not, at draws that are held fixed, and keeps more of them.

References:
    Zhang and Chen 2022, Path Integral Sampler: A Stochastic Control Approach for Sampling.
    Richter and Berner 2024, Improved Sampling via Learned Diffusions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_STEPS, NUM_HIDDEN = 8, 32

ANGLES = 2 * np.pi * np.arange(5) / 5
CENTRES = 3.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
WEIGHTS = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
MIXTURE_SCALE, FUNNEL_SCALE, WELL = 0.6, 1.5, 2.0


@dataclass(frozen=True)
class Target:
    """A density.

    Attributes:
        name: of it.
        num_dims: of its space.
        log_density: of points, along the last dim, by functions that both libraries have (nats).
        scale: the standard deviation of the end of the walk without a drift.
    """

    name: str
    num_dims: int
    log_density: Callable[[Any], Any]
    scale: float

    def log_end_density(self, x: Any) -> Any:
        """Of the end of the walk without a drift (nats)."""
        return log_normal(x, self.scale).sum(-1)


def log_normal(x: Any, scale: Any) -> Any:
    """About zero."""
    xp = vi.array_namespace(x)
    log_scale = math.log(scale) if isinstance(scale, float) else xp.log(scale)
    return -0.5 * (x / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def mixture(x: Any) -> Any:
    """Five Normals of unequal weights on a circle."""
    xp = vi.array_namespace(x)
    apart = x[..., None, :] - xp.asarray(CENTRES, dtype=x.dtype)
    logs = log_normal(apart, MIXTURE_SCALE).sum(-1) + xp.asarray(np.log(WEIGHTS), dtype=x.dtype)
    top = xp.max(logs, axis=-1)
    return top + xp.log(xp.exp(logs - top[..., None]).sum(-1))


def funnel(x: Any) -> Any:
    """Neal's funnel: the first coordinate is the log variance of the others."""
    xp = vi.array_namespace(x)
    first, others = x[..., 0], x[..., 1:]
    return log_normal(first, FUNNEL_SCALE) + log_normal(others, xp.exp(first / 2)[..., None]).sum(
        -1
    )


def wells(x: Any) -> Any:
    """A double well in each coordinate."""
    return (-((x**2 - WELL) ** 2) - LOG_WELL).sum(-1)


def _log_well() -> float:
    grid = np.linspace(-6.0, 6.0, 20_001)
    return float(np.log(np.trapezoid(np.exp(-((grid**2 - WELL) ** 2)), grid)))


LOG_WELL = _log_well()
"""The log normaliser of one double well (nats)."""


def data() -> tuple[()]:
    """There are none."""
    return ()


def exact() -> float:
    """The log normaliser (nats): the targets are normalised."""
    return 0.0


def shares(ends: np.ndarray) -> np.ndarray:
    """The share of the ends that is nearest to each centre of the mixture."""
    nearest = ((ends[:, None] - CENTRES) ** 2).sum(-1).argmin(-1)
    return np.bincount(nearest, minlength=len(WEIGHTS)) / len(ends)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Ends of the walk over the target, in the first two coordinates (the others at zero)."""
    target = fit.model.args[0]
    ends = fit.sample(1000)["end"]
    grid = np.linspace(-5.0, 5.0, 161)
    points = np.zeros((161, 161, target.num_dims))
    points[..., 0], points[..., 1] = np.meshgrid(grid, grid)
    ax.contourf(grid, grid, np.exp(target.log_density(points)), levels=12, cmap="Greys")
    ax.plot(ends[:, 0], ends[:, 1], ".", markersize=2)
    title = f"shares {shares(ends).round(2)} of {WEIGHTS}" if target.name == "mixture" else ""
    ax.set(title=title, xlim=(-5, 5), ylim=(-5, 5), aspect="equal")


TARGETS = (
    Target("mixture", 2, mixture, scale=3.0),
    Target("funnel", 3, funnel, scale=2.0),
    Target("wells", 4, wells, scale=1.5),
)

LOG_VARIANCE = vi.log_variance(num_particles=16)

RECIPES = {
    target.name: Recipe(
        lambda lib, target=target: lib.programs(target),
        objectives=(LOG_VARIANCE, vi.elbo()) if target.name == "mixture" else (LOG_VARIANCE,),
        num_steps=1500,
        step_size=0.01,
        options={"num_samples": 4},
    )
    for target in TARGETS
}
"""After 1500 steps of the log variance in NumPyro with seed 0 the weights of 4000 ends say of the log normaliser, which
is 0: mixture -0.07 (Pareto k 0.14; shares .12 .16 .20 .25 .27), funnel -0.02 (k 0.86: its neck is too wide), wells 0.17
(k 1.4: eight steps do not get into sixteen wells that narrow, and the ELBO is -6.7)."""
