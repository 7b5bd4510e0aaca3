"""Where a fit in Pyro stood some steps ago, so that a step can be taken back at no cost to the others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from vi_kit.pyro.noise import Generators

EVERY = 0.25
"""Seconds between marks, if they are cheap."""
SHARE = 0.01
"""Of the time, that marks may take."""
MAX_BYTES = 2**26
"""Of minibatches that are kept for the steps since a mark."""


@dataclass(frozen=True)
class State:
    """All that steps change.

    Attributes:
        done: steps before it.
        leaves: the parameters, unconstrained.
        buffers: of modules, as the averages of batch normalisation.
        kept: what baselines keep from step to step.
        optimizer: its state.
        mean: of the iterates.
        count: of those.
        noise: the generators.
        source: the position of the data.
    """

    done: int
    leaves: dict[str, torch.Tensor]
    buffers: list[torch.Tensor]
    kept: dict[str, torch.Tensor]
    optimizer: Any
    mean: dict[str, torch.Tensor]
    count: int
    noise: Generators
    source: dict[str, Any]


class Marks:
    """The last two states that were noted, and the minibatches since then that cannot be asked for again."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.calls: dict[int, Any] = {}
        self.num_bytes, self.due, self.size = 0, 0.0, -1

    def is_due(self, size: int) -> bool:
        """Whether it is time for another.

        Args:
            size: the number of parameters and modules; more of them make a mark due.
        """
        if size != self.size or self.num_bytes > MAX_BYTES:
            return True
        return time.perf_counter() >= self.due

    def add(self, state: State, size: int, seconds: float) -> None:
        """Note a state that took some time to copy."""
        self.states = [*self.states[-1:], state]
        self.calls = {i: c for i, c in self.calls.items() if i >= self.states[0].done}
        self.num_bytes, self.size = 0, size
        self.due = time.perf_counter() + max(EVERY, seconds / SHARE)

    def hurry(self) -> None:
        """What is done between steps is not done again: a mark comes after it."""
        self.due = 0.0

    def keep(self, step: int, taken: Any) -> None:
        """The arguments of a step, of a stream that cannot go back, and what they count for."""
        self.calls[step] = taken
        (args, kwargs), _ = taken
        arrays = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        self.num_bytes += sum(x.numel() * x.element_size() for x in arrays)

    def before(self, done: int) -> State | None:
        """The last one after no more than so many steps."""
        found = [state for state in self.states if state.done <= done]
        return found[-1] if found else None
