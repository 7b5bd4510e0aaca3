"""When did coal-mining disasters become rarer? A discrete switch between two rates.

Numbers of disasters in British coal mines, 1851 to 1961: switch ~ uniform over the years, early, late ~
Exponential(1), and y[t] ~ Poisson(early) before the switch and Poisson(late) from it on. The guide has a probability
for each year and Gamma rates. The exact evidence is a sum over the years, with the rates in closed form.

References:
    Jarrett 1979, A Note on the Intervals between Coal-Mining Disasters.
    Carlin, Gelfand and Smith 1992, Hierarchical Bayesian Analysis of Changepoint Problems.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

FIRST_YEAR = 1851
DISASTERS = np.array(
    list(
        "4540143406334026335453144155342522342132"
        "2111130010110031032201110101000210001102"
        "3311211112420014000100000100101"
    ),
    dtype=int,
)
"""Of each year, a digit each."""


def data() -> tuple[np.ndarray]:
    """Disasters by year."""
    return (DISASTERS.astype(float),)


def log_joint() -> np.ndarray:
    """The log probability of the data and of the switch in each year, `(111,)`."""
    y, num = DISASTERS, len(DISASTERS)
    result = np.full(num, -math.log(num) - sum(math.lgamma(each + 1) for each in y))
    for switch in range(num):
        for part in (
            y[:switch],
            y[switch:],
        ):  # Gamma(1, 1) before and Gamma(1 + sum, 1 + years) after
            total = int(part.sum())
            result[switch] += math.lgamma(1 + total) - (1 + total) * math.log1p(len(part))
    return result


def exact() -> float:
    """The log evidence (nats)."""
    return float(np.logaddexp.reduce(log_joint()))


def picture(fit: vi.Fit, ax: Any) -> None:
    """The data, and the probability of each year by the guide and exactly."""
    years = FIRST_YEAR + np.arange(len(DISASTERS))
    by_guide = np.exp(np.asarray(fit.params["logits"]))
    ax.bar(years, DISASTERS, color="lightgrey")
    ax.set(xlabel="year", ylabel="disasters")
    right = ax.twinx()
    right.plot(years, np.exp(log_joint() - exact()), label="exact")
    right.plot(years, by_guide / by_guide.sum(), "--", label="guide")
    right.set(ylabel="probability of the switch")
    right.legend(fontsize="small")


RECIPES = {
    "enumerated": Recipe(
        objectives=(vi.elbo(),), estimators={"switch": vi.Enumerate()}, step_size=0.1
    ),
    "sampled": Recipe(
        estimators={"switch": vi.Score(baseline=vi.LeaveOneOut())},
        step_size=0.05,
        num_steps=2000,
        options={"num_samples": 10},
    ),
}
