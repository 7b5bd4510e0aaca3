"""Compiled steps: a gradient is captured once, and from then on asks nothing of Python, Pyro or this library.

What a captured step read of Python (`places.py`) is looked at again in each step. Where something is another one, the
step runs as it is written, and is captured when that is met again; so it is with arguments of another kind.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK, apply_stack
from pyro.poutine.trace_messenger import TraceMessenger
from torch.utils._device import DeviceContext

from vi_kit.base.errors import CaptureError, message
from vi_kit.engine.plan import Replan
from vi_kit.pyro import capture
from vi_kit.pyro.capture import Captured, Follow, cannot, is_made
from vi_kit.pyro.frames import in_one_thread
from vi_kit.pyro.noise import Generators, buffers_kept, noise_states, set_noise
from vi_kit.pyro.places import CONSTANTS, Survey, Written, is_same, kind

MOST_KINDS = 64
"""So many kinds of arguments are kept; the oldest make room."""

MOST_STEPS = 8
"""So many steps of one kind, which read other things of Python."""

PATIENCE = 8
"""After so many steps in turn that could not be compiled, there is a warning, and few others are looked at."""

LOG = logging.getLogger("vi_kit")


class Estimate(NamedTuple):
    """One gradient, while it is captured.

    Attributes:
        value: the loss.
        leaves: the tensors to train.
        grads: their gradients.
        state: what is kept for the next step.
    """

    value: torch.Tensor
    leaves: list[torch.Tensor]
    grads: list[torch.Tensor]
    state: dict[str, torch.Tensor]


class Compilable(Protocol):
    """A loss whose steps are compiled.

    Attributes:
        state: what is kept from step to step.
    """

    state: dict[str, torch.Tensor]

    def eager_step(self, model: Any, guide: Any, args: Any, kwargs: Any) -> float: ...
    def eager_value(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None: ...
    def captured_step(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Estimate: ...
    def follow(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Follow | None: ...


class Call(NamedTuple):
    """What a step was called with."""

    loss: Compilable
    model: Any
    guide: Any
    args: Any
    kwargs: Any

    @property
    def programs(self) -> tuple[Any, Any, Any, Any]:
        return self.model, self.guide, self.args, self.kwargs


@dataclass(frozen=True)
class _Stored:
    """The tensors to train in Pyro's store, by name."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return pyro.get_param_store()._params[name]


@dataclass(frozen=True)
class _Kept:
    """What a loss keeps, by name."""

    loss: Compilable

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.loss.state[name]


@dataclass(eq=False)
class Origin:
    """Where an input comes from.

    Attributes:
        outside: a holder and a name in it, of all that are not among the places.
        places: the numbers of places.
        tensor: itself, if it comes from nowhere.
    """

    outside: list[tuple[Any, str]]
    places: list[int]
    tensor: torch.Tensor | None


