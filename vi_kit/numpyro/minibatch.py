"""How minibatches reach NumPyro's programs: rows of arrays, and plates that count for all of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import handlers
from numpyro.primitives import Messenger

from vi_kit.engine.statements import is_copy
from vi_kit.language.marginal import mapped_part
from vi_kit.numpyro.backend import CutPlate
from vi_kit.numpyro.sharding import has_rows
from vi_kit.workflow.asking import UNSCALED
from vi_kit.workflow.minibatch import AllRows, Frame, Seen, Statement


def as_arrays(tree: Any) -> Any:
    """What has rows (arrays of NumPy, of torch) as arrays that JAX takes."""
    return jax.tree.map(lambda x: x if not has_rows(x) else _as_array(x), tree)


def lengths(one: Any) -> list[int]:
    """Of the arrays in an argument, along their first axis."""
    return [x.shape[0] for x in jax.tree.leaves(one) if has_rows(x)]


def numbers(one: Any) -> list[np.ndarray]:
    """The arrays in an argument."""
    return [np.asarray(x) for x in jax.tree.leaves(one) if has_rows(x)]


def cut(one: Any, index: Any) -> Any:
    """Some rows of the arrays in an argument."""
    return jax.tree.map(lambda x: x[index] if has_rows(x) else x, one)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


class Scaled(Messenger):
    """Some plates are minibatches of more rows, and their statements count for these: a nonlinear objective of each row
    is not one of a row that counts several times."""

    def __init__(self, plates: Mapping[str, AllRows]):
        super().__init__()
        self.plates, self.own = plates, dict[str, int]()

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate":
            self.own[msg["name"]] = msg["args"][0]  # what its own scale makes of it
        if msg["type"] != "sample":
            return
        frames = list(msg["cond_indep_stack"])
        for i, frame in enumerate(frames):
            own: Any = self.own.get(frame.name, frame.size)
            whole = self.plates.get(frame.name)
            if whole is not None and whole.num_rows != own:
                msg["scale"] = whole.factor(own) * (1.0 if msg["scale"] is None else msg["scale"])
                frames[i] = CutPlate(*frame)
                frames[i].full_size = whole.num_rows
        msg["cond_indep_stack"] = frames


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
    guide = copy.deepcopy(guide)  # an autoguide sets itself up by the first rows that it sees
    with handlers.block(), handlers.seed(rng_seed=random.key(0)):
        guide_trace = handlers.trace(guide).get_trace(*args, **kwargs)
        replayed = handlers.replay(model, guide_trace)
        model_trace = handlers.trace(replayed).get_trace(*args, **kwargs)
    sites = [*guide_trace.values(), *model_trace.values()]
    full = {s["name"]: s["args"][0] for s in sites if s["type"] == "plate"}
    params = {s["name"]: s["value"] for s in sites if s["type"] == "param"}
    shapes = {
        f"{name}{jax.tree_util.keystr(path)}": jnp.shape(leaf)
        for name, value in params.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(value)
    }
    num_rows = next(n for one in (*args, *kwargs.values()) for n in lengths(one))
    by_role = zip(("guide", "model"), (guide_trace, model_trace), strict=True)
    statements = [s for role, of in by_role for s in _statements(of, role, full)]
    return Seen(num_rows, statements, shapes)


def _statements(trace: Any, role: str, full: Mapping[str, int]) -> Iterator[Statement]:
    for site in trace.values():
        if site["type"] == "sample" and not is_copy(site):
            frames = tuple(
                Frame(f.name, f.size, full.get(f.name, f.size)) for f in site["cond_indep_stack"]
            )
            scale = 1.0 if site["scale"] is None else float(np.max(np.asarray(site["scale"])))
            yield Statement(site["name"], role, site["is_observed"], scale, frames)
