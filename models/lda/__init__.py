"""Latent Dirichlet allocation: topics of short texts, with the topic of each word summed out.

topic[k] ~ Dirichlet(0.1) over the vocabulary for six topics, share[d] ~ Dirichlet(0.3) over the topics for each text,
and its words ~ Multinomial(share[d] topic). The texts are what NumPy says of its own functions (their docstrings in
`numpy.linalg`, `numpy.fft`, `numpy.random`, `numpy.ma` and `numpy.polynomial`): text that a package ships, and whose
topics one can tell. The guide has an independent Dirichlet for each topic and text, with the gradient through its
Gamma sampler.

References:
    Blei, Ng and Jordan 2003, Latent Dirichlet Allocation.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_TOPICS, NUM_TEXTS, NUM_WORDS = 6, 120, 150
TOPIC_PRIOR, SHARE_PRIOR = 0.1, 0.3

COMMON = set(
    (
        "the and for that are with from this will which can not than has have its was when where "
        "such each one two all any used use using also only into may more been their then they "
        "these those other some same but see note notes example examples returns return parameters "
        "parameter none true false default optional int float array ndarray numpy array_like import "
        "print new given out type shape dtype axis axes object value values input must should does "
        "both like equal else between first last set len least over under size func function "
        "functions result self raises references specified otherwise however whether because about "
        "very here there what very per via "
    ).split()
)
"""Words that no topic is about."""


@cache
def counted() -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of each word in each text, `(texts, words)`, and the words, the most frequent first."""
    texts = []
    for module in (np.linalg, np.fft, np.random, np.ma, np.polynomial.polynomial):
        named = sorted((n, getattr(module, n)) for n in dir(module) if not n.startswith("_"))
        own = [inspect.getdoc(f) or "" for _, f in named if callable(f)]
        texts += sorted(set(own), key=own.index)[: NUM_TEXTS // 4]
    words = [re.findall(r"[a-z]{3,}", t.lower()) for t in texts if len(t) > 200]
    kept = [[w for w in own if w not in COMMON] for own in words]
    spread = Counter(w for own in kept for w in set(own))
    total = Counter(w for own in kept for w in own if 3 <= spread[w] <= len(kept) // 3)
    vocabulary = tuple(w for w, _ in sorted(total.items(), key=lambda x: (-x[1], x[0]))[:NUM_WORDS])
    tables = [[Counter(own)[w] for w in vocabulary] for own in kept]
    counts = np.array([row for row in tables if sum(row) >= 10], float)
    return counts, vocabulary


def data() -> tuple[np.ndarray]:
    """Numbers of each word in each text."""
    return (counted()[0],)


def picture(fit: vi.Fit, ax: Any) -> None:
    """The likeliest words of each topic."""
    topics, (_, vocabulary) = fit.sample(50)["topics"].mean(0), counted()
    for k, topic in enumerate(topics):
        best = ", ".join(vocabulary[i] for i in np.argsort(-topic)[:7])
        ax.text(0.0, 1 - (k + 0.5) / NUM_TOPICS, f"{k}: {best}", fontsize="small", va="center")
    ax.axis("off")


RECIPES = {
    "dirichlet": Recipe(objectives=(vi.elbo(),), step_size=0.05),
}
