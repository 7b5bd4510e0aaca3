"""Latent traces of thought: a question, some steps that nobody sees, and an answer.

A trace of tokens comes from a fixed chain given the question; the answer is their sum and the question's (modulo
`NUM_TOKENS`), sometimes mistaken. The guide writes traces that lead to the answer. `vi.multi_trace` fits it by a
forward KL divergence at traces from the model that are weighted by the answer; the value is the bound of several
traces. All traces can be enumerated.

References:
    Zhou et al. 2025, Variational Reasoning for Language Models.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_TOKENS, LENGTH, MISTAKE = 4, 3, 0.1
NAMES = [f"step_{t}" for t in range(LENGTH)]
PRIOR = 1.5 * np.random.default_rng(0).normal(size=(LENGTH, NUM_TOKENS, NUM_TOKENS))
PRIOR = PRIOR.astype(np.float32)
"""Logits of the token of each step, given the question."""

ANSWERS = np.full((NUM_TOKENS, NUM_TOKENS), MISTAKE / NUM_TOKENS, np.float32)
ANSWERS += (1 - MISTAKE) * np.eye(NUM_TOKENS, dtype=np.float32)
"""Probabilities of answers, given the sum."""


def data() -> tuple[np.ndarray, np.ndarray]:
    """Questions, and their answers."""
    questions = np.repeat(np.arange(NUM_TOKENS), 2)
    return questions, np.random.default_rng(1).integers(NUM_TOKENS, size=len(questions))


def log_joint() -> np.ndarray:
    """Of each trace (rows, `NUM_TOKENS**LENGTH`) and each answer (nats)."""
    traces = np.array(list(product(range(NUM_TOKENS), repeat=LENGTH)))
    questions, answers = data()
    log_prior = PRIOR - np.log(np.exp(PRIOR).sum(-1, keepdims=True))
    total = sum(log_prior[t][questions][:, traces[:, t]].T for t in range(LENGTH))
    sums = (traces.sum(-1)[:, None] + questions) % NUM_TOKENS
    return total + np.log(ANSWERS[sums, answers])


def exact() -> float:
    """The log evidence of the answers (nats)."""
    return float(np.log(np.exp(log_joint()).sum(0)).sum())


def posterior() -> np.ndarray:
    """Of each trace (rows), for each answer."""
    joint = np.exp(log_joint())
    return joint / joint.sum(0)


def frequencies(fit: vi.Fit, num_samples: int = 4000) -> np.ndarray:
    """How often the guide writes each trace (rows), for each answer."""
    draws = fit.sample(num_samples)
    codes = sum(
        draws[name].astype(int) * NUM_TOKENS ** (LENGTH - 1 - t) for t, name in enumerate(NAMES)
    )
    counts = [np.bincount(own, minlength=NUM_TOKENS**LENGTH) for own in np.asarray(codes).T]
    return np.stack(counts, -1) / num_samples


def picture(fit: vi.Fit, ax: Any) -> None:
    """How often the guide writes each trace, beside the exact posterior."""
    ax.plot(posterior(), frequencies(fit), "k.", markersize=3)
    ax.plot([0, posterior().max()], [0, posterior().max()], color="grey", lw=0.5)
    ax.set(xlabel="posterior probability of a trace", ylabel="how often the guide writes it")


RECIPES = {
    "traces": Recipe(
        objectives=(
            vi.multi_trace(num_particles=16),
            vi.wake_sleep(num_particles=16),
            vi.iwae(num_particles=16),
        ),
        estimators={"step_*": vi.Score(vi.LeaveOneOut())},
        num_steps=600,
        step_size=0.05,
    ),
}
