"""The hidden Markov model in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from models.hmm import MEANS, TRANSITION


def model(x: torch.Tensor) -> None:
    means, transition = x.new_tensor(MEANS), x.new_tensor(TRANSITION)
    probs = x.new_ones(3) / 3
    for t, datum in enumerate(x):
        z = pyro.sample(f"z{t}", dist.Categorical(probs))
        pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=datum)
        probs = transition[z]


def guide(x: torch.Tensor) -> None:
    """A chain with transitions of its own in each step."""
    z = pyro.sample("z0", dist.Categorical(logits=pyro.param("start", torch.zeros(3))))
    for t in range(1, len(x)):
        transition = pyro.param(f"transition{t}", torch.zeros(3, 3))
        z = pyro.sample(f"z{t}", dist.Categorical(logits=transition[z]))


def guide_of_independent_states(x: torch.Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(len(x), 3))
    for t in range(len(x)):
        pyro.sample(f"z{t}", dist.Categorical(logits=logits[t]))
