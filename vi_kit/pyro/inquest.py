"""The statements of plain runs of programs, for whoever asks why a step has failed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from vi_kit.pyro.guides import copied
from vi_kit.pyro.minibatch import as_numpy
from vi_kit.pyro.noise import buffers_kept
from vi_kit.workflow.ambient import isolated
from vi_kit.workflow.batches import Call
from vi_kit.workflow.inquest import Seen, all_within, layers_of


class _Noted(Messenger):
    """Keeps the statements of a program, that of which the value could not be made included."""

    def __init__(self, role: str, found: list[tuple[str, Any]]):
        self.role, self.found = role, found

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.found.append((self.role, msg))


def seen(
    model: Callable,
    guide: Callable,
    call: Call,
    leaves: Mapping[str, torch.Tensor],
    *,
    gradients: bool,
) -> list[Seen]:
    """The statements of one draw from the guide, and of the model there."""
    found: list[tuple[str, Any]] = []
    args, kwargs = call
    with warnings.catch_warnings(), pyro.validation_enabled(False), buffers_kept():
        warnings.simplefilter("ignore")
        try:
            with _Noted("guide", found):
                trace = poutine.trace(guide).get_trace(*args, **kwargs)
            with _Noted("model", found), poutine.replay(trace=trace):
                model(*args, **kwargs)
        except (ValueError, RuntimeError):  # the last statement has no value
            pass
        return [_seen(role, msg, leaves if gradients else {}) for role, msg in found]


def before_steps(model: Callable, guide: Callable, call: Call) -> list[Seen]:
    """The statements of a run as if it were the first, of the model alone if the guide cannot be run."""
    with isolated(0), pyro.get_param_store().scope():
        try:
            return seen(model, copied(guide, model), call, {}, gradients=False)
        except Exception:  # an autoguide that cannot be set up
            return seen(model, lambda *args, **kwargs: None, call, {}, gradients=False)


def _seen(role: str, msg: Any, leaves: Mapping[str, torch.Tensor]) -> Seen:
    fn, value = msg["fn"], msg["value"]
    log_density = None
    try:
        if isinstance(value, torch.Tensor):
            log_density = fn.log_prob(value)
            if msg["mask"] is not None:
                mask = torch.as_tensor(msg["mask"])
                log_density = torch.where(mask, log_density, torch.zeros_like(log_density))
    except (ValueError, RuntimeError):
        pass
    arguments, invalid = _arguments(fn, msg["mask"])
    return Seen(
        f"{role} site {msg['name']!r}",
        bool(msg["is_observed"]),
        type(layers_of(fn)[0]).__name__,
        arguments,
        invalid,
        as_numpy(value) if isinstance(value, torch.Tensor) else None,
        None if log_density is None else as_numpy(log_density),
        _through(log_density, leaves),
        {f.dim: f.name for f in msg["cond_indep_stack"] if f.dim is not None},
    )


def _through(log_density: Any, leaves: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    if not leaves or log_density is None or not log_density.requires_grad:
        return ()
    grads = torch.autograd.grad(
        log_density.sum(), list(leaves.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(leaves, grads, strict=True)
    return tuple(name for name, g in pairs if g is not None and not bool(g.isfinite().all()))


def _arguments(fn: Any, mask: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """By name, and those out of their range where a mask leaves anything."""
    layers = layers_of(fn)
    masks = [
        None if m is None else as_numpy(torch.as_tensor(m))
        for m in (*(getattr(layer, "_mask", None) for layer in layers), mask)
    ]
    ranges: Any = getattr(layers[0], "arg_constraints", {})
    names = [name for name in ranges if name in vars(layers[0])] or list(ranges)
    values = {name: getattr(layers[0], name) for name in names}
    values = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}

    def is_out(name: str) -> bool:
        try:
            return not all_within(as_numpy(ranges[name].check(values[name])), layers, masks)
        except (NotImplementedError, RuntimeError):  # a range that depends on other arguments
            return False

    return {k: as_numpy(v) for k, v in values.items()}, tuple(filter(is_out, values))
