"""The flow network in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from models.gflownet import NUM_STEPS, RIGHT, SIDE, STOP, UP, legal, log_rewards


class Walker:
    """Where one is, and whether one goes on."""

    def __init__(self) -> None:
        self.i = self.j = jnp.array(0)
        self.going = jnp.array(True)

    def act(self, action: jax.Array) -> None:
        self.going = self.going & (action != STOP)
        self.i = self.i + (self.going & (action == RIGHT))
        self.j = self.j + (self.going & (action == UP))


def model() -> None:
    """The way back from an end that is as probable as its reward."""
    at, free = Walker(), jnp.zeros(3)
    for t in range(NUM_STEPS):
        at.act(numpyro.sample(f"action{t}", dist.Categorical(logits=free).mask(False)))
        ways = 1.0 + ((at.i > 0) & (at.j > 0))
        numpyro.factor(f"back{t}", jnp.where(at.going, -jnp.log(ways), 0.0))
    numpyro.factor("reward", jnp.asarray(log_rewards())[at.i, at.j])


def guide() -> None:
    """The policy: a table of logits for each cell. After the stop nothing counts."""
    logits = numpyro.param("logits", jnp.zeros((SIDE, SIDE, 3))) + legal()
    at = Walker()
    for t in range(NUM_STEPS):
        policy = dist.Categorical(logits=logits[at.i, at.j])
        at.act(numpyro.sample(f"action{t}", policy.mask(at.going)))


def guide_with_normaliser() -> None:
    """The policy, and the log of the sum of all rewards."""
    numpyro.factor("log_normaliser", numpyro.param("log_z", jnp.array(0.0)))
    guide()
