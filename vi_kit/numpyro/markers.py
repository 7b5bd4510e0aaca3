"""Primitives that do nothing, by which readers of a jaxpr know values of the program again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching


def marker(name: str, num_arrays: int | None = None) -> Primitive:
    """A primitive that gives back its first operand.

    Args:
        name: of the primitive.
        num_arrays: how many operands have the dims of a map if one has, those in front; `None` for all.
    """
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda first, *others, **params: first)
    primitive.def_impl(lambda first, *others, **params: first)

    def mapped(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Any, int]:
        (size,) = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
        moved = []
        for i, (x, d) in enumerate(zip(operands, dims, strict=True)):
            if d is not None:
                x = jnp.moveaxis(x, d, 0)
            elif num_arrays is None or i < num_arrays:
                x = jnp.broadcast_to(x, (size, *jnp.shape(x)))
            moved.append(x)
        return primitive.bind(*moved, **params), 0

    batching.primitive_batchers[primitive] = mapped
    return primitive


def linear(primitive: Primitive) -> Primitive:
    """A marker of one operand that derivatives pass."""
    ad.deflinear2(primitive, lambda slope, value, **params: [slope])
    return primitive


site_p = linear(marker("vi_kit_site"))
"""The value of a site, of which is followed what depends on it."""

elements_p = linear(marker("vi_kit_elements"))
"""The value of a site, of which is followed where its elements along the plates of `axes` go."""

apart_p = linear(marker("vi_kit_apart"))
"""A value of which is not followed what depends on it."""
