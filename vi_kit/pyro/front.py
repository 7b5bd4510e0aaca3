"""What lies in front of a program's own dims: replicates, worlds and alternatives; and how one index is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Position = Callable[[int, int], int]
"""From a negative dim, counted without those of the event, and its size to one index of it."""


def at(value: torch.Tensor, position: Position, nesting: int, event_ndim: int) -> torch.Tensor:
    """A value at one index of every dim in front of those of plates (`nesting`) and of the event."""
    for dim in range(event_ndim - value.ndim, -nesting):
        size = value.shape[0]
        value = value[position(dim, size) if size > 1 else 0]
    return value


def fitted(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A value in the shape that the program alone gives it, and always another tensor than before: transforms
    remember those that they made."""
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = value[0]
    return value.expand(tuple(shape)) if value.ndim <= len(shape) else value[...]
