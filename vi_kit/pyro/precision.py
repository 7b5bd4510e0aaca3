"""Half precision ends where densities begin: what programs compute may be autocast, log densities and all that is made
of them are float32 or better."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from vi_kit.base.distributions import has_array, with_arrays
from vi_kit.pyro.distributions import MADE_OF_ARRAYS

T = TypeVar("T")

HALF = (torch.float16, torch.bfloat16)
NOTHING = nullcontext()
"""Changes nothing: a step enters it at each statement."""
KINDS = ("cpu", "cuda")
"""Of devices."""

_surrounding: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar(
    "surrounding", default=()
)
"""What is autocast around a step, which its programs see: kinds of devices, each with its dtype."""


def full_precision() -> AbstractContextManager[None]:
    """Nothing is autocast, but for what runs `as_surrounded`."""
    is_any = torch._C._is_any_autocast_enabled()  # type: ignore[attr-defined]
    return _nothing_autocast() if is_any else NOTHING


@contextmanager
def _nothing_autocast() -> Iterator[None]:
    found = tuple((k, torch.get_autocast_dtype(k)) for k in KINDS if torch.is_autocast_enabled(k))
    before = _surrounding.set(found)
    try:
        with ExitStack() as stack:
            for kind, _ in found:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _surrounding.reset(before)


def as_surrounded() -> AbstractContextManager[None]:
    """What was autocast around a step is so again. Parameters are cast anew each time: what is kept of them has no
    gradient if it was made without, and would be there after they have changed."""
    found = _surrounding.get()
    return _autocast_again(found) if found else NOTHING


@contextmanager
def _autocast_again(found: tuple[tuple[str, torch.dtype], ...]) -> Iterator[None]:
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
    if not has_array(fn, MADE_OF_ARRAYS, HALF):
        return fn
    return with_arrays(fn, MADE_OF_ARRAYS, wide)


def wide(x: Any) -> Any:
    """Half precision as float32, and all else as it is."""
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in HALF else x
