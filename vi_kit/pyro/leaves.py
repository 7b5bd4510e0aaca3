"""Which tensors to train a computation reaches, and what the user calls them: not every one is announced by
`pyro.param` or `pyro.module`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch


def reached(tensors: Iterable[torch.Tensor], before: Collection[Any] = ()) -> list[torch.Tensor]:
    """The leaves of the autograd graph of some tensors.

    Args:
        tensors: whose graph it is.
        before: nodes of the graph behind which nobody asks.
    """
    found: dict[int, torch.Tensor] = {}
    pending, seen = [], set(before)
    for tensor in tensors:
        if tensor.grad_fn is not None:
            pending.append(tensor.grad_fn)
        elif tensor.requires_grad:
            found[id(tensor)] = tensor
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        pending += [later for later, _ in node.next_functions]
    return list(found.values())


def described(leaf: torch.Tensor, places: Iterable[Any]) -> str:
    """What a leaf is called in the programs and arguments where it may come from, as far as that can be found."""
    for place in places:
        name = _name_in(place, leaf, NEAR)
        if name is not None:
            return name or "an argument"
    return f"a tensor of shape {tuple(leaf.shape)}"


NEAR = 4
"""How many steps from a program one looks for a tensor."""


def _name_in(place: Any, leaf: torch.Tensor, steps: int) -> str | None:
    """The name of a leaf in what a program holds; `None` if it is not there."""
    if place is leaf:
        return ""
    if steps == 0:
        return None
    for name, inside in _contents(place):
        found = _name_in(inside, leaf, steps - 1)
        if found is not None:
            return ".".join(filter(None, (name, found)))
    return None


def _contents(place: Any) -> Iterator[tuple[str, Any]]:
    """What a program holds, with names that are empty where the user sees none."""
    if isinstance(place, torch.nn.Module):
        yield from place.named_parameters()
    elif isinstance(place, dict):
        yield from ((str(key), value) for key, value in place.items())
    elif isinstance(place, list | tuple):
        yield from (("", value) for value in place)
    elif isinstance(place, functools.partial):
        yield from (("", value) for value in (place.func, place.args, place.keywords))
    elif isinstance(place, MethodType):
        yield "", place.__self__
    elif isinstance(place, FunctionType):
        cells = inspect.getclosurevars(place)
        yield from {**cells.nonlocals, **cells.globals}.items()


def modules_in(place: Any, steps: int = NEAR) -> Iterator[torch.nn.Module]:
    """The modules that programs and arguments hold, as far as they can be found."""
    if isinstance(place, torch.nn.Module):
        yield from place.modules()
    elif steps:
        for _, inside in _contents(place):
            yield from modules_in(inside, steps - 1)


def networks_in(estimators: Any) -> Iterator[torch.nn.Module]:
    """Those of baselines, whose parameters are not known before the first step."""
    if isinstance(estimators, torch.nn.Module):
        yield estimators
    elif isinstance(estimators, Mapping):
        yield from networks_in(list(estimators.values()))
    elif isinstance(estimators, list | tuple):
        for one in estimators:
            yield from networks_in(one)
    elif dataclasses.is_dataclass(estimators):
        yield from networks_in(list(vars(estimators).values()))
