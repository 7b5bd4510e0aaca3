"""The Pyro backend: programs run under one outermost messenger, replicates are plates."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    get_provenance,
    track_provenance,
)
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch.distributions import constraints
from torch.overrides import TorchFunctionMode

from vi_kit._errors import BackendError, message
from vi_kit._named import PLATE, Axis
from vi_kit.cost import Cost, Site
from vi_kit.language import Draw, Program
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.run import Replan, Run


class PyroBackend:
    """Implements `vi_kit.backend.Backend` for torch and Pyro."""

    name = "pyro"

    def __init__(self) -> None:
        self.handler: _Handler | None = None
        self.leaked: frozenset[Site] = frozenset()
        self.tracking = False
        self.params: dict[str, dict[int, torch.Tensor]] = {"model": {}, "guide": {}}

    # Arrays

    def stop_gradient(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach()

    def may_need_gradient(self, array: torch.Tensor) -> bool:
        return array.requires_grad

    def logsumexp(self, array: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.logsumexp(array, axis)

    def cumulative_logsumexp(self, array: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.logcumsumexp(array, axis)

    def uniform(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.rand(shape, dtype=like.dtype, device=like.device)

    # Provenance

    def track(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        return track_provenance(value, frozenset({site})) if self.tracking else value

    def untracked(self, value: torch.Tensor) -> torch.Tensor:
        return detach_provenance(value) if self.tracking else value

    def upstream(self, value: torch.Tensor) -> frozenset[Site]:
        return get_provenance(value) | self.leaked if self.tracking else frozenset()

    # State

    def get_state(self, key: str) -> torch.Tensor | None:
        store = pyro.get_param_store()
        return store[key].detach() if key in store else None

    def set_state(self, key: str, value: torch.Tensor) -> None:
        pyro.get_param_store()[key] = value.detach()

    # Programs

    @contextmanager
    def session(self, run: Run) -> Iterator[None]:
        """Enter the outermost messenger, and provenance where the plan asks for it."""
        self.tracking = run.plan.tracked
        mode = _Leaks(self) if self.tracking else nullcontext()
        with _Outermost(self), mode:
            yield

    @contextmanager
    def replicated(self, run: Run, axis: Axis) -> Iterator[None]:
        with _ReplicatePlate(axis.name, axis.size, run.place(axis)):
            yield

    def simulate(self, run: Run, program: Program) -> Draw:
        handler = _Simulate(run, program)
        self._run(handler)
        return Draw(handler.values, handler.sites, Cost(handler.terms), handler.details)

    def log_density(self, run: Run, program: Program, draw: Draw) -> Cost:
        handler = _LogDensity(run, program, draw)
        self._run(handler)
        handler.finish()
        return Cost(handler.terms)

    def _run(self, handler: _Handler) -> None:
        program, fn = handler.program, handler.program.fn
        outer, self.handler = self.handler, handler
        modules = list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []
        self.params[program.role].update((id(p), p) for p in modules)
        try:
            if program.held:
                handler.hold(modules)
            fn(*program.args, **program.kwargs)
        finally:
            self.handler = outer
            for p in handler.released:
                p.requires_grad_(True)


class _Outermost(Messenger):
    """Gives every message to the handler of the program that runs. It must be entered before any
    plate, so that the plates have expanded the distribution by the time it sees it."""

    def __init__(self, backend: PyroBackend):
        super().__init__()
        self.backend = backend

    def _pyro_sample(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.sampled(msg)

    def _pyro_post_param(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.param(self.backend, msg)


class _ReplicatePlate(IndepMessenger):
    """A plate for replicates: no subsampling, no message of its own."""

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        BroadcastMessenger._pyro_sample(msg)


class _Leaks(TorchFunctionMode):
    """Notices values that leave the reach of provenance tracking: control flow, Python numbers, writes
    into untracked tensors. Whatever comes later is then taken to depend on them."""

    ESCAPES = frozenset(
        "__bool__ __float__ __int__ __index__ item tolist numpy __array__ __setitem__".split()
    )

    def __init__(self, backend: PyroBackend):
        super().__init__()
        self.backend = backend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if ProvenanceTensor not in types:
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place or name in self.ESCAPES or (kwargs and "out" in kwargs):
            sites = get_provenance((args, kwargs or {}))
            if in_place:
                sites = sites - get_provenance(args[0])
            elif name == "__bool__" and _is_validation(sys._getframe(1)):
                sites = frozenset()
            self.backend.leaked |= sites
        return func(*args, **(kwargs or {}))


def _is_validation(frame: Any) -> bool:
    """Whether a distribution is checking its own arguments."""
    for _ in range(4):
        if frame is None:
            return False
        if "/distributions/" in frame.f_code.co_filename.replace("\\", "/"):
            return True
        frame = frame.f_back
    return False


class _Handler:
    """What to do at the statements of one program."""

    def __init__(self, run: Run, program: Program):
        self.run = run
        self.program = program
        self.terms: list[Any] = []
        self.released: list[torch.Tensor] = []
        self.names: set[str] = set()

    def hold(self, params: Iterable[torch.Tensor]) -> None:
        for p in params:
            if p.requires_grad and p.is_leaf:
                p.requires_grad_(False)
                self.released.append(p)

    def param(self, backend: PyroBackend, msg: Any) -> None:
        value = msg["value"]
        leaf = getattr(value, "unconstrained", lambda: value)()
        leaf = getattr(value, "_pyro_unconstrained_param", leaf)
        backend.params[self.program.role][id(leaf)] = leaf
        if self.program.held:
            self.hold([leaf])
            msg["value"] = value.detach()

    def sample(self, msg: Any) -> None:
        name = msg["name"]
        if type(msg["fn"]).__name__ == "_Subsample":
            if msg["value"] is None and name in self.run.subsamples:
                msg["value"], msg["done"] = self.run.subsamples[name], True
            return
        if msg["infer"].get("_deterministic") or msg["infer"].get("_do_not_trace"):
            return
        if not (msg["done"] or msg["is_observed"]):
            self.latent(msg)

    def latent(self, msg: Any) -> None:
        raise NotImplementedError

    def sampled(self, msg: Any) -> None:
        name = msg["name"]
        if type(msg["fn"]).__name__ == "_Subsample":
            self.run.subsamples.setdefault(name, msg["value"])
            return
        if msg["infer"].get("_deterministic") or msg["infer"].get("_do_not_trace"):
            return
        self.record(msg)

    def record(self, msg: Any) -> None:
        raise NotImplementedError

    def axes(self, msg: Any) -> tuple[Axis, ...]:
        """Plates and replicates of a statement."""
        replicates = {a.name: a for a in self.run.open_replicates}
        axes = []
        for frame in msg["cond_indep_stack"]:
            if not frame.vectorized:
                continue
            if frame.name in replicates:
                axes.append(replicates[frame.name])
                continue
            if frame.dim < -self.run.plan.max_plate_nesting:
                raise Replan
            scale = float(frame.full_size / frame.size) if frame.full_size else 1.0
            axes.append(Axis(PLATE, -frame.dim, frame.name, int(frame.size), scale))
        return tuple(axes)

    def add_term(self, msg: Any, held: bool = False, site: Site | None = None) -> None:
        """Add the log density of a statement, with its scale (but that of its plates) and its mask."""
        axes = self.axes(msg)
        what = f"{self.program.role} site {msg['name']!r}"
        fn, value = msg["fn"], msg["value"]
        scale: Any = msg["scale"]
        for axis in axes:
            if axis.scale != 1.0:
                scale = scale / axis.scale
        log_prob = fn.log_prob(value, *msg["args"], **msg["kwargs"])
        if site is not None:
            unmasked = PyroDistribution(fn)
            plain = log_prob if unmasked.fn is fn else unmasked.log_prob(value)
            site.log_q = self.run.term(plain, axes, what, own=site)
            self.run.terms.pop()
        is_one = not isinstance(scale, torch.Tensor) and abs(scale - 1.0) < 1e-12
        factor: Any = 1.0 if is_one else scale
        log_prob = scale_and_mask(log_prob, factor, msg["mask"])
        self.terms.append(self.run.term(log_prob, axes, what, held=held))


class _Simulate(_Handler):
    """Offers every latent site to its estimator."""

    def __init__(self, run: Run, program: Program):
        super().__init__(run, program)
        self.values: dict[str, torch.Tensor] = {}
        self.sites: dict[str, Site | None] = {}
        self.details: dict[str, Any] = {}

    def latent(self, msg: Any) -> None:
        dist, axes = PyroDistribution(msg["fn"]), self.axes(msg)
        value, site = self.run.draw(msg["name"], dist, axes, msg["infer"])
        msg["value"], msg["done"] = value, True
        self.values[msg["name"]], self.sites[msg["name"]] = value, site
        self.details[msg["name"]] = (msg["fn"], axes, bool(msg["infer"].get("is_auxiliary")))

    def record(self, msg: Any) -> None:
        self.add_term(msg, site=self.sites.get(msg["name"]))


class _LogDensity(_Handler):
    """Replays a draw."""

    def __init__(self, run: Run, program: Program, draw: Draw):
        super().__init__(run, program)
        self.draw = draw
        self.held = draw.held

    def latent(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.draw:
            self._problem(
                f"{self.program.role} site {name!r} is not in the draw",
                got=f"latent sites of the draw: {sorted(self.draw)}",
                expected=f"a guide site named {name!r}",
                fix=f"add {name!r} to the guide"
                + (
                    "; sites that Pyro would enumerate in the model are not marginalised here"
                    if msg["infer"].get("enumerate")
                    else ", or condition the model on it"
                ),
            )
            return
        value = self.draw[name]
        if self.held:
            value = value.detach()
        self.names.add(name)
        msg["value"], msg["done"] = value, True
        if self.run.findings is not None and not self._agrees(msg):
            msg["value"] = msg["fn"]()  # so that the rest of the program can be checked too

    def record(self, msg: Any) -> None:
        self.add_term(msg, held=self.held)

    def finish(self) -> None:
        lacking = [n for n in self.draw if n not in self.names and not self.draw.details[n][2]]
        for name in lacking:
            self._problem(
                f"guide site {name!r} is not a latent site of the {self.program.role}",
                got=f"latent sites of the {self.program.role}: {sorted(self.names)}",
                expected="every guide site in the model, or marked as auxiliary",
                fix=f"pyro.sample({name!r}, ..., infer={{'is_auxiliary': True}})",
            )

    def _agrees(self, msg: Any) -> bool:
        """Compare plates, shapes and supports of a site in model and guide."""
        name, fn = msg["name"], msg["fn"]
        guide_fn, guide_axes, _ = self.draw.details[name]
        own = {a.name for a in self.axes(msg)}
        theirs = {a.name for a in guide_axes}
        if own != theirs:
            self._problem(
                f"site {name!r}: model and guide disagree about its plates",
                got=f"model {sorted(own)}, guide {sorted(theirs)}",
                expected="the same plates, with the same names",
                fix="give the plates one name in both",
            )
        elif tuple(fn.event_shape) != tuple(guide_fn.event_shape):
            self._problem(
                f"site {name!r}: model and guide disagree about its event shape",
                got=f"model {tuple(fn.event_shape)}, guide {tuple(guide_fn.event_shape)}",
                expected="the same event shape",
                fix="use .to_event(n) alike in both",
            )
        elif self._outside(fn, guide_fn, self.run.backend.untracked(msg["value"])):
            self._problem(
                f"site {name!r}: the guide draws values outside the model's support",
                got=f"model {fn.support}, guide {guide_fn.support}",
                expected="a guide whose support lies in the model's",
                fix=f"a guide distribution on {fn.support}",
            )
        else:
            return True
        return False

    @staticmethod
    def _outside(fn: Any, guide_fn: Any, value: torch.Tensor) -> bool:
        real = constraints.real
        plain = [getattr(s, "base_constraint", s) for s in (fn.support, guide_fn.support)]
        is_delta = PyroDistribution(guide_fn).name == "Delta"
        if plain[1] is real and plain[0] is not real and not is_delta:
            return True
        return not bool(fn.support.check(value).all())

    def _problem(self, headline: str, **parts: str) -> None:
        text = message(headline, **parts)
        if self.run.findings is None:
            raise BackendError(text)
        self.run.findings.problem(text, of_estimator=False)
