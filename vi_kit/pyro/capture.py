"""Capturing what a function asks of torch, as a graph, and compiling it. What of torch is not public is used here only.

The function runs once, for real: all that is below autograd is recorded. A value that becomes a Python number cannot be
recorded. Where a program asks for one, it is refused; where a distribution or this library checks something, the answer
is noted, and the graph says whether it would be the same.
"""

from __future__ import annotations

import hashlib
import linecache
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vi_kit.base.errors import CaptureError, message
from vi_kit.pyro.frames import PYRO, VI_KIT, asked, caller, is_own, is_validation, line_of
from vi_kit.pyro.leaks import TELLING, UNSEEN, is_apart, tells, tensors_in
from vi_kit.pyro.noise import noise_states

aten = torch.ops.aten

OTHERWISE = {
    aten.bernoulli.default: lambda p: torch.empty_like(p).bernoulli_(p),  # draws the same numbers
    aten._is_all_true.default: lambda x: x.all(),
    aten._is_any_true.default: lambda x: x.any(),
}
"""Operations that inductor would do another way, or apart from others, and what is the same."""

MAKING = (aten.lift_fresh.default, aten.lift_fresh_copy.default)
"""Operations that bring into a graph what Python made."""

SHOWING = ("print(", "logging.", "logger.", "log.", "LOG.", "warnings.warn(")
"""How a line begins that shows values."""

REDRAWN = (aten.native_dropout.default, aten.rrelu_with_noise.default)
"""Operations that draw, and whose result depends on more than what is drawn."""


@dataclass
class Captured:
    """What a function did.

    Attributes:
        graph: its operations, as a function of the tensors that were there before.
        inputs: these.
        results: what the function made.
        written: the numbers of inputs that were written into.
        lines: where inputs are used, but for those that were made of Python numbers.
    """

    graph: torch.fx.GraphModule
    inputs: list[torch.Tensor]
    results: list[torch.Tensor]
    written: list[int]
    lines: list[str | None]


def cannot(what: str, got: str, fix: str = "leave compile=True out") -> CaptureError:
    return CaptureError(
        message(
            f"compile=True: {what}",
            got=got,
            expected="a program that does the same operations in each step, whatever the values",
            fix=fix,
        )
    )


def told_error(frame: Any, what: str) -> CaptureError:
    file, number, name = asked(frame)
    text = linecache.getline(file, number).strip()
    return cannot(
        f"{what} at {name}, which a compiled step cannot follow",
        f"`{text}`" if text else name,
        "leave compile=True out, or keep it a tensor (torch.where in place of if)",
    )


def only_shows(frame: Any, harmless: frozenset[str]) -> bool:
    """Whether a program asks for a value to print or to log it. That the value made no difference to this step is not
    enough: data and buffers that are zero now may be others in the next."""
    if line_of(frame) not in harmless:
        return False
    file, number, _ = asked(frame)
    return linecache.getline(file, number).strip().startswith(SHOWING)


@dataclass
class Checks:
    """Values that were asked for by what only checks them.

    Attributes:
        told: tensors, and the numbers that they were.
    """

    told: list[tuple[torch.Tensor, Any]] = field(default_factory=list)

    def hold(self, device: torch.device) -> torch.Tensor:
        """Whether all are the same again, as a tensor."""
        holds = torch.ones((), dtype=torch.bool, device=device)
        for tensor, number in self.told:
            t = tensor.detach().reshape(()).to(device)
            holds = holds & (t if number is True else t == number)
        return holds


class Follow(TorchDispatchMode):
    """Refuses operations of which a graph cannot tell, and keeps what was drawn at each state of the generator, for
    those that draw the same again.

    Args:
        harmless: lines at which a program may be told values, if only to show them.
    """

    def __init__(self, harmless: frozenset[str], repeats: bool):
        super().__init__()
        self.harmless = harmless
        self.repeats = repeats
        self.checks = Checks()
        self.calls = _Calls(harmless)
        self.drawn: dict[Any, Any] = {}
        self.storages: set[int] = set()
        self.lines: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in MAKING:
            for t in tensors_in((args, kwargs)):
                if not is_made(t) and id(t) not in self.lines:
                    self.lines[id(t)] = line_of(caller())
        if torch.Tag.data_dependent_output in func.tags:
            return self._told(func, args, kwargs, caller())
        if tells(func, args, None):
            raise told_error(caller(), "the shape of a result depends on values")
        if self.repeats and torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, args, kwargs)
        result = func(*args, **kwargs)
        self._note_writes(func, args, kwargs)
        return result

    def _told(self, func: Any, args: Any, kwargs: Any, frame: Any) -> Any:
        with _untraced():
            result = func(*args, **kwargs)
        is_check = is_validation(frame) or is_own(frame, (PYRO, VI_KIT))
        if not (is_check or only_shows(frame, self.harmless)):
            raise told_error(frame, "a value is asked for")
        if is_check:
            one = args[0] if len(args) == 1 else (args[0] == args[1]).all()
            self.checks.told.append((one, result))
        return result

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        states = b"".join(state.numpy().tobytes() for state in noise_states())
        state = hashlib.sha256(states).digest()
        shapes = tuple(t.shape for t in tensors_in((args, kwargs)))
        key = state, func, shapes, repr([a for a in args if not isinstance(a, torch.Tensor)])
        known = self.drawn.get(key)
        if known is None:
            result = func(*args, **kwargs)
            self._note_writes(func, args, kwargs)
            self.drawn[key] = [t.clone() for t in tensors_in(result)]
            return result
        if func in REDRAWN:
            raise cannot(f"{func} draws the same noise twice", "dropout in a fused form")
        with _untraced():
            result = func(*args, **kwargs)  # the generator goes on
        if func._schema.is_mutable:
            return args[0].copy_(known[0])
        made = [t.clone() for t in known]
        return made[0] if isinstance(result, torch.Tensor) else tuple(made)

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        if not func._schema.is_mutable:
            return
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.storages |= {_storage(t) for t in tensors_in(value)}
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None:
                self.storages |= {_storage(t) for t in tensors_in(kwargs[argument.name])}


