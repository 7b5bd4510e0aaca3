"""The policy near a reference in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from models.kl_policy import LENGTH, NAMES, NUM_TOKENS, REFERENCE, reward


def chain(prompts: jax.Array) -> dict[str, jax.Array]:
    table, tokens, before = jnp.asarray(REFERENCE), {}, prompts
    for name in NAMES:
        before = tokens[name] = numpyro.sample(name, dist.Categorical(logits=table[before]))
    return tokens


def reference(prompts: jax.Array) -> None:
    """A chain of tokens."""
    with numpyro.plate("prompts", len(prompts)):
        chain(prompts)


def model(prompts: jax.Array) -> None:
    """The chain, weighted by the reward."""
    with numpyro.plate("prompts", len(prompts)):
        numpyro.factor("reward", reward(chain(prompts), prompts))


def guide(prompts: jax.Array) -> None:
    """A table for each place, of the prompt and the token before."""
    shape = (LENGTH, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS)
    logits, before = numpyro.param("logits", jnp.zeros(shape)), prompts
    with numpyro.plate("prompts", len(prompts)):
        for t, name in enumerate(NAMES):
            before = numpyro.sample(name, dist.Categorical(logits=logits[t, prompts, before]))
