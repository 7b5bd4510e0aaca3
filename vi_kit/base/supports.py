"""Where the support of a distribution ends, and whether that moves with the parameters."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from vi_kit.base.context import current
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution

Edge = Any
"""A bound of a support: a Python number where it is constant (`nan` where its value is of no matter), else an array."""

WHOLE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Wrappers:
    """A library's classes of distributions around distributions."""

    masked: type
    independent: type
    transformed: type
    expanded: type
    mixture: type

    @functools.cached_property
    def laying_out(self) -> tuple[type, ...]:
        """Those that only lay out its elements."""
        return self.independent, self.expanded


@functools.cache
def is_a(kind: type, classes: type | tuple[type, ...]) -> bool:
    """Whether a class is below others. Where these have abstract bases, as distributions do, to ask anew takes long."""
    return issubclass(kind, classes)


def moves(dist: Distribution) -> str | None:
    """Why a gradient that goes by the density of a distribution is not all of it: its support depends on parameters, or
    on values with a gradient. `None` if it does not."""
    backend = current().backend
    if not any([backend.may_need_gradient(edge) for edge in dist.support_edges()]):
        return None
    return f"needs a support that stays where it is; that of {dist.name} moves, which its density does not tell"


def edges(fn: Any, wrappers: Wrappers) -> list[Array]:
    """The bounds of the support of a library's distribution that are not constant."""
    found = _edges(fn, wrappers)
    return [edge for edge in found if not isinstance(edge, int | float)]


def _edges(fn: Any, w: Wrappers) -> tuple[Edge, ...]:
    if isinstance(fn, w.masked | w.independent | w.expanded):
        return _edges(fn.base_dist, w)
    if isinstance(fn, w.mixture):
        return _edges(fn.component_distribution, w)
    if isinstance(fn, w.transformed) and type(fn).support is w.transformed.support:
        found = _edges(fn.base_dist, w)
        for transform in fn.transforms:
            found = _pushed(transform, found)
        return found
    try:
        return _bounds(fn.support)
    except NotImplementedError:
        return WHOLE


def _bounds(support: Any) -> tuple[Edge, ...]:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return tuple(
        getattr(support, name, whole)
        for name, whole in zip(("lower_bound", "upper_bound"), WHOLE, strict=True)
    )


def _pushed(transform: Any, found: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """The bounds of what a transform makes of values between bounds."""
    kind = type(transform).__name__
    if hasattr(transform, "base_transform"):
        return _pushed(transform.base_transform, found)
    if kind == "ComposeTransform":
        for part in transform.parts:
            found = _pushed(part, found)
        return found
    pushed = []
    for i, edge in enumerate(found):
        constant = isinstance(edge, int | float)
        if kind == "AffineTransform":
            if constant and edge == 0.0:
                pushed.append(transform.loc)
            elif constant and math.isinf(edge):
                pushed.append(edge)
            else:
                pushed.append(transform.loc + transform.scale * edge)
        elif kind == "ExpTransform" and constant:
            pushed.append(math.exp(edge))
        elif kind == "PowerTransform" and constant:
            pushed.append(edge if edge in (0.0, 1.0, math.inf) else edge**transform.exponent)
        elif constant or transform.domain.event_dim or transform.codomain.event_dim:
            pushed.append(_bounds(transform.codomain)[i])
        else:
            pushed.append(transform(edge))
    return tuple(pushed)


def has_arrays(transform: Any) -> bool:
    """Whether a transform may have parameters."""
    parts = getattr(transform, "parts", [getattr(transform, "base_transform", None)])
    if any(part is not None and has_arrays(part) for part in parts):
        return True
    return any(hasattr(value, "shape") for value in vars(transform).values())
