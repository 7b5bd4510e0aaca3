"""What of the arguments of a step can change the plan that was made for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MAX_ITEMS = 256
"""Of a list so many items are looked at."""

MAX_DEPTH = 4
"""Objects are looked at within objects down to here."""

INSTALLED = ("jax", "numpy", "numpyro", "pyro", "torch", "vi_kit")
"""Packages whose functions stay as they are."""


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Hashable, tuple[Any, ...]]:
    """What tells apart arguments under which a program may be another one.

    Arrays count by shape and type, modules by themselves, functions by their code. What a program or a function closes
    over is not seen.

    Returns:
        All but the numbers, and the numbers.
    """
    numbers: list[Any] = []
    return (_kind(args, numbers), _kind(kwargs, numbers) if kwargs else None), tuple(numbers)


@dataclass(frozen=True, eq=False)
class Same:
    """One object, held so that no other takes its place in memory."""

    held: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


def closed_over(program: Any) -> Hashable:
    """What tells apart two states of one program: of functions that they are the same, and what they close over or find
    among their globals; of objects that, and their attributes. Arrays count by shape and type."""
    return _state(program, set(), 2 * MAX_DEPTH)


def _state(x: Any, met: set[int], depth: int) -> Hashable:
    if x is None or isinstance(x, str | bool | Number):
        return type(x), x
    if isinstance(getattr(x, "shape", None), tuple):
        return type(x), tuple(x.shape), getattr(x, "dtype", None)
    is_plain = isinstance(x, list | tuple | Mapping)
    if id(x) in met or not depth or isinstance(x, type):
        return None if is_plain else Same(x)
    met.add(id(x))
    held = x if is_plain else inside(x)
    parts = held.items() if isinstance(held, Mapping) else enumerate(held[:MAX_ITEMS])
    of_parts = tuple((k, _state(v, met, depth - 1)) for k, v in parts)
    return (type(x), len(x), of_parts) if is_plain else (Same(x), of_parts)


def inside(x: Any) -> Any:
    """What a function or another object holds."""
    if isinstance(x, MethodType):
        return [x.__func__, x.__self__]
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords]
    if isinstance(x, ModuleType):
        return ()
    if not isinstance(x, FunctionType):
        return getattr(x, "__dict__", ())
    if (x.__module__ or "").split(".")[0] in INSTALLED:  # of `exec` with bare globals: none
        return ()
    found, codes = [x.__defaults__, x.__kwdefaults__], [x.__code__]
    for code in codes:  # those of functions within it too
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        found += [x.__globals__[n] for n in code.co_names if n in x.__globals__]
    for cell in x.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is still empty
            found.append(cell.cell_contents)
    return found


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
