"""Transition paths in Pyro."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch

from models.transition_paths import (
    HOTTER,
    NOISE,
    NUM_HIDDEN,
    NUM_STEPS,
    START,
    ahead,
    log_arrived,
)

NAMES = [f"z{t}" for t in range(NUM_STEPS - 1)] + ["end"]


def model() -> None:
    """A walk in the potential, weighted by its end."""
    z, path = torch.tensor(START), []
    for name in NAMES:
        z = pyro.sample(name, dist.Normal(ahead(z), NOISE).to_event(1))
        path.append(z)
    pyro.deterministic("path", torch.stack(path, -2))
    pyro.factor("arrived", log_arrived(z))


def guide(hotter: float = 1.0) -> None:
    """The walk with a further drift, a network of the place with offsets of its own at each step, and steps whose
    width is learned: the last ones aim."""
    slopes = pyro.param("slopes", lambda: torch.randn(2, NUM_HIDDEN))
    mixing = pyro.param(
        "mixing", lambda: torch.randn(NUM_HIDDEN, NUM_HIDDEN) / math.sqrt(NUM_HIDDEN)
    )
    offsets = pyro.param("offsets", lambda: torch.randn(NUM_STEPS, NUM_HIDDEN))
    weights = pyro.param("weights", torch.zeros(NUM_HIDDEN, 2))
    widths = hotter * NOISE * pyro.param("widths", torch.zeros(NUM_STEPS)).exp()
    z = torch.tensor(START)
    for t, name in enumerate(NAMES):
        hidden = torch.tanh(torch.tanh(z @ slopes + offsets[t]) @ mixing)
        drift = NOISE * (hidden @ weights)
        z = pyro.sample(name, dist.Normal(ahead(z) + drift, widths[t]).to_event(1))


def hotter_guide() -> None:
    """The same with wider steps."""
    guide(HOTTER)
