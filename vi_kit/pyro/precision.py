"""Half precision ends where densities begin: what programs compute may be autocast, log densities and all that is made
of them are float32 or better."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from vi_kit.base.distributions import with_arrays
from vi_kit.pyro.distributions import MADE_OF_ARRAYS

T = TypeVar("T")

HALF = (torch.float16, torch.bfloat16)
KINDS = ("cpu", "cuda")
"""Of devices."""

_surrounding: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar(
    "surrounding", default=()
)
"""What is autocast around a step, which its programs see: kinds of devices, each with its dtype."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Nothing is autocast, but for what runs `as_surrounded`."""
    if not torch._C._is_any_autocast_enabled():  # type: ignore[attr-defined]
        yield
        return
    found = tuple((k, torch.get_autocast_dtype(k)) for k in KINDS if torch.is_autocast_enabled(k))
    before = _surrounding.set(found)
    try:
        with ExitStack() as stack:
            for kind, _ in found:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _surrounding.reset(before)


@contextmanager
def as_surrounded() -> Iterator[None]:
    """What was autocast around a step is so again. Parameters are cast anew each time: what is kept of them has no
    gradient if it was made without, and would be there after they have changed."""
    found = _surrounding.get()
    if not found:
        yield
        return
    with ExitStack() as stack:
        for kind, dtype in found:
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        yield


def in_full_precision(method: Callable[..., T]) -> Callable[..., T]:
    """A method that runs so."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> T:
        with full_precision():
            return method(*args, **kwargs)

    return run


def widened(fn: Any) -> Any:
    """A distribution with float32 in the place of half precision; itself, if it has none."""
    return with_arrays(fn, MADE_OF_ARRAYS, _wide)


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in HALF else x
