"""Radon in 919 houses of 85 counties of Minnesota: levels of counties that share a regression on their uranium.

a ~ Normal(0, 2) for an intercept, a slope by the uranium of the county and one by the floor of the measurement; tau,
sigma ~ HalfNormal(1); level[c] ~ Normal(a[0] + a[1] uranium[c], tau); and log radon[h] ~ Normal(level[c(h)] + a[2]
floor[h], sigma). ArviZ ships the data. The exact log evidence has levels and coefficients in closed form, and tau and
sigma by the midpoint rule.

References:
    Gelman and Hill 2007, Data Analysis Using Regression and Multilevel/Hierarchical Models.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_COUNTIES = 85


def data() -> tuple[np.ndarray, ...]:
    """The county of each house, the uranium of each county (logarithm), the floor of each house, and its log radon."""
    found = importlib.util.find_spec("arviz")
    assert found and found.origin, "the data are ArviZ's"
    file = Path(found.origin).parent / "data/example_data/code/radon/radon.json"
    columns = json.loads(file.read_text())
    return (np.array(columns["county"]), *(np.array(columns[k], float) for k in ("u", "x", "y")))


def log_likelihood(tau: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Of the spread of counties and that of houses (nats), of one shape; levels and coefficients in closed form."""
    county, uranium, floor, y = data()
    both = np.stack([np.ones_like(floor), uranium[county], floor, y], -1)
    counts = np.bincount(county, minlength=NUM_COUNTIES)
    sums = np.stack([np.bincount(county, c, minlength=NUM_COUNTIES) for c in both.T], -1)
    # The inverse covariance of a county's houses is (1 - share 11') / sigma^2.
    tau, sigma = tau[..., None], sigma[..., None]
    share = tau**2 / (sigma**2 + counts * tau**2)
    inside = (both.T @ both - np.einsum("...c,ci,cj->...ij", share, sums, sums)) / sigma[
        ..., None
    ] ** 2
    precision = inside[..., :3, :3] + np.eye(3) / 4
    fitted = np.linalg.solve(precision, inside[..., :3, 3:])
    square = inside[..., 3, 3] - (inside[..., 3:, :3] @ fitted)[..., 0, 0]
    log_det = 2 * (len(y) - NUM_COUNTIES) * np.log(sigma[..., 0]) + len(y) * np.log(2 * np.pi)
    log_det += np.log(sigma**2 + counts * tau**2).sum(-1) + np.linalg.slogdet(4 * precision)[1]
    return -0.5 * (square + log_det)


def exact(num_nodes: int = 60) -> float:
    """The log evidence (nats), by the midpoint rule; beyond the grid the likelihood is negligible."""
    middle = (np.arange(num_nodes) + 0.5) / num_nodes
    tau, sigma = np.meshgrid(0.7 * middle, 0.6 + 0.35 * middle)
    prior = np.log(2 / np.pi) - 0.5 * (tau**2 + sigma**2)
    logs = log_likelihood(tau, sigma) + prior + np.log(0.7 * 0.35 / num_nodes**2)
    return float(np.logaddexp.reduce(logs.ravel()))


def picture(fit: vi.Fit, ax: Any) -> None:
    """The level of each county by its uranium, with two standard deviations, and the regression."""
    _, uranium, _, _ = data()
    draws = fit.sample(500)
    level, a = draws["level"], draws["a"].mean(0)
    ax.errorbar(uranium, level.mean(0), 2 * level.std(0), fmt=".", alpha=0.6)
    ends = np.array([uranium.min(), uranium.max()])
    ax.plot(ends, a[0] + a[1] * ends, "k", label="regression")
    ax.set(xlabel="log uranium of the county", ylabel="level of log radon")
    ax.legend(fontsize="small")


RECIPES = {
    "conditional": Recipe(num_steps=500, step_size=0.05, options={"num_samples": 4}),
    "mean-field": Recipe(
        lambda lib: (lib.model, lib.AutoNormal(lib.model)), step_size=0.05, num_steps=2000
    ),
}
"""The first guide has the levels exactly, given the rest."""
