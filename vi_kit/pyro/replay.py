"""Plain runs of two programs with Pyro's own handlers, to compare a loss with."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from vi_kit.unbiased import Densities


class PyroReplay:
    """See `vi_kit.unbiased.Replay`."""

    def __init__(self, model: Callable, guide: Callable, args: Any, kwargs: Any):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        with self.undisturbed(0):
            traces = self.run({})
            self.shares_plates = _shares_plates(traces)
            names = [n for t in traces for n, site in t.nodes.items() if site["type"] == "param"]
            store = pyro.get_param_store()
            self.names = [n for n in dict.fromkeys(names) if store._params[n].requires_grad]
            shapes = [store._params[n].shape for n in self.names]
        self.coordinates = [
            f"{n}{list(index) if index else ''}"
            for n, shape in zip(self.names, shapes, strict=True)
            for index in np.ndindex(*shape)
        ]
        self.rounding = float(torch.finfo(torch.get_default_dtype()).eps) ** 0.5

    @contextmanager
    def undisturbed(self, seed: int) -> Iterator[None]:
        """Random numbers from a seed; what was in the parameter store, and its gradients, are there again after."""
        store = pyro.get_param_store()
        kept = [store._params, store._constraints, store._param_to_name]
        before = [dict(own) for own in kept]
        values = [(p, p.detach().clone(), p.grad) for p in store._params.values()]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            try:
                yield
            finally:
                for own, old in zip(kept, before, strict=True):
                    own.clear()
                    own.update(old)
                for p, value, grad in values:
                    p.data.copy_(value)
                    p.grad = grad

    def leaves(self) -> list[torch.Tensor]:
        return [pyro.get_param_store()._params[n] for n in self.names]

    def estimates(self, loss: Any, num_draws: int, seed: int) -> np.ndarray:
        loss, state = copy.copy(loss), dict(loss.state)
        loss.state = state
        with self.undisturbed(seed):
            self.run({})  # makes the parameters
            draws = []
            for _ in range(num_draws):
                for leaf in self.leaves():
                    leaf.grad = None
                value = loss.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
                grads = [_flat(p.grad, p) for p in self.leaves()]
                draws.append(np.concatenate([[value], *grads]))
            return np.array(draws)

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
                    support = _joint_support(site, most)
                    if support is None:
                        return None
                    open_values += [{**values, site["name"]: value} for value in support]
                if len(done) + len(open_values) > most:
                    return None
            return self.densities(done)

    def sampled(self, num_draws: int, seed: int) -> Densities:
        with self.undisturbed(seed):
            draws: list[dict[str, torch.Tensor]] = []
            for _ in range(num_draws):
                _, trace = self.run({})
                drawn = {s["name"]: s["value"].detach() for s in _latent(trace)}
                indices = {
                    n: s["value"] for n, s in trace.nodes.items() if _is_subsample(s) and s["infer"]
                }
                draws.append({**drawn, **indices})
            return self.densities(draws)

    def densities(self, draws: list[dict[str, torch.Tensor]]) -> Densities:
        rows = []
        for values in draws:
            model, guide = self.run(values)
            drawn = [_plain_log_prob(s) for s in _latent(guide)]
            guide.compute_log_prob()
            model.compute_log_prob()
            own = [s["log_prob_sum"] for s in guide.nodes.values() if _counts_in_guide(s)]
            totals = [sum(drawn), sum(own), model.log_prob_sum()]
            rows.append([self.with_gradient(torch.as_tensor(t)) for t in totals])
        columns = zip(*rows, strict=True)
        return Densities(
            *((np.array([v for v, _ in c]), np.array([g for _, g in c])) for c in columns)
        )

    def with_gradient(self, total: torch.Tensor) -> tuple[float, np.ndarray]:
        leaves = self.leaves()
        grads: Any = [None] * len(leaves)
        if total.requires_grad and leaves:
            grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        flat = [_flat(g, p) for g, p in zip(grads, leaves, strict=True)]
        return total.item(), np.concatenate([np.zeros(0), *flat])

    def run(self, values: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """Traces of model and guide, the guide's sites at given values where there are some."""
        guide = poutine.trace(_at(self.guide, values)).get_trace(*self.args, **self.kwargs)
        model = poutine.trace(poutine.replay(self.model, trace=guide))
        return model.get_trace(*self.args, **self.kwargs), guide


class _Given(poutine.messenger.Messenger):
    """Sample statements take the values that are given."""

    def __init__(self, values: dict[str, torch.Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _at(guide: Callable, values: dict[str, torch.Tensor]) -> Callable:
    def at(*args: Any, **kwargs: Any) -> Any:
        with _Given(values):
            return guide(*args, **kwargs)

    return at


def _is_subsample(site: Any) -> bool:
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def _latent(trace: Any) -> list[Any]:
    """Sites that are drawn: a Delta is not."""
    return [
        s
        for s in trace.nodes.values()
        if s["type"] == "sample"
        and not s["is_observed"]
        and not _is_subsample(s)
        and not isinstance(_unmasked(s["fn"]), dist.Delta)
    ]


def _counts_in_guide(site: Any) -> bool:
    """What is drawn, and factors; not the data, in a guide that runs the model."""
    if site["type"] != "sample" or _is_subsample(site):
        return False
    return not site["is_observed"] or isinstance(site["fn"], dist.Unit)


def _unmasked(fn: Any) -> Any:
    """A distribution without its masks: what its values are drawn from."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        base = _unmasked(fn.base_dist)
        if not isinstance(base, dist.Delta):
            return base.to_event(fn.reinterpreted_batch_ndims)
        return base
    return fn


def _plain_log_prob(site: Any) -> Any:
    return _unmasked(site["fn"]).log_prob(site["value"]).sum()


def _joint_support(site: Any, most: int) -> list[torch.Tensor] | None:
    """All joint values of the elements of a site."""
    fn = _unmasked(site["fn"])
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if not fn.has_enumerate_support:
        return None
    try:
        support = fn.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    event = fn.event_shape
    support = support.reshape(len(support), *event)
    shape = fn.batch_shape
    if len(support) ** shape.numel() > most:
        return None
    tuples = itertools.product(support, repeat=shape.numel())
    return [torch.stack(t).reshape(shape + event) for t in tuples]


def _shares_plates(traces: tuple[Any, Any]) -> bool:
    sites = [
        s
        for t in traces
        for s in t.nodes.values()
        if s["type"] == "sample" and not _is_subsample(s)
    ]
    stacks = [{f.name for f in s["cond_indep_stack"]} for s in sites]
    scaled = any(f.full_size not in (None, f.size) for s in sites for f in s["cond_indep_stack"])
    return scaled or bool(stacks and set.intersection(*stacks))


def _flat(grad: torch.Tensor | None, like: torch.Tensor) -> np.ndarray:
    values: torch.Tensor = torch.zeros_like(like) if grad is None else grad
    return values.detach().cpu().double().numpy().ravel()