class _Calls(TorchFunctionMode):
    """Refuses calls that bring values out of the reach of operations."""

    def __init__(self, harmless: frozenset[str]):
        super().__init__()
        self.harmless = harmless

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TELLING:
            frame = caller()
            if not (is_own(frame) or only_shows(frame, self.harmless)):
                what = TELLING[func]
                raise told_error(frame, f"there is {what}" if what != UNSEEN else what)
        return func(*args, **(kwargs or {}))


def _storage(t: torch.Tensor) -> int:
    return 0 if is_apart(t) else t.untyped_storage().data_ptr()


def _untraced() -> Any:
    from torch.fx.experimental.proxy_tensor import (
        disable_proxy_modes_tracing,
        get_proxy_mode,
    )

    return nullcontext() if get_proxy_mode() is None else disable_proxy_modes_tracing()


def capture(fn: Callable[[Follow], Sequence[torch.Tensor]], follow: Follow) -> Captured:
    """Run a function, and record what it asks of torch.

    Args:
        fn: makes tensors.
        follow: watches what it does.

    Raises:
        CaptureError: it asks for values.
    """
    try:
        from torch.fx.experimental.proxy_tensor import make_fx
    except ImportError as error:
        raise cannot("this torch cannot capture", str(error)) from error
    results: list[torch.Tensor] = []

    def run() -> list[torch.Tensor]:
        with follow, follow.calls:
            results[:] = _apart(fn(follow))
        return results

    module = make_fx(run, OTHERWISE, tracing_mode="real")()
    module.graph.eliminate_dead_code()
    read = [node for node in module.graph.nodes if node.op == "get_attr"]
    tensors = {node: getattr(module, str(node.target)) for node in read}
    inputs = list({id(t): t for t in tensors.values()}.values())
    graph = torch.fx.Graph()
    given = {id(t): graph.placeholder(f"input_{n}") for n, t in enumerate(inputs)}
    copies: dict[Any, Any] = {node: given[id(t)] for node, t in tensors.items()}
    for node in module.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    module = torch.fx.GraphModule({}, graph)
    written = [i for i, t in enumerate(inputs) if _storage(t) in follow.storages]
    lines = [follow.lines.get(id(t)) for t in inputs]
    return Captured(module, inputs, [r.detach() for r in results], written, lines)


def _apart(made: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors that lie in memory of their own, as those that a step hands out must."""
    seen: set[int] = set()
    apart = []
    for t in made:
        own = not is_apart(t) and t._base is None and t.is_contiguous()
        if not own or t.data_ptr() in seen or not is_made(t):
            t = t.clone(memory_format=torch.contiguous_format)
        seen.add(t.data_ptr())
        apart.append(t)
    return apart


def is_made(t: torch.Tensor) -> bool:
    """Whether a tensor was made while it was recorded."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, has_proxy_slot

    mode = get_proxy_mode()
    return mode is None or has_proxy_slot(t, mode.tracer)


def compiled(
    graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]
) -> Callable[..., Sequence[torch.Tensor]]:
    """A graph, compiled by inductor; as CUDA graphs where tensors lie on such a device."""
    on_gpu = any(t.is_cuda for t in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch, about itself
        try:
            from torch._inductor import config
            from torch._inductor.compile_fx import compile_fx
        except ImportError as error:
            raise cannot("this torch has no inductor", str(error)) from error
        # random numbers are those of torch without a compiler
        settings = {"fallback_random": True, "triton.cudagraphs": on_gpu}
        with torch.no_grad(), config.patch(settings):
            try:
                fn: Any = compile_fx(graph, [t.detach() for t in inputs])
            except Exception as error:
                text = f"{type(error).__name__}: {error}".split("\n")[0]
                raise cannot("inductor cannot compile the step", text) from error
    if not on_gpu:
        return fn
    return lambda *given: [r.clone() for r in fn(*given)]  # the next step writes over them
