"""The policy near a reference in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from models.kl_policy import LENGTH, NAMES, NUM_TOKENS, REFERENCE, reward


def chain(prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    table, tokens, before = torch.as_tensor(REFERENCE), {}, prompts
    for name in NAMES:
        before = tokens[name] = pyro.sample(name, dist.Categorical(logits=table[before]))
    return tokens


def reference(prompts: torch.Tensor) -> None:
    """A chain of tokens."""
    with pyro.plate("prompts", len(prompts)):
        chain(prompts)


def model(prompts: torch.Tensor) -> None:
    """The chain, weighted by the reward."""
    with pyro.plate("prompts", len(prompts)):
        pyro.factor("reward", reward(chain(prompts), prompts))


def guide(prompts: torch.Tensor) -> None:
    """A table for each place, of the prompt and the token before."""
    shape = (LENGTH, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS)
    logits, before = pyro.param("logits", torch.zeros(shape)), prompts
    with pyro.plate("prompts", len(prompts)):
        for t, name in enumerate(NAMES):
            before = pyro.sample(name, dist.Categorical(logits=logits[t, prompts, before]))
