"""How minibatches reach Pyro's programs: rows of tensors, and plates that count for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine

from vi_kit.engine.statements import is_copy
from vi_kit.language.marginal import mapped_part
from vi_kit.pyro.backend import CutPlate
from vi_kit.pyro.guides import copied
from vi_kit.pyro.noise import buffers_kept
from vi_kit.pyro.replay import statements_of
from vi_kit.workflow.ambient import isolated
from vi_kit.workflow.asking import UNSCALED
from vi_kit.workflow.minibatch import AllRows, Frame, Seen, Statement


def mapped(fn: Callable[[Any], Any], one: Any) -> Any:
    """An argument with a function of the arrays in it."""
    if isinstance(one, Mapping):
        return {k: mapped(fn, v) for k, v in one.items()}
    if isinstance(one, list | tuple) and type(one) in (list, tuple):
        return type(one)(mapped(fn, v) for v in one)
    return fn(one) if isinstance(one, torch.Tensor | np.ndarray) and one.ndim > 0 else one


def lengths(one: Any) -> list[int]:
    """Of the arrays in an argument, along their first axis."""
    found: list[int] = []
    mapped(lambda x: found.append(len(x)), one)
    return found


def numbers(one: Any) -> list[np.ndarray]:
    """The arrays in an argument."""
    found: list[np.ndarray] = []
    mapped(lambda x: found.append(as_numpy(x)), one)
    return found


def as_numpy(array: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def cut(one: Any, index: np.ndarray) -> Any:
    """Some rows of the arrays in an argument."""
    rows = torch.as_tensor(index)

    def chosen(x: Any) -> Any:
        # the host does not wait until a device has the numbers
        own = isinstance(x, torch.Tensor)
        return x[rows.to(x.device, non_blocking=True) if own else index]

    return mapped(chosen, one)


class Scaled(poutine.messenger.Messenger):
    """Some plates are minibatches of more rows, and their statements count for these: a nonlinear objective of each row
    is not one of a row that counts several times."""

    def __init__(self, plates: Mapping[str, AllRows]):
        super().__init__()
        self.plates = plates

    def _pyro_sample(self, msg: Any) -> None:
        frames = list(msg["cond_indep_stack"])
        for i, frame in enumerate(frames):
            own = frame.full_size or frame.size  # what its own scale makes of it
            whole = self.plates.get(frame.name)
            if whole is not None and whole.num_rows != own:
                msg["scale"] = msg["scale"] * whole.factor(own)
                frames[i] = CutPlate(*frame._replace(full_size=whole.num_rows))
        msg["cond_indep_stack"] = type(msg["cond_indep_stack"])(frames)


def scaled(program: Callable, plates: Mapping[str, AllRows], role: str) -> Callable:
    """A program whose plates count for all rows."""
    if not plates:
        return program

    def of_part(fn: Callable, role: str) -> Callable:
        @functools.wraps(fn)
        def with_scale(*args: Any, **kwargs: Any) -> Any:
            with Scaled(plates):
                return fn(*args, **kwargs)

        vars(with_scale)[UNSCALED] = fn
        return with_scale

    return mapped_part(program, of_part, role)


def look(model: Callable, guide: Callable, args: Any, kwargs: Any) -> Seen:
    """See `vi_kit.workflow.fitting.Library.look`."""
    guide = copied(guide, model)  # an autoguide sets itself up by the first rows that it sees
    with isolated(0), buffers_kept(), torch.no_grad(), pyro.get_param_store().scope():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    traces: Any = (guide_trace, model_trace)
    shapes = {
        name: tuple(site["value"].shape)
        for trace in traces
        for name, site in trace.nodes.items()
        if site["type"] == "param"
    }
    num_rows = next(n for one in (*args, *kwargs.values()) for n in lengths(one))
    by_role = zip(("guide", "model"), traces, strict=True)
    return Seen(num_rows, [s for role, of in by_role for s in _statements(of, role)], shapes)


def _statements(trace: Any, role: str) -> Iterator[Statement]:
    for site in statements_of(trace):
        if not is_copy(site):
            frames = tuple(
                Frame(f.name, int(f.size), int(f.full_size or f.size))
                for f in site["cond_indep_stack"]
            )
            scale = float(torch.as_tensor(site["scale"]).max())
            yield Statement(site["name"], role, site["is_observed"], scale, frames)
