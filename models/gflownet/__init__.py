"""A generative flow network on a grid: a policy that ends at each cell as often as its reward says.

From the corner it goes right, goes up or stops; the reward of a cell is high in the four corners and low between
them. The guide is the policy, forwards; the model is the backward policy (of the ways into a cell each is as likely)
from an end that is as probable as its reward. Both are programs of the same actions, so that trajectory balance and
the log variance are losses of vi_kit, and the evidence is the sum of all rewards.

References:
    Bengio et al. 2021, Flow Network based Generative Models for Non-Iterative Diverse Candidate Generation.
    Malkin et al. 2022, Trajectory Balance: Improved Credit Assignment in GFlowNets.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

SIDE = 4
NUM_STEPS = 2 * (SIDE - 1)
"""The longest way, not counting the stop at its end, which is then the only action."""

RIGHT, UP, STOP = range(3)
NEVER = -1e9


def rewards() -> np.ndarray:
    """Of each cell, `(SIDE, SIDE)`."""
    edge = np.isin(np.arange(SIDE), (0, SIDE - 1))
    return 0.1 + (edge[:, None] & edge) * np.arange(1.0, SIDE + 1)


def log_rewards() -> np.ndarray:
    """The same in nats."""
    return np.log(rewards())


def legal() -> np.ndarray:
    """Zero for what one may do in a cell, `NEVER` for the rest: `(SIDE, SIDE, 3)`."""
    table = np.zeros((SIDE, SIDE, 3))
    table[-1, :, RIGHT] = NEVER
    table[:, -1, UP] = NEVER
    return table


def data() -> tuple[()]:
    """There are none."""
    return ()


def exact() -> float:
    """The log of the sum of all rewards (nats)."""
    return float(np.log(rewards().sum()))


def ends(logits: np.ndarray) -> np.ndarray:
    """Where a policy ends, by enumeration: the probability of each cell, `(SIDE, SIDE)`.

    Args:
        logits: of the actions in each cell, `(SIDE, SIDE, 3)`.
    """
    weights = np.exp(logits + legal() - logits.max(-1, keepdims=True))
    policy = weights / weights.sum(-1, keepdims=True)
    here = np.zeros((SIDE + 1, SIDE + 1))
    here[0, 0] = 1.0
    for i in range(SIDE):
        for j in range(SIDE):
            here[i + 1, j] += here[i, j] * policy[i, j, RIGHT]
            here[i, j + 1] += here[i, j] * policy[i, j, UP]
    return here[:SIDE, :SIDE] * policy[..., STOP]


def distance(logits: np.ndarray) -> float:
    """From where the policy should end: the sum of absolute differences of probabilities."""
    return float(np.abs(ends(logits) - rewards() / rewards().sum()).sum())


def picture(fit: vi.Fit, ax: Any) -> None:
    """Where the policy ends, beside where it should."""
    logits = np.asarray(fit.params["logits"])
    both = np.concatenate([ends(logits), rewards() / rewards().sum()], 1)
    ax.imshow(both, origin="lower", cmap="Greys", vmin=0.0)
    ax.axvline(SIDE - 0.5, color="red")
    ax.set(title=f"policy and target, {distance(logits):.3f} apart", xticks=[], yticks=[])


RECIPES = {
    "log-variance": Recipe(
        attrgetter("model", "guide"),
        objectives=(vi.log_variance(num_particles=8), vi.elbo()),
        estimators={"action*": vi.Score(vi.LeaveOneOut())},
        num_steps=800,
        step_size=0.1,
        options={"num_samples": 2},
    ),
    "balance": Recipe(
        attrgetter("model", "guide_with_normaliser"),
        objectives=(vi.trajectory_balance(num_particles=16),),
        num_steps=800,
        step_size=0.1,
    ),
}
"""In the second the log normaliser is learned, as a factor of the guide."""
