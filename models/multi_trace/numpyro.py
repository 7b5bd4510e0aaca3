"""Latent traces in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from models.multi_trace import ANSWERS, LENGTH, NAMES, NUM_TOKENS, PRIOR


def model(questions: jax.Array, answers: jax.Array) -> None:
    """A trace, and the answer that is the sum."""
    total = questions
    with numpyro.plate("questions", len(questions)):
        for t, name in enumerate(NAMES):
            prior = dist.Categorical(logits=jnp.asarray(PRIOR)[t, questions])
            total = (total + numpyro.sample(name, prior)) % NUM_TOKENS
        numpyro.sample("answer", dist.Categorical(jnp.asarray(ANSWERS)[total]), obs=answers)


def guide(questions: jax.Array, answers: jax.Array) -> None:
    """A table for each step, of question, answer and the sum so far: enough for the posterior."""
    shape = (LENGTH, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS)
    logits, total = numpyro.param("logits", jnp.zeros(shape)), questions
    with numpyro.plate("questions", len(questions)):
        for t, name in enumerate(NAMES):
            step = dist.Categorical(logits=logits[t, questions, answers, total])
            total = (total + numpyro.sample(name, step)) % NUM_TOKENS
