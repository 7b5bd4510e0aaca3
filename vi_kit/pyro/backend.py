"""The Pyro backend: programs run under one outermost messenger, replicates are plates."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Categorical, Unit
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    extract_provenance,
    get_provenance,
    track_provenance,
)
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch.overrides import TorchFunctionMode

from vi_kit.analysis.blocked import Blocked, settled
from vi_kit.base.errors import CaptureError, EstimatorError, message
from vi_kit.base.named import PLATE, Axis, Named
from vi_kit.base.protocols import Moments
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Term
from vi_kit.engine.density import LogDensity, scaled_and_masked
from vi_kit.engine.drawing import draw_apart
from vi_kit.engine.plan import Replan
from vi_kit.engine.run import Run, running
from vi_kit.engine.statements import (
    Advance,
    Conditioned,
    Evaluation,
    Replay,
    Simulation,
    Stop,
    check_parameter,
    check_starts,
    is_copy,
    is_given,
    outside_support,
)
from vi_kit.engine.unbounded import Unbounded
from vi_kit.language.programs import (
    Draw,
    Program,
    Resampling,
    Start,
    Statement,
    with_replaced,
)
from vi_kit.pyro.annealing import declared
from vi_kit.pyro.compared import Compared
from vi_kit.pyro.distributions import PyroDistribution, at_value, relaxed, unchecked, where_seen
from vi_kit.pyro.expectations import CarriedMoments, Random, own_log_prob, random_value, sampled
from vi_kit.pyro.frames import Origins, caller, is_validation, line_of
from vi_kit.pyro.front import Recorded, saved_bytes
from vi_kit.pyro.in_turn import Turns
from vi_kit.pyro.leak_probe import LeakProbe
from vi_kit.pyro.leaks import (
    CASTS,
    INERT,
    LIKE,
    MAKERS,
    SHAPES,
    TELLING,
    call_tells,
    is_apart,
    tensors_in,
    writes_in_place,
)
from vi_kit.pyro.leaves import described, reached
from vi_kit.pyro.mixing import Mixing
from vi_kit.pyro.noise import Noise, generators, noise_kept
from vi_kit.pyro.precision import as_surrounded, full_precision, widened
from vi_kit.pyro.remade import remade


class PyroBackend:
    """Implements `vi_kit.engine.backend.Backend` for torch and Pyro.

    Args:
        state: what is kept from step to step.
    """

    name = "pyro"
    replicates_broadcast = True
    structure_varies = True
    maps_values = False

    def __init__(self, state: dict[str, torch.Tensor] | None = None) -> None:
        self.state = {} if state is None else state
        self.handler: _Handler | None = None
        self.leaked: frozenset[Site] = frozenset()
        self.tracking = False
        self.untraceable: frozenset[str] = frozenset()
        self.probe: LeakProbe | None = None
        self.params: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.drawn: set[Any] = set()
        self.draws: list[Draw] = []
        self.steps: set[torch.Tensor] = set()
        self.own_params: dict[str, torch.Tensor] = {}
        self.own_modules: dict[str, torch.nn.Module] = {}
        self.recorded: list[Recorded] | None = None
        self.reader: Mixing | None = None
        self.harmless: frozenset[str] = frozenset()
        self.may_remake = True

    # Arrays

    def stop_gradient(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach()

    def alias(self, array: torch.Tensor) -> torch.Tensor:
        return array if isinstance(array, Random) else array.view_as(array)

    def may_need_gradient(self, array: torch.Tensor) -> bool:
        return array.requires_grad

    def logsumexp(self, array: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.logsumexp(array, axis)

    def cumulative_logsumexp(self, array: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.logcumsumexp(array, axis)

    def jvp(
        self, fn: Callable[..., torch.Tensor], primals: list[Any], tangents: list[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Reverse mode twice: what forward mode gives cannot be differentiated everywhere.
        with torch.enable_grad():
            steps = [torch.zeros_like(p).requires_grad_() for p in primals]
            value = fn(*(p + step for p, step in zip(primals, steps, strict=True)))
            weights = torch.ones_like(value).requires_grad_()
            self.steps |= {*steps, weights}
            slopes = torch.autograd.grad(value, steps, weights, create_graph=True)
            along = sum(((s * t).sum() for s, t in zip(slopes, tangents, strict=True)))
            (slope,) = torch.autograd.grad(torch.as_tensor(along), weights, create_graph=True)
        return value, slope

    def zero(self) -> torch.Tensor:
        return torch.zeros(())

    def constants(self, values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(values, device="cpu").to(like.device, non_blocking=True)

    def uniform(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.rand(shape, dtype=like.dtype, device=like.device)

    def standard_normal(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def gradients(
        self,
        fn: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]],
        values: list[torch.Tensor],
        num: int,
    ) -> list[list[torch.Tensor]]:
        del num
        known, again, found = get_provenance(tuple(values)), torch.is_grad_enabled(), []
        with torch.enable_grad():
            values = [detach_provenance(v) for v in values]
            steps = [torch.zeros_like(v).requires_grad_() for v in values]
            self.steps |= set(steps)
            with Origins() if running().is_dry else nullcontext():
                totals = fn([v + step for v, step in zip(values, steps, strict=True)])
            known |= get_provenance(tuple(totals)).intersection(running().sites)
            for total in map(detach_provenance, totals):
                total = total if total.requires_grad else steps[0].sum() * 0.0
                found.append(
                    torch.autograd.grad(
                        total, steps, retain_graph=True, create_graph=again, materialize_grads=True
                    )
                )
        return [[track_provenance(g, known) if known else g for g in grads] for grads in found]

    def loop(
        self,
        step: Callable[[Any, Any], tuple[Any, list[torch.Tensor]]],
        carry: Any,
        xs: list[torch.Tensor],
    ) -> tuple[Any, list[torch.Tensor]]:
        made = []
        for i in range(len(xs[0])):
            carry, arrays = step(carry, [x[i] for x in xs])
            made.append(arrays)
        return carry, [torch.stack(arrays) for arrays in zip(*made, strict=True)]

    def standard_gamma(self, concentration: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.distributions.Gamma(
                concentration, torch.ones_like(concentration), validate_args=False
            ).sample()

    def lgamma(self, array: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(array)

    def polygamma(self, order: int, array: torch.Tensor) -> torch.Tensor:
        return torch.digamma(array) if order == 0 else torch.polygamma(order, array)

    def until_accepted(
        self, propose: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        values, accepted = propose()
        known = get_provenance((values, accepted))
        values, accepted = detach_provenance(values), detach_provenance(accepted)
        while not bool(accepted.all()):
            again, now = (detach_provenance(x) for x in propose())
            values, accepted = torch.where(accepted, values, again), accepted | now
        return track_provenance(values, known)

    def may_hold(self, condition: torch.Tensor) -> bool:
        return bool(detach_provenance(condition).all())

    # Provenance

    def track(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        if not self.tracking:
            return value
        if site.label in self.untraceable:
            self.leaked |= {site}
        if self.probe is not None:
            value = self.probe.mark(value, site)
        return track_provenance(value, frozenset({site}))

    def untracked(self, value: torch.Tensor) -> torch.Tensor:
        return detach_provenance(value) if self.tracking else value

    def upstream(self, run: Run, value: torch.Tensor, key: Any) -> frozenset[Site]:
        if not self.tracking:
            return _before(run, key) if run.plan.tracked else frozenset()
        known = get_provenance(value) | self.leaked
        if self.probe is not None:
            self.probe.compare(detach_provenance(value), known)
        run.note_upstream(known, lambda: _before(run, key))
        return known

    def in_scope(self, run: Run) -> Sequence[Site] | None:
        return None if self.handler is None else self.handler.in_scope()

    def random(self, moments: Moments, site: Site, sample: torch.Tensor | None) -> torch.Tensor:
        return random_value(moments, (site.order, site.label), sample)

    def expectation(self, array: torch.Tensor, key: Hashable) -> torch.Tensor:
        run = running()
        if not isinstance(array, Random):
            return array
        if run.takes_form(key, array.value):
            return sampled(array)
        is_blocked = isinstance(array.value, Blocked) and array.sample is not None
        if (
            is_blocked and key in run.plan.closed
        ):  # the program is another one than that of the plan
            raise Replan
        return settled(array.value, array.sample, key in run.plan.closed)

    def worlds(self, values: torch.Tensor, site: Site) -> torch.Tensor:
        raise NotImplementedError("programs see all values at once here")

    def alternatives(self, value: torch.Tensor, others: torch.Tensor, site: Site) -> torch.Tensor:
        raise NotImplementedError("programs see all values at once here")

    def each(self, fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        return fn(value)

    def plain(self, value: torch.Tensor) -> torch.Tensor:
        return value

    # State

    def get_state(self, key: str) -> torch.Tensor | None:
        return self.state.get(key)

    def set_state(self, key: str, value: torch.Tensor) -> None:
        self.state[key] = value.detach()

    def predict(self, name: str, network: Any, inputs: Any, *, held: bool = False) -> Any:
        del held  # what must not ascend the objective is taken out of its gradient by the loss
        if isinstance(network, torch.nn.Module):
            self.own_modules[name] = network
        elif self.handler is not None:
            raise EstimatorError(
                message(
                    f"the network {name!r} is used while the guide runs, and must be a module",
                    got=type(network).__name__,
                    expected="a torch.nn.Module",
                    fix="torch.nn.Sequential(torch.nn.Linear(...), ...)",
                )
            )
        return network(inputs)

    def parameter(self, name: str, start: torch.Tensor) -> torch.Tensor:
        value = pyro.get_param_store().setdefault(name, start)
        self.own_params[name] = _leaf(value)
        return value

    def announce(self) -> list[torch.Tensor]:
        """Register what estimators use with whoever listens, out of reach of the handlers inside programs;
        returns the parameters."""
        for name, module in self.own_modules.items():
            pyro.module(name, module)
        for name in self.own_params:
            pyro.param(name)
        return [p for p in self._own_leaves() if p.requires_grad]

    def _own_leaves(self) -> list[torch.Tensor]:
        """What estimators train."""
        of_modules = (p for m in self.own_modules.values() for p in m.parameters())
        return [*self.own_params.values(), *of_modules]

    # Programs

    @contextmanager
    def session(self, run: Run) -> Iterator[None]:
        """Enter the outermost messenger, and provenance where the plan asks for it."""
        self.tracking = run.plan.tracked and not run.plan.entangled
        self.untraceable = run.plan.provenance or frozenset()
        self.harmless = run.plan.harmless
        mode = _Leaks(self) if self.tracking else nullcontext()
        first = run.plan.analytic and (self.tracking or self.reader is not None)
        moments = CarriedMoments() if first else nullcontext()
        record = nullcontext() if self.probe is None else self.probe.record.modes()
        record = record if self.reader is None else self.reader.modes()
        with _Outermost(self), record, mode, moments:
            yield

    @contextmanager
    def salted(self, dist: Any, salt: int) -> Iterator[None]:
        del dist
        seed = int(torch.randint(2**31, ()))
        with noise_kept():
            for generator in generators():
                generator.manual_seed(2**31 * salt + seed)
            yield

    @contextmanager
    def inside(self, run: Run) -> Iterator[None]:
        """The session, and the replicates that are open in it."""
        with ExitStack() as stack:
            stack.enter_context(self.session(run))
            for axis in sorted(run.open_replicates, key=lambda a: a.order):
                stack.enter_context(_ReplicatePlate(axis.name, axis.size, run.dims[axis]))
            yield

    @contextmanager
    def replicated(self, run: Run, axis: Axis) -> Iterator[None]:
        with _ReplicatePlate(axis.name, axis.size, run.place(axis)):
            yield

    def map_copies(
        self,
        run: Run,
        once: Callable[[Any], list[torch.Tensor]],
        axis: Axis,
        together: bool,
        chunk: int | None,
    ) -> None:
        before, leaked, num = self.leaked, self.leaked, axis.size
        if chunk is not None:
            num //= chunk if run.plan.vectorize else 1
            if not self.may_remake:
                raise _not_captured(axis, chunk)
            once = remade(run, self, once)
        for number in range(num):
            self.leaked = before  # the sites of other copies are others
            once(number)
            leaked |= self.leaked
        self.leaked = leaked

    def merge_copies(self, kept: Mapping[Site, Site]) -> None:
        self.leaked = frozenset(kept.get(s, s) for s in self.leaked)

    def params_of(self, role: str) -> dict[Hashable, str]:
        return {id(leaf): name for name, leaf in self.params[role].items()}

    def leaves(self, role: str) -> list[torch.Tensor]:
        """The tensors to train that the programs of a role used."""
        leaves = {id(p): p for p in self.params[role].values() if p.requires_grad}
        return list(leaves.values())

    def spoilt_params(self) -> list[str]:
        named = {n: p for role in self.params.values() for n, p in role.items()}
        return sorted(n for n, p in named.items() if bool(p.isnan().any()))

    def spoilt_gradients(self) -> dict[str, torch.Tensor]:
        """The parameters of which the gradient is not a number, by name, where asking is no wait for a device."""
        named = {id(p): (n, p) for role in self.params.values() for n, p in role.items()}
        grads = {n: (p, g) for n, p in named.values() if (g := p.grad) is not None and g.is_cpu}
        if not math.isnan(sum(g.sum().item() for _, g in grads.values())):
            return {}
        return {n: p for n, (p, g) in grads.items() if bool(g.isnan().any())}

    def simulate(self, run: Run, program: Program) -> Draw:
        return self._run(Simulation(run, program))

    def conditioned(self, run: Run, program: Program, draw: Draw, only: str = "") -> Draw:
        return self._run(Conditioned(run, program, draw=draw, only=only))

    def unbounded(self, run: Run, program: Program, draw: Draw, *, finds: bool) -> Draw:
        # what a chain makes of values is made by the target's parameters too, and is none of the program's doing
        self.drawn.update(detach_provenance(v).grad_fn for v in draw.by_name.values())
        return self._run(Unbounded(run, program, draw=draw, finds=finds))

    @contextmanager
    def aside(self) -> Iterator[None]:
        recorded, leaked, self.recorded = self.recorded, self.leaked, None
        try:
            yield
        finally:
            self.recorded, self.leaked = recorded, leaked

    def parameters(
        self, run: Run, program: Program, starts: Mapping[str, Start], like: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        check_starts(starts, dict(pyro.get_param_store().items()))
        outer, self.handler = self.handler, _Handler(Simulation(run, program))
        try:
            return {name: declared(name, start, like) for name, start in starts.items()}
        finally:
            for p in self.handler.released:
                p.requires_grad_(True)
            self.handler = outer

    def log_density(self, run: Run, program: Program, draw: Draw) -> Cost:
        return self._run(Replay(run, program, draw))

    def advanced(
        self, run: Run, program: Program, draw: Draw, before: frozenset[str]
    ) -> tuple[Cost, str]:
        reading = Advance(run, program, draw, before=before)
        return self._run(reading), reading.following

    def filtered(
        self,
        run: Run,
        program: Program,
        target: Program,
        given: Draw,
        axis: Axis,
        how: Resampling,
        weight: torch.Tensor,
        first: Draw | None,
    ) -> Any:
        raise NotImplementedError("there is no control flow that takes steps by itself")

    def draw_apart(
        self, run: Run, statement: Statement, role: str, constants: frozenset[Site]
    ) -> tuple[torch.Tensor, Site]:
        return draw_apart(run, statement, role, constants)

    def categorical(self, logits: torch.Tensor) -> PyroDistribution:
        return PyroDistribution(Categorical(logits=logits))

    def brought(self, run: Run, make: Callable[[], torch.Tensor], event_ndim: int) -> torch.Tensor:
        if self.reader is None:
            return make()
        with self.reader.record.drawing():
            value = make()
        self.reader.mark_in_front(run, value, event_ndim)
        return value

    def one_value(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def with_worlds(self, run: Run, named: Named, event_ndim: int) -> torch.Tensor:
        dims = {a: -a.order if a.kind == PLATE else run.dims.get(a, 0) for a in named.axes}
        axes = sorted((a for a in named.axes if a.kind >= PLATE), key=dims.__getitem__)
        ndim = len(axes)
        order = [*map(named.axes.index, axes), *range(ndim, ndim + event_ndim)]
        sizes = [1] * max((-dims[a] for a in axes), default=0)
        for a in axes:
            sizes[dims[a]] = a.size
        array = named.array.permute(order)
        return array.reshape((*sizes, *array.shape[ndim:]))

    def evaluate(self, run: Run, draw: Draw, fn: Callable[..., torch.Tensor]) -> Term:
        return self._run(Evaluation(run, draw, fn))

    def _run(self, reading: Simulation | Replay | Evaluation) -> Any:
        run, program, num_terms = reading.run, reading.program, reading.run.num_terms
        noise = None if isinstance(reading, Evaluation) else self._noise(reading)
        if run.plan.in_turn and run.expands and not isinstance(reading, Unbounded):
            Turns(self, reading, noise).execute()
            if self.recorded is not None:
                self.recorded.append(Recorded(reading, dict(run.dims), num_terms))
        elif (program.role, num_terms) in run.plan.compared:
            Compared(self, reading, noise).execute()
        elif self.recorded is not None and not isinstance(reading, Unbounded):
            with saved_bytes() as saved:
                self.once(reading, noise)
            self.recorded.append(Recorded(reading, dict(run.dims), num_terms, saved()))
        else:
            self.once(reading, noise)
        result: Any = reading.result()
        if isinstance(reading, Evaluation):
            return result
        if noise is not None:
            draw: Any = reading.draw if isinstance(reading, Replay) else result
            draw.noise[program.noise_key()] = noise.before
            if noise.found:
                run.note_noise(program.role)
        if torch.is_grad_enabled():
            self._note_leaves(run, program, result)
        return result

    def once(self, reading: Any, noise: Noise | None = None) -> None:
        """Run the program of a reading and bring it its messages."""
        program, fn = reading.program, reading.program.fn
        if isinstance(fn, Evaluation):
            return fn.execute(reading)
        outer, self.handler = self.handler, _Handler(reading)
        handler = self.handler
        handler.noise = noise
        known = self.params[program.owner]
        known.update(reading.run.plan.leaves.get(program.owner, {}))
        known.update(fn.named_parameters() if isinstance(fn, torch.nn.Module) else {})
        args, kwargs = handler.held_arguments() if program.held else (program.args, program.kwargs)
        try:
            if noise is not None:
                noise.start()
            with UnconditionMessenger() if program.joint else nullcontext():
                if not program.held:
                    with as_surrounded():
                        fn(*args, **kwargs)
                else:
                    handler.hold(known.values())
                    with warnings.catch_warnings(), as_surrounded():
                        warnings.filterwarnings("ignore", ".*because requires_grad=False")
                        fn(*args, **kwargs)
        except Stop:
            pass
        finally:
            self.handler = outer
            if noise is not None:
                noise.stop()
            for p in handler.released:
                p.requires_grad_(True)

    def _noise(self, reading: Simulation | Replay) -> Noise | None:
        """Watch what a program draws besides its sites: in the dry run to know whether it does."""
        run, program = reading.run, reading.program
        if not run.may_draw_more(program.role):
            return None
        known = reading.draw.noise.get(program.noise_key()) if isinstance(reading, Replay) else None
        return Noise({} if known is None else known, again=known is not None)

    def _note_leaves(self, run: Run, program: Program, result: Draw | Cost) -> None:
        """Find what a program trains, announced or not: in the dry run to know it, and where parameters are held to be
        sure that none was missed."""
        if program.held or run.finds_leaves:
            values = result.values() if isinstance(result, Draw) else ()
            cost = result.density if isinstance(result, Draw) else result
            arrays = [*map(detach_provenance, values), *(t.base.array for t in cost.terms)]
            found, known = self._reached(arrays), self.params[program.owner]
            ids = {id(p) for p in known.values()}
            if run.plan.analytic:  # moments are made of what trains the program that drew them
                others = {id(p) for params in self.params.values() for p in params.values()} - ids
                found = [leaf for leaf in found if id(leaf) not in others]
            if found:
                run.missed_leaves(self._not_held(program, found))
            for leaf in found:
                if id(leaf) not in ids:
                    known[self._described(leaf, program)] = leaf
            run.note_leaves(program.owner, dict(known))
        if isinstance(result, Draw):
            self.draws.append(result)

    def _reached(self, arrays: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors to train from which arrays are computed, but for values that were drawn before."""
        values = (v for draw in self.draws for v in draw.values())
        drawn = self.drawn.union(detach_provenance(v).grad_fn for v in values)
        own = {id(p) for p in self._own_leaves()}
        leaves = (leaf for leaf in reached(arrays, drawn) if leaf not in self.steps)
        return [leaf for leaf in leaves if id(leaf) not in own]

    def _described(self, leaf: torch.Tensor, program: Program) -> str:
        name, known = (
            described(leaf, (program.fn, program.args, program.kwargs)),
            self.params[program.owner],
        )
        return name if name not in known else f"{name} ({len(known)})"

    def _not_held(self, program: Program, found: list[torch.Tensor]) -> str:
        names = [described(leaf, (program.fn, program.args, program.kwargs)) for leaf in found]
        return message(
            f"stop_gradient on the {program.role}: {names} cannot be held",
            got="a tensor that was computed from it before the step and is no argument of the step",
            expected="parameters that the program uses itself, or arguments",
            fix="give the tensor to the step as an argument, or detach it",
        )

    def refuse_unknown(self, costs: Iterable[torch.Tensor]) -> None:
        """Where gradients are split, refuse parameters of which nobody knows whose they are."""
        owners = [p for role in ("model", "guide") for p in self.params[role].values()]
        known = {id(p) for p in (*owners, *self._own_leaves())}
        unknown = [
            leaf for leaf in reached(costs) if id(leaf) not in known and leaf not in self.steps
        ]
        if unknown:
            names = [described(leaf, ()) for leaf in unknown]
            raise Replan(
                message(
                    f"split_gradients: {names} belong neither to model nor to guide",
                    got="parameters of the objective itself, which would ascend no bound",
                    expected="parameters that model or guide uses",
                    fix="use them in the model or in the guide, or one bound for all",
                )
            )


