"""The flow network in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from models.gflownet import NUM_STEPS, RIGHT, SIDE, STOP, UP, legal, log_rewards


class Walker:
    """Where one is, and whether one goes on."""

    def __init__(self) -> None:
        self.i = self.j = torch.tensor(0)
        self.going = torch.tensor(True)

    def act(self, action: torch.Tensor) -> None:
        self.going = self.going & (action != STOP)
        self.i = self.i + (self.going & (action == RIGHT))
        self.j = self.j + (self.going & (action == UP))


def model() -> None:
    """The way back from an end that is as probable as its reward."""
    at, free = Walker(), torch.zeros(3)
    for t in range(NUM_STEPS):
        at.act(pyro.sample(f"action{t}", dist.Categorical(logits=free).mask(False)))
        ways = 1.0 + ((at.i > 0) & (at.j > 0))
        pyro.factor(f"back{t}", torch.where(at.going, -torch.log(ways), 0.0))
    pyro.factor("reward", torch.as_tensor(log_rewards(), dtype=free.dtype)[at.i, at.j])


def guide() -> None:
    """The policy: a table of logits for each cell. After the stop nothing counts."""
    logits = pyro.param("logits", torch.zeros(SIDE, SIDE, 3))
    logits = logits + torch.as_tensor(legal(), dtype=logits.dtype)
    at = Walker()
    for t in range(NUM_STEPS):
        policy = dist.Categorical(logits=logits[at.i, at.j])
        at.act(pyro.sample(f"action{t}", policy.mask(at.going)))


def guide_with_normaliser() -> None:
    """The policy, and the log of the sum of all rewards."""
    pyro.factor("log_normaliser", pyro.param("log_z", torch.tensor(0.0)), has_rsample=True)
    guide()
