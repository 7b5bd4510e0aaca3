"""One set of words for both libraries, so that a test case is written once and runs on each."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np


class PyroWords:
    """What a test case needs of Pyro; `theta` is the one flat parameter vector of a case."""

    name = "pyro"

    def __init__(self) -> None:
        import pyro
        import pyro.distributions as dist
        import torch
        from pyro import poutine

        from vi_kit.pyro import Loss, fit

        self.dist, self.transforms = dist, dist.transforms
        self.sample, self.plate, self.factor = pyro.sample, pyro.plate, pyro.factor
        self.guide_factor = functools.partial(pyro.factor, has_rsample=True)
        self.handlers = SimpleNamespace(
            scale=poutine.scale,
            mask=poutine.mask,
            block=poutine.block,
            condition=poutine.condition,
            do=poutine.do,
        )
        self.Loss, self.fit = Loss, fit
        self.xp: Any = torch
        self.detach = lambda x: x.detach()

    def array(self, values: Any) -> Any:
        return self.xp.as_tensor(values)

    def theta(self, values: np.ndarray, name: str = "theta") -> Any:
        import pyro

        return pyro.param(name, self.xp.tensor(values, dtype=self.xp.float64))

    def gradients(
        self,
        loss: Any,
        model: Any,
        guide: Any,
        values: np.ndarray,
        num_draws: int,
        seed: int,
        names: tuple[str, ...] = ("theta",),
        args: tuple[Any, ...] = (),
    ) -> np.ndarray:
        """Independent gradient estimates of the loss by the parameters `names`, all of them `values` at
        first, shape `(num_draws, len(names) * len(values))`. `args` are those of the step."""
        return self.estimates(loss, model, guide, values, num_draws, seed, names, args)[:, 1:]

    def estimates(
        self,
        loss: Any,
        model: Any,
        guide: Any,
        values: np.ndarray,
        num_draws: int,
        seed: int,
        names: tuple[str, ...] = ("theta",),
        args: tuple[Any, ...] = (),
    ) -> np.ndarray:
        """The same, each with the estimate of the loss in front."""
        import pyro

        pyro.clear_param_store()
        pyro.set_rng_seed(seed % 2**31)
        for name in names:
            self.theta(values, name)
        leaves = [pyro.get_param_store()._params[name] for name in names]
        draws = []
        for _ in range(num_draws):
            for leaf in leaves:
                leaf.grad = self.xp.zeros_like(leaf)
            value = self.step(loss, model, guide, args)
            draws.append(np.concatenate([[value], *(leaf.grad.cpu().numpy() for leaf in leaves)]))
        return np.array(draws)

    def step(self, loss: Any, model: Any, guide: Any, args: tuple[Any, ...]) -> float:
        """The loss; gradients are at the parameters."""
        return loss.loss_and_grads(model, guide, *args)

    def value(self, loss: Any, model: Any, guide: Any, seed: int, compiled: bool = False) -> float:
        """One estimate of the loss (nats); `compiled` is for NumPyro."""
        import pyro

        pyro.set_rng_seed(seed % 2**31)
        return loss.loss(model, guide)


class NumPyroWords:
    """The same of NumPyro."""

    name = "numpyro"

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro import handlers

        from vi_kit.numpyro import Loss, fit

        numpyro.enable_x64()
        self.dist, self.transforms = dist, dist.transforms
        self.sample, self.plate, self.factor = numpyro.sample, numpyro.plate, numpyro.factor
        self.guide_factor = numpyro.factor
        self.handlers = handlers
        self.Loss, self.fit = Loss, fit
        self.xp: Any = jnp
        self.detach = jax.lax.stop_gradient

    def array(self, values: Any) -> Any:
        return self.xp.asarray(values)

    def theta(self, values: np.ndarray, name: str = "theta") -> Any:
        import numpyro

        return numpyro.param(name, self.xp.asarray(values))

    def gradients(
        self,
        loss: Any,
        model: Any,
        guide: Any,
        values: np.ndarray,
        num_draws: int,
        seed: int,
        names: tuple[str, ...] = ("theta",),
        args: tuple[Any, ...] = (),
    ) -> np.ndarray:
        """See `PyroWords.gradients`."""
        return self.estimates(loss, model, guide, values, num_draws, seed, names, args)[:, 1:]

    def estimates(
        self,
        loss: Any,
        model: Any,
        guide: Any,
        values: np.ndarray,
        num_draws: int,
        seed: int,
        names: tuple[str, ...] = ("theta",),
        args: tuple[Any, ...] = (),
    ) -> np.ndarray:
        """See `PyroWords.estimates`."""
        import jax
        from numpyro import handlers

        guide = loss.with_state(guide)

        @jax.jit
        def initial() -> Any:
            with handlers.trace() as trace, handlers.seed(rng_seed=0):
                guide(*args)
            kinds = {n: (s["type"], s["value"]) for n, s in trace.items()}
            state = {n: value for n, (kind, value) in kinds.items() if kind == "mutable"}
            own = {n: v for n, (kind, v) in kinds.items() if kind == "param" and "vi_kit" in n}
            return state, own

        state, own = initial.eval_shape()
        if state or own:  # few guides have either; the others need not be compiled
            state, own = initial()

        @jax.jit  # all numbers are arguments: XLA would fold constants, which takes it long
        def gradient(params: Any, key: Any, state: Any) -> Any:
            def value(params: Any) -> Any:
                result = loss.loss_with_mutable_state(
                    key, {**own, **params, **state}, model, guide, *args
                )
                return result["loss"], result["mutable_state"] or {}

            return jax.value_and_grad(value, has_aux=True)(params)

        params = {n: self.xp.asarray(values) for n in names}
        draws = []
        for key in jax.random.split(jax.random.key(seed), num_draws):
            (value, state), draw = gradient(params, key, state)
            draws.append(np.concatenate([[value], *(np.asarray(draw[n]) for n in names)]))
        return np.array(draws)

    def value(self, loss: Any, model: Any, guide: Any, seed: int, compiled: bool = False) -> float:
        """One estimate of the loss (nats); `compiled` as a whole, or one operation after the other."""
        import jax

        def once(key: Any) -> Any:
            return loss.loss(key, {}, model, guide)

        return float((jax.jit(once) if compiled else once)(jax.random.key(seed)))


class Renamed:
    """The words of a library, with another name for `theta`, so that model and guide have their own."""

    def __init__(self, lib: Any, name: str):
        self._lib = lib
        self._parameter = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def theta(self, values: np.ndarray) -> Any:
        return self._lib.theta(values, self._parameter)


LIBRARIES = {"pyro": PyroWords, "numpyro": NumPyroWords}


def in_turn(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """A product, each case of it in one of the libraries, and all that leaves one axis open in both.

    `VI_KIT_IDIOMS=all` has each case in both. A row is the name of a library and a value of each axis; those that are
    tuples are several values.
    """
    rows = []
    for number, lib in enumerate(LIBRARIES):
        for case in itertools.product(*map(enumerate, axes)):
            is_turn = (number + sum(i for i, _ in case)) % len(LIBRARIES) == 0
            if is_turn or os.environ.get("VI_KIT_IDIOMS") == "all":
                values = (x if isinstance(x, tuple) else (x,) for _, x in case)
                rows.append((lib, *itertools.chain(*values)))
    return rows
