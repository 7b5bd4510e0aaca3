"""Latent Dirichlet allocation in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from models.lda import NUM_TOPICS, SHARE_PRIOR, TOPIC_PRIOR


def model(counts: torch.Tensor) -> None:
    num_words = counts.shape[-1]
    with pyro.plate("topics_plate", NUM_TOPICS):
        topics = pyro.sample("topics", dist.Dirichlet(counts.new_full((num_words,), TOPIC_PRIOR)))
    with pyro.plate("texts", len(counts)):
        share = pyro.sample("share", dist.Dirichlet(counts.new_full((NUM_TOPICS,), SHARE_PRIOR)))
        # Pyro's has one total for all texts; the density goes by the counts, whatever it is.
        longest = int(counts.sum(-1).max())
        words = dist.Multinomial(longest, probs=share @ topics, validate_args=False)
        pyro.sample("words", words, obs=counts)


def guide(counts: torch.Tensor) -> None:
    num_words = counts.shape[-1]
    topics = pyro.param(
        "topics_concentration",
        lambda: 0.5 + torch.rand(NUM_TOPICS, num_words),
        constraint=constraints.positive,
    )
    share = pyro.param(
        "share_concentration", torch.ones(len(counts), NUM_TOPICS), constraint=constraints.positive
    )
    with pyro.plate("topics_plate", NUM_TOPICS):
        pyro.sample("topics", dist.Dirichlet(topics))
    with pyro.plate("texts", len(counts)):
        pyro.sample("share", dist.Dirichlet(share))
