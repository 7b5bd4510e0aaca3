"""Where a user has parameters start, looked over."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vi_kit.base.errors import ObjectiveError, message


def checked_params(
    given: Mapping[str, Any], there: Mapping[str, Any], transforms: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters that a user gave, in the types that they have.

    Args:
        given: by name.
        there: the parameters of the programs, unconstrained.
        transforms: from unconstrained values to those that programs see.

    Raises:
        ObjectiveError: there is no such parameter, or it has another shape, or cannot have that value.
    """
    texts, found = [], {}
    for name, value in given.items():
        if name not in there:
            texts.append(_unknown(INIT, name, value, there))
            continue
        own = transforms[name](there[name])
        shapes = [jax.tree.map(jnp.shape, one) for one in (value, own)]
        if shapes[0] != shapes[1]:
            fix = f"{name!r}: an array of shape {shapes[1]}"
            texts.append(_wrong(INIT, name, value, f"shape {shapes[1]}", fix))
            continue
        value = jax.tree.map(lambda v, o: jnp.asarray(v, jnp.result_type(o)), value, own)
        unconstrained = transforms[name].inv(value)
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(unconstrained)):
            texts.append(
                _wrong(
                    INIT, name, value, "a finite value within its constraint", f"{name!r}: {own}"
                )
            )
            continue
        found[name] = value
    if texts:
        raise ObjectiveError("\n".join(texts))
    return found


def refuse_unknown(given: Mapping[str, Any], there: Collection[str]) -> None:
    """Refuse values of parameters that the programs do not have, where one that they have was not given.

    Where all are given, others are what a loss has of its own (a baseline's), or what other programs have.

    Raises:
        ObjectiveError: there are such.
    """
    strange = [n for n in given if n not in there and not n.startswith("vi_kit")]
    if strange and not given.keys() >= set(there):
        raise ObjectiveError("\n".join(_unknown("params", n, given[n], there) for n in strange))


INIT = "fit: init_params"


def _unknown(where: str, name: str, value: Any, there: Collection[str]) -> str:
    near = difflib.get_close_matches(name, there, 1) or sorted(there)[:1] or ["..."]
    return _wrong(where, name, value, f"one of {sorted(there)}", f"{near[0]!r}: ...")


def _wrong(where: str, name: str, value: Any, expected: str, fix: str) -> str:
    return message(
        f"{where} has no use for {name!r}",
        got=f"{name}={value if jnp.size(value) < 5 else f'an array of shape {jnp.shape(value)}'}",
        expected=expected,
        fix=f"{where.split()[-1]}={{{fix}}}",
    )
