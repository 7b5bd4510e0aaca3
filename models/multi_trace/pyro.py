"""Latent traces in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from models.multi_trace import ANSWERS, LENGTH, NAMES, NUM_TOKENS, PRIOR


def model(questions: torch.Tensor, answers: torch.Tensor) -> None:
    """A trace, and the answer that is the sum."""
    total = questions
    with pyro.plate("questions", len(questions)):
        for t, name in enumerate(NAMES):
            prior = dist.Categorical(logits=torch.as_tensor(PRIOR)[t, questions])
            total = (total + pyro.sample(name, prior)) % NUM_TOKENS
        pyro.sample("answer", dist.Categorical(torch.as_tensor(ANSWERS)[total]), obs=answers)


def guide(questions: torch.Tensor, answers: torch.Tensor) -> None:
    """A table for each step, of question, answer and the sum so far: enough for the posterior."""
    shape = (LENGTH, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS)
    logits, total = pyro.param("logits", torch.zeros(shape)), questions
    with pyro.plate("questions", len(questions)):
        for t, name in enumerate(NAMES):
            step = dist.Categorical(logits=logits[t, questions, answers, total])
            total = (total + pyro.sample(name, step)) % NUM_TOKENS
