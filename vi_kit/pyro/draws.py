"""Plain runs of two programs with Pyro's own handlers, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch.distributions import constraints, transform_to

from vi_kit.base.errors import BackendError, message
from vi_kit.engine.statements import is_copy
from vi_kit.pyro.at_once import DRAWS, Given, Run, Seeds, Values, at_once, lifted
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.pyro.leaves import modules_in
from vi_kit.pyro.noise import Generators, buffers_kept
from vi_kit.pyro.precision import full_precision, wide, widened
from vi_kit.workflow.draws import Draws, Kind, NoSamplerError, Plate, Site, concatenated, kind_of

Found = dict[str, Site]
Pair = tuple[Found, Found]


class Unconditioned(UnconditionMessenger):
    """Data are drawn; deterministic values stay, which Pyro has as observed Deltas: drawn from these, expanded by the
    plates around, they would have the dims of the plates twice."""

    def _pyro_sample(self, msg: Any) -> None:
        if not (msg["infer"] or {}).get("_deterministic"):
            super()._pyro_sample(msg)


class Latest(Messenger):
    """Keeps the sample statement that was met last, and has none in half precision."""

    msg: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"], self.msg = widened(msg["fn"]), msg


class PyroRuns:
    """See `vi_kit.workflow.draws.Runs`. Many draws at once, under a plate, where the programs are found to broadcast
    (see `vi_kit.pyro.at_once`), else one after the other."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: Any,
        kwargs: Any,
        params: Mapping[str, torch.Tensor] | None,
        summed: Sequence[str],
    ):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.params, self.summed = params or {}, summed

    def posterior(
        self, num: int, seed: int, *, predictive: bool = False, densities: bool = True
    ) -> Draws:
        def pair(seeds: Seeds, values: Values, with_densities: bool) -> Pair:
            given = Given(values)
            torch.manual_seed(seeds[0])
            guide = self._traced(given(self.guide))
            program = Unconditioned()(self.model) if predictive else self.model
            torch.manual_seed(seeds[1])  # the draws of a guide do not know what the model does
            model = self._traced(given(poutine.replay(program, trace=guide)))
            return self._found(guide, None, with_densities), self._found(
                model, guide, with_densities
            )

        return self._draws(pair, num, seed, densities and not predictive)

    def prior(self, num: int, seed: int, *, conditioned: bool = False) -> Draws:
        program = self.model if conditioned else Unconditioned()(self.model)

        def pair(seeds: Seeds, values: Values, with_densities: bool) -> Pair:
            torch.manual_seed(seeds[1])
            model = self._traced(Given(values)(program))
            return {}, self._found(model, None, with_densities)

        return self._draws(pair, num, seed, conditioned)

    @contextmanager
    def replay(self, loss: Any, seed: int) -> Iterator[Any]:
        with self.at_params(seed):
            yield loss.replay(self.model, self.guide, self.args, self.kwargs, None)

    def _draws(self, pair: Run, num: int, seed: int, densities: bool) -> Draws:
        with self.at_params(seed):
            seeds = _seeds(num, seed)
            pieces, why = at_once(pair, seeds, densities)
            if pieces is None:
                pieces = [lifted(pair(own, {}, densities)) for own in seeds]
        guide, model = (_joined([p[i] for p in pieces]) for i in (0, 1))
        return Draws(guide, model, why)

    def _traced(self, program: Callable) -> Any:
        latest = Latest()
        try:
            return poutine.trace(latest(program)).get_trace(*self.args, **self.kwargs)
        except NotImplementedError as error:
            if latest.msg is None or latest.msg["value"] is not None:
                raise
            name = PyroDistribution(latest.msg["fn"]).name
            raise NoSamplerError(latest.msg["name"], name) from error

    def _found(self, traced: Any, guide: Any, densities: bool) -> Found:
        """The sites of one run; `guide` is that of the guide, if this is the model's."""
        found = {}
        for name, msg in traced.nodes.items():
            if msg["type"] != "sample" or (is_copy(msg) and (guide is None or name not in guide)):
                continue
            site = self._site(name, msg, guide, densities)
            if site is not None:
                found[name] = site
        return found

    def _site(self, name: str, msg: Any, guide: Any, densities: bool) -> Site | None:
        value = _numpy(msg["value"])
        if isinstance(msg["fn"], _Subsample):
            is_part = msg["fn"].subsample_size not in (None, msg["fn"].size)
            return Site(name, Kind.ROWS, value, 1, ()) if is_part else None
        plates = tuple(
            Plate(f.name, f.dim, int(f.size), int(f.full_size or f.size))
            for f in msg["cond_indep_stack"]
            if f.vectorized and f.name != DRAWS
        )
        if msg["infer"].get("_deterministic"):
            return Site(name, Kind.DETERMINISTIC, value, None, plates)
        view = PyroDistribution(msg["fn"])
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
        log_prob = mask = None
        if densities:
            log_prob, mask = _density(view, msg)
        return Site(
            name,
            kind,
            value,
            msg["fn"].event_dim,
            plates,
            log_prob,
            mask,
            _scale(msg["scale"]),
            is_fixed=view.name == "Delta",
            is_discrete=view.is_discrete(view.fn),
        )

    @contextmanager
    def at_params(self, seed: int) -> Iterator[None]:
        """Random numbers from a seed, parameters at their values; all is as it was after: store, parameters and
        buffers of modules, gradients, generators."""
        store = pyro.get_param_store()
        kept = [store._params, store._constraints, store._param_to_name]
        before = [dict(own) for own in kept]
        modules = list(modules_in((self.model, self.guide, self.args, self.kwargs)))
        held = [(m, dict(m._parameters)) for m in modules]
        leaves = [*store._params.values(), *(p for _, own in held for p in own.values())]
        values = [(p, p.detach().clone(), p.grad) for p in leaves if p is not None]
        generators = Generators.now()
        with buffers_kept(), torch.enable_grad():
            pyro.set_rng_seed(seed)
            try:
                self._put(store)
                yield
            finally:
                for own, old in zip(kept, before, strict=True):
                    own.clear()
                    own.update(old)
                for module, parameters in held:
                    module._parameters.clear()
                    module._parameters.update(parameters)
                for p, value, grad in values:
                    p.data = value.data if p.shape != value.shape else p.data.copy_(value)
                    p.grad = grad
                generators.restore()

    def _put(self, store: Any) -> None:
        """Bring the parameters to the values that were given."""
        for name, given in self.params.items():
            given = torch.as_tensor(given).detach()
            if name not in store._params:
                store[name] = given.clone()
                continue
            leaf = store._params[name]
            constraint = store._constraints.get(name, constraints.real)
            value = transform_to(constraint).inv(given)
            if leaf.shape == value.shape:
                leaf.data.copy_(value)
            else:
                store.__setitem__(name, given.clone())


