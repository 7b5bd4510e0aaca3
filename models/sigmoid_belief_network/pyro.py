"""The sigmoid belief network in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from models.sigmoid_belief_network import NUM_MIDDLE, NUM_PIXELS, NUM_TOP


def affine(name: str, x: torch.Tensor, num_out: int) -> torch.Tensor:
    """An affine function of the last dim, with parameters of its own."""
    num_in = x.shape[-1]
    weights = pyro.param(f"{name}_weights", lambda: 0.1 * torch.randn(num_in, num_out))
    return x @ weights + pyro.param(f"{name}_bias", torch.zeros(num_out))


def model(x: torch.Tensor) -> None:
    with pyro.plate("images", len(x)):
        top = pyro.sample("top", dist.Bernoulli(logits=x.new_zeros(NUM_TOP)).to_event(1))
        logits = affine("to_middle", top, NUM_MIDDLE)
        middle = pyro.sample("middle", dist.Bernoulli(logits=logits).to_event(1))
        logits = affine("to_pixels", middle, NUM_PIXELS)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: torch.Tensor) -> None:
    with pyro.plate("images", len(x)):
        logits = affine("from_pixels", x, NUM_MIDDLE)
        middle = pyro.sample("middle", dist.Bernoulli(logits=logits).to_event(1))
        logits = affine("from_middle", middle, NUM_TOP)
        pyro.sample("top", dist.Bernoulli(logits=logits).to_event(1))
