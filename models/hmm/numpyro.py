"""The hidden Markov model in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from models.hmm import MEANS, TRANSITION


def model(x: jax.Array) -> None:
    means, transition = jnp.asarray(MEANS), jnp.asarray(TRANSITION)
    probs = jnp.ones(3) / 3
    for t, datum in enumerate(x):
        z = numpyro.sample(f"z{t}", dist.Categorical(probs))
        numpyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=datum)
        probs = transition[z]


def guide(x: jax.Array) -> None:
    """A chain with transitions of its own in each step."""
    z = numpyro.sample("z0", dist.Categorical(logits=numpyro.param("start", jnp.zeros(3))))
    for t in range(1, len(x)):
        transition = numpyro.param(f"transition{t}", jnp.zeros((3, 3)))
        z = numpyro.sample(f"z{t}", dist.Categorical(logits=transition[z]))


def guide_of_independent_states(x: jax.Array) -> None:
    logits = numpyro.param("logits", jnp.zeros((len(x), 3)))
    for t in range(len(x)):
        numpyro.sample(f"z{t}", dist.Categorical(logits=logits[t]))
