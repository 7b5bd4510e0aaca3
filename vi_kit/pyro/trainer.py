"""Steps of a fit in Pyro."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from torch.distributions import constraints, transform_to
from torch.nn.modules.module import register_module_forward_pre_hook

from vi_kit.base.errors import (
    CaptureError,
    CheckpointError,
    ObjectiveError,
    ProcessError,
    message,
)
from vi_kit.engine.settings import not_numbers
from vi_kit.pyro.distributed import Elsewhere, Exchange, Found, Group, Key, fingerprint
from vi_kit.pyro.inquest import seen
from vi_kit.pyro.leaves import networks_in
from vi_kit.pyro.marks import Marks, State
from vi_kit.pyro.minibatch import mapped, numbers
from vi_kit.pyro.noise import Generators, buffers_kept, noise_states, set_noise
from vi_kit.workflow.batches import Call, Stream
from vi_kit.workflow.fitting import Job
from vi_kit.workflow.given import Given
from vi_kit.workflow.guard import is_stop, told
from vi_kit.workflow.inquest import Seen
from vi_kit.workflow.processes import Failure, Processes, elsewhere, refuse_diverged, together
from vi_kit.workflow.training import Steps

Taken = tuple[Call, float]
"""The arguments of a step, and what they count for among those of other processes."""

MAX_COORDINATES = 2000
"""That a stopping rule is shown."""
TRIED = 3
"""Steps that are timed, and not counted."""
WORTH_COMPILING = 60.0
"""Seconds that a fit would take without."""
HOST = "cpu"


class PyroTrainer:
    """See `vi_kit.workflow.training.Trainer`.

    Args:
        job: what is to be done.
        start: which of several starts it is.
        compile: whether steps are compiled; `None`: if they would take long.
        processes: that take the steps together.
    """

    def __init__(self, job: Job, start: int, compile: bool | None, processes: Processes):
        self.job, self.loss, self.source = job, job.loss, job.source
        self.start, self.processes = start, processes
        self.exchange = Exchange(processes) if isinstance(processes, Group) else None
        self.call: Call | None = None
        self.mark_is_due = self.worth_compiling = False
        self.versions: list[tuple[int, int]] = []
        self.optimizer = job.optimizer.started() if start else job.optimizer
        self.wish, self.compiles = compile, compile
        self.done, self.count = 0, 0
        self.leaves: dict[str, torch.Tensor] = {}
        self.modules: dict[torch.nn.Module, None] = {}
        self.kinds: set[Any] = set()
        self.mean: dict[str, torch.Tensor] = {}
        self.said: list[str] = []
        self.generators = _seeded(job.request.seed, start)
        self.away: Any = None
        self.found: dict[str, Any] | None = None
        self.marks = Marks()

    # Before a step

    def explain(self) -> str:
        with self._own_noise(), self._watched(), self._params_seen(), buffers_kept(), _no_new():
            explained = self._explained(self.source.example)
        for leaf in self.leaves.values():  # what others have left there
            leaf.grad = None
        return explained

    def _explained(self, call: Call) -> str:
        args, kwargs = call
        self.kinds.add(_kind(call))
        return self.loss.explain(self.job.model, self.job.guide, *args, **kwargs)

    def join(self) -> None:
        group = self.processes
        if not isinstance(group, Group):
            return
        self._refuse_mixed_rows()
        networks = [
            p for one in networks_in(self.loss.settings.estimators) for p in one.parameters()
        ]
        for tensor in (*self.leaves.values(), *self._buffers(), *networks):
            group.spread(tensor)
        self.versions = self._versions()
        if group.rank:  # only now, so that parameters have started from the same random numbers
            self.generators = _seeded(self.job.request.seed, self.start, group.rank)

    def _refuse_mixed_rows(self) -> None:
        """Refuse objectives that are no mean of those of parts of a minibatch."""
        summed = {name for plan in self.loss.plans for name in plan.summed} & self.job.rows
        if summed:
            raise ObjectiveError(
                message(
                    "fit: the objective is a nonlinear function of all rows of a minibatch, which no process has",
                    got=f"{self.loss.settings.describe()}, inside of which plates {sorted(summed)} are summed",
                    expected="sites in the plate of the rows alone, a linear objective such as vi.elbo(), or all"
                    " data in each process",
                    fix="objective=vi.elbo(); or no batch_size: each process has all data, and draws of its own",
                )
            )

    def _prepare(self, call: Call) -> None:
        """Plan, and compile, what has not been met, so that a step is the same wherever a fit goes on."""
        if self.compiles is None and self.exchange is None:
            self.compiles = self._is_worth_it(call)
        elif self.compiles is None:  # for all processes, after this step
            self.worth_compiling = self._is_worth_it(call)
        kind = _kind(call)
        if kind not in self.kinds:
            with self._nothing_done():
                self._explained(call)
        if self.compiles and (kind, "compiled") not in self.kinds:
            self.kinds.add((kind, "compiled"))
            self._compile(call)

    def _is_worth_it(self, call: Call) -> bool:
        steps = self.job.request.num_steps or 0
        with self._nothing_done():
            seconds = min(self._seconds(call) for _ in range(TRIED))
        return steps * seconds > WORTH_COMPILING

    def _seconds(self, call: Call) -> float:
        """Of one gradient. What else a machine does only adds to it, and the first one plans."""
        began = time.perf_counter()
        self._gradient(call)
        return time.perf_counter() - began

    def _compile(self, call: Call) -> None:
        self.loss.compile = True
        try:
            with self._nothing_done():
                for _ in range(2):  # the first runs as it is written
                    self._gradient(call)
        except CaptureError as error:
            if self.wish:
                raise
            self.loss.compile = self.compiles = False
            self.said.append(f"steps are not compiled: {str(error).splitlines()[0]}")

    @contextmanager
    def _nothing_done(self) -> Iterator[None]:
        """Afterwards all is as it was, but for plans and compiled steps."""
        before, state = Generators.now(), {k: v.clone() for k, v in self.loss.state.items()}
        with buffers_kept():
            try:
                yield
            finally:
                self._zero()
                before.restore()
                self.loss.state.clear()
                self.loss.state.update(state)

    # A step

    def advance(self, most: int) -> Steps:
        losses: list[float] = []
        norms: list[float] = []
        trouble: BaseException | None = None
        ended = False
        with self._own_noise(), self._watched():
            while len(losses) < most and not ended and trouble is None:
                self._mark()
                before = noise_states()
                try:
                    step = self._step(self._take)
                except ProcessError:  # nobody answers
                    raise
                except BaseException as error:
                    if self.exchange is None and not isinstance(error, Exception):
                        raise
                    trouble = self._failed(error, before)
                else:
                    ended = step is None
                    if step is not None:
                        losses.append(step[0])
                        norms.append(step[1])
        return Steps(np.array(losses), np.array(norms), ended=ended, trouble=trouble)

    def _take(self) -> Taken | None:
        """The arguments of the next step."""
        self.call = None
        call = self.source.take()
        if call is None:
            return None
        taken = call, self.source.weight
        if isinstance(self.source, Stream):
            self.marks.keep(self.done, taken)
        return taken

    def _step(self, take: Callable[[], Taken | None]) -> tuple[float, float] | None:
        """The loss and the norm of the gradient; `None` if there are no more batches."""
        found = self._found(take) if self.exchange is None else self._found_together(take)
        if found is None:
            return None
        loss, params = found
        grads = [p.grad for p in params.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            error = _spoilt(params)
            self._zero()
            raise error
        clip_norm = self.job.request.clip_norm
        if clip_norm is not None and norm > clip_norm:
            for grad in grads:
                grad.mul_(clip_norm / norm)
        self.optimizer.step(params, loss)
        self._zero()
        self.done += 1
        if self.count:
            self.count += 1
            for name, leaf in params.items():
                old = self.mean.setdefault(name, leaf.detach().clone())
                old += (leaf.detach() - old) / (self.count - 1)
        return loss, norm

    def _found(self, take: Callable[[], Taken | None]) -> tuple[float, dict[str, Any]] | None:
        """The loss and the leaves, with their gradients, by this process."""
        taken = take()
        if taken is None:
            return None
        self.call, _ = taken
        self._prepare(self.call)
        return self._gradient(self.call)

    def _found_together(
        self, take: Callable[[], Taken | None]
    ) -> tuple[float, dict[str, Any]] | None:
        """Their means over all processes. Whatever happens in one of them, all of them come to know."""
        assert self.exchange is not None
        found, error = Found(), None
        try:
            taken = take()
            found.ended = taken is None
            if taken is not None and taken[1]:  # there may be fewer rows than processes
                self.call, found.weight = taken
                self._prepare(self.call)
                found.loss, found.params = self._gradient(self.call)
                grads = [p.grad for p in found.params.values() if p.grad is not None]
                if not all(bool(grad.isfinite().all()) for grad in grads):
                    raise _spoilt(found.params)
        except BaseException as caught:
            error, found.failed = caught, True
        found.wants_mark = self.marks.is_due(len(self.leaves) + len(self.modules))
        found.wants_compiled = self.worth_compiling
        found.others, found.put = self._others(), self._put_other
        mean = self.exchange(found, self.leaves)
        self.mark_is_due = mean.wants_mark
        if self.compiles is None:
            self.compiles = mean.wants_compiled
        if error is not None:
            raise error
        if mean.failed:
            raise Elsewhere
        if mean.ended:
            self._zero()
            return None
        return mean.loss, mean.params

    def _others(self) -> dict[Key, torch.Tensor]:
        """What a step changes besides parameters: what baselines keep, and buffers that are not what they were."""
        found: dict[Key, torch.Tensor] = {("state", k): v for k, v in self.loss.state.items()}
        before = dict(enumerate(self.versions))
        for i, (buffer, now) in enumerate(zip(self._buffers(), self._versions(), strict=True)):
            if before.get(i) != now:
                found["buffer", i] = buffer
        return found

    def _put_other(self, key: Key, value: torch.Tensor) -> None:
        what, name = key
        if what == "state":
            self.loss.state[name] = value
        elif name < len(buffers := self._buffers()):
            buffers[name].data.copy_(value)

    def _versions(self) -> list[tuple[int, int]]:
        """By which it is known whether buffers were written, or replaced."""
        return [(id(buffer), buffer._version) for buffer in self._buffers()]

    def _failed(self, error: BaseException, before: list[torch.Tensor]) -> BaseException:
        """What a step that failed, and began with the generators in these states, is told as; it is undone."""
        self._zero()
        told_as, is_here = error, not isinstance(error, Elsewhere)
        undo = isinstance(error, Exception) and is_stop(error) and self.call is not None
        if undo:
            assert self.call is not None and isinstance(error, Exception)
            told_as = self._told(error, self.call, before)
        if self.exchange is not None:
            failures = self.processes.gathered(Failure.of(told_as) if is_here else None)
            undo = any(failure is not None and failure.is_stop for failure in failures)
            told_as = told_as if is_here else elsewhere(failures)
        if undo:
            self._take_back()
        return told_as

    def _gradient(self, call: Call) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss, and the leaves that it depends on, with their gradients."""
        args, kwargs = call
        with self._params_seen() as params:
            loss = self.loss.loss_and_grads(self.job.model, self.job.guide, *args, **kwargs)
        return loss, params

    @contextmanager
    def _params_seen(self) -> Iterator[dict[str, torch.Tensor]]:
        params: dict[str, torch.Tensor] = {}
        with poutine.trace(param_only=True) as captured:
            yield params
        nodes: Any = captured.trace.nodes
        met: set[int] = set()  # a tensor may have several names
        for name, site in nodes.items():
            leaf = site["value"].unconstrained() if site["type"] == "param" else None
            if leaf is not None and id(leaf) not in met:
                met.add(id(leaf))
                params[name] = leaf
        self.leaves.update(params)

    def _zero(self) -> None:
        zero_grads(self.leaves.values())

    def _told(self, error: Exception, call: Call, before: list[torch.Tensor]) -> Exception:
        """Why a step failed, which began with the generators in these states."""
        model, guide, leaves = self.job.model, self.job.guide, self.leaves

        def look(gradients: bool) -> Callable[[int], list[Seen]]:
            def at(draw: int) -> list[Seen]:
                if draw == 0:
                    set_noise(before)
                return seen(model, guide, call, leaves, gradients=gradients)

            return at

        params = {name: leaf.detach().cpu().double().numpy() for name, leaf in leaves.items()}
        rows = self.job.rows
        given = Given.of(model, call, numbers, self.source, step=self.done, plates=rows)
        return told(error, self.done, look, params, given)

    # A step taken back

    def _mark(self) -> None:
        """Note now and then where the fit stands."""
        size = len(self.leaves) + len(self.modules)
        if self.exchange is None or not self.marks.states:
            self.mark_is_due = self.marks.is_due(size)
        if not self.mark_is_due:
            return
        self.mark_is_due = False
        began = time.perf_counter()
        state = State(
            self.done,
            {name: leaf.detach().clone() for name, leaf in self.leaves.items()},
            [buffer.detach().clone() for buffer in self._buffers()],
            {key: value.detach().clone() for key, value in self.loss.state.items()},
            copy.deepcopy(self.optimizer.state()),
            {name: value.clone() for name, value in self.mean.items()},
            self.count,
            Generators.now(),
            self.source.position(),
        )
        self.marks.add(state, size, time.perf_counter() - began)

    def _take_back(self) -> None:
        """A step has failed, and so the one before it has spoilt the parameters: all is as it was before both.

        The steps from the last mark to there are taken again, with the same random numbers.
        """
        goal = max(self.done - 1, 0)
        state = self.marks.before(goal)
        if state is None:  # the fit has just gone on from a checkpoint
            self.said.append("the last step could not be taken back: it was before a checkpoint")
            return
        self._go_to(state)
        try:
            while self.done < goal:
                take: Callable[[], Taken | None] = self._take
                if isinstance(self.source, Stream):
                    take = partial(self.marks.calls.__getitem__, self.done)
                self._step(take)
        except (ObjectiveError, ValueError, Elsewhere):  # the programs do not repeat themselves
            self._go_to(state)
            self.said.append(f"steps could not be repeated: parameters are after step {state.done}")

    def _go_to(self, state: State) -> None:
        self._zero()
        # a mark before the first step knows none of the buffers that are met there
        buffers = [*state.buffers, *self._buffers()[len(state.buffers) :]]
        kept = {key: value.clone() for key, value in state.kept.items()}
        self._put(state.leaves, buffers, kept)
        self.optimizer.restore(copy.deepcopy(state.optimizer), self.leaves)
        self.mean = {name: value.clone() for name, value in state.mean.items()}
        self.count, self.done = state.count, state.done
        state.noise.restore()
        if not isinstance(self.source, Stream):
            self.source.seek(state.source)

    @contextmanager
    def _own_noise(self) -> Iterator[None]:
        """Random numbers of the fit; the user's generators do not move."""
        before = Generators.now()
        self.generators.restore()
        try:
            yield
        finally:
            self.generators = Generators.now()
            before.restore()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Modules that are called are known: they may have buffers."""

        def note(module: torch.nn.Module, inputs: Any) -> None:
            if module._buffers:
                self.modules[module] = None

        hook = register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()

    # What the loop of a fit asks for

    def params(self) -> dict[str, Any]:
        if self.found is not None:
            return self.found
        store = pyro.get_param_store()
        return {name: store[name].detach().clone() for name in self.leaves if name in store}

    def state(self) -> dict[str, Any]:
        return {key: value.detach().clone() for key, value in self.loss.state.items()}

    def optimizer_said(self) -> dict[str, str]:
        return self.optimizer.said()

    def notes(self) -> list[str]:
        return list(self.said)

    def check_same(self) -> None:
        together(self.processes, self._check_store)
        if isinstance(self.processes, Group):
            refuse_diverged(self.processes, fingerprint(self.leaves))

    def _check_store(self) -> None:
        """Go on from values that somebody has put in the place of parameters; refuse to go on without a parameter."""
        store = pyro.get_param_store()
        there = {name: store._params.get(name) for name in self.leaves}
        lost = [n for n, p in there.items() if p is None or p.shape != self.leaves[n].shape]
        if lost:
            raise ObjectiveError(
                message(
                    f"fit: after step {self.done} parameters are no longer in the store of Pyro",
                    got=f"no {', '.join(map(repr, lost))}, or of another shape",
                    expected="the parameters of a fit in the store until it ends",
                    fix="callbacks without pyro.clear_param_store()",
                )
            )
        for name, leaf in self.leaves.items():
            other = there[name]
            if other is not leaf and other is not None:
                leaf.data.copy_(other.detach())
                store._param_to_name.pop(other, None)
                store._params[name], store._param_to_name[leaf] = leaf, name

    def choose(self, start: int) -> None:
        pass

    def put_away(self) -> None:
        """Keep what was found: another start is to come."""
        if self.away is None:
            averaged = self.mean if self.count > 1 else {}
            leaves = {**self.leaves, **averaged}
            leaves = {name: value.detach().clone() for name, value in leaves.items()}
            self.away = leaves, [b.clone() for b in self._buffers()], dict(self.loss.state)
            kinds = pyro.get_param_store()._constraints
            self.found = {
                name: transform_to(kinds.get(name, constraints.real))(leaf).detach().clone()
                for name, leaf in leaves.items()
                if name in pyro.get_param_store()
            }

    def put_back(self) -> None:
        """What was kept, in the places that there are now."""
        assert self.away is not None
        store = pyro.get_param_store()
        there = {name: (store._params.get(name), kept) for name, kept in self.away[0].items()}
        self.leaves.update(
            {n: p for n, (p, kept) in there.items() if p is not None and p.shape == kept.shape}
        )
        self._put(*self.away)

    def _put(
        self,
        leaves: Mapping[str, torch.Tensor],
        buffers: Sequence[torch.Tensor],
        kept: Mapping[str, torch.Tensor],
    ) -> None:
        """Values of the parameters, of buffers, and of what baselines keep, in their places."""
        for name, value in leaves.items():
            self.leaves[name].data.copy_(value)
        for buffer, value in zip(self._buffers(), buffers, strict=True):
            buffer.data.copy_(value)
        self.loss.state.clear()
        self.loss.state.update(kept)

    def coordinates(self) -> np.ndarray:
        flat = [leaf.detach().double().cpu().numpy().ravel() for leaf in self.leaves.values()]
        found = np.concatenate([np.zeros(0), *flat])[None]
        return found[:, :: -(-found.shape[1] // MAX_COORDINATES)] if found.size else found

    def kept(self, start: int) -> int:
        return self.done

    def shrink(self, factor: float) -> None:
        self._hurry()
        self.optimizer.shrink(factor)

    def average(self, on: bool) -> None:
        self._hurry()
        self.count, self.mean = int(on), {}

    def _hurry(self) -> None:
        self.marks.hurry()
        self.mark_is_due = True

    def _buffers(self) -> list[torch.Tensor]:
        found = (b for module in self.modules for b in module._buffers.values() if b is not None)
        return list(found)

    def snapshot(self) -> dict[str, Any]:
        own = self.generators
        noise = _packed([own.torch_states, own.of_python, own.of_numpy])
        return _packed(
            {
                "params": dict(self.leaves),
                "buffers": self._buffers(),
                "state": dict(self.loss.state),
                "optimizer": self.optimizer.state(),
                "mean": self.mean,
                "count": self.count,
                "done": self.done,
                "compiles": self.compiles,
                "noise": self.processes.gathered(noise),
                "source": self.source.position(),
            }
        )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        store = pyro.get_param_store()
        found = _unpacked(snapshot, _moved(snapshot["params"], store._params))
        noise = _unpacked(snapshot["noise"], {})
        leaves = {name: store._params.get(name) for name in found["params"]}
        own = {name: None if p is None else tuple(p.shape) for name, p in leaves.items()}
        theirs = {name: tuple(p.shape) for name, p in found["params"].items()}
        if own != theirs or len(found["buffers"]) != len(self._buffers()):
            raise CheckpointError(
                message(
                    "the checkpoint is of another fit",
                    got=f"parameters {theirs}, {len(found['buffers'])} buffers",
                    expected=f"{own}, {len(self._buffers())} buffers",
                    fix="the programs of that fit, or another folder",
                )
            )
        self.leaves.update({name: leaf for name, leaf in leaves.items() if leaf is not None})
        self._put(found["params"], found["buffers"], found["state"])
        self.optimizer.restore(found["optimizer"], self.leaves)
        self.mean, self.count, self.done = found["mean"], found["count"], found["done"]
        self.compiles = found["compiles"]
        if len(noise) == self.processes.count:
            self.generators = Generators(*noise[self.processes.rank])
        else:
            words = self.job.request.seed, self.start, self.processes.rank, self.done
            self.generators = _seeded(*words)
            before, now = len(noise), self.processes.count
            self.said.append(
                f"it went on with {now} processes from a checkpoint of {before}: with other random numbers"
            )
        self.source.seek(found["source"])
        self.marks = Marks()


def _spoilt(params: Mapping[str, torch.Tensor]) -> ObjectiveError:
    """The error about gradients that are no numbers."""
    grads = {name: p.grad for name, p in params.items() if p.grad is not None}
    spoilt = [name for name, grad in grads.items() if not grad.isfinite().all()]
    return not_numbers(spoilt or list(params), "the objective")


@contextmanager
def _no_new() -> Iterator[None]:
    """What fails leaves no new parameters behind: once it is mended, they may have other shapes."""
    store = pyro.get_param_store()
    before = set(store._params)
    try:
        yield
    except BaseException:
        for name in [name for name in store._params if name not in before]:
            del store[name]
        raise


def _seeded(*seeds: int) -> Generators:
    """The generators as they stand when seeded."""
    before = Generators.now()
    words = np.random.SeedSequence(seeds).generate_state(1)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    found = Generators.now()
    before.restore()
    return found


def _kind(call: Call) -> Any:
    """Of the arrays among some arguments."""
    found: list[Any] = []

    def note(x: Any) -> Any:
        found.append((tuple(x.shape), str(x.dtype)))
        return x

    mapped(note, [list(call[0]), dict(call[1])])
    return tuple(found)


def _packed(value: Any) -> Any:
    """With arrays of NumPy in place of tensors."""
    if isinstance(value, torch.Tensor):
        on, value = str(value.device), value.detach().cpu().contiguous()
        bits = value.view(torch.uint8) if value.dtype == torch.bfloat16 else value
        return {
            "torch": str(value.dtype).split(".")[1],
            "values": bits.numpy().copy(),
            "device": on,
        }
    if isinstance(value, Mapping):
        return {k: _packed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_packed(v) for v in value)
    return value


def _moved(saved: Mapping[str, Any], params: Mapping[str, torch.Tensor]) -> dict[str, torch.device]:
    """For the devices on which parameters were, those on which they are now."""
    return {
        value.get("device", HOST): params[k].device for k, value in saved.items() if k in params
    }


def _unpacked(value: Any, devices: Mapping[str, torch.device]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() >= {"torch", "values"}:
            # no tensors of NumPy's host are made on the default device
            dtype, values = (
                getattr(torch, value["torch"]),
                torch.as_tensor(value["values"], device=HOST),
            )
            values = values if values.dtype == dtype else values.view(dtype)
            return values.to(devices.get(value.get("device", HOST), HOST))
        return {k: _unpacked(v, devices) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(v, devices) for v in value)
    return value
