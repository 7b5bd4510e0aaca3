"""The statements of plain runs of programs, for whoever asks why a step has failed."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from vi_kit.numpyro.degrees import compiled
from vi_kit.workflow.batches import Call
from vi_kit.workflow.inquest import Seen, all_within, layers_of


class _Noted(Messenger):
    """Keeps the statements of a program, that of which the value could not be made included."""

    def __init__(self, fn: Any, role: str, found: list[tuple[str, Any]]):
        self.role, self.found = role, found
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self.found.append((self.role, msg))


def seen(
    model: Callable,
    guide: Callable,
    call: Call,
    values_of: Callable[[Any], Mapping[str, Any]],
    params: Mapping[str, Any],
    key: Any,
    *,
    gradients: bool,
) -> list[Seen]:
    """The statements of one draw from the guide, and of the model there.

    Args:
        values_of: from unconstrained parameters to what statements of parameters and of mutable state have.
        params: unconstrained.
        key: of the draw.
    """
    with warnings.catch_warnings(), numpyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        found = _run(model, guide, call, values_of(params), key)
        through: list[tuple[str, ...]] = [()] * len(found)
        if gradients:

            def total(params: Any, i: int) -> Any:
                return jnp.sum(_log_density(_run(model, guide, call, values_of(params), key)[i][1]))

            # each by itself: what is weighed by nought has a gradient that is not finite all the same
            numbers = range(len(found))
            slopes = compiled(lambda p: [jax.grad(total)(p, i) for i in numbers])(dict(params))
            through = [tuple(k for k, g in one.items() if not _finite(g)) for one in slopes]
        return [_seen(role, msg, t) for (role, msg), t in zip(found, through, strict=True)]


def before_steps(
    model: Callable, guide: Callable, call: Call, params: Mapping[str, Any]
) -> list[Seen]:
    """The statements of a run as if it were the first, of the model alone if the guide cannot be run.

    Args:
        params: where a user has parameters start.
    """

    def run(guide: Callable) -> list[Seen]:
        return seen(model, guide, call, lambda _: params, {}, jax.random.key(0), gradients=False)

    try:
        return run(copy.deepcopy(guide))
    except Exception:  # an autoguide that cannot be set up
        return run(lambda *args, **kwargs: None)


def _run(model: Callable, guide: Callable, call: Call, values: Any, key: Any) -> list[Any]:
    found: list[tuple[str, Any]] = []
    args, kwargs = call
    of_model, of_guide = jax.random.split(key)
    with contextlib.suppress(ValueError, TypeError, FloatingPointError):
        seeded = handlers.seed(handlers.substitute(guide, data=values), of_guide)
        trace = handlers.trace(_Noted(seeded, "guide", found)).get_trace(*args, **kwargs)
        seeded = handlers.seed(handlers.substitute(model, data=values), of_model)
        _Noted(handlers.replay(seeded, trace=trace), "model", found)(*args, **kwargs)
    return [(role, msg) for role, msg in found if isinstance(msg["fn"], Distribution)]


def _log_density(msg: Any) -> Any:
    if msg["value"] is None:
        return jnp.nan
    if msg.get("intermediates"):
        return msg["fn"].log_prob(msg["value"], msg["intermediates"])
    return msg["fn"].log_prob(msg["value"])


def _seen(role: str, msg: Any, through: tuple[str, ...]) -> Seen:
    arguments, invalid = _arguments(msg["fn"])
    return Seen(
        f"{role} site {msg['name']!r}",
        bool(msg["is_observed"]),
        type(layers_of(msg["fn"])[0]).__name__,
        arguments,
        invalid,
        None if msg["value"] is None else np.asarray(msg["value"]),
        None if msg["value"] is None else np.asarray(_log_density(msg)),
        through,
        {f.dim: f.name for f in msg["cond_indep_stack"]},
    )


def _finite(gradient: Any) -> bool:
    return all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


def _arguments(fn: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """By name, and those out of their range where a mask leaves anything."""
    layers = layers_of(fn)
    masks = [*(getattr(layer, "_mask", None) for layer in layers), None]
    ranges: Any = layers[0].arg_constraints
    names = [name for name in ranges if name in vars(layers[0])] or list(ranges)
    values = {name: getattr(layers[0], name, None) for name in names}
    values = {
        k: v for k, v in values.items() if isinstance(v, jax.Array | np.ndarray | int | float)
    }

    def is_out(name: str) -> bool:
        try:
            return not all_within(np.asarray(ranges[name](values[name])), layers, masks)
        except (NotImplementedError, TypeError, ValueError):  # it depends on other arguments
            return False

    return {k: np.asarray(v) for k, v in values.items()}, tuple(filter(is_out, values))
