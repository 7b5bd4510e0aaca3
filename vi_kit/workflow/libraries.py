"""Which library programs are written in."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.engine.loss import CommonLoss

ROOTS = {"pyro": "Pyro", "numpyro": "NumPyro"}
SUPPORTING = {"torch": "Pyro", "jax": "NumPyro", "jaxlib": "NumPyro", "flax": "NumPyro"}
"""By what they are built on, where a program names neither."""
DEPTH = 4
"""How far helpers of a program, and what they call, are followed."""


def of_programs(
    where: str, given: Sequence[Any]
) -> tuple[CommonLoss, Callable, Callable, tuple[Any, ...]]:
    """The loss, model, guide and their arguments from what was given, which may lack the loss.

    Raises:
        ObjectiveError: there are no two programs, or they do not tell their library.
    """
    loss, rest = (
        (given[0], given[1:]) if given and isinstance(given[0], CommonLoss) else (None, given)
    )
    if len(rest) < 2 or not callable(rest[0]) or not callable(rest[1]):
        raise ObjectiveError(
            message(
                f"{where}: no model and guide",
                got=", ".join(map(repr, given)) or "nothing",
                expected="a model and a guide, with a loss of vi_kit in front or without",
                fix=f"{where}(Loss(), model, guide, ...)",
            )
        )
    model, guide, *args = rest
    return loss or loss_for(where, model, guide), model, guide, tuple(args)


def loss_for(where: str, *programs: Callable) -> CommonLoss:
    """The default loss of the library in which programs are written.

    Raises:
        ObjectiveError: they name both libraries, or neither.
    """
    library = library_of(*programs)
    if library is None:
        raise ObjectiveError(
            message(
                f"{where}: the programs do not tell their library",
                got="programs that name both Pyro and NumPyro, or neither",
                expected="a loss in front of them",
                fix=f"{where}(Loss(), model, guide, ...) with Loss from vi_kit.pyro or vi_kit.numpyro",
            )
        )
    return importlib.import_module(f"vi_kit.{library.lower()}").Loss()


def library_of(*programs: Callable) -> str | None:
    """`"Pyro"` or `"NumPyro"`: by the modules that programs name among their globals, closures and classes, and what
    they call. `None` if these are of both libraries, or of none."""
    roots = {root for program in programs for root in _roots(program, DEPTH, set())}
    for known in (ROOTS, SUPPORTING):
        found = {known[root] for root in roots if root in known}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _roots(thing: Any, depth: int, seen: set[int]) -> Iterator[str]:
    """The packages that something names."""
    if depth < 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, ModuleType):
        yield _root(thing.__name__)
        return
    if isinstance(thing, functools.partial):
        yield from _roots(thing.func, depth, seen)
        return
    if isinstance(thing, MethodType):
        yield from _roots(thing.__self__, depth, seen)
        yield from _roots(thing.__func__, depth, seen)
        return
    yield _root(getattr(thing, "__module__", None))
    wrapped = inspect.unwrap(thing) if isinstance(thing, FunctionType) else thing
    if isinstance(wrapped, FunctionType):
        if _root(wrapped.__module__) not in ROOTS:
            yield from _of_function(wrapped, depth, seen)
    elif not isinstance(thing, type) and hasattr(thing, "__dict__"):
        for cls in type(thing).__mro__[:-1]:
            yield _root(cls.__module__)
        for value in vars(thing).values():
            yield from _roots(value, depth - 1, seen)
        yield from _roots(type(thing).__call__, depth - 1, seen) if callable(thing) else ()


def _of_function(fn: FunctionType, depth: int, seen: set[int]) -> Iterator[str]:
    for name in _names(fn.__code__):
        if name in fn.__globals__:
            yield from _roots(fn.__globals__[name], depth - 1, seen)
        elif name in ROOTS:  # imported inside
            yield name
    for cell in fn.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield from _roots(value, depth - 1, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _root(module: str | None) -> str:
    """The package of a module; that of the library, for vi_kit's own adapters."""
    parts = (module or "").split(".")
    return parts[1] if parts[0] == "vi_kit" and len(parts) > 1 else parts[0]
