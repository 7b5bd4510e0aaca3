"""Plain runs of two programs with NumPyro's own handlers, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import handlers
from numpyro.primitives import Messenger

from vi_kit.engine.statements import is_copy
from vi_kit.numpyro.distributions import NumPyroDistribution, wide, widened
from vi_kit.numpyro.init_params import refuse_unknown
from vi_kit.workflow.draws import Draws, Kind, NoSamplerError, Plate, Site, kind_of

CHUNK_BYTES = 2**26
"""Of what is mapped at once."""

Found = dict[str, Site]


class Latest(Messenger):
    """Keeps the sample statement that was met last, and has none in half precision."""

    msg: Any = None

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            msg["fn"], self.msg = widened(msg["fn"]), msg


class NumPyroRuns:
    """See `vi_kit.workflow.draws.Runs`. Draws are mapped by `jax.vmap`, many at once."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: Any,
        kwargs: Any,
        params: Mapping[str, Any] | None,
        summed: Sequence[str],
    ):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.params, self.summed = dict(params or {}), summed

    def posterior(
        self, num: int, seed: int, *, predictive: bool = False, densities: bool = True
    ) -> Draws:
        self._start()
        wanted = densities and not predictive

        def once(key: Any) -> tuple[Found, Found]:
            key_guide, key_model = random.split(key)
            guide = self._traced(self.guide, key_guide)
            program = handlers.replay(self.model, guide)
            model = self._traced(program, key_model, predictive)
            return self._found(guide, None, wanted), self._found(model, guide, wanted)

        return Draws(*_mapped(once, num, seed))

    def prior(self, num: int, seed: int, *, conditioned: bool = False) -> Draws:
        self._start()

        def once(key: Any) -> tuple[Found, Found]:
            traced = self._traced(self.model, key, not conditioned)
            return {}, self._found(traced, None, conditioned)

        return Draws(*_mapped(once, num, seed))

    @contextmanager
    def replay(self, loss: Any, seed: int) -> Iterator[Any]:
        del seed  # each run is given one
        yield loss.replay(self.model, self.guide, self.args, self.kwargs, self.params)

    def _start(self) -> None:
        """Add the parameters that were not given, as the programs start with them; set up guides that set themselves up
        at the first call."""
        key_guide, key_model = random.split(random.key(0))
        guide = self._traced(self.guide, key_guide)
        model = self._traced(handlers.replay(self.model, guide), key_model)
        there = {
            name: msg["value"]
            for traced in (guide, model)
            for name, msg in traced.items()
            if msg["type"] in ("param", "mutable")
        }
        refuse_unknown(self.params, there)
        self.params = {**there, **self.params}

    def _traced(self, program: Callable, key: Any, predictive: bool = False) -> Any:
        latest = Latest(program)
        seeded = handlers.seed(handlers.substitute(latest, self.params), key)
        shown = handlers.uncondition(seeded) if predictive else seeded
        try:
            return handlers.trace(shown).get_trace(*self.args, **self.kwargs)
        except NotImplementedError as error:
            if latest.msg is None or latest.msg["value"] is not None:
                raise
            name = NumPyroDistribution(latest.msg["fn"]).name
            raise NoSamplerError(latest.msg["name"], name) from error

    def _found(self, traced: Any, guide: Any, densities: bool) -> Found:
        """The sites of one run; `guide` is that of the guide, if this is the model's."""
        sizes = {n: m["args"] for n, m in traced.items() if m["type"] == "plate"}
        found = {}
        for name, msg in traced.items():
            if is_copy_only(msg) and (guide is None or name not in guide):
                continue
            if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
                found[name] = Site(name, Kind.ROWS, msg["value"], 1, ())
            elif msg["type"] in ("sample", "deterministic"):
                site = self._site(name, msg, guide, densities, sizes)
                if site is not None:
                    found[name] = site
        return found

    def _site(
        self, name: str, msg: Any, guide: Any, densities: bool, sizes: Mapping[str, Any]
    ) -> Site | None:
        plates = tuple(
            Plate(f.name, f.dim, int(f.size), int(sizes[f.name][0] if f.name in sizes else f.size))
            for f in msg["cond_indep_stack"]
        )
        value = wide(jnp.asarray(msg["value"]))
        if msg["type"] == "deterministic":
            return Site(name, Kind.DETERMINISTIC, value, None, plates)  # pyright: ignore
        view = NumPyroDistribution(msg["fn"])
        if view.name == "Unit":
            if not densities:
                return None
            kind = Kind.FACTOR
        else:
            kind = kind_of(
                name,
                msg["infer"],
                is_data=msg["is_observed"] or bool(msg["infer"].get("was_observed")),
                is_given=guide is not None and name in guide,
                is_guide=guide is None,
                summed=self.summed,
            )
        site = Site(
            name,
            kind,
            value,  # pyright: ignore
            msg["fn"].event_dim,
            plates,
            is_fixed=view.name == "Delta",
            is_discrete=view.is_discrete(view.fn),
        )
        return _with_density(site, view, msg) if densities else site


