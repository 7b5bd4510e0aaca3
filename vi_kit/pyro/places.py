"""Where a program finds what it is made of: numbers, tensors and functions among its attributes, globals and closures.

A compiled step holds what it read there when it was captured. Each such place is looked at again in every step.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from numbers import Number
from pathlib import Path
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import Trace

from vi_kit.engine.arguments import INSTALLED, Same

CONSTANTS = (
    type(None),
    Number,
    str,
    bytes,
    range,
    slice,
    Enum,
    torch.dtype,
    torch.device,
    torch.Size,
)
"""Values that count by what they are."""

GENERATORS = (random.Random, np.random.RandomState, np.random.Generator)
"""Of random numbers, outside torch."""

WRAPPERS = (
    property,
    staticmethod,
    classmethod,
    functools.cached_property,
    type(functools.lru_cache(len)),
)
"""What stands around functions."""

UNREAD = frozenset(vars(torch.nn.Module())) - {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
}
"""What every module has, and no program reads."""


class Place(NamedTuple):
    """Where something is found.

    Attributes:
        holder: what it lies in.
        key: where in that.
        name: what the user calls it.
        found: what lay there.
        inside: how many of the places after this one lie within it.
    """

    holder: Any
    key: Any
    name: str
    found: Any
    inside: int


class _View:
    """Something of an object that is neither its item nor its attribute."""

    def __init__(self, read: Any):
        self.read = read

    def __getitem__(self, key: Any) -> Any:
        return self.read()


def kind(x: torch.Tensor) -> Hashable:
    """What of a tensor a compiled step relies on."""
    stride = x.stride() if x.layout is torch.strided else x.layout
    return type(x), x.shape, stride, x.dtype, x.device, x.requires_grad


def is_same(found: Any, other: Any) -> bool:
    """Whether what lies in a place now is as good as what lay there."""
    if found is other:
        return True
    if isinstance(found, CONSTANTS):
        return type(found) is type(other) and found == other
    if isinstance(found, torch.Tensor):
        return isinstance(other, torch.Tensor) and kind(found) == kind(other)
    if isinstance(found, MethodType):
        return found == other
    return False


@dataclass(eq=False)
class Survey:
    """All places that some programs may read.

    Attributes:
        places: in the order in which they were met.
        parts: what lies there, so that equal surveys are those of programs that compute the same.
    """

    places: list[Place] = field(default_factory=list)
    parts: list[Hashable] = field(default_factory=list)
    met: dict[int, tuple[int, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, roots: Mapping[str, Any]) -> Survey:
        survey = cls()
        for name in roots:
            survey._look(roots, name, name)
        return survey

    def _look(self, holder: Any, key: Any, name: str) -> None:
        try:
            x = holder[key]
        except ValueError:  # a cell that is still empty
            return
        at = len(self.places)
        self.places.append(Place(holder, key, name, x, 0))
        self.parts.append(None)
        self.parts[at] = self._part(x, name)
        self.places[at] = self.places[at]._replace(inside=len(self.places) - at - 1)

    def _part(self, x: Any, name: str) -> Hashable:
        if isinstance(x, CONSTANTS):
            return type(x), x
        if id(x) in self.met:
            return "again", self.met[id(x)][0]
        self.met[id(x)] = len(self.met), x
        if isinstance(x, torch.Tensor):
            return kind(x)
        for holder, key, inner in _inside(x):
            self._look(holder, key, f"{name}{inner}")
        if isinstance(x, FunctionType):
            return x.__code__
        if isinstance(x, type) or _has_inside(x):
            return type(x), x if isinstance(x, type) else None
        return type(x), Same(x)

    def iterator(self) -> str | None:
        """The name of something that gives something else each time, if there is one."""
        found = (p.name for p in self.places if hasattr(type(p.found), "__next__"))
        return next(found, None)

    def written(self) -> Iterator[int]:
        """Places in which programs have put something else, but not what computes something else.

        Yields:
            Their numbers, and of the places within them.

        Raises:
            Written: they keep account of something.
        """
        skip = 0
        for at, (holder, key, name, found, inside) in enumerate(self.places):
            if at < skip:
                continue
            now = holder[key] if not isinstance(holder, Mapping) else holder.get(key)
            if now is found:
                continue
            if isinstance(found, CONSTANTS) and is_same(found, now):
                continue
            if isinstance(found, (torch.Tensor, *CONSTANTS)):
                raise Written(name)
            if Survey.of({"": found}).parts != Survey.of({"": now}).parts:
                raise Written(name)
            skip = at + inside + 1
            yield from range(at, skip)

    def without(self, numbers: Iterable[int]) -> Survey:
        left_out = set(numbers)
        keep = [i for i in range(len(self.places)) if i not in left_out]
        return Survey([self.places[i] for i in keep], [self.parts[i] for i in keep])


class Written(Exception):
    """A program writes to a place whose name this is."""


@functools.cache
def _is_installed(name: str | None) -> bool:
    """Whether a module is none of the user's own."""
    root = (name or "").split(".")[0]
    if root in INSTALLED or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    file = getattr(sys.modules.get(name or ""), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _is_opaque(x: Any) -> bool:
    """Whether nobody reads numbers in it."""
    return isinstance(x, ParamStoreDict | Trace | torch.Generator | ModuleType | CodeType)


def _has_inside(x: Any) -> bool:
    is_plain = isinstance(x, list | tuple | Mapping | set | frozenset | np.ndarray)
    is_plain = is_plain or isinstance(x, GENERATORS)
    is_plain = is_plain or isinstance(x, FunctionType | MethodType | functools.partial | CellType)
    return is_plain or (not _is_opaque(x) and (hasattr(x, "__dict__") or _slots(x) != []))


def _slots(x: Any) -> list[str]:
    return [
        name
        for cls in type(x).__mro__
        for name in _as_tuple(cls.__dict__.get("__slots__", ()))
        if not name.startswith("__") and hasattr(x, name)
    ]


def _as_tuple(x: Any) -> tuple[Any, ...]:
    return (x,) if isinstance(x, str) else tuple(x)


def _inside(x: Any) -> Iterator[tuple[Any, Any, str]]:
    """Where to look within something: holder, key, and what is added to its name."""
    if _is_opaque(x):
        return
    if isinstance(x, list | tuple):
        if not isinstance(x, tuple):
            yield _View(lambda: len(x)), None, ""
        yield from ((x, i, f"[{i}]") for i in range(len(x)))
    elif isinstance(x, Mapping):
        yield _View(lambda: len(x)), None, ""
        for key in list(x):
            yield x, key, f".{key}" if isinstance(key, str) else f"[{key!r}]"
    elif isinstance(x, set | frozenset):
        yield _View(lambda: tuple(sorted(map(repr, x)))), None, ""
    elif isinstance(x, np.ndarray):
        yield _View(lambda: (str(x.dtype), str(x.shape)).__repr__()), None, ""
        yield _View(x.tobytes), None, ""
    elif isinstance(x, random.Random):
        yield _View(lambda: repr(x.getstate())), None, ""
    elif isinstance(x, np.random.RandomState):
        yield _View(lambda: repr(x.get_state())), None, ""
    elif isinstance(x, np.random.Generator):
        state = functools.partial(getattr, x.bit_generator, "state")
        yield _View(lambda: repr(state())), None, ""
    elif isinstance(x, MethodType):
        yield _View(lambda: x.__self__), None, ""
        yield _View(lambda: x.__func__), None, f".{x.__name__}"
    elif isinstance(x, functools.partial):
        yield from ((_View(lambda v=v: v), None, "") for v in (x.func, x.args, x.keywords))
    elif isinstance(x, FunctionType):
        if not _is_installed(x.__module__):
            yield from _of_function(x)
    elif isinstance(x, type):
        if not _is_installed(x.__module__):
            yield from _of_class(x)
    else:
        yield from _of_object(x)


def _of_function(fn: FunctionType) -> Iterator[tuple[Any, Any, str]]:
    """What a function, and those within it, close over or find among their globals."""
    yield _View(lambda: fn.__defaults__), None, ".defaults"
    yield _View(lambda: fn.__kwdefaults__), None, ".defaults"
    codes = [fn.__code__]
    for code in codes:
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        yield from _named(fn.__globals__, code.co_names, " -> ", set())
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield _View(lambda cell=cell: cell.cell_contents), None, f" -> {name}"


def _named(
    attributes: dict[str, Any], names: Sequence[str], prefix: str, met: set[str]
) -> Iterator[tuple[Any, Any, str]]:
    """What names mean among the globals of a module, and in the modules that are found there."""
    for name in names:
        found = attributes.get(name)
        if not isinstance(found, ModuleType):
            if name in attributes:
                yield attributes, name, f"{prefix}{name}"
        elif not _is_installed(found.__name__) and found.__name__ not in met:
            met.add(found.__name__)
            yield from _named(vars(found), names, f"{prefix}{name}.", met)


def _of_class(cls: type) -> Iterator[tuple[Any, Any, str]]:
    attributes: MappingProxyType[str, Any] = vars(cls)
    for name in list(attributes):
        if not (name.startswith("__") and name.endswith("__")) or name == "__call__":
            yield attributes, name, f".{name}"
    yield from (({"base": base}, "base", "") for base in cls.__bases__)


def _of_object(x: Any) -> Iterator[tuple[Any, Any, str]]:
    skip = UNREAD if isinstance(x, torch.nn.Module) else frozenset()
    attributes = getattr(x, "__dict__", {})
    if _is_installed(type(x).__module__):  # what transforms remember of their last value
        skip = skip.union(name for name in attributes if name.startswith("_cached"))
    else:
        yield _View(lambda: len(attributes)), None, "'s attributes"
    for name in list(attributes):
        if name not in skip:
            yield attributes, name, f".{name}"
    yield from ((_View(functools.partial(getattr, x, n)), None, f".{n}") for n in _slots(x))
    if isinstance(x, WRAPPERS):
        parts = ("fget", "func", "__func__", "__wrapped__")
        inner = {p: getattr(x, p) for p in parts if hasattr(x, p)}
        yield from ((inner, p, "") for p in inner)
    if not _is_installed(type(x).__module__):
        yield {"class": type(x)}, "class", ""