def _seeds(num: int, seed: int) -> list[Seeds]:
    """For each draw one of the guide and one of the model."""
    words = np.random.SeedSequence(seed).generate_state(2 * num, np.uint32)
    return [(int(a), int(b)) for a, b in words.reshape(num, 2)]


def _density(view: Any, msg: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The log density of the elements of a site, and which of them count."""
    outer = True if msg["mask"] is None else msg["mask"]
    fn, inner = (msg["fn"], True) if view.hides_elements else (view.fn, view.mask)
    with full_precision():
        log_prob = fn.log_prob(msg["value"])
    log_prob = _numpy(log_prob).astype(float)
    mask = np.logical_and(_numpy(outer), _numpy(inner))
    if mask.all() and mask.ndim == 0:
        return log_prob, None
    shape = np.broadcast_shapes(mask.shape, log_prob.shape)
    return np.broadcast_to(log_prob, shape), np.broadcast_to(mask, shape)


def _scale(scale: Any) -> Any:
    return float(scale) if np.ndim(scale) == 0 else _numpy(scale)


def _numpy(value: Any) -> np.ndarray:
    return (
        wide(value).detach().cpu().numpy().copy() if torch.is_tensor(value) else np.asarray(value)
    )


def _joined(pieces: list[Found]) -> Found:
    """Runs of one program as sites at all draws.

    Raises:
        BackendError: the runs differ in their sites or shapes.
    """
    names = dict.fromkeys(n for own in pieces for n in own)
    different = [
        name
        for name in names
        if any(name not in own for own in pieces)
        or len({(own[name].value.shape[1:], own[name].kind) for own in pieces}) > 1
    ]
    if different:
        raise BackendError(
            message(
                "draws of these sites cannot be stacked: not every run has them, in the same shape",
                got=", ".join(repr(n) for n in different),
                expected="programs whose sites and shapes do not depend on what is drawn",
                fix="a mask in the place of a branch",
            )
        )
    return {name: concatenated([own[name] for own in pieces]) for name in names}
