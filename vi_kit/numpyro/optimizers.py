"""Optimisers of optax and of NumPyro, in the words of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.example_libraries import optimizers
from numpyro.optim import Minimize, _NumPyroOptim

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.numpyro.distributions import wide

Params = Any


class Optimizer(Protocol):
    """Pure functions of a state, in which the parameters are."""

    def init(self, params: Params) -> Any: ...

    def params(self, state: Any) -> Params: ...

    def update(self, grads: Params, state: Any, value: jax.Array, size: jax.Array) -> Any:
        """The state after a step, whose length is multiplied by `size`."""
        ...

    def check(self, params: Params) -> None:
        """Refuse an optimiser that steps alone cannot serve."""
        ...

    def said(self, params: Params) -> dict[str, str]:
        """What tells it from others: what it does with gradients of one."""
        ...


@dataclass(frozen=True)
class Optax:
    """A gradient transformation of optax."""

    transformation: optax.GradientTransformation

    def init(self, params: Params) -> Any:
        return params, self.transformation.init(params)

    def params(self, state: Any) -> Params:
        return state[0]

    def update(self, grads: Params, state: Any, value: jax.Array, size: jax.Array) -> Any:
        params, own = state
        transformation = optax.with_extra_args_support(self.transformation)
        updates, own = transformation.update(grads, own, params, value=value)
        updates = jax.tree.map(lambda u: u * size.astype(u.dtype), updates)
        return optax.apply_updates(params, updates), own

    def check(self, params: Params) -> None:
        try:
            jax.eval_shape(lambda: tried(self, params))
        except TypeError as error:
            if "value_fn" not in str(error):
                raise
            got = "a search along a line, which evaluates a function without noise"
            fix = "fit(..., fixed_draws=30), which minimises with the noise held"
            raise _refused(self.transformation, got, "steps", fix) from error

    def said(self, params: Params) -> dict[str, str]:
        return _said("optax", self, params)


@dataclass(frozen=True)
class OfNumPyro:
    """An optimiser of `numpyro.optim`, whose steps have the length that it gives them."""

    optim: _NumPyroOptim

    def init(self, params: Params) -> Any:
        return self.optim.init(params)

    def params(self, state: Any) -> Params:
        return self.optim.get_params(state)

    def update(self, grads: Params, state: Any, value: jax.Array, size: jax.Array) -> Any:
        return self.optim.update(grads, state, value=value)

    def check(self, params: Params) -> None:
        pass

    def said(self, params: Params) -> dict[str, str]:
        return _said(type(self.optim).__name__, self, params)


def tried(optimizer: Optimizer, params: Params) -> jax.Array:
    """A number that depends on the settings of an optimiser: where gradients of one bring parameters of zero."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones, state = jax.tree.map(jnp.ones_like, params), optimizer.init(zeros)
    for _ in range(3):
        state = optimizer.update(ones, state, jnp.zeros(()), jnp.ones(()))
    return sum((jnp.sum(x) for x in jax.tree.leaves(optimizer.params(state))), jnp.zeros(()))


def _said(name: str, optimizer: Optimizer, params: Params) -> dict[str, str]:
    end = f"{tried(optimizer, params):.9g}"
    return {"optimizer": name, "optimizer: sum of all that three gradients of one lead to": end}


def optimizer_of(given: Any, *, shrinks: bool) -> Optimizer:
    """What a user gave.

    Args:
        given: an optimiser, or a step size for Adam.
        shrinks: whether steps may have to become smaller.

    Raises:
        ObjectiveError: none of these, or one that cannot serve.
    """
    if given is None:
        given = 0.01
    if getattr(given, "ndim", None) == 0:
        given = float(given)
    if isinstance(given, int | float) and not isinstance(given, bool) and given > 0:
        return Optax(_wide(optax.adam(given)))
    if isinstance(given, optax.GradientTransformation):
        return Optax(given)
    if isinstance(given, optimizers.Optimizer):
        given = _NumPyroOptim(lambda *fns: fns, *given)
    if isinstance(given, Minimize):
        fix = "fit(..., fixed_draws=30), which minimises with the noise held"
        raise _refused(given, "a minimiser of a function without noise", "steps", fix)
    if isinstance(given, _NumPyroOptim):
        if shrinks:
            got = "an optimiser of NumPyro, whose step size cannot be changed"
            raise _refused(given, got, "an optimiser of optax", "optimizer=optax.adam(0.01)")
        return OfNumPyro(given)
    got = f"{given!r}, of {type(given).__module__.split('.')[0]}"
    expected = "an optimiser of optax or numpyro.optim, or a positive step size for Adam"
    raise _refused(given, got, expected, "optimizer=optax.adam(0.01)")


def _wide(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """What keeps float32 of parameters in half precision, in which squares of gradients, and what is added to them, are
    nought."""

    def widened(tree: Params) -> Params:
        return jax.tree.map(wide, tree)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        found, state = inner.update(widened(updates), state)
        return jax.tree.map(lambda x, g: x.astype(g.dtype), found, updates), state

    return optax.GradientTransformation(lambda params: inner.init(widened(params)), update)


def _refused(given: Any, got: str, expected: str, fix: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"fit of NumPyro: {type(given).__name__} cannot be its optimiser",
            got=got,
            expected=expected,
            fix=fix,
        )
    )
