"""Steps of a fit in NumPyro: a compiled loop over many, for one start or several at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI
from numpyro.optim import _NumPyroOptim

from vi_kit.base.errors import CheckpointError, NotFiniteError, ObjectiveError, message
from vi_kit.engine.settings import not_numbers
from vi_kit.numpyro.degrees import compiled
from vi_kit.numpyro.feeding import Fed, Feed
from vi_kit.numpyro.init_params import checked_params
from vi_kit.numpyro.inquest import seen
from vi_kit.numpyro.minibatch import numbers
from vi_kit.numpyro.sharding import ONE, Devices, fingerprint, of_first
from vi_kit.workflow.batches import Call, Stream
from vi_kit.workflow.fitting import Job
from vi_kit.workflow.given import Given
from vi_kit.workflow.guard import is_stop, told
from vi_kit.workflow.inquest import Seen
from vi_kit.workflow.processes import refuse_differences, refuse_diverged, together
from vi_kit.workflow.training import Steps

MAX_COORDINATES = 2000
"""That a stopping rule is shown."""

NEVER = 2**31 - 1
"""A step that is not reached."""

NOTHING = _NumPyroOptim(lambda: (lambda params: params, None, lambda params: params))
"""For what SVI makes besides."""


@dataclass(frozen=True)
class Chunk:
    """What one call of a loop is given.

    Attributes:
        carry: the state before it.
        alive: of each start, whether it has not failed.
        fed: the data, and what each step has of its own.
        first: the number of steps before.
    """

    carry: Any
    alive: Any
    fed: Fed
    first: int


class NumPyroTrainer:
    """See `vi_kit.workflow.training.Trainer`.

    Args:
        job: what is to be done.
        init_params: where parameters start, by name, if not where the programs have them.
        devices: that take the steps.
    """

    def __init__(
        self,
        job: Job,
        init_params: Mapping[str, Any] | None,
        devices: Devices = ONE,
    ):
        source, num_restarts, seed = job.source, job.request.num_restarts, job.request.seed
        self.loss, self.model, self.guide = job.loss.along(devices), job.model, job.guide
        self.source, self.rows, self.devices = source, job.rows, devices
        self.optimizer, self.clip_norm = job.optimizer, job.request.clip_norm
        self.num_restarts, self.averages = num_restarts, job.request.averages
        self.done, self.best = 0, 0
        self.feed = Feed(source, devices)
        self.example = self.feed.example
        keys = random.split(random.key(seed), (2, num_restarts))
        starts = [self._start(key, i, init_params) for i, key in enumerate(keys[0])]
        self.keys = keys[1]
        self.carry = starts[0]
        if num_restarts > 1:
            self.carry = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        self.carry = devices.everywhere(self.carry)
        self.alive = devices.everywhere(jnp.ones(num_restarts, bool))
        self.until = np.full(num_restarts, NEVER)
        self.before: list[Chunk] = []
        self.loops: dict[Any, Callable] = {}

    def _start(self, key: Any, restart: int, init_params: Mapping[str, Any] | None) -> Any:
        args, kwargs = self.example
        guide = self.guide if restart == 0 else copy.deepcopy(self.unused)
        if restart == 0 and self.num_restarts > 1:  # an autoguide draws its start when first run
            self.unused = copy.deepcopy(self.guide)
        svi = SVI(self.model, self.loss.with_state(guide), NOTHING, self.loss)
        given = None
        if init_params is not None:
            there = svi.init(key, *args, **kwargs).optim_state[1]
            transforms: Any = svi.constrain_fn
            given = checked_params(init_params, there, transforms.args[0])
        state = svi.init(key, *args, init_params=given, **kwargs)
        if restart == 0:
            self.constrain: Any = svi.constrain_fn
            self.with_state = svi.guide
        params = state.optim_state[1]
        if restart == 0:
            self.optimizer.check(params)
        carry = {"optimizer": self.optimizer.init(params), "mutable": state.mutable_state or {}}
        if self.averages:
            carry |= {"mean": params, "count": jnp.zeros(())}
        carry["size"] = jnp.ones(())
        return jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x)), carry)

    # One step, and many

    def _value(self, params: Any, mutable: Any, key: Any, call: Call) -> Any:
        args, kwargs = call
        values = {**self.constrain(params), **lax.stop_gradient(mutable)}
        result = self.loss.loss_with_mutable_state(
            key, values, self.model, self.with_state, *args, **kwargs
        )
        return result["loss"], result["mutable_state"] or {}

    def _step(self, carry: Any, key: Any, call: Call) -> Any:
        """The state after one step, the loss, and the norm of the gradient."""
        params = self.optimizer.params(carry["optimizer"])
        with_gradient = jax.value_and_grad(self._value, has_aux=True)
        (loss, mutable), grads = with_gradient(params, carry["mutable"], key, call)
        norm = _norm(grads)
        if self.clip_norm is not None:
            factor = jnp.minimum(1.0, self.clip_norm / norm)
            grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        state = self.optimizer.update(grads, carry["optimizer"], loss, carry["size"])
        new = {**carry, "optimizer": state, "mutable": mutable}
        if self.averages:
            count = jnp.where(carry["count"] > 0, carry["count"] + 1, 0)
            params = self.optimizer.params(state)
            new["count"] = count
            new["mean"] = jax.tree.map(
                lambda m, p: jnp.where(count > 1, m + (p - m) / jnp.maximum(count - 1, 1), m),
                carry["mean"],
                params,
            )
        return new, loss, norm

    def _loop(self, call_of: Callable[[Any, Any], Call], capacity: int) -> Callable:
        """Up to `capacity` steps. A start whose loss or gradient is not finite stays where it was; none moves
        at the step `until`, or after it."""
        single = self.num_restarts == 1

        def step(carry: Any, alive: Any, until: Any, index: Any, call: Call) -> Any:
            if single:
                made = self._step(carry, random.fold_in(self.keys[0], index), call)
                new, loss, norm = made[0], made[1][None], made[2][None]
            else:
                keys = jax.vmap(random.fold_in, (0, None))(self.keys, index)
                new, loss, norm = jax.vmap(self._step, (0, 0, None))(carry, keys, call)
            alive = alive & jnp.isfinite(loss) & jnp.isfinite(norm)

            new = jax.tree.map(partial(_where, alive & (index < until)), new, carry)
            return new, alive, jnp.where(alive, loss, jnp.nan), norm

        def run(
            carry: Any, alive: Any, until: Any, data: Any, steps: Any, first: Any, num: Any
        ) -> Any:
            shape = (capacity, self.num_restarts)
            losses = jnp.zeros(shape), jnp.zeros(shape)

            def body(loop: Any) -> Any:
                i, carry, alive, losses, norms = loop
                call = call_of(data, jax.tree.map(lambda x: x[i], steps))
                carry, alive, loss, norm = step(carry, alive, until, first + i, call)
                losses = losses.at[i].set(loss.astype(losses.dtype))
                return i + 1, carry, alive, losses, norms.at[i].set(norm.astype(norms.dtype))

            def going(loop: Any) -> Any:
                return (loop[0] < num) & loop[2].any()

            return lax.while_loop(going, body, (0, carry, alive, *losses))

        return self.devices.compiled(run)

    # What the loop of a fit asks for

    def advance(self, most: int) -> Steps:
        fed = self._fed(most)
        if fed.num == 0:
            nothing = np.zeros((0,) if self.num_restarts == 1 else (0, self.num_restarts))
            return Steps(nothing, nothing, ended=True)
        if fed.key not in self.loops:
            self.loops[fed.key] = self._loop(fed.call_of, fed.capacity)
        chunk = Chunk(self.carry, self.alive, fed, self.done)
        with self.devices.answering():
            made = self._run(chunk)
            taken = int(made[0])  # once they are all there
        _, self.carry, self.alive, losses, norms = made
        dead = not np.asarray(self.alive).any()
        good = taken - 1 if dead else taken
        losses, norms = (np.asarray(x[:taken], float) for x in (losses, norms))
        last = int(np.argmax(np.isfinite(losses).sum(0)))
        self.done += good
        trouble = self._trouble(fed, good, last) if dead else None
        self._take_back(chunk, np.isfinite(losses).sum(0))
        losses, norms = losses[:good], norms[:good]
        if self.num_restarts == 1:
            losses, norms = losses[:, 0], norms[:, 0]
        return Steps(losses, norms, trouble=trouble)

    def _fed(self, most: int) -> Fed:
        """What the loop takes next, in all processes."""
        processes = self.devices.processes
        fed = together(processes, lambda: self.feed.next(most))
        if processes.count > 1 and isinstance(self.source, Stream):
            kind = {"number": str(fed.num), "arrays": str(jax.tree.map(jnp.shape, fed.steps))}
            fix = "as many in each process, of the same shapes"
            refuse_differences(processes, "the minibatches", kind, fix)
        return fed

    def _run(self, chunk: Chunk) -> Any:
        fed = chunk.fed
        inputs = fed.data, fed.steps, chunk.first, fed.num
        return self.loops[fed.key](chunk.carry, chunk.alive, self.until, *inputs)

    def _take_back(self, chunk: Chunk, lived: np.ndarray) -> None:
        """A start that has failed is brought to where it was before its last step, which has spoilt its parameters: the
        steps to there are taken again, with the same random numbers."""
        died = np.asarray(chunk.alive) & ~np.asarray(self.alive)
        known, self.before = self.before, [chunk]
        if not died.any():
            return
        self.until = np.where(died, chunk.first + lived - 1, self.until)
        earlier = died & (self.until < chunk.first)
        if earlier.any() and known:
            carry = self._run(known[0])[1]
            carry = jax.tree.map(partial(_where, earlier), carry, chunk.carry)
            self.before = [chunk := replace(chunk, carry=carry)]
        elif earlier.any():  # the first step of all, or after a checkpoint
            self.until = np.where(earlier, chunk.first, self.until)
        alive = self.alive
        self.carry, self.alive = self._run(chunk)[1], alive

    def _trouble(self, fed: Fed, i: int, start: int) -> Exception:
        """Why the step after the last good one of a start failed, in words."""
        call = fed.call_of(fed.data, jax.tree.map(lambda x: x[i], fed.steps))
        call, carry = self.devices.here(call), self._of(start)
        params = self.optimizer.params(carry["optimizer"])
        at = random.fold_in(self.keys[start], self.done)
        error = self._failure(params, carry["mutable"], at, call)
        if not is_stop(error):
            return error

        def look(gradients: bool) -> Callable[[int], list[Seen]]:
            def draw(i: int) -> list[Seen]:
                key = random.fold_in(at, i)
                return seen(
                    self.model, self.with_state, call, values_of, params, key, gradients=gradients
                )

            return draw

        def values_of(params: Any) -> Any:
            return {**self.constrain(params), **carry["mutable"]}

        flat = {k: np.asarray(ravel_pytree(v)[0], float) for k, v in params.items()}
        rows = self.rows
        given = Given.of(self.model, call, numbers, self.source, step=self.done, plates=rows)
        return told(error, self.done, look, flat, given)

    def _failure(self, params: Any, mutable: Any, key: Any, call: Call) -> Exception:
        """What a step raises where nothing is compiled."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is told
            try:
                self._value(params, mutable, key, call)
            except (ObjectiveError, ValueError) as error:
                return error
        grads = compiled(jax.grad(lambda p: self._value(p, mutable, key, call)[0]))(params)
        spoilt = [n for n, g in grads.items() if not bool(jnp.isfinite(_norm(g)))]
        if spoilt:
            return not_numbers(spoilt, "the objective")
        return NotFiniteError(
            message(
                "the loss or its gradient is not finite where the step is compiled",
                got="numbers at the edge of those that there are",
                expected="numbers of which products and squares are finite",
                fix="arguments of distributions near one",
            )
        )

    def _of(self, start: int) -> Any:
        carry = self.devices.here(self.carry)
        if self.num_restarts == 1:
            return carry
        return jax.tree.map(lambda x: x[start], carry)

    def params(self) -> dict[str, Any]:
        carry = self._of(self.best)
        params = self.optimizer.params(carry["optimizer"])
        if self.averages and float(carry["count"]) > 1:
            params = carry["mean"]
        return jax.tree.map(jnp.copy, self.constrain(params))

    def state(self) -> dict[str, Any]:
        """What modules and baselines keep from step to step."""
        return jax.tree.map(jnp.copy, self._of(self.best)["mutable"])

    def kept(self, start: int) -> int:
        return int(min(self.until[start], self.done))

    def choose(self, start: int) -> None:
        self.best = start

    def optimizer_said(self) -> dict[str, str]:
        return self.optimizer.said(self.optimizer.params(self._of(self.best)["optimizer"]))

    def join(self) -> None:
        if self.devices.num_processes > 1:
            self.carry = self.devices.everywhere(of_first(self.carry))

    def explain(self) -> str:
        carry, programs = self._of(0), (self.model, self.with_state)
        values = {**self.constrain(self.optimizer.params(carry["optimizer"])), **carry["mutable"]}
        return self.loss.explain_step(self.keys[0], values, *programs, *self.feed.traced)

    def notes(self) -> list[str]:
        return []

    def coordinates(self) -> np.ndarray:
        params = self.optimizer.params(self.devices.here(self.carry)["optimizer"])
        flat = (lambda p: ravel_pytree(p)[0]) if self.num_restarts == 1 else jax.vmap(_flat)
        found = np.atleast_2d(np.asarray(flat(params), float))
        return found[:, :: -(-found.shape[1] // MAX_COORDINATES)] if found.size else found

    def shrink(self, factor: float) -> None:
        self.carry["size"] = self.carry["size"] * factor

    def average(self, on: bool) -> None:
        count = self.carry["count"]
        whole = np.full(count.shape, float(on), count.dtype)
        self.carry["count"] = self.devices.everywhere(whole)

    def check_same(self) -> None:
        if self.devices.num_processes > 1:
            refuse_diverged(self.devices.processes, fingerprint(self.carry))

    def snapshot(self) -> dict[str, Any]:
        leaves = [np.asarray(x) for x in jax.tree.leaves(self.carry)]
        alive, at = np.asarray(self.alive), self.source.position()
        return {
            "carry": leaves,
            "alive": alive,
            "until": self.until,
            "done": self.done,
            "source": at,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        leaves, tree = jax.tree.flatten(self.carry)
        own = [(x.shape, str(x.dtype)) for x in leaves]
        theirs = [(x.shape, str(x.dtype)) for x in snapshot["carry"]]
        if own != theirs:
            raise CheckpointError(
                message(
                    "the checkpoint is of another fit",
                    got=f"arrays of {theirs}",
                    expected=f"arrays of {own}",
                    fix="the optimiser and the settings of that fit, or another folder",
                )
            )
        self.carry = self.devices.everywhere(jax.tree.unflatten(tree, snapshot["carry"]))
        self.alive, self.done = self.devices.everywhere(snapshot["alive"]), snapshot["done"]
        self.until, self.before = np.asarray(snapshot["until"]), []
        self.source.seek(snapshot["source"])


def _where(starts: Any, new: Any, old: Any) -> Any:
    """The new values of some starts, and the old ones of the others. A single start has no axis of its own."""
    alone = len(starts) == 1
    return jnp.where(starts[0] if alone else starts.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _flat(params: Any) -> Any:
    return ravel_pytree(params)[0]


def _norm(grads: Any) -> Any:
    # squares of half precision would be too large for it
    wide = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in jax.tree.leaves(grads)]
    squares = [jnp.sum(jnp.square(g)) for g in wide]
    return jnp.sqrt(sum(squares, jnp.zeros(())))