class Step:
    """A captured step.

    Args:
        run: the compiled graph.
        captured: what it does.
        origins: of its inputs.
        known_state: the names of what was kept.
        new_state: of what it makes for the next step.
        leaves: the numbers of the inputs that are trained.
        announced: the parameters that it announces, and which of its results is their value, if another than the tensor
            that is trained.
        parts: what was read.
        volatile: the numbers of places that the programs write to.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[torch.Tensor]],
        captured: Captured,
        origins: list[Origin],
        known_state: frozenset[str],
        new_state: list[str],
        leaves: list[int],
        announced: dict[str, int | None],
        parts: tuple[Hashable, ...],
        volatile: set[int],
    ):
        self.run, self.origins = run, origins
        self.parts, self.volatile = parts, volatile
        self.kinds = [kind(t) for t in captured.inputs]
        self.written = captured.written
        self.known_state, self.new_state = known_state, new_state
        self.leaves, self.announced = leaves, announced
        constraints = pyro.get_param_store()._constraints
        self.constraints = [(name, constraints.get(name)) for name in announced]

    def bind(self, survey: Survey, frame: list[Any]) -> None:
        """Find everything where it is now."""
        self.frame, survey = frame, survey.without(self.volatile)
        used = {n for origin in self.origins for n in origin.places}
        places = list(enumerate(survey.places))
        others = [p for n, p in places if n not in used]
        self.same = [
            (p.holder, p.key, p.found) for p in others if not isinstance(p.found, torch.Tensor)
        ]
        self.shaped = [
            (p.holder, p.key, kind(p.found)) for p in others if isinstance(p.found, torch.Tensor)
        ]
        self.sources: list[tuple[Any, Any]] = []
        self.aliases: list[tuple[Any, Any, int]] = []
        for number, origin in enumerate(self.origins):
            of_places = [(survey.places[n].holder, survey.places[n].key) for n in origin.places]
            sources: list[tuple[Any, Any]] = [*origin.outside, *of_places]
            source, *others_of_it = sources or [([origin.tensor], 0)]
            self.sources.append(source)
            self.aliases += [(holder, key, number) for holder, key in others_of_it]
        self.frame.clear()

    def inputs(self, call: Call, given: list[Any]) -> list[torch.Tensor] | None:
        """The tensors that it takes now; `None` if it was captured for others."""
        self.frame[:] = given
        try:
            return self._inputs(call)
        except (LookupError, AttributeError, ValueError):  # something is not there any more
            return None
        finally:
            self.frame.clear()

    def has_all(self, call: Call) -> bool:
        """Whether what it trains and keeps is there."""
        params = pyro.get_param_store()._params
        return self.announced.keys() <= params.keys() and self.known_state <= call.loss.state.keys()

    def _inputs(self, call: Call) -> list[torch.Tensor] | None:
        for holder, key, found in self.same:
            now = holder[key]
            if now is not found and not is_same(found, now):
                return None
        for holder, key, expected in self.shaped:
            now = holder[key]
            if not isinstance(now, torch.Tensor) or kind(now) != expected:
                return None
        if call.loss.state.keys() != self.known_state:
            return None
        if self.constraints:
            known = pyro.get_param_store()._constraints
            for name, constraint in self.constraints:
                if known.get(name) is not constraint:
                    return None
        inputs = [holder[key] for holder, key in self.sources]
        for holder, key, number in self.aliases:
            if holder[key] is not inputs[number]:
                return None
        for tensor, expected in zip(inputs, self.kinds, strict=True):
            if kind(tensor) != expected:
                return None
        if any(map(_has_hooks, map(inputs.__getitem__, self.leaves))):
            return None
        return inputs


@dataclass(eq=False)
class Compiler:
    """The compiled steps of a loss.

    Attributes:
        kept: by programs and kinds of arguments.
        met: what was read of Python when arguments of a kind were met last.
        seconds: how long each capture took.
        num_eager: how many steps in turn were not compiled.
        warned: whether that was said.
    """

    kept: dict[Any, list[Step]] = field(default_factory=dict)
    met: dict[Any, tuple[Hashable, ...]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    num_eager: int = 0
    warned: bool = False

    def notes(self) -> list[str]:
        """Lines for `explain`."""
        if not self.seconds:
            return ["compiled: from the second step on"]
        seconds = ", ".join(f"{s:.1f}" for s in self.seconds)
        return [
            f"compiled: {len(self.seconds)} kind(s) of steps, captured and compiled in {seconds} s"
        ]

    def step(self, call: Call) -> float:
        """One gradient, added to what the parameters have."""
        if not _is_plain():
            return call.loss.eager_step(*call.programs)
        given: list[Any] = []
        key = call.model, call.guide, _surroundings(), _kind((call.args, call.kwargs), given)
        for step in self.kept.get(key, ()):
            inputs = step.inputs(call, given)
            if inputs is not None:
                return self._run(step, inputs, call)
        return self._other(key, call, given)

    def _other(self, key: Any, call: Call, given: list[Any]) -> float:
        """A step for which none is at hand."""
        if self.num_eager >= PATIENCE and not _is_looked_at(self.num_eager):
            self.num_eager += 1
            return call.loss.eager_step(*call.programs)
        frame = list(given)
        survey = _survey(call, frame)
        parts = tuple(survey.parts)
        for step in self.kept.get(key, ()):
            if step.parts == parts:
                step.bind(survey, frame)
                inputs = step.inputs(call, given)
                if inputs is not None:
                    return self._run(step, inputs, call)
                if not step.has_all(call):
                    return self._eager(key, call, given, "")
                frame = list(given)
                survey = _survey(call, frame)
        follow = call.loss.follow(*call.programs) if self.met.get(key) == parts else None
        if follow is None:
            return self._eager(key, call, given, self._difference(key, parts, survey))
        return self._capture(key, call, survey, frame, follow)

    def _eager(self, key: Any, call: Call, given: list[Any], name: str) -> float:
        value = call.loss.eager_step(*call.programs)
        self.met.pop(key, None)
        self.met[key] = tuple(_survey(call, given).parts)
        if len(self.met) > MOST_KINDS:
            del self.met[next(iter(self.met))]
        self.num_eager += 1
        if self.num_eager >= PATIENCE and not self.warned:
            self.warned = True
            warnings.warn(
                message(
                    f"compile=True: {PATIENCE} steps in turn were not compiled",
                    got=name or "arguments of another kind in each step",
                    expected="programs and arguments of which only tensors change from step to step",
                    fix="make a tensor of what changes, and give minibatches one shape",
                ),
                stacklevel=6,
            )
        return value

    def _difference(self, key: Any, parts: tuple[Hashable, ...], survey: Survey) -> str:
        """What is another one than it was in the step before."""
        before = self.met.get(key, ())
        for old, new, place in zip(before, parts, survey.places, strict=False):
            if old != new:
                return f"{place.name}, which changes from step to step"
        return ""

    def _capture(
        self, key: Any, call: Call, survey: Survey, frame: list[Any], follow: Follow
    ) -> float:
        start, before = time.perf_counter(), Generators.now()
        with buffers_kept() as written:
            try:
                step, leaves, results = _captured(call, survey, frame, follow)
                if not before.same_outside_torch(Generators.now()):
                    raise cannot(
                        "the programs draw random numbers outside torch",
                        "numbers of random or numpy.random, which a compiled step would repeat",
                        "draw them by torch, or give them to the step as tensors",
                    )
                if not math.isfinite(results[0].item()):
                    raise Replan
            except Replan:  # there is more to find out, or something to refuse
                step, leaves, results = None, [], []
                before.restore()
            except CaptureError:
                before.restore()
                raise
            except Exception as error:
                before.restore()
                call.loss.eager_value(*call.programs)  # whose error it is if there is one
                before.restore()
                text = f"{type(error).__name__}: {error}".split("\n")[0]
                raise cannot("the step cannot be captured", text) from error
            else:
                written.clear()
        if step is None:
            return self._eager(key, call, list(frame), "")
        steps = self.kept.setdefault(key, [])
        steps.append(step)
        del steps[:-MOST_STEPS]
        if len(self.kept) > MOST_KINDS:
            del self.kept[next(iter(self.kept))]
        self.seconds.append(time.perf_counter() - start)
        LOG.info("a step was captured and compiled in %.1f s", self.seconds[-1])
        self.num_eager = 0
        return _taken(step, leaves, results, call)

    def _run(self, step: Step, inputs: list[torch.Tensor], call: Call) -> float:
        before = noise_states()
        kept = [inputs[n].clone() for n in step.written]
        with torch.no_grad():
            results = step.run(*inputs)
        if math.isfinite(results[0].item()):
            self.num_eager = 0
            return _taken(step, [inputs[n] for n in step.leaves], results, call)
        # something is not as it was: the step as it is written says what, or goes another way
        set_noise(before)
        with torch.no_grad():
            for n, old in zip(step.written, kept, strict=True):
                inputs[n].copy_(old)
        self.num_eager += 1
        return call.loss.eager_step(*call.programs)


def _is_looked_at(num_eager: int) -> bool:
    """Whether it is worth while to find out if the next step is like the last: for two in turn, ever more rarely."""
    return num_eager & (num_eager - 1) == 0 or (num_eager - 1) & (num_eager - 2) == 0


def _taken(
    step: Step, leaves: list[torch.Tensor], results: Sequence[torch.Tensor], call: Call
) -> float:
    """Hand out what a step made."""
    value, num, num_state = results[0].item(), len(leaves), len(step.new_state)
    grads = results[1 : 1 + num]
    state, values = results[1 + num : 1 + num + num_state], results[1 + num + num_state :]
    known: list[torch.Tensor] = []
    more: list[torch.Tensor] = []
    for leaf, grad in zip(leaves, grads, strict=True):
        if leaf.grad is None:
            leaf.grad = grad
        else:
            known.append(leaf.grad)
            more.append(grad)
    if known:
        with torch.no_grad():
            torch._foreach_add_(known, more)  # pyright: ignore[reportPrivateImportUsage]
    call.loss.state.update(zip(step.new_state, state, strict=True))
    if _PYRO_STACK:
        _announce(step.announced, values)
    return value


def _announce(announced: dict[str, int | None], values: Sequence[torch.Tensor]) -> None:
    """Tell whoever listens of the parameters."""
    params = pyro.get_param_store()._params
    for name, number in announced.items():
        leaf = value = params[name]
        if number is not None:
            value = values[number]
            value.unconstrained = weakref.ref(leaf)  # type: ignore[attr-defined]
        message: Any = {
            "type": "param",
            "name": name,
            "fn": pyro.param,
            "is_observed": False,
            "args": (name,),
            "kwargs": {},
            "value": value,
            "scale": 1.0,
            "mask": None,
            "cond_indep_stack": (),
            "done": True,
            "stop": False,
            "continuation": None,
            "infer": {},
        }
        apply_stack(message)


def _captured(
    call: Call, survey: Survey, frame: list[Any], follow: Follow
) -> tuple[Step, list[torch.Tensor], list[torch.Tensor]]:
    """A step that was taken and captured: with the tensors that it trains, and what it made."""
    leaves: list[torch.Tensor] = []
    new_state: list[str] = []
    announced: dict[str, int | None] = {}

    def run(follow: Follow) -> list[torch.Tensor]:
        with poutine.trace(param_only=True) as listened:
            found = call.loss.captured_step(*call.programs)
        leaves[:], new_state[:] = found.leaves, found.state
        nodes = cast(dict[str, Any], listened.trace.nodes)
        params = {name: site["value"] for name, site in nodes.items()}
        is_first = not found.state.keys() <= call.loss.state.keys()
        if is_first or any(is_made(param.unconstrained()) for param in params.values()):
            raise Replan  # a first step is none like the others
        value, values = found.value, []
        holds = follow.checks.hold(value.device)
        for grad in found.grads:
            holds = holds & ~grad.sum().isnan().to(value.device)
        for name, param in params.items():
            is_other = param.unconstrained() is not param
            announced[name] = len(values) if is_other else None
            values += [param.detach()] * is_other
        value = torch.where(holds, value, math.nan)
        return [value, *found.grads, *found.state.values(), *values]

    iterator = survey.iterator()
    if iterator is not None:
        raise cannot(
            f"{iterator} is an iterator, which a compiled step cannot follow",
            "something that gives another value each time",
            "leave compile=True out, or give the step what it gives as an argument",
        )
    with in_one_thread():
        captured = capture.capture(run, follow)
    if any(map(_has_hooks, leaves)):
        raise cannot("a tensor that is trained has a hook", "Tensor.register_hook")
    try:
        volatile = set(survey.written())
    except Written as error:
        raise cannot(
            f"{error} is another one after the step",
            "programs that keep account of something",
            "leave compile=True out, or keep account of it between the steps",
        ) from None
    origins = _origins(captured.inputs, survey.without(volatile), call)
    ids = {id(t): n for n, t in enumerate(captured.inputs)}
    for origin, line in zip(origins, captured.lines, strict=True):
        if origin.tensor is not None and line is not None:
            raise cannot(
                f"a tensor that is used at {line} cannot be found",
                f"one of shape {tuple(origin.tensor.shape)}, in no attribute, global or argument",
                "keep it in one of these",
            )
    step = Step(
        capture.compiled(captured.graph, captured.inputs),
        captured,
        origins,
        frozenset(call.loss.state),
        new_state,
        [ids[id(leaf)] for leaf in leaves],
        announced,
        tuple(survey.parts),
        volatile,
    )
    step.bind(survey, frame)
    return step, leaves, captured.results


def _origins(inputs: Iterable[torch.Tensor], survey: Survey, call: Call) -> list[Origin]:
    places: dict[int, list[int]] = {}
    for number, place in enumerate(survey.places):
        if isinstance(place.found, torch.Tensor):
            places.setdefault(id(place.found), []).append(number)
    outside: dict[int, list[tuple[Any, str]]] = {}
    for name, leaf in pyro.get_param_store()._params.items():
        outside.setdefault(id(leaf), []).append((STORE, name))
    for name, array in call.loss.state.items():
        outside.setdefault(id(array), []).append((_Kept(call.loss), name))
    found = []
    for t in inputs:
        own, of_places = outside.get(id(t), []), places.get(id(t), [])
        found.append(Origin(own, of_places, None if own or of_places else t))
    return found


def _has_hooks(leaf: torch.Tensor) -> bool:
    """Whether somebody waits for the gradient of a tensor."""
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)


STORE = _Stored()


def _survey(call: Call, frame: list[Any]) -> Survey:
    return Survey.of({"arguments": frame, "model": call.model, "guide": call.guide})


def _is_plain() -> bool:
    """Whether nothing stands around a step but who listens for its parameters."""
    if torch._C._len_torch_dispatch_stack():  # type: ignore[attr-defined]
        return False
    return all(type(m) is TraceMessenger and m.param_only for m in _PYRO_STACK) and all(
        isinstance(m, DeviceContext) for m in _function_modes()
    )


def _function_modes() -> list[Any]:
    num = torch._C._len_torch_function_stack()  # type: ignore[attr-defined]
    return [torch._C._get_function_stack_at(n) for n in range(num)]  # type: ignore[attr-defined]


def _surroundings() -> Hashable:
    """What else says what torch computes."""
    return (
        torch.get_default_dtype(),
        tuple(m.device for m in _function_modes()),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.distributions.Distribution._validate_args,
    )


def _kind(x: Any, given: list[Any]) -> Hashable:
    """What tells apart arguments for which other steps are captured.

    Args:
        x: an argument, or all.
        given: to these is added what is no constant.
    """
    if isinstance(x, torch.Tensor):
        given.append(x)
        return kind(x)
    cls = type(x)
    if isinstance(x, CONSTANTS):
        return cls, x
    if isinstance(x, list | tuple):
        return cls, *[_kind(v, given) for v in x]
    if isinstance(x, dict):
        return cls, *[(k, _kind(v, given)) for k, v in x.items()]
    given.append(x)
    return cls
