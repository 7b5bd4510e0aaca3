"""What of the arguments of a step can change the plan that was made for it."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from numbers import Number
from types import FunctionType, MethodType
from typing import Any

MAX_ITEMS = 256
"""Of a list so many items are looked at."""

MAX_DEPTH = 4
"""Objects are looked at within objects down to here."""


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Hashable, tuple[Any, ...]]:
    """What tells apart arguments under which a program may be another one.

    Arrays count by shape and type, modules by themselves, functions by their code. What a program or a function closes
    over is not seen.

    Returns:
        All but the numbers, and the numbers.
    """
    numbers: list[Any] = []
    return (_kind(args, numbers), _kind(kwargs, numbers) if kwargs else None), tuple(numbers)


def _kind(x: Any, numbers: list[Any], depth: int = 0) -> Hashable:
    kind = type(x)
    if x is None or kind is bool or kind is str:
        return kind, x
    if isinstance(x, Number):
        numbers.append(x)
        return kind
    if hasattr(x, "shape"):
        return kind, tuple(x.shape), getattr(x, "dtype", None), getattr(x, "device", None)
    if hasattr(x, "named_parameters") or isinstance(x, type):
        return x
    if kind is FunctionType:
        return x.__code__
    if depth == MAX_DEPTH:
        return kind
    if kind is MethodType:
        return x.__func__.__code__, _kind(x.__self__, numbers, depth + 1)
    if isinstance(x, functools.partial):
        return kind, _kind([x.func, x.args, x.keywords], numbers, depth + 1)
    if isinstance(x, Mapping):
        return kind, tuple((k, _kind(v, numbers, depth + 1)) for k, v in x.items())
    if isinstance(x, list | tuple):
        return kind, len(x), tuple(_kind(v, numbers, depth + 1) for v in x[:MAX_ITEMS])
    if getattr(x, "__dict__", None):
        return kind, _kind(vars(x), numbers, depth + 1)
    by_value = kind.__hash__ is not None and kind.__hash__ is not object.__hash__
    return (kind, x) if by_value else kind
