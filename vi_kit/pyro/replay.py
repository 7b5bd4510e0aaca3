"""Plain runs of two programs with Pyro's own handlers, to compare a loss with."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample

from vi_kit.engine.plan import Plan
from vi_kit.engine.replay import (
    counts_in_guide,
    is_drawn,
    joint_support,
    plain_log_prob,
    shares_plates,
    weighted_edges,
)
from vi_kit.engine.statements import GIVEN, is_copy, is_given
from vi_kit.engine.variance import Moved, Sampler
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.pyro.noise import noise_kept
from vi_kit.unbiased import Densities, Displaced

BATCHES = 50
"""Of draws, whose means say how exact the mean of all is."""


class PyroReplay:
    """See `vi_kit.unbiased.Replay`."""

    def __init__(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any, params: Any = None
    ):
        del params  # they are in the store
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        with self.undisturbed(0):
            traces = self.run({})
            statements = [s for t in traces for s in statements_of(t)]
            frames = [f for s in statements for f in s["cond_indep_stack"]]
            scaled = any(f.full_size not in (None, f.size) for f in frames)
            self.shares_plates = scaled or shares_plates(statements)
            names = [n for t in traces for n, site in t.nodes.items() if site["type"] == "param"]
            store = pyro.get_param_store()
            self.names = [n for n in dict.fromkeys(names) if store._params[n].requires_grad]
            leaves = self.leaves()
        self.coordinates = [
            f"{n}{list(index) if index else ''}"
            for n, leaf in zip(self.names, leaves, strict=True)
            for index in np.ndindex(*leaf.shape)
        ]
        self.owners = [
            n for n, leaf in zip(self.names, leaves, strict=True) for _ in range(leaf.numel())
        ]
        self.at = np.concatenate([np.zeros(0), *(_flat(leaf, leaf) for leaf in leaves)])
        self.rounding = float(torch.finfo(torch.get_default_dtype()).eps) ** 0.5

    @contextmanager
    def undisturbed(self, seed: int) -> Iterator[None]:
        """Random numbers from a seed; what was in the parameter store, and its gradients, are there again after."""
        store = pyro.get_param_store()
        kept = [store._params, store._constraints, store._param_to_name]
        before = [dict(own) for own in kept]
        with (
            noise_kept(),
            torch.enable_grad(),
            _unchanged(list(store._params.values())),
        ):
            torch.manual_seed(seed)
            try:
                yield
            finally:
                for own, old in zip(kept, before, strict=True):
                    own.clear()
                    own.update(old)

    @contextmanager
    def started(self, seed: int) -> Iterator[list[torch.Tensor]]:
        """The same, with the parameters that the programs make, in the order of the coordinates."""
        with self.undisturbed(seed):
            self.run({})
            leaves = self.leaves()
            with _unchanged(leaves):
                yield leaves

    def leaves(self) -> list[torch.Tensor]:
        return [pyro.get_param_store()._params[n] for n in self.names]

    def estimates(self, loss: Any, num_draws: int, seed: int) -> np.ndarray:
        loss = _apart(loss)
        with self.started(seed) as leaves:
            draws = []
            for _ in range(num_draws):
                for leaf in leaves:
                    leaf.grad = None
                value = loss.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
                draws.append(np.concatenate([[value], *(_flat(p.grad, p) for p in leaves)]))
            return np.array(draws)

    def moved(self, loss: Any, num_draws: int, warm_up: int, seed: int) -> Moved:
        def at(shift: np.ndarray) -> np.ndarray:
            own, found = _apart(loss), np.full((num_draws, 1 + len(shift)), np.nan)
            with self.started(seed) as leaves:
                _displace(leaves, shift)
                for i in range(-warm_up, num_draws):
                    torch.manual_seed(seed + warm_up + i)
                    for leaf in leaves:
                        leaf.grad = None
                    try:
                        value = own.loss_and_grads(
                            self.model, self.guide, *self.args, **self.kwargs
                        )
                    except Exception:
                        if not shift.any():
                            raise
                        break  # there is no such distribution
                    if i >= 0:
                        found[i] = np.concatenate([[value], *(_flat(p.grad, p) for p in leaves)])
            return found

        return Moved(self.owners, at)

    def plan(self, loss: Any) -> Plan:
        with self.started(0):
            return _apart(loss)._explained(
                loss._programs(self.model, self.guide, self.args, self.kwargs)
            )[0]

    def gradient(self, loss: Any, leaves: list[torch.Tensor]) -> np.ndarray:
        for leaf in leaves:
            leaf.grad = None
        loss.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
        return np.concatenate([np.zeros(0), *(_flat(p.grad, p) for p in leaves)])

    def redrawn(
        self, loss: Any, labels: Sequence[str], num_draws: int, warm_up: int, seed: int
    ) -> np.ndarray:
        loss = _apart(loss)
        loss.compile = False  # a captured step does not know of sites
        salts = [dict.fromkeys(labels, 0) | ({} if k is None else {k: 1}) for k in (None, *labels)]
        with self.started(seed) as leaves:
            for _ in range(max(1, warm_up)):  # the first makes the plan
                self.gradient(loss, leaves)
            draws = []
            for i in range(num_draws):
                before, after, found = dict(loss.state), {}, []
                for own in salts:
                    torch.manual_seed(seed + i)
                    salted = loss.with_salts(own)
                    salted.state = dict(before)
                    found.append(self.gradient(salted, leaves))
                    after = after or salted.state
                loss.state = after
                draws.append(found)
        return np.array(draws)

    def prepared(self, loss: Any, batch: int, clock: Callable[[], float]) -> tuple[Plan, Sampler]:
        loss = _apart(loss)
        programs = loss._programs(self.model, self.guide, self.args, self.kwargs)
        with self.started(0):
            plan, _ = loss._explained(programs)

        def sample(seed: int) -> tuple[np.ndarray, float]:
            with self.started(seed) as leaves:
                _finished(leaves)
                before, found = clock(), []
                for _ in range(batch):
                    for leaf in leaves:
                        leaf.grad = None
                    loss.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
                    found.append([leaf.grad for leaf in leaves])
                _finished(leaves)
                seconds = (clock() - before) / batch
                rows = [
                    np.concatenate([np.zeros(0), *map(_flat, grads, leaves)]) for grads in found
                ]
            return np.array(rows), seconds

        return plan, sample

    def losses(self, loss: Any, num_draws: int, seed: int) -> Displaced:
        # a mean of many is as cheap as one, where programs broadcast
        together = max(1, num_draws // BATCHES)
        num_draws = math.ceil(num_draws / together)
        loss, state = loss.with_samples(together), dict(loss.state)
        loss.state = state
        programs = (self.model, self.guide, *self.args)
        with self.started(seed):
            loss.loss(*programs, **self.kwargs)  # makes the plan
        return self.displaced(lambda: loss.loss(*programs, **self.kwargs), num_draws, seed)

    def log_weights(self, num_draws: int, seed: int) -> Displaced:
        def log_weight() -> float:
            model, guide = self.run({})
            guide.compute_log_prob()
            return float(model.log_prob_sum() - _own(guide))

        return self.displaced(log_weight, num_draws, seed)

    def displaced(self, fn: Callable[[], float], num_draws: int, seed: int) -> Displaced:
        def at(shift: np.ndarray) -> np.ndarray:
            with self.started(seed) as leaves:
                _displace(leaves, shift)
                values = np.full(num_draws, np.nan)
                for i in range(num_draws):
                    torch.manual_seed(seed + i)
                    try:
                        values[i] = fn()
                    except Exception:  # there is no such distribution
                        break
            return values

        return at

    def enumerated(self, most: int) -> Densities | None:
        with self.undisturbed(0):
            done: list[dict[str, torch.Tensor]] = []
            open_values: list[dict[str, torch.Tensor]] = [{}]
            while open_values:
                values = open_values.pop()
                site = next(
                    (s for s in _latent(self.run(values)[1]) if s["name"] not in values), None
                )
                if site is None:
                    done.append(values)
                else:
                    support = joint_support(site, PyroDistribution, most)
                    if support is None:
                        return None
                    open_values += [
                        {**values, site["name"]: torch.as_tensor(value)} for value in support
                    ]
                if len(done) + len(open_values) > most:
                    return None
            return self.densities(done)

    def sampled(self, num_draws: int, seed: int) -> Densities:
        with self.undisturbed(seed):
            return self.densities(itertools.repeat({}, num_draws))

    def densities(self, draws: Iterable[dict[str, torch.Tensor]]) -> Densities:
        """At values of the guide's sites, those that are not given being drawn."""
        rows, moves = [], np.zeros(len(self.at), bool)
        for values in draws:
            model, guide = self.run(values)
            latent = _latent(guide)
            drawn = [plain_log_prob(s, PyroDistribution) for s in latent]
            guide.compute_log_prob()
            model.compute_log_prob()
            totals = [sum(drawn), _own(guide), model.log_prob_sum()]
            rows.append([self.with_gradient(torch.as_tensor(t)) for t in totals])
            bounds = torch.as_tensor(sum(weighted_edges(latent, PyroDistribution)))
            moves |= self.with_gradient(bounds)[1] != 0
        columns = zip(*rows, strict=True)
        return Densities(
            *((np.array([v for v, _ in c]), np.array([g for _, g in c])) for c in columns),
            moves=moves,
        )

    def with_gradient(self, total: torch.Tensor) -> tuple[float, np.ndarray]:
        leaves = self.leaves()
        grads: Any = [None] * len(leaves)
        if total.requires_grad and leaves:
            grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        flat = [_flat(g, p) for g, p in zip(grads, leaves, strict=True)]
        return total.item(), np.concatenate([np.zeros(0), *flat])

    def run(self, values: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """Traces of model and guide, the guide's sites at given values where there are some. What is drawn is a
        constant."""
        with _Given(values):
            guide = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        model = poutine.trace(poutine.replay(self.model, trace=guide))
        trace = model.get_trace(*self.args, **self.kwargs)
        for name in [n for n, site in trace.nodes.items() if n not in guide and is_copy(site)]:
            trace.remove_node(name)
        return trace, guide


class _Given(poutine.messenger.Messenger):
    """Sample statements take the values that are given, and draw constants."""

    def __init__(self, values: dict[str, torch.Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if is_given(msg):
            msg["infer"] = {**msg["infer"], GIVEN: True}
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not _is_subsample(msg) and is_drawn(msg, PyroDistribution):
            msg["value"] = msg["value"].detach()


@contextmanager
def _unchanged(params: list[torch.Tensor]) -> Iterator[None]:
    """Parameters and their gradients are there again after."""
    before = [(p, p.detach().clone(), p.grad) for p in params]
    try:
        yield
    finally:
        for p, value, grad in before:
            p.data.copy_(value)
            p.grad = grad


def _displace(leaves: list[torch.Tensor], shift: np.ndarray) -> None:
    """Add to parameters, in the order of their coordinates."""
    parts = np.split(shift, np.cumsum([p.numel() for p in leaves])[:-1]) if leaves else []
    for leaf, part in zip(leaves, parts, strict=True):
        leaf.data.add_(torch.as_tensor(part).to(leaf.data).reshape(leaf.shape))


def _apart(loss: Any) -> Any:
    """A loss with a state of its own."""
    loss = copy.copy(loss)
    loss.state = dict(loss.state)
    return loss


def _finished(leaves: list[torch.Tensor]) -> None:
    """Wait until what was asked of a device is done."""
    if any(leaf.is_cuda for leaf in leaves):
        torch.cuda.synchronize()


def _is_subsample(site: Any) -> bool:
    return site["type"] == "sample" and isinstance(site["fn"], _Subsample)


def statements_of(trace: Any) -> list[Any]:
    """The sample statements of a trace."""
    return [s for s in trace.nodes.values() if s["type"] == "sample" and not _is_subsample(s)]


def _latent(trace: Any) -> list[Any]:
    """Sites that are drawn."""
    return [s for s in statements_of(trace) if is_drawn(s, PyroDistribution)]


def _own(guide: Any) -> Any:
    """The log density of a guide, whose sites have theirs."""
    return sum(
        s["log_prob_sum"] for s in statements_of(guide) if counts_in_guide(s, PyroDistribution)
    )


def _flat(grad: torch.Tensor | None, like: torch.Tensor) -> np.ndarray:
    values: torch.Tensor = torch.zeros_like(like) if grad is None else grad
    return values.detach().cpu().double().numpy().ravel()