def is_copy_only(msg: Any) -> bool:
    """Whether a message is what an intervention leaves of a latent site."""
    return msg["type"] == "sample" and is_copy(msg)


def _with_density(site: Site, view: Any, msg: Any) -> Site:
    """The site with the log density of its elements, and which of them count."""
    fn, mask = (msg["fn"], True) if view.hides_elements else (view.fn, view.mask)
    if msg["intermediates"] and fn is msg["fn"]:
        log_prob = fn.log_prob(msg["value"], msg["intermediates"])
    else:
        log_prob = fn.log_prob(msg["value"])
    if mask is not True:
        shape = jnp.broadcast_shapes(jnp.shape(mask), jnp.shape(log_prob))
        log_prob, mask = jnp.broadcast_to(log_prob, shape), jnp.broadcast_to(mask, shape)
    scale = 1.0 if msg["scale"] is None else msg["scale"]
    if jnp.ndim(scale):
        scale = jnp.broadcast_to(scale, jnp.shape(log_prob))
    return replace(site, log_prob=log_prob, mask=None if mask is True else mask, scale=scale)


ARRAYS = ("value", "log_prob", "mask", "scale")


def _mapped(once: Callable[[Any], tuple[Found, Found]], num: int, seed: int) -> tuple[Found, Found]:
    """What runs find at independent keys, stacked."""
    forms: list[Found] = []

    def arrays(key: Any) -> Any:
        found = once(key)
        forms[:] = found
        return [{n: {a: getattr(s, a) for a in ARRAYS} for n, s in own.items()} for own in found]

    shapes = jax.tree.leaves(jax.eval_shape(arrays, random.key(0)))
    each = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in shapes)
    chunk = min(num, max(1, CHUNK_BYTES // max(each, 1)))
    keys = random.split(random.key(seed), num)
    padded = jnp.concatenate([keys, keys[: -num % chunk]])
    run = jax.jit(jax.vmap(arrays))
    parts = [run(padded[i : i + chunk]) for i in range(0, len(padded), chunk)]
    joined = jax.tree.map(lambda *own: np.concatenate([np.asarray(p) for p in own])[:num], *parts)
    first, second = (
        {n: _site_of(form[n], values) for n, values in own.items()}
        for form, own in zip(forms, joined, strict=True)
    )
    return first, second


def _site_of(form: Site, values: dict[str, Any]) -> Site:
    """A site at all draws, from its form and its arrays."""
    log_prob, scale = values["log_prob"], values["scale"]
    if log_prob is not None:
        log_prob = log_prob.astype(float)
    if scale.ndim == 1 and (log_prob is None or (scale == scale[0]).all()):
        scale = float(scale[0])
    elif scale.ndim == 1 and log_prob is not None:
        scale = scale.reshape(-1, *[1] * (log_prob.ndim - 1))
    return replace(form, value=values["value"], log_prob=log_prob, mask=values["mask"], scale=scale)
