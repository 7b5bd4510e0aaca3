"""Objectives, one family a file, each a short program of the language."""

from vi_kit.objectives.elbo import elbo
from vi_kit.objectives.importance_weighted import iwae, miwae

__all__ = ["elbo", "iwae", "miwae"]
