"""Generators of f-divergences, for `vi.f_divergence`."""

from vi_kit.objectives.f_divergence import (
    alpha,
    forward_kl,
    jensen_shannon,
    neyman,
    pearson,
    reverse_kl,
    squared_hellinger,
    total_variation,
    tsallis,
)

__all__ = [
    "alpha",
    "forward_kl",
    "jensen_shannon",
    "neyman",
    "pearson",
    "reverse_kl",
    "squared_hellinger",
    "total_variation",
    "tsallis",
]
