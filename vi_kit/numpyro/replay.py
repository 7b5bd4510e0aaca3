"""Plain runs of two programs with NumPyro's own handlers, to compare a loss with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

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
from vi_kit.numpyro.distributions import NumPyroDistribution, smooth
from vi_kit.numpyro.init_params import refuse_unknown
from vi_kit.unbiased import Densities, Displaced


class NumPyroReplay:
    """See `vi_kit.unbiased.Replay`."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: Any,
        kwargs: Any,
        params: Mapping[str, Any] | None,
    ):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.params: dict[str, Any] = {}
        model_trace, self.guide_trace = self.run({}, random.key(0), {})
        sites = [*model_trace.values(), *self.guide_trace.values()]
        plates = [s["args"] for s in sites if s["type"] == "plate"]
        scaled = any(args[1] not in (None, args[0]) for args in plates)
        self.shares_plates = scaled or shares_plates(sites)
        params_of = {
            n: s
            for t in (self.guide_trace, model_trace)
            for n, s in t.items()
            if s["type"] == "param"
        }
        started = {n: s["value"] for n, s in params_of.items()}
        self.constraints = {
            n: s["kwargs"].get("constraint", constraints.real) for n, s in params_of.items()
        }
        self.state = {
            n: s["value"]
            for t in (self.guide_trace, model_trace)
            for n, s in t.items()
            if s["type"] == "mutable"
        }
        refuse_unknown(params or {}, {**started, **self.state})
        values = {**started, **(params or {})}
        moved = {n: v for n, v in values.items() if _is_moved(v)}
        self.fixed = {n: v for n, v in values.items() if n not in moved}
        self.flat, self.unravel = ravel_pytree(moved)
        self.at = np.asarray(self.flat, float)
        self.coordinates = [
            f"{n}{jax.tree_util.keystr(path)}{list(index) if index else ''}"
            for n in sorted(moved)
            for path, leaf in jax.tree_util.tree_leaves_with_path(moved[n])
            for index in np.ndindex(*jnp.shape(leaf))
        ]
        self.owners = [
            n for n in sorted(moved) for x in jax.tree.leaves(moved[n]) for _ in range(jnp.size(x))
        ]
        self.rounding = float(jnp.finfo(jnp.result_type(float)).eps) ** 0.5

    def started(self, loss: Any) -> tuple[Callable, dict[str, Any], dict[str, Any]]:
        """The guide, and the parameters and the state that the loss adds to it, as they are at first."""
        guide = loss.with_state(self.guide)
        with handlers.trace() as trace, handlers.seed(rng_seed=0):
            guide(*self.args, **self.kwargs)
        own = {n: s["value"] for n, s in trace.items() if s["type"] == "param" and "vi_kit" in n}
        first = {n: s["value"] for n, s in trace.items() if s["type"] == "mutable"}
        return guide, own, {**self.state, **first}

    def estimate(
        self,
        loss: Any,
        guide: Callable,
        held: Any,
        flat: Any,
        key: Any,
        params_of: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The state after a step, and its estimate of the loss with the gradient behind it.

        Args:
            loss: of the step.
            guide: with room for what it keeps.
            held: parameters by which no gradient is taken, and the state before.
            flat: the others.
            key: of the step.
            params_of: these as the programs see them; if left out, as they are.
        """
        fixed, state = held
        params_of = params_of or self.unravel

        def value(flat: Any) -> tuple[Any, Any]:
            params = {**fixed, **params_of(flat), **state}
            result = loss.loss_with_mutable_state(
                key, params, self.model, guide, *self.args, **self.kwargs
            )
            return result["loss"], {**state, **(result["mutable_state"] or {})}

        (found, state), slope = jax.value_and_grad(value, has_aux=True)(flat)
        return state, jnp.concatenate([found[None], slope])

    def estimates(self, loss: Any, num_draws: int, seed: int) -> np.ndarray:
        guide, own, first = self.started(loss)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            held = {**own, **self.fixed}, state
            return self.estimate(loss, guide, held, self.flat, key)

        keys = random.split(random.key(seed), num_draws)
        return np.asarray(jax.jit(lambda keys: lax.scan(step, first, keys)[1])(keys))

    def moved(self, loss: Any, num_draws: int, warm_up: int, seed: int) -> Moved:
        guide, own, first = self.started(loss)
        values = self.unravel(self.flat)
        constrained = {n: v for n, v in values.items() if n not in first}
        fixed = {**own, **self.fixed, **values}
        to = {n: biject_to(self.constraints.get(n, constraints.real)) for n in constrained}
        free = {n: jax.tree.map(to[n].inv, v) for n, v in constrained.items()}
        at, unravel = ravel_pytree(free)
        keys = random.split(random.key(seed), warm_up + num_draws)

        def params(flat: Any) -> Any:
            return {n: jax.tree.map(to[n], v) for n, v in unravel(flat).items()}

        @jax.jit
        def run(shift: Any) -> Any:
            def step(state: Any, key: Any) -> tuple[Any, Any]:
                return self.estimate(loss, guide, (fixed, state), at + shift, key, params)

            return lax.scan(step, first, keys)[1]

        owners = [
            n for n in sorted(free) for x in jax.tree.leaves(free[n]) for _ in range(jnp.size(x))
        ]
        return Moved(
            owners, lambda shift: np.asarray(run(jnp.asarray(shift, at.dtype)), float)[warm_up:]
        )

    def plan(self, loss: Any) -> Plan:
        return loss._explained(loss._programs(self.model, self.guide, self.args, self.kwargs))[0]

    def redrawn(
        self, loss: Any, labels: Sequence[str], num_draws: int, warm_up: int, seed: int
    ) -> np.ndarray:
        guide, own, first = self.started(loss)
        rows = jnp.eye(1 + len(labels), len(labels), -1, dtype=jnp.int32)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            held = {**own, **self.fixed}, state

            def once(salts: Any) -> tuple[Any, Any]:
                salted = loss.with_salts(dict(zip(labels, salts, strict=True)))
                return self.estimate(salted, guide, held, self.flat, key)

            states, draws = lax.map(once, rows)
            return jax.tree.map(lambda x: x[0], states), draws[:, 1:]

        keys = random.split(random.key(seed), warm_up + num_draws)
        draws = jax.jit(lambda keys: lax.scan(step, first, keys)[1])(keys)
        return np.asarray(draws[warm_up:], float)

    def prepared(self, loss: Any, batch: int, clock: Callable[[], float]) -> tuple[Plan, Sampler]:
        guide, own, state = self.started(loss)
        held = {**own, **self.fixed}, state
        jax.eval_shape(lambda key: self.estimate(loss, guide, held, self.flat, key), random.key(0))
        plan = loss.latest_plan()

        @jax.jit
        def sampled(flat: Any, fixed: Any, state: Any, keys: Any) -> Any:
            def step(state: Any, key: Any) -> tuple[Any, Any]:
                return self.estimate(loss, guide, (fixed, state), flat, key)

            return lax.scan(step, state, keys)

        def sample(seed: int) -> tuple[np.ndarray, float]:
            nonlocal state
            keys = jax.block_until_ready(random.split(random.key(seed), batch))
            before = clock()
            fixed = {**own, **self.fixed}
            state, draws = jax.block_until_ready(sampled(self.flat, fixed, state, keys))
            seconds = (clock() - before) / batch
            return np.asarray(draws, float)[:, 1:], seconds

        return plan, sample

    def losses(self, loss: Any, num_draws: int, seed: int) -> Displaced:
        guide, own, state = self.started(loss)

        def value(flat: Any, key: Any) -> Any:
            params = {**own, **self.fixed, **self.unravel(flat), **state}
            return loss.loss(key, params, self.model, guide, *self.args, **self.kwargs)

        return self.displaced(value, num_draws, seed)

    def log_weights(self, num_draws: int, seed: int) -> Displaced:
        def value(flat: Any, key: Any) -> Any:
            _, guide, model = self.totals(*self.run(self.unravel(flat), key, {}))[:3]
            return model - guide

        return self.displaced(value, num_draws, seed)

    def displaced(self, fn: Callable, num_draws: int, seed: int) -> Displaced:
        keys, values = random.split(random.key(seed), num_draws), jax.jit(jax.vmap(fn, (None, 0)))
        return lambda shift: np.asarray(
            values(self.flat + jnp.asarray(shift, self.flat.dtype), keys), float
        )

    def enumerated(self, most: int) -> Densities | None:
        names, supports, num = [], [], 1
        for site in _latent(self.guide_trace):
            support = joint_support(site, NumPyroDistribution, most // num)
            if support is None:
                return None
            names.append(site["name"])
            supports.append(jnp.asarray(support))
            num *= len(support)
        if num > most or not names:
            return None
        indices = np.array(list(itertools.product(*(range(len(s)) for s in supports))))
        values = {n: s[indices[:, i]] for i, (n, s) in enumerate(zip(names, supports, strict=True))}
        return self.densities(jax.vmap(lambda v: self.with_gradient(v, random.key(0))), values)

    def sampled(self, num_draws: int, seed: int) -> Densities:
        return self.densities(
            jax.vmap(lambda key: self.with_gradient({}, key)),
            random.split(random.key(seed), num_draws),
        )

    def densities(self, fn: Callable, inputs: Any) -> Densities:
        values, slopes = jax.jit(fn)(inputs)
        values, slopes = np.asarray(values, float), np.asarray(slopes, float)
        columns = ((values[:, i], slopes[:, i]) for i in range(3))
        return Densities(*columns, moves=(slopes[:, 3] != 0).any(axis=0))

    def with_gradient(self, values: dict[str, Any], key: Any) -> tuple[Any, Any]:
        """What `totals` has at given values or at a draw, and its gradients."""

        def totals(flat: Any) -> tuple[Any, Any]:
            found = self.totals(*self.run(self.unravel(flat), key, values))
            return found, found

        slopes, found = jax.jacrev(totals, has_aux=True)(self.flat)
        return found, slopes

    def totals(self, model: Any, guide: Any) -> Any:
        """The three log densities, and a sum of the bounds of the supports, shape `(4,)`."""
        latent = _latent(guide)
        plain = [plain_log_prob(s, NumPyroDistribution) for s in latent]
        own = [_log_prob(s) for s in guide.values() if counts_in_guide(s, NumPyroDistribution)]
        all_of_model = [_log_prob(s) for s in model.values() if s["type"] == "sample"]
        sums = (plain, own, all_of_model, weighted_edges(latent, NumPyroDistribution))
        return jnp.stack([jnp.asarray(sum(t), self.flat.dtype) for t in sums])

    def run(
        self, params: Mapping[str, Any], key: Any, values: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """Traces of model and guide, the guide's sites at given values where there are some. What is drawn is a
        constant."""
        fixed = {} if not hasattr(self, "fixed") else {**self.fixed, **self.state}
        key_model, key_guide = random.split(key)
        data = {**fixed, **params}
        given: Any = {
            n: {"type": "sample", "value": v, "is_observed": False, "infer": {}}
            for n, v in values.items()
        }
        guide = handlers.seed(
            handlers.substitute(handlers.replay(self.guide, given), data), key_guide
        )
        with _Constant(values):
            guide_trace = handlers.trace(guide).get_trace(*self.args, **self.kwargs)
        model = handlers.replay(handlers.substitute(self.model, data), guide_trace)
        traced = handlers.trace(handlers.seed(model, key_model))
        trace = traced.get_trace(*self.args, **self.kwargs)
        kept = {n: site for n, site in trace.items() if n in guide_trace or not is_copy(site)}
        for site in (*kept.values(), *guide_trace.values()):
            if site["type"] == "sample":
                site["fn"] = smooth(site["fn"])
        return kept, guide_trace


class _Constant(Messenger):
    """What is drawn is a constant.

    Args:
        values: what others than the program give to its sites.
    """

    def __init__(self, values: Collection[str]):
        super().__init__()
        self.values = values

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and is_given(msg) and msg["name"] not in self.values:
            msg["infer"] = {**msg["infer"], GIVEN: True}

    def postprocess_message(self, msg: Any) -> None:
        if is_drawn(msg, NumPyroDistribution):
            msg["value"] = lax.stop_gradient(msg["value"])


def _is_moved(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in leaves)


def _latent(trace: Any) -> list[Any]:
    """Sites that are drawn."""
    return [s for s in trace.values() if is_drawn(s, NumPyroDistribution)]


def _log_prob(site: Any) -> Any:
    log_prob = site["fn"].log_prob(site["value"])
    return (log_prob if site["scale"] is None else site["scale"] * log_prob).sum()
