"""The loss of a fit in NumPyro with its noise held: the same key in every evaluation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.primitives import Messenger

from vi_kit.engine.plan import Plan
from vi_kit.engine.settings import not_finite
from vi_kit.workflow.held import Wanted

TILT = "vi_kit tilt of "
"""How what is added to a model's log density is named."""


class NumPyroHeld:
    """See `vi_kit.workflow.held.Held`."""

    def __init__(self, trainer: Any):
        self.trainer, self.loss, self.key = trainer, trainer.loss, trainer.keys[0]
        self.inverse: Any = None
        params = trainer.optimizer.params(trainer.carry["optimizer"])
        flat, self.unravel = ravel_pytree(params)
        self.dtype, self.rounding = flat.dtype, float(jnp.finfo(flat.dtype).eps)
        self.at = np.asarray(flat, float)
        self.call = trainer.source.example
        self.guide_trace, self.model_trace = self._traces()
        own = {n for n, s in self.guide_trace.items() if s["type"] == "param"}
        marks = {
            n: jax.tree.map(lambda x, n=n: jnp.full(x.shape, n in own), params[n]) for n in params
        }
        self.of_guide = np.asarray(ravel_pytree(marks)[0], bool)

        def value(flat: Any) -> Any:
            return self.value(flat, trainer.model, self.loss, self.key, {})

        def product(flat: Any, direction: Any) -> Any:
            return jax.grad(lambda x: jnp.vdot(jax.grad(value)(x), direction))(flat)

        self.value_and_grad = jax.jit(jax.value_and_grad(value))
        self.product = jax.jit(product)

    def value(self, flat: Any, model: Callable, loss: Any, key: Any, tilts: Any) -> Any:
        args, kwargs = self.call
        values = {**self.trainer.constrain(self.unravel(flat)), **tilts}
        guide = self.trainer.with_state
        return loss.loss_with_mutable_state(key, values, model, guide, *args, **kwargs)["loss"]

    def _traces(self) -> tuple[Any, Any]:
        args, kwargs = self.call
        params = self.trainer.constrain(self.unravel(jnp.asarray(self.at, self.dtype)))
        key_guide, key_model = random.split(random.key(0))
        guide = handlers.seed(handlers.substitute(self.trainer.guide, params), key_guide)
        traced = handlers.trace(guide).get_trace(*args, **kwargs)
        model = handlers.replay(handlers.substitute(self.trainer.model, params), traced)
        return traced, handlers.trace(handlers.seed(model, key_model)).get_trace(*args, **kwargs)

    def plan(self) -> Plan:
        args, kwargs = self.call
        programs = self.loss._programs(self.trainer.model, self.trainer.guide, args, kwargs)
        return self.loss._explained(programs)[0]

    def remembers(self) -> list[str]:
        # room for baselines, which no site has here: the plan tells
        return [name for name in self.trainer.carry["mutable"] if "vi_kit" not in name]

    def evaluate(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.value_and_grad(jnp.asarray(flat, self.dtype))
        if not (jnp.isfinite(value) and jnp.isfinite(slope).all()):
            return np.inf, np.zeros(len(flat))
        return float(value), np.asarray(slope, float)

    def first(self) -> float:
        value = self.evaluate(self.at)[0]
        if not np.isfinite(value):
            flat = jnp.asarray(self.at, self.dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is told
                # outside jit it says where
                self.value(flat, self.trainer.model, self.loss, self.key, {})
            raise not_finite(value, None)
        return value

    def settle(self, flat: np.ndarray) -> None:
        self.at = np.asarray(flat, float)
        params = self.unravel(jnp.asarray(flat, self.dtype))
        self.trainer.carry["optimizer"] = self.trainer.optimizer.init(params)

    def times_hessian(self, flat: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
        at, along = jnp.asarray(flat, self.dtype), jnp.asarray(direction, self.dtype)
        try:
            return np.asarray(self.product(at, along), float)
        except (NotImplementedError, TypeError, ValueError):  # samplers without second derivatives
            return None

    def latent(self) -> list[str]:
        drawn = {n for n, s in self.guide_trace.items() if s["type"] == "sample"}
        return [n for n, s in self.model_trace.items() if s["type"] == "sample" and n in drawn]

    def tilted(self, wanted: Wanted) -> NumPyroTilted:
        return NumPyroTilted(self, wanted)


class NumPyroTilted:
    """See `vi_kit.workflow.held.Tilted`."""

    def __init__(self, held: NumPyroHeld, wanted: Wanted):
        values = {n: s["value"] for n, s in held.model_trace.items() if s["type"] in KNOWN}
        found = {n: values[n] if f is None else jnp.asarray(f(values)) for n, f in wanted.items()}
        zeros = {TILT + n: jnp.zeros(jnp.shape(x), held.dtype) for n, x in found.items()}
        _, self.unravel = ravel_pytree(zeros)
        self.names = [
            f"{n}{list(index) if index else ''}"
            for n in sorted(found)
            for index in np.ndindex(*jnp.shape(found[n]))
        ]
        self.held, model = held, tilted(held.trainer.model, wanted, zeros)
        single = held.loss._changed(held.loss.settings.estimators, 1)

        def both(loss: Any) -> Callable:
            def value(flat: Any, tilt: Any, key: Any) -> Any:
                return held.value(flat, model, loss, key, self.unravel(tilt))

            return jax.jit(jax.value_and_grad(value, (0, 1)))

        self.all_draws, self.one_draw = both(held.loss), both(single)

    def evaluate(self, flat: np.ndarray, tilt: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        return self._at(self.all_draws, flat, tilt, self.held.key)

    def drawn(self, flat: np.ndarray, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        zero, keys = np.zeros(len(self.names)), random.split(random.key(seed), num_draws)
        found = [self._at(self.one_draw, flat, zero, key)[1:] for key in keys]
        by_params, by_tilt = zip(*found, strict=True)
        return np.array(by_params), np.array(by_tilt)

    def _at(self, fn: Callable, flat: np.ndarray, tilt: np.ndarray, key: Any) -> Any:
        dtype = self.held.dtype
        value, slopes = fn(jnp.asarray(flat, dtype), jnp.asarray(tilt, dtype), key)
        return float(value), *(np.asarray(x, float) for x in slopes)


KNOWN = ("sample", "deterministic")
"""Statements whose values functions are given."""


def tilted(model: Callable, wanted: Wanted, zeros: Any) -> Callable:
    """A model with functions of its sites' values added to its log density, each element times a parameter."""

    @functools.wraps(model)
    def program(*args: Any, **kwargs: Any) -> Any:
        tilts: dict[str, Any] = {n: numpyro.param(TILT + n, zeros[TILT + n]) for n in wanted}
        adds = _Adds({n: tilts[n] for n, f in wanted.items() if f is None})
        with adds:
            result = model(*args, **kwargs)
        for name, function in wanted.items():
            if function is not None:
                tilt, value = tilts[name], function(adds.values)
                numpyro.factor(TILT + name, _summed(tilt * value, tilt.ndim))
        return result

    return program


class _Adds(Messenger):
    """At the statement of a site, and in its plates, the log density has its value times a tilt added."""

    def __init__(self, tilts: dict[str, Any]):
        super().__init__()
        self.tilts, self.values = tilts, {}

    def postprocess_message(self, msg: Any) -> None:
        name = msg["name"]
        if msg["type"] in KNOWN:
            self.values[name] = msg["value"]
        if msg["type"] == "sample" and name in self.tilts:
            added = self.tilts[name] * msg["value"]
            numpyro.factor(TILT + name, _summed(added, msg["fn"].event_dim))


def _summed(value: Any, num: int) -> Any:
    """Over the last dims."""
    return value.sum(tuple(range(-num, 0))) if num else value
