"""The loss of a fit in Pyro with its noise held: the generators in the same state before every evaluation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.util import zero_grads

from vi_kit.base.errors import NotFiniteError
from vi_kit.engine.plan import Plan
from vi_kit.pyro.noise import Generators, buffers_kept
from vi_kit.pyro.replay import statements_of
from vi_kit.workflow.held import Wanted

TILT = "vi_kit tilt of "
"""How what is added to a model's log density is named."""


class PyroHeld:
    """See `vi_kit.workflow.held.Held`."""

    def __init__(self, trainer: Any):
        self.trainer, self.loss, self.generators = trainer, trainer.loss, trainer.generators
        self.inverse: Any = None
        self.model, self.guide = trainer.job.model, trainer.job.guide
        self.args, self.kwargs = trainer.source.example
        self.leaves = {n: p for n, p in trainer.leaves.items() if p.requires_grad}
        dtypes = [p.dtype for p in self.leaves.values()] or [torch.get_default_dtype()]
        self.rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
        with self.noise(), torch.no_grad():
            self.guide_trace, self.model_trace = self._traces()
        own = {n for n, s in self.guide_trace.nodes.items() if s["type"] == "param"}
        marks = [np.full(p.numel(), n in own) for n, p in self.leaves.items()]
        self.of_guide = np.concatenate([np.zeros(0, bool), *marks])
        self.at = self._flat([p.detach() for p in self.leaves.values()])

    def _traces(self) -> tuple[Any, Any]:
        guide = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        model = poutine.trace(poutine.replay(self.model, trace=guide))
        return guide, model.get_trace(*self.args, **self.kwargs)

    @contextmanager
    def noise(self, seed: int | None = None) -> Iterator[None]:
        """Random numbers that are held, or of a seed; the user's generators do not move, nor do buffers."""
        before = Generators.now()
        self.generators.restore()
        if seed is not None:
            torch.manual_seed(seed)
        try:
            with buffers_kept(), torch.enable_grad():
                yield
        finally:
            before.restore()

    def plan(self) -> Plan:
        with self.noise():
            programs = self.loss._programs(self.model, self.guide, self.args, self.kwargs)
            return self.loss._explained(programs)[0]

    def remembers(self) -> list[str]:
        return list(self.loss.state)

    def _flat(self, values: Any) -> np.ndarray:
        parts = [x.cpu().double().numpy().ravel() for x in values]
        return np.concatenate([np.zeros(0), *parts])

    def _place(self, flat: np.ndarray) -> None:
        start = 0
        for leaf in self.leaves.values():
            part = torch.as_tensor(flat[start : start + leaf.numel()])
            leaf.data.copy_(part.reshape(leaf.shape))
            start += leaf.numel()

    def gradient(self, flat: np.ndarray, loss: Any, model: Callable) -> tuple[float, np.ndarray]:
        """Under the noise that there is."""
        self._place(flat)
        zero_grads(self.leaves.values())
        value = loss.loss_and_grads(model, self.guide, *self.args, **self.kwargs)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.leaves.values()]
        found = self._flat(grads)
        zero_grads(self.leaves.values())
        return value, found

    def evaluate(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            with self.noise():
                value, slope = self.gradient(flat, self.loss, self.model)
        except (NotFiniteError, ValueError):  # the second: no such distribution
            value, slope = math.inf, np.zeros(len(flat))
        finite = math.isfinite(value) and np.isfinite(slope).all()
        return (value, slope) if finite else (math.inf, np.zeros(len(flat)))

    def first(self) -> float:
        with self.noise():  # the first makes the plan
            self.gradient(self.at, self.loss, self.model)
        with self.noise():
            return self.gradient(self.at, self.loss, self.model)[0]

    def settle(self, flat: np.ndarray) -> None:
        self.at = flat
        self._place(flat)

    def times_hessian(self, flat: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
        self._place(flat)
        leaves = list(self.leaves.values())
        try:
            with self.noise():
                loss = self.loss.differentiable_loss(
                    self.model, self.guide, *self.args, **self.kwargs
                )
                grads = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
                along, start = torch.zeros((), dtype=loss.dtype), 0
                for leaf, grad in zip(leaves, grads, strict=True):
                    part = torch.as_tensor(direction[start : start + leaf.numel()])
                    start += leaf.numel()
                    if grad is not None:
                        along = along + (grad * part.to(grad).reshape(grad.shape)).sum()
                if not along.requires_grad:
                    return np.zeros(len(flat))
                found = torch.autograd.grad(along, leaves, allow_unused=True)
        except (NotImplementedError, RuntimeError):  # samplers without second derivatives
            return None
        pairs = zip(found, leaves, strict=True)
        return self._flat([torch.zeros_like(p) if g is None else g for g, p in pairs])

    def latent(self) -> list[str]:
        drawn = {s["name"] for s in statements_of(self.guide_trace)}
        return [s["name"] for s in statements_of(self.model_trace) if s["name"] in drawn]

    def tilted(self, wanted: Wanted) -> PyroTilted:
        return PyroTilted(self, wanted)


class PyroTilted:
    """See `vi_kit.workflow.held.Tilted`."""

    def __init__(self, held: PyroHeld, wanted: Wanted):
        values = {s["name"]: s["value"] for s in statements_of(held.model_trace)}
        found = {
            n: values[n] if f is None else torch.as_tensor(f(values)) for n, f in wanted.items()
        }
        dtype = next(iter(held.leaves.values())).dtype
        self.tilts = {
            n: torch.zeros(x.shape, dtype=dtype, device=x.device, requires_grad=True)
            for n, x in found.items()
        }
        self.names = [
            f"{n}{list(index) if index else ''}"
            for n, x in found.items()
            for index in np.ndindex(*x.shape)
        ]
        self.held, self.model = held, tilted(held.model, wanted, self.tilts)
        self.single = held.loss._changed(held.loss.settings.estimators, 1)
        self.planned: set[int] = set()

    def evaluate(self, flat: np.ndarray, tilt: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        return self._at(flat, tilt, self.held.loss, None)

    def drawn(self, flat: np.ndarray, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        zero = np.zeros(len(self.names))
        seeds = np.random.SeedSequence(seed).generate_state(num_draws)
        found = [self._at(flat, zero, self.single, int(one))[1:] for one in seeds]
        by_params, by_tilt = zip(*found, strict=True)
        return np.array(by_params), np.array(by_tilt)

    def _at(self, flat: np.ndarray, tilt: np.ndarray, loss: Any, seed: int | None) -> Any:
        start = 0
        for one in self.tilts.values():
            part = torch.as_tensor(tilt[start : start + one.numel()])
            one.data.copy_(part.reshape(one.shape))
            start += one.numel()
        for _ in range(1 + (id(loss) not in self.planned)):  # the first makes the plan
            zero_grads(self.tilts.values())
            with self.held.noise(seed):
                value, slope = self.held.gradient(flat, loss, self.model)
            self.planned.add(id(loss))
        pairs = [(t, t.grad) for t in self.tilts.values()]
        by_tilt = self.held._flat([torch.zeros_like(t) if g is None else g for t, g in pairs])
        return value, slope, by_tilt


def tilted(model: Callable, wanted: Wanted, tilts: dict[str, torch.Tensor]) -> Callable:
    """A model with functions of its sites' values added to its log density, each element times a number."""

    @functools.wraps(model)
    def program(*args: Any, **kwargs: Any) -> Any:
        adds = _Adds({n: tilts[n] for n, f in wanted.items() if f is None})
        with adds:
            result = model(*args, **kwargs)
        for name, function in wanted.items():
            if function is not None:
                tilt, value = tilts[name], function(adds.values)
                pyro.factor(TILT + name, _summed(tilt * value, tilt.ndim))
        return result

    return program


class _Adds(poutine.messenger.Messenger):
    """At the statement of a site, and in its plates, the log density has its value times a tilt added."""

    def __init__(self, tilts: dict[str, torch.Tensor]):
        super().__init__()
        self.tilts, self.values = tilts, {}

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        self.values[name] = msg["value"]
        if name in self.tilts:
            added = self.tilts[name] * msg["value"]
            pyro.factor(TILT + name, _summed(added, msg["fn"].event_dim))


def _summed(value: Any, num: int) -> Any:
    """Over the last dims."""
    return value.sum(tuple(range(-num, 0))) if num else value
