"""Parts of a run of which nothing is kept for the gradient but how to make it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from vi_kit.base.context import _current
from vi_kit.engine.run import Run
from vi_kit.pyro.noise import Generators, buffers_kept


class Runner(Protocol):
    """What is asked of a backend."""

    draws: list[Any]

    def inside(self, run: Run) -> AbstractContextManager[None]:
        """All that is entered where a part of a run is made."""
        ...


def remade(
    run: Run, backend: Runner, once: Callable[[Any], list[torch.Tensor]]
) -> Callable[[Any], list[torch.Tensor]]:
    """A part of a run that is made again when its gradient is asked for: the run and the generators are then as they
    were before the first time, and afterwards as they are now."""
    states = [(of, _state(of)) for of in (run, backend)]

    def make(number: Any) -> list[torch.Tensor]:
        noise, met = Generators.now(), list[None]()

        def again() -> tuple[torch.Tensor, ...]:
            if not met:
                met.append(None)
                return tuple(once(number))
            with buffers_kept(), _as_then(states, noise), _as_current(run), backend.inside(run):
                return tuple(once(number))

        num = len(backend.draws)
        # a program is run to its end: what would stop it in the middle is an exception, which it may catch
        with set_checkpoint_early_stop(False):
            made = checkpoint(again, use_reentrant=False, preserve_rng_state=False)
        del backend.draws[num:]  # which nothing outside looks at
        return list(made)

    return make


def _state(of: Any) -> dict[str, Any]:
    return {
        name: copy(value) if isinstance(value, dict | list | set) else value
        for name, value in vars(of).items()
    }


@contextmanager
def _as_then(states: list[tuple[Any, dict[str, Any]]], noise: Generators) -> Iterator[None]:
    now, of_now = Generators.now(), [dict(vars(of)) for of, _ in states]
    for of, then in states:
        vars(of).update(
            {k: copy(v) if isinstance(v, dict | list | set) else v for k, v in then.items()}
        )
    noise.restore()
    try:
        yield
    finally:
        now.restore()
        for (of, _), own in zip(states, of_now, strict=True):
            vars(of).clear()
            vars(of).update(own)


@contextmanager
def _as_current(run: Run) -> Iterator[None]:
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)
