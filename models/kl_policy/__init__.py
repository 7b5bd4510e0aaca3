"""A policy that writes short sequences for a reward and stays near a reference, for a prompt each.

The reference is a chain of tokens, and the reward counts tokens that follow their predecessor in the alphabet, with a
bonus where the last repeats the prompt. Expected reward less the KL divergence from the reference is the ELBO of the
reference times exp(reward), so that the best policy is a posterior and what it reaches the log evidence: both are
known by enumeration. A sequence of one token would be a contextual bandit.

References:
    Levine 2018, Reinforcement Learning and Control as Probabilistic Inference.
    Zhang et al. 2025, On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning.
"""

from __future__ import annotations

from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_TOKENS, LENGTH = 4, 3
NAMES = [f"token_{t}" for t in range(LENGTH)]
BONUS, STEP = 2.0, 1.0
REFERENCE = np.random.default_rng(1).normal(size=(NUM_TOKENS, NUM_TOKENS)).astype(np.float32)
"""Logits of each token given the one before it; the first is after the prompt."""


def data() -> tuple[np.ndarray]:
    """The prompts, each token once."""
    return (np.arange(NUM_TOKENS),)


def reward(tokens: Any, prompts: Any) -> Any:
    """Of tokens by name, for the prompts (nats)."""
    before, total = prompts, BONUS * (tokens[NAMES[-1]] == prompts)
    for name in NAMES:
        total = total + STEP * (tokens[name] == (before + 1) % NUM_TOKENS)
        before = tokens[name]
    return total


def sequences() -> np.ndarray:
    """All that can be written, `(NUM_TOKENS**LENGTH, LENGTH)`."""
    return np.array(list(product(range(NUM_TOKENS), repeat=LENGTH)))


def log_joint() -> np.ndarray:
    """Log probability of the reference plus reward, of each sequence (rows) for each prompt (nats)."""
    log_table = REFERENCE - np.log(np.exp(REFERENCE).sum(-1, keepdims=True))
    tokens, (prompts,) = sequences()[:, None], data()
    before, total = np.broadcast_to(prompts, (len(tokens), NUM_TOKENS)), 0.0
    for t in range(LENGTH):
        now = np.broadcast_to(tokens[..., t], before.shape)
        total, before = total + log_table[before, now], now
    return total + reward(dict(zip(NAMES, np.moveaxis(tokens, -1, 0), strict=True)), prompts)


def exact() -> float:
    """What the best policy reaches, summed over the prompts; the log evidence (nats)."""
    return float(np.log(np.exp(log_joint()).sum(0)).sum())


def policy(logits: np.ndarray) -> np.ndarray:
    """Probability of each sequence (rows) for each prompt under a table of logits, as the guide has it."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    table, (prompts,) = weights / weights.sum(-1, keepdims=True), data()
    tokens, total = sequences()[:, None], 1.0
    before = np.broadcast_to(prompts, (len(tokens), NUM_TOKENS))
    for t in range(LENGTH):
        now = np.broadcast_to(tokens[..., t], before.shape)
        total, before = total * table[t, prompts, before, now], now
    return total


def best_policy() -> np.ndarray:
    """The same of the best one."""
    joint = np.exp(log_joint())
    return joint / joint.sum(0)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Probabilities of all sequences under the policy, beside those of the best one."""
    found = policy(np.asarray(fit.params["logits"]))
    for i, prompt in enumerate(data()[0]):
        ax.plot(best_policy()[:, i], found[:, i], ".", label=f"prompt {prompt}")
    top = best_policy().max()
    ax.plot([0, top], [0, top], color="grey", lw=0.5)
    ax.set(xlabel="probability of a sequence: best policy", ylabel="policy")
    ax.legend(fontsize="small")


SETTINGS = {
    "estimators": {"token_*": vi.Score(vi.LeaveOneOut())},
    "step_size": 0.1,
    "options": {"num_samples": 8},
}

RECIPES = {
    "posterior": Recipe(
        attrgetter("model", "guide"),
        objectives=(
            vi.elbo(),
            vi.log_variance(num_particles=8),
            vi.f_divergence(generator=vi.generators.jensen_shannon, num_particles=8),
        ),
        **SETTINGS,
    ),
    "reward": Recipe(
        attrgetter("reference", "guide"),
        objectives=(vi.expected_reward(reward=reward),),
        **SETTINGS,
    ),
}
"""The reward as a factor of the model, or in the objective."""
