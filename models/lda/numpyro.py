"""Latent Dirichlet allocation in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import constraints

from models.lda import NUM_TOPICS, SHARE_PRIOR, TOPIC_PRIOR


def model(counts: jax.Array) -> None:
    num_words = counts.shape[-1]
    with numpyro.plate("topics_plate", NUM_TOPICS):
        topics = numpyro.sample("topics", dist.Dirichlet(jnp.full(num_words, TOPIC_PRIOR)))
    with numpyro.plate("texts", len(counts)):
        share = numpyro.sample("share", dist.Dirichlet(jnp.full(NUM_TOPICS, SHARE_PRIOR)))
        words = dist.Multinomial(probs=share @ topics, total_count=counts.sum(-1))
        numpyro.sample("words", words, obs=counts)


def guide(counts: jax.Array) -> None:
    num_words = counts.shape[-1]
    topics = numpyro.param(
        "topics_concentration",
        lambda key: 0.5 + random.uniform(key, (NUM_TOPICS, num_words)),
        constraint=constraints.positive,
    )
    share = numpyro.param(
        "share_concentration", jnp.ones((len(counts), NUM_TOPICS)), constraint=constraints.positive
    )
    with numpyro.plate("topics_plate", NUM_TOPICS):
        numpyro.sample("topics", dist.Dirichlet(topics))
    with numpyro.plate("texts", len(counts)):
        numpyro.sample("share", dist.Dirichlet(share))