class _Outermost(Messenger):
    """Gives every message to the handler of the program that runs. It must be entered before any
    plate, so that the plates have expanded the distribution by the time it sees it."""

    def __init__(self, backend: PyroBackend):
        super().__init__()
        self.backend = backend

    def _pyro_sample(self, msg: Any) -> None:
        if self.backend.handler is not None:
            msg["fn"] = widened(msg["fn"])
            with full_precision():
                self.backend.handler.sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.backend.handler is not None:
            with full_precision():
                self.backend.handler.sampled(msg)

    def _pyro_post_param(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.param(self.backend, msg)
        else:  # in the objective itself
            self.backend.params["objective"][msg["name"]] = _leaf(msg["value"])


def _not_captured(axis: Axis, chunk: int) -> CaptureError:
    return CaptureError(
        message(
            "iid(..., chunk=...) cannot be compiled: what is made again for the gradient runs as it is written",
            got=f"num_replicates={axis.size}, chunk={chunk}",
            expected="all copies at once",
            fix="compile=False, or no chunk",
        )
    )


class _ReplicatePlate(IndepMessenger):
    """A plate for replicates: no subsampling, no message of its own."""

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        BroadcastMessenger._pyro_sample(msg)


class _Leaks(TorchFunctionMode):
    """Notices values that leave the reach of provenance tracking: control flow, Python numbers and text,
    shapes that depend on values, tensors made from values, writes into untracked tensors. Whatever comes
    later is then taken to depend on them."""

    def __init__(self, backend: PyroBackend):
        super().__init__()
        self.backend = backend

    def __enter__(self) -> Any:
        """What is printed of a tensor is that of one without provenance."""

        mode = self

        def __repr__(self: ProvenanceTensor) -> str:
            if not mode._is_harmless(caller()):
                mode.backend.leaked |= get_provenance(self)
            return repr(detach_provenance(self))

        self.shown_before, ProvenanceTensor.__repr__ = ProvenanceTensor.__repr__, __repr__
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        ProvenanceTensor.__repr__ = self.shown_before
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if ProvenanceTensor not in types:
            if name in CASTS and args and isinstance(args[0], ProvenanceTensor):
                made = func(detach_provenance(args[0]), *args[1:], **kwargs)
                return track_provenance(made, get_provenance(args[0]))
            if name in MAKERS:
                self.backend.leaked |= get_provenance((args, kwargs))
            return func(*args, **kwargs)
        if func in SHAPES:  # a torch.Size, of which provenance makes a tuple
            return func(detach_provenance(args[0]), *args[1:], **kwargs)
        plain_args, of_args = _without_provenance(args)
        plain_kwargs, of_kwargs = _without_provenance(kwargs.values())
        known = of_args | of_kwargs
        result = func(*plain_args, **dict(zip(kwargs, plain_kwargs, strict=True)))
        if any(map(is_apart, tensors_in(result))):
            self.backend.leaked |= known
            return result
        result = track_provenance(result, known)
        if func in TELLING:
            self.backend.leaked |= frozenset() if self._is_harmless(caller()) else known
        elif writes_in_place(name):
            written = args[0] if args[0]._base is None else None
            known = get_provenance(written) if written is not None else frozenset()
            self.backend.leaked |= (of_args | of_kwargs) - known
        elif name == "__set__":
            self.backend.leaked |= get_provenance(args[1:])
        elif name in INERT:
            pass
        elif "out" in kwargs or name in MAKERS or call_tells(name, args, result):
            frame = caller()
            if not (name == "__bool__" and is_validation(frame)) and not self._is_harmless(frame):
                given = args[1:] if name in LIKE and "out" not in kwargs else args
                self.backend.leaked |= get_provenance((given, kwargs))
        return result

    def _is_harmless(self, frame: Any) -> bool:
        return bool(self.backend.harmless) and line_of(frame) in self.backend.harmless


def _without_provenance(values: Iterable[Any]) -> tuple[list[Any], frozenset[Site]]:
    """Values as they are without provenance, and that of all together. Few are containers, in which it takes long to
    look for tensors."""
    plain, known = [], frozenset[Site]()
    for value in values:
        if type(value) is ProvenanceTensor:
            known |= value._provenance
            value = value._t
        elif not isinstance(value, torch.Tensor | int | float | str | torch.dtype | None):
            value, own = extract_provenance(value)
            known |= own
        plain.append(value)
    return plain, known


class _Handler:
    """Brings the messages of one program to the reading that is made of it."""

    def __init__(self, reading: Any):
        self.reading = reading
        self.run, self.program = reading.run, reading.program
        self.released: list[torch.Tensor] = []
        self.originals: dict[int, Any] = {}
        self.noise: Noise | None = None
        self.statement = ""
        self.scope: Mapping[str, int] = {}
        self.depths: dict[str, int] = {}
        self.unscoped: set[str] = set()
        self.view: PyroDistribution | None = None
        self.met: tuple[Any, tuple[Axis, ...], frozenset[tuple[Axis, int]]] = (
            None,
            (),
            frozenset(),
        )

    def hold(self, params: Iterable[torch.Tensor]) -> None:
        for p in params:
            if p.requires_grad and p.is_leaf:
                p.requires_grad_(False)
                self.released.append(p)

    def held_arguments(self) -> Any:
        """The arguments of a program whose parameters are held. Those of the step are constants; simulated data have
        the gradient of their draw."""
        of_step: set[int] = set()
        with_replaced(self.run.arguments, lambda argument: of_step.add(id(argument)))

        def held(argument: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return argument
            is_constant = id(argument) in of_step
            value = argument.detach() if is_constant else argument.view_as(argument)
            self.originals[id(value)] = argument
            return value

        return with_replaced((self.program.args, self.program.kwargs), held)

    def in_scope(self) -> list[Site]:
        """The sites that the statement may see, by the `pyro.markov` contexts that it shares with them."""
        shared = {name for name, depth in self.scope.items() if self.depths.get(name) == depth}
        names = shared | self.unscoped | {self.statement}
        return [s for s in self.run.sites if s.name in names]

    def param(self, backend: PyroBackend, msg: Any) -> None:
        value, leaf = msg["value"], _leaf(msg["value"])
        if len(msg["args"]) > 1:
            check_parameter(msg["name"], msg["args"][1], value)
        backend.params[self.program.owner][msg["name"]] = leaf
        if self.program.held:
            self.hold([leaf])
            msg["value"] = value.detach()

    def sample(self, msg: Any) -> None:
        name, infer, fn = msg["name"], msg["infer"], msg["fn"]
        self.statement, self.scope = name, infer.get("_markov_scope", {})
        self.depths[name] = infer.get("_markov_depth", 0)
        if not self.depths[name]:
            self.unscoped.add(name)
        if type(fn) is _Subsample:
            if self.noise is not None:
                self.noise.at_site()
            key = (name, fn.size)
            if msg["value"] is None and key in self.run.subsamples:
                msg["value"], msg["done"] = self.run.subsamples[key], True
            return
        given = is_given(msg)
        if _is_silent(msg) or (msg["done"] and not given):
            return
        if is_copy(msg) and self.reading.leaves_out(name):
            msg["value"], msg["done"] = torch.zeros(fn.shape()), True
            return
        if given and not self.reading.takes_given(name):
            msg["done"] = True
            return
        if msg["is_observed"]:
            # what transforms remember of the data is older than the parameters
            if isinstance(msg["value"], torch.Tensor) and msg["value"].grad_fn is None:
                msg["value"] = msg["value"].view_as(msg["value"])
            return
        dist = self.viewed(at_value(fn, msg["value"]) if given else fn)
        if "obs" in infer:
            infer = {**infer, "obs": self.originals.get(id(infer["obs"]), infer["obs"])}
        if self.noise is not None:
            self.noise.at_site()
        value = self._latent(Statement(name, dist, self.within(msg)[0], infer, given))
        if self.noise is not None:
            self.noise.after_site(name)
        msg["value"], msg["done"] = dist.fn() if value is None else value, True

    def _latent(self, statement: Statement) -> Any:
        if self.reading.stops_at(statement.name, bool(statement.infer.get("is_auxiliary"))):
            raise Stop
        reader = self.run.backend.reader
        if reader is None or self.run.is_aside or not self.reading.draws(statement.name):
            return self.reading.latent(statement)
        with reader.record.drawing():
            value = self.reading.latent(statement)
        reader.mark_in_front(self.run, value, len(statement.dist.event_shape))
        return value

    def sampled(self, msg: Any) -> None:
        """Note the log density of a statement."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if type(fn) is _Subsample:
            self.run.share_subsample(self.program.role, (name, fn.size), value, _same)
            if self.noise is not None:
                self.noise.after_site(name)
            return
        if _is_silent(msg) or (msg["is_observed"] and _runs_model_in_guide()):
            return
        if (is_copy(msg) and self.reading.leaves_out(name)) or not self.reading.wants(name):
            return
        if type(fn) is Unit and not fn.has_rsample:
            if self.program.role == "guide":
                self.run.note_problem(
                    message(
                        f"guide factor {name!r} stands for a draw that the program hides",
                        got="pyro.factor(..., has_rsample=False), whose score nobody can know to add",
                        expected="a sample statement, so that its site can be given an estimator",
                        fix=f"pyro.sample({name!r}, ...); or pyro.factor(..., has_rsample=True) if no draw is hidden",
                    ),
                    of_estimator=True,
                )
        if self.reading.relaxes(name):
            fn = relaxed(fn)
        if self.run.ignores_supports or isinstance(value, Random):
            fn = unchecked(fn)
        (axes, inside), unmasked = self.within(msg), self.viewed(fn)
        if msg["is_observed"] and isinstance(value, torch.Tensor):
            value = where_seen(fn, value, msg["mask"], Random)
        drawn: tuple[Any, Any, bool] | None = self.reading.drawn_from(name)
        if drawn is not None and isinstance(value, Random) and not unmasked.hides_elements:
            plain = own_log_prob(unmasked, *drawn, value)
            log_prob = scaled_and_masked(plain, 1.0, unmasked.mask)
        else:
            try:
                log_prob = fn.log_prob(value, *msg["args"], **msg["kwargs"])
            except ValueError as error:
                if msg["is_observed"] and "within the support" in str(error):
                    raise outside_support(self.program.role, name, unmasked, error) from error
                raise
            whole = unmasked.fn is fn and unmasked.unrounded is None
            plain = log_prob if whole else unmasked.log_prob(value)
        scale, mask = msg["scale"], msg["mask"]
        if isinstance(mask, torch.Tensor):  # the program may go on to change it in place
            mask = mask.clone()
        made = LogDensity.of(name, axes, plain, log_prob, unmasked, scale, mask, inside)
        if msg["is_observed"] and type(fn) is not Unit and not msg["infer"].get("is_auxiliary"):
            self.run.note_observed(self.program.role, name)
        self.reading.record(made)

    def viewed(self, fn: Any) -> PyroDistribution:
        """The view of a distribution: the same before a statement has its value and after."""
        if self.view is None or self.view.given is not fn:
            self.view = PyroDistribution(fn)
        return self.view

    def within(self, msg: Any) -> tuple[tuple[Axis, ...], frozenset[tuple[Axis, int]]]:
        """Plates and replicates of a statement; the sequential plates, and how often each has been gone through."""
        stack = msg["cond_indep_stack"]
        if stack is not self.met[0]:
            frames = [f for f in stack if not f.vectorized]
            inside = frozenset((_plate(f, 0, int(f.size)), f.counter) for f in frames)
            known = stack if all(f.size >= 0 for f in stack) else None
            self.met = known, self._axes(msg), inside
        return self.met[1:]

    def _axes(self, msg: Any) -> tuple[Axis, ...]:
        replicates = {a.name: a for a in self.run.open_replicates}
        axes = []
        for frame in msg["cond_indep_stack"]:
            if not frame.vectorized:
                continue
            if frame.name in replicates:
                axes.append(replicates[frame.name])
                continue
            self.run.deepest_dim = max(self.run.deepest_dim, -frame.dim)
            if frame.dim < -self.run.plan.max_plate_nesting:
                raise Replan
            size = int(frame.size)
            if size < 0:  # a plate without a size has that of its sites
                shape: Any = getattr(msg["value"], "shape", ())
                both: Any = (
                    msg["fn"].batch_shape,
                    shape[: len(shape) - len(msg["fn"].event_shape)],
                )
                size = max((s[frame.dim] for s in both if len(s) >= -frame.dim), default=1)
            if size != 1 or frame.size == 1:
                axes.append(_plate(frame, -frame.dim, size))
        return self.run.one_name(self.program.role, axes)


class CutPlate(CondIndepStackFrame):
    """A plate that `fit` has cut."""


def _plate(frame: Any, order: int, size: int) -> Axis:
    scale = float(frame.full_size / size) if (frame.full_size or 0) > 0 else 1.0
    return Axis(PLATE, order, frame.name, size, scale, isinstance(frame, CutPlate))


def _before(run: Run, key: Any) -> frozenset[Site]:
    """All sites whose estimators ask for provenance, but for the one whose own value is in question."""
    own = key[1] if key[0] == "site" else None
    return frozenset(s for s in run.sites if s.order != own and run.is_followed(s))


def _same(one: Any, other: Any) -> bool:
    """Whether two minibatches, in whatever form they were given, are the same."""
    return one is other or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def _leaf(value: Any) -> torch.Tensor:
    """The unconstrained tensor of a parameter."""
    leaf = getattr(value, "unconstrained", lambda: value)()
    return getattr(value, "_pyro_unconstrained_param", leaf)


def _runs_model_in_guide() -> bool:
    """Whether a guide runs the model for its latent sites only: what is observed there is the model's."""
    return any(isinstance(m, GuideMessenger) for m in _PYRO_STACK)


def _is_silent(msg: Any) -> bool:
    """Whether a message is not a sample statement of the user's."""
    return bool(msg["infer"].get("_deterministic") or msg["infer"].get("_do_not_trace"))
