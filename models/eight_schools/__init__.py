"""Eight schools: effects of coaching, each measured once, that share a mean and a spread.

mu ~ Normal(0, 5), tau ~ HalfCauchy(5), theta[j] ~ Normal(mu, tau) and y[j] ~ Normal(theta[j], s[j]), second arguments
being standard deviations. The posterior of the centred form is a funnel (where tau is small, so is the spread of
theta), which no mean-field guide can follow; that of the non-centred form, theta = mu + tau * raw, is not.

References:
    Rubin 1981, Estimation in Parallel Randomized Experiments.
    Papaspiliopoulos, Roberts and Sköld 2007, A General Framework for the Parametrization of Hierarchical Models.
    Yao, Vehtari, Simpson and Gelman 2018, Yes, but Did It Work?: Evaluating Variational Inference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def data() -> tuple[np.ndarray, np.ndarray]:
    """Effects, and their standard errors."""
    return EFFECTS, ERRORS


def exact(num_nodes: int = 20_000) -> float:
    """The log evidence (nats): theta and mu in closed form, tau by the midpoint rule.

    With tau = 5 tan(pi u / 2), u is uniform.
    """
    u = (np.arange(num_nodes) + 0.5) / num_nodes
    tau = 5.0 * np.tan(np.pi * u / 2)
    precision = 1 / (ERRORS**2 + tau[:, None] ** 2)
    # y has precision D = diag(precision) given mu; of mu, 1/25 before and `total` after the data.
    total = 1 / 25 + precision.sum(-1)
    square = (precision * EFFECTS**2).sum(-1) - (precision @ EFFECTS) ** 2 / total
    log_det = np.log(2 * np.pi / precision).sum(-1) + np.log(25 * total)
    return float(np.logaddexp.reduce(-0.5 * (square + log_det)) - np.log(num_nodes))


def picture(fit: vi.Fit, ax: Any) -> None:
    """The effects as measured and by the guide, with two standard deviations."""
    draws = fit.sample(2000)
    theta = draws.get("theta")
    if theta is None:
        theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["raw"]
    schools = np.arange(8)
    ax.errorbar(schools - 0.1, EFFECTS, 2 * ERRORS, fmt="k.", alpha=0.4, label="measured")
    ax.errorbar(schools + 0.1, theta.mean(0), 2 * theta.std(0), fmt="o", label="guide")
    ax.set(xlabel="school", ylabel="effect")
    ax.legend(fontsize="small")


RECIPES = {
    "non-centred": Recipe(lambda lib: (lib.non_centred, lib.AutoNormal(lib.non_centred))),
    "centred": Recipe(lambda lib: (lib.centred, lib.AutoNormal(lib.centred))),
    "covariance": Recipe(
        lambda lib: (lib.non_centred, lib.AutoMultivariateNormal(lib.non_centred)),
        objectives=(vi.iwae(num_particles=10), vi.elbo()),
    ),
}
"""The last guide has all covariances."""
