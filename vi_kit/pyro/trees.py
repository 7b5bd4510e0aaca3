"""Trees of values, as operations take and make them, much quicker than by torch's walks through any tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._pytree import tree_iter, tree_map


def mapped(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with other leaves."""
    kind = type(tree)
    if kind is list:
        return [mapped(fn, x) for x in tree]
    if kind is tuple:
        return tuple([mapped(fn, x) for x in tree])
    if kind is dict:
        return {k: mapped(fn, x) for k, x in tree.items()}
    return tree_map(fn, tree) if isinstance(tree, tuple | dict) else fn(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """All leaves."""
    kind = type(tree)
    if kind is list or kind is tuple:
        for x in tree:
            yield from leaves(x)
    elif isinstance(tree, tuple | dict):
        yield from tree_iter(tree)
    else:
        yield tree
