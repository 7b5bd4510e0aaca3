"""The NumPyro backend: programs run under one outermost messenger, replicates by `jax.vmap`."""

from __future__ import annotations

import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import digamma, gammaln, polygamma
from numpyro import handlers
from numpyro.contrib.module import eqx_module, flax_module, nnx_module
from numpyro.distributions import Categorical, Unit, constraints
from numpyro.handlers import substitute, uncondition
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import _PYRO_STACK, CondIndepStackFrame, Messenger
from numpyro.util import not_jax_tracer

from vi_kit.base.distributions import without_validation
from vi_kit.base.errors import BackendError, ObjectiveError, message
from vi_kit.base.named import PLATE, Axis, Named
from vi_kit.base.protocols import Moments
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Term, kept_name
from vi_kit.engine.density import LogDensity, scaled_and_masked
from vi_kit.engine.drawing import draw_apart
from vi_kit.engine.lanes import Made, Part, along
from vi_kit.engine.plan import Replan
from vi_kit.engine.run import STEP_KEY, Run
from vi_kit.engine.statements import (
    Advance,
    AtDraw,
    Conditioned,
    Evaluation,
    Replay,
    Simulation,
    Stop,
    check_parameter,
    check_starts,
    is_copy,
    is_given,
    no_density,
)
from vi_kit.engine.unbounded import Unbounded
from vi_kit.language.programs import Draw, Program, Resampling, Start, Statement
from vi_kit.numpyro.annealing import declared
from vi_kit.numpyro.degrees import invented, is_known
from vi_kit.numpyro.dependence import GRADIENT, PARAMS, Provenance, Sight
from vi_kit.numpyro.distributions import (
    NumPyroDistribution,
    at_value,
    smooth,
    unchecked,
    widened,
)
from vi_kit.numpyro.expectations import own_log_prob, random_value, term_p
from vi_kit.numpyro.filter import Filtering
from vi_kit.numpyro.lanes import Lanes, alternatives_p, evaluate, worlds_p
from vi_kit.numpyro.markers import apart_p, site_p
from vi_kit.numpyro.scan import OpenSite, ScanAtDraw, SummedScan, finite_size, is_open
from vi_kit.numpyro.sharding import ONE, Devices


class NumPyroBackend:
    """Implements `vi_kit.engine.backend.Backend` for JAX and NumPyro.

    Args:
        key: random key of this step.
        params: constrained values of the parameters, and mutable state.
        provenance: on what each value depends, as far as that is known by now.
        watches: whether that is to be found out. What is not known is guessed.
        dry: whether values do not matter, only shapes.
        invents_data: whether what is observed is drawn, since the data are not known.
        devices: of a mesh, along which replicates are divided.
    """

    name = "numpyro"
    replicates_broadcast = False
    structure_varies = False
    maps_values = True

    def __init__(
        self,
        key: jax.Array,
        params: Mapping[str, Any],
        *,
        provenance: Provenance | None = None,
        watches: bool = False,
        dry: bool = False,
        invents_data: bool = False,
        devices: Devices = ONE,
    ):
        self.key = self.shared_key = key
        self.num_keys = 0
        self.params = dict(params)
        self.provenance = provenance
        self.watches = watches
        self.sight = Sight(self.params if watches else {})
        self.dry = dry
        self.invents_data = invents_data
        self.devices, self.is_spread, self.is_divided = devices, False, False
        self.replicates: dict[str, int] = {}
        self.handler: _Handler | None = None
        self.watched: dict[Any, tuple[jax.Array, frozenset[Any]]] = {}
        self.deepest_dim = 0
        self.has_loops = False
        self.questions = 0
        self.touched: dict[str, set[str]] = defaultdict(set)
        self.mutable: dict[str, Any] = {}
        self.kept: set[str] = set()
        self.declared_params: dict[str, tuple[Any, Any]] = {}

    def new_key(self) -> jax.Array:
        self.num_keys += 1
        return random.fold_in(self.key, self.num_keys)

    # Arrays

    def stop_gradient(self, array: Any) -> Any:
        if isinstance(array, Lanes):  # a constant is compared with nothing
            return array.drawn().map(lax.stop_gradient)
        return lax.stop_gradient(array)

    def alias(self, array: jax.Array) -> jax.Array:
        return array

    def may_need_gradient(self, array: jax.Array) -> bool:
        key = (GRADIENT, self.questions)
        self.questions += 1
        return PARAMS in self.sources(key, array, frozenset((PARAMS,)))

    def logsumexp(self, array: jax.Array, axis: int) -> jax.Array:
        return jax.nn.logsumexp(array, axis=axis)

    def cumulative_logsumexp(self, array: jax.Array, axis: int) -> jax.Array:
        return lax.cumlogsumexp(array, axis=axis)

    def jvp(
        self, fn: Callable[..., jax.Array], primals: list[Any], tangents: list[Any]
    ) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(fn, tuple(primals), tuple(tangents))

    def zero(self) -> jax.Array:
        return jnp.zeros(())

    def constants(self, values: np.ndarray, like: jax.Array) -> jax.Array:
        return jnp.asarray(values)

    def uniform(self, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
        return random.uniform(self.new_key(), shape, dtype=like.dtype)

    def standard_normal(self, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
        return random.normal(self.new_key(), shape, dtype=like.dtype)

    def gradients(
        self,
        fn: Callable[[list[jax.Array]], Sequence[jax.Array]],
        values: list[jax.Array],
        num: int,
    ) -> list[list[jax.Array]]:
        # one by one: XLA finds that the forward passes are one
        return [jax.grad(lambda values, i=i: fn(values)[i])(values) for i in range(num)]

    def loop(
        self, step: Callable[[Any, Any], tuple[Any, list[jax.Array]]], carry: Any, xs: Any
    ) -> tuple[Any, list[jax.Array]]:
        if len(xs[0]) > 1:
            return lax.scan(step, carry, xs)
        carry, made = step(carry, [x[0] for x in xs])
        return carry, [x[None] for x in made]

    def standard_gamma(self, concentration: jax.Array) -> jax.Array:
        held = lax.stop_gradient(concentration)
        return random.gamma(self.new_key(), held, dtype=held.dtype)

    def lgamma(self, array: jax.Array) -> jax.Array:
        return gammaln(array)

    def polygamma(self, order: int, array: jax.Array) -> jax.Array:
        return digamma(array) if order == 0 else polygamma(order, array)

    def until_accepted(self, propose: Callable[[], tuple[jax.Array, jax.Array]]) -> jax.Array:
        start, kept, count = self.new_key(), self.key, self.num_keys

        def again(state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            self.key, self.num_keys = state[2], 0
            values, now = propose()
            key = self.new_key()
            self.key, self.num_keys = kept, count
            return jnp.where(state[1], state[0], values), state[1] | now, key

        def is_open(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            return ~jnp.all(state[1])

        like, accepted = jax.eval_shape(propose)
        self.num_keys = count
        nothing = jnp.zeros(like.shape, like.dtype), jnp.zeros(accepted.shape, bool)
        return lax.while_loop(is_open, again, (*nothing, start))[0]

    def may_hold(self, condition: jax.Array) -> bool:
        return not not_jax_tracer(condition) or bool(np.all(condition))

    # Provenance

    def sources(self, key: Any, value: Any, otherwise: frozenset[Any]) -> frozenset[Any]:
        """On what a value depends, as far as that is known."""
        provenance = self.provenance or {}
        if not self.watches:
            return provenance.get(key, otherwise)
        known = provenance[key] if key in provenance else self.sight.asked_of(key, value)
        self.watched[key] = value, known
        return known

    def track(self, value: jax.Array, site: Site) -> jax.Array:
        return site_p.bind(value, site=site.order) if self.watches else value

    def untracked(self, value: jax.Array) -> jax.Array:
        return apart_p.bind(value) if self.dry else value

    def in_scope(self, run: Run) -> Sequence[Site] | None:
        return None

    def upstream(self, run: Run, value: jax.Array, key: Any) -> frozenset[Site]:
        known = self.sources(key, value, frozenset())
        if self.provenance is None or not run.plan.tracked:
            return frozenset()
        if key not in self.provenance and not self.dry:
            raise Replan
        sites = [s for order, s in run.by_order.items() if order in known]
        if self.dry:
            return frozenset(sites)
        return frozenset(s for s in sites if s.tracked or s.world is not None)

    def random(self, moments: Moments, site: Site, sample: jax.Array | None) -> jax.Array:
        return random_value(moments, (site.order, site.label), sample)

    def expectation(self, array: jax.Array, key: Hashable) -> jax.Array:
        return term_p.bind(array, key=key)

    # Several values

    def worlds(self, values: jax.Array, site: Site) -> jax.Array:
        return worlds_p.bind(values, site=site.order)

    def alternatives(self, value: jax.Array, others: jax.Array, site: Site) -> jax.Array:
        return alternatives_p.bind(value, others.astype(value.dtype), site=site.order)

    def each(self, fn: Callable[[Any], Any], value: Any) -> Any:
        return value.map(fn) if isinstance(value, Lanes) else fn(value)

    def plain(self, value: Any) -> jax.Array:
        if not isinstance(value, Lanes):
            return value
        if len(value.parts) > 1 or value.base.axes:
            raise ObjectiveError(
                message(
                    "an objective program looks at a value of a site that has several at once",
                    got=f"values along {[a.name for p in value.parts.values() for a in p.axes]}",
                    expected="functions of drawn values as costs, which are evaluated for each of them",
                    fix="vi.evaluate(fn, draw)",
                )
            )
        return value.base.array

    # State

    def get_state(self, key: str) -> jax.Array | None:
        if key not in self.params and not self.dry:
            warnings.warn(
                f"nowhere to keep {key!r} from step to step, so it stays at zero; give SVI"
                " loss.with_state(guide) for its guide",
                stacklevel=2,
            )
        return self.params.get(key)

    def set_state(self, key: str, value: jax.Array) -> None:
        if key in self.params:
            self.mutable[key] = value

    def predict(
        self, name: str, network: Any, inputs: Any, *, held: bool = False
    ) -> jax.Array | None:
        params = lax.stop_gradient(self.params) if held else self.params
        with handlers.block(), substitute(data=params), handlers.trace() as trace:
            with handlers.seed(rng_seed=random.key(0)):
                values = predictions(name, network, inputs)
        own = {n for n, s in trace.items() if s["type"] == "param"}
        if own - self.params.keys():
            warnings.warn(
                f"nowhere to keep the parameters of {name!r}; give SVI loss.with_state(guide) for its guide",
                stacklevel=2,
            )
            return None
        self.kept |= own
        return values

    def parameter(self, name: str, start: jax.Array) -> jax.Array:
        if name not in self.params:
            warnings.warn(
                f"nowhere to keep {name!r}, so it is not learned; give SVI loss.with_state(guide) for its guide",
                stacklevel=2,
            )
            return start
        self.kept.add(name)
        return self.params[name]

    # Programs

    @contextmanager
    def session(self, run: Run) -> Iterator[None]:
        del run
        with _Outermost(self):
            yield

    @contextmanager
    def salted(self, dist: Any, salt: Any) -> Iterator[None]:
        kept, own = self.key, dist.key
        self.key, dist.key = random.fold_in(kept, salt), random.fold_in(own, salt)
        try:
            yield
        finally:
            self.key = kept

    @contextmanager
    def replicated(self, run: Run, axis: Axis) -> Iterator[None]:
        raise NotImplementedError("replicates do not broadcast here")
        yield

    def map_copies(
        self,
        run: Run,
        once: Callable[[Any], list[jax.Array]],
        axis: Axis,
        together: bool,
        chunk: int | None,
    ) -> list[jax.Array]:
        minibatches, first_term = dict(run.subsamples), len(run.terms)
        kept, keys = self.key, random.split(self.new_key(), axis.size)

        def copy(key: jax.Array, number: jax.Array) -> list[jax.Array]:
            self.key = key
            try:
                return once(number)
            finally:  # what is traced may not outlive its trace
                self.key = kept
                del run.terms[first_term:]
                if chunk is not None or not (run.plan.vectorize or together):
                    # made inside the loop; outside they are made again, the same
                    run.subsamples = dict(minibatches)

        copies = keys, jnp.arange(axis.size)
        if chunk is not None:
            return _by_chunks(copy, copies, chunk, together=run.plan.vectorize)
        if run.plan.vectorize or together:
            return self.spread(jax.vmap(copy, axis_name=axis.name), copies, axis)
        return lax.map(lambda numbered: copy(*numbered), copies)

    def spread(self, fn: Callable, copies: Any, axis: Axis) -> Any:
        """What a function makes of copies, each on devices of its own if these can be divided by their number."""
        self.replicates[axis.name] = axis.size
        if self.is_spread or not self.devices.divides(axis.size):
            return fn(*copies)
        self.is_spread = True
        made = self.devices.spread(fn(*self.devices.spread(copies)))
        self.is_spread = False
        self.is_divided = True
        return made

    def merge_copies(self, kept: Mapping[Site, Site]) -> None:
        del kept  # there was one

    def params_of(self, role: str) -> dict[Hashable, str]:
        return {name: name for name in self.touched[role]}

    def spoilt_params(self) -> list[str]:
        def is_spoilt(x: Any) -> bool:
            known = not_jax_tracer(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating)
            return known and bool(np.isnan(x).any())

        return sorted(n for n, p in self.params.items() if any(map(is_spoilt, jax.tree.leaves(p))))

    def simulate(self, run: Run, program: Program) -> Draw:
        return self._run(Simulation(run, program))

    def conditioned(self, run: Run, program: Program, draw: Draw, only: str = "") -> Draw:
        return self._run(Conditioned(run, program, draw=draw, only=only))

    def unbounded(self, run: Run, program: Program, draw: Draw, *, finds: bool) -> Draw:
        return self._run(Unbounded(run, program, draw=draw, finds=finds))

    @contextmanager
    def aside(self) -> Iterator[None]:
        kept = (self.provenance, self.watches, self.questions, self.mutable)
        self.provenance, self.watches, self.mutable = None, False, dict(self.mutable)
        try:
            yield
        finally:  # what is traced may not outlive its trace
            self.provenance, self.watches, self.questions, self.mutable = kept

    def parameters(
        self, run: Run, program: Program, starts: Mapping[str, Start], like: jax.Array
    ) -> dict[str, jax.Array]:
        del like
        check_starts(starts, self.params)
        outer, self.handler = self.handler, _Handler(self, Simulation(run, program), 0)
        try:
            with substitute(data=self.params):
                return {name: declared(name, start) for name, start in starts.items()}
        finally:
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
        weight: jax.Array,
        first: Draw | None,
    ) -> tuple[Draw, Any, frozenset[str]]:
        def opened(program: Program, draw: Draw) -> ScanAtDraw:
            reading = Advance(run, program, draw)
            with run.aside(), handlers.block(), _Outermost(self):
                self._once(reading, 0)
            return reading.scan

        reading = Filtering(
            run=run,
            program=program,
            draw=given,
            axis=axis,
            how=how,
            opened=opened,
            model=target,
            weight=weight,
            first=first,
        )
        self._once(reading, 0)
        drawn = reading.result()
        if reading.log_weights is None:
            return drawn, None, frozenset()
        site = drawn.sites[reading.ancestor]
        drawn = drawn.restricted(drawn.keys() - {reading.ancestor})
        others = [*given.others, site]
        if first is not None:
            others += [*first.sites.values(), *first.others]
        drawn = replace(
            given.joined(drawn),
            by_name={**reading.own, **reading.descent(drawn.by_name)},
            others=tuple(dict.fromkeys(others)),
            constants=reading.constants,
        )
        weights = reading.log_weights
        return drawn, jnp.flip(weights) if reading.is_reversed else weights, reading.statements

    def draw_apart(
        self, run: Run, statement: Statement, role: str, constants: frozenset[Site]
    ) -> tuple[jax.Array, Site]:
        return draw_apart(run, statement, role, constants)

    def categorical(self, logits: jax.Array) -> NumPyroDistribution:
        return NumPyroDistribution(Categorical(logits=logits), self.new_key())

    def brought(self, run: Run, make: Callable[[], jax.Array], event_ndim: int) -> jax.Array:
        del run, event_ndim
        return make()

    def one_value(self, value: Any) -> jax.Array | None:
        if not isinstance(value, Lanes):
            return value
        return None if value.base.axes or len(value.parts) > 1 else value.base.array

    def with_worlds(self, run: Run, named: Named, event_ndim: int) -> Any:
        axes = tuple(a for a in named.axes if a.kind > PLATE)
        plates = {a.order: a for a in named.axes if a.kind == PLATE}
        batch = tuple(
            plates[i].size if i in plates else 1 for i in range(max(plates, default=0), 0, -1)
        )
        front, event = (
            tuple(a.size for a in axes),
            named.array.shape[named.array.ndim - event_ndim :],
        )
        array = named.array.reshape((*front, *batch, *event))
        return Lanes({None: Part(array, axes)}) if axes else array

    def evaluate(self, run: Run, draw: Draw, fn: Callable[..., jax.Array]) -> Term:
        evaluation = Evaluation(run, draw, fn)
        self._mapped(evaluation, evaluation.terms, lambda: evaluation.execute(evaluation))
        return evaluation.result()

    def _run(self, reading: Any) -> Any:
        noise = reading.draw.noise if isinstance(reading, Replay) else {}
        key = reading.program.noise_key()
        if key not in noise:
            self.num_keys += 1
            noise[key] = self.num_keys
        self._mapped(reading, reading.terms, lambda: self._once(reading, noise[key]))
        result = reading.result()
        if isinstance(result, Draw):
            result.noise.update(noise)
        return result

    def _once(self, reading: Any, noise: int) -> None:
        program = reading.program
        outer, self.handler = self.handler, _Handler(self, reading, noise)
        try:
            simulated = uncondition() if program.joint else nullcontext()
            with substitute(data={**self.params, **self.mutable}), simulated:
                program.fn(*program.args, **program.kwargs)
        except Stop:
            pass
        finally:
            self.handler = outer

    def _mapped(self, reading: Any, terms: list[Term], once: Callable[[], None]) -> None:
        """Let `once` see one value of each site that has several, and give what it made all of them."""
        run = reading.run
        if self.dry or not run.plan.expands:
            return once()
        made, draw, program = Made(run, terms), getattr(reading, "draw", None), reading.program
        values, of_args = {}, (program.args, program.kwargs)
        drawn_from: dict[str, Any] = {}
        if draw is not None:
            values = draw.by_name
            if run.plan.analytic:
                drawn_from = {name: d.dist.fn for name, d in draw.details.items()}
        leaves, tree = jax.tree.flatten((values, drawn_from, of_args), is_leaf=_is_lanes)
        places = [i for i, x in enumerate(leaves) if _is_lanes(x)]
        has_new_args = any(map(_is_lanes, jax.tree.leaves(of_args, is_leaf=_is_lanes)))
        kept = _kept(reading, self.mutable)

        def body(*arrays: jax.Array) -> list[jax.Array]:
            seen = list(leaves)
            for i, array in zip(places, arrays, strict=True):
                seen[i] = array
            values, drawn_from, (args, kwargs) = jax.tree.unflatten(tree, seen)
            if has_new_args:
                reading.program = replace(program, args=args, kwargs=kwargs)
            if draw is not None:
                dists = {n: NumPyroDistribution(fn) for n, fn in drawn_from.items()}
                details = {
                    n: replace(d, dist=dists.get(n, d.dist)) for n, d in draw.details.items()
                }
                reading.draw = replace(draw, by_name=values, details=details)
            try:
                once()
            finally:  # what is traced may not outlive its trace
                reading.program = program
                if draw is not None:
                    reading.draw = draw
            return [*made.take_out(), *(x for k in kept for x in k.take_out())]

        results = iter(evaluate(body, [leaves[i] for i in places], run.by_order))
        made.put_back([next(results).parts for _ in range(made.count)])
        for k in kept:
            k.put_back(results)


def _is_lanes(x: Any) -> bool:
    return isinstance(x, Lanes)


@dataclass
class _Kept:
    """What a program run puts into a dict while it is traced.

    Attributes:
        values: the dict.
        array: what of an entry is traced.
        exchanged: an entry with something else in its place, `None` for nothing.
    """

    values: dict[Any, Any]
    array: Callable[[Any], Any] = lambda entry: entry
    exchanged: Callable[[Any, Any], Any] = lambda entry, new: new
    before: dict[Any, Any] = field(init=False)
    added: dict[Any, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = dict(self.values)

    def take_out(self) -> list[jax.Array]:
        """The arrays of the new entries, which are gone until they are put back."""
        found = []
        for key, entry in list(self.values.items()):
            if key in self.before and self.before[key] is entry:
                continue
            arrays, tree = jax.tree.flatten(self.array(entry))
            found += arrays
            self.added[key] = self.exchanged(entry, None), tree
            del self.values[key]
        return found

    def put_back(self, results: Iterator[Lanes]) -> None:
        for key, (entry, tree) in self.added.items():
            new = jax.tree.unflatten(tree, [next(results) for _ in range(tree.num_leaves)])
            self.values[key] = self.exchanged(entry, new)


def _kept(reading: Any, mutable: dict[str, Any]) -> list[_Kept]:
    """All dicts into which the run of a program puts arrays."""
    draw = getattr(reading, "draw", None)

    def one(what: str) -> Callable[[Any, Any], Any]:
        return lambda entry, new: jax.tree.map(lambda x: _one(x, what), new, is_leaf=_is_lanes)

    kept = [
        _Kept(reading.run.subsamples, exchanged=one("a minibatch")),
        _Kept(mutable, exchanged=one("mutable state")),
    ]
    if draw is not None:
        kept.append(_Kept(draw.deltas))
    if isinstance(reading, Simulation):
        kept.append(
            _Kept(
                reading.factors,
                lambda factor: factor.values.array,
                lambda factor, new: replace(factor, values=_along(factor.values, new)),
            )
        )
    if isinstance(reading, Simulation | Replay):
        kept += [
            _Kept(reading.values),
            _Kept(
                reading.details,
                lambda statement: statement.dist.fn,
                lambda statement, new: replace(statement, dist=new and NumPyroDistribution(new)),
            ),
        ]
    return kept


def _along(named: Named, lanes: Lanes | None) -> Named:
    return Named(None, named.axes) if lanes is None else along(named, lanes.base)


def _one(lanes: Lanes, what: str) -> jax.Array:
    """What must be one array."""
    if lanes.base.axes:
        raise BackendError(
            message(
                f"{what} depends on a site that has several values at once",
                got=f"values along {[a.name for a in lanes.base.axes]}",
                expected="one value",
                fix="vi.Score() for that site",
            )
        )
    return lanes.base.array


def predictions(name: str, network: Any, inputs: Any) -> jax.Array:
    """What a network makes of inputs, with its parameters registered in the words of its library."""
    root = {m for c in type(network).__mro__ for m in MODULES if c.__module__.startswith(m)}
    if not root:
        return network(inputs)
    return MODULES[root.pop()](name, network, inputs)(inputs)


MODULES: dict[str, Callable[..., Any]] = {
    "flax.linen": lambda name, network, inputs: flax_module(name, network, inputs),
    "flax.nnx": lambda name, network, inputs: nnx_module(name, network),
    "equinox": lambda name, network, inputs: eqx_module(name, network),
}
"""How NumPyro registers a module, by the package of its class."""


SEEDED = ("prng_key", "plate", "control_flow")
"""Statements that need a random key, besides sample statements."""


class _Outermost(Messenger):
    """Gives every message to the handler of the program that runs. It must be entered before any
    plate, so that the plates have expanded the distribution by the time it sees it."""

    def __init__(self, backend: NumPyroBackend):
        super().__init__()
        self.backend = backend

    def process_message(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.process(msg)
        elif msg["type"] == "param":  # in the objective itself
            name = msg["name"]
            self.backend.touched["objective"].add(name)
            if name not in self.backend.params and not self.backend.dry:
                raise refuse_unknown(name)
            msg["value"] = self.backend.params.get(name, msg["value"])

    def postprocess_message(self, msg: Any) -> None:
        if self.backend.handler is not None:
            self.backend.handler.finish(msg)


class CutPlate(CondIndepStackFrame):
    """A plate that `fit` has cut.

    Attributes:
        full_size: of all rows.
    """

    full_size: int


class _InnerPlates(Messenger):
    """Gives the plates in a body of control flow, which hides its messages, the minibatches of those outside."""

    def __init__(self, fn: Callable, handler: _Handler):
        super().__init__(fn)
        self.handler = handler

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate" and msg["value"] is None:
            msg["value"] = self.handler.run.subsamples.get(_plate_key(msg))
            msg["kwargs"]["rng_key"] = self.handler.plate_key(msg["name"])
        elif msg["type"] == "control_flow":
            _reach_bodies(msg, self.handler)

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "plate":
            self.handler.full_sizes[msg["name"]] = int(msg["args"][0])


def _reach_bodies(msg: Any, handler: _Handler) -> None:
    """Wrap the functions that a scan or cond will run."""
    first, *rest = msg["args"]
    if callable(first):  # of a scan; what comes after it may be callable too, and is data
        msg["args"] = (_InnerPlates(first, handler), *rest)
    else:
        bodies = [_InnerPlates(f, handler) for f in rest[:2]]
        msg["args"] = (first, *bodies, *rest[2:])


def _plate_key(msg: Any) -> tuple[str, int]:
    return msg["name"], int(msg["args"][0])


def _same(one: Any, other: Any) -> bool:
    """Whether two minibatches are known to be the same."""
    if one is other:
        return True
    known = not_jax_tracer(one) and not_jax_tracer(other)
    return known and np.array_equal(one, other)


class _Handler:
    """Brings the messages of one program to the reading that is made of it."""

    def __init__(self, backend: NumPyroBackend, reading: Simulation | Replay, noise: int):
        self.backend = backend
        self.reading = reading
        self.run, self.program = reading.run, reading.program
        self.full_sizes: dict[str, int] = {}
        self.scanned: set[str] = set()
        self.prefix = ""
        self.noise = noise
        self.num_keys = 0

    def process(self, msg: Any) -> None:
        kind = msg["type"]
        if kind == "sample":
            msg["fn"] = widened(msg["fn"])
        if kind in SEEDED and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            msg["kwargs"]["rng_key"] = (
                self.plate_key(msg["name"]) if kind == "plate" else self.key_besides_sites()
            )
        if kind == "plate":
            if msg["value"] is None:
                msg["value"] = self.run.subsamples.get(_plate_key(msg))
        elif kind == "control_flow":
            _reach_bodies(msg, self)
            self.prefix = _prefix()
            is_scan, reading = callable(msg["args"][0]), self.reading
            if is_scan and isinstance(reading, Replay):
                msg["fn"] = partial(self.run_scan, msg["fn"])
            elif is_scan and isinstance(reading, Filtering):
                msg["fn"] = partial(self.run_filter, msg["fn"])
            else:
                is_reversed = is_scan and msg["args"][4]
                inside = self.replayed if isinstance(reading, Replay) else self.inside
                inside = partial(inside, is_reversed=is_reversed)
                msg["kwargs"]["substitute_stack"].append(("substitute", inside))
        elif kind == "sample" and not msg["is_observed"]:
            if msg.get("_control_flow_done"):
                self.came_out(msg)
            elif msg["value"] is None and self.is_left_out(msg):
                msg["value"] = jnp.zeros(msg["fn"].shape())
            elif msg["value"] is None or self.reading.takes_given(msg["name"]):
                self.latent(msg)

    def finish(self, msg: Any) -> None:
        kind, name = msg["type"], msg.get("name")
        if kind == "plate":
            self.full_sizes[name] = int(msg["args"][0])
            size = self.full_sizes[name]

            def same(one: Any, other: Any) -> bool:
                return len(one) == len(other) == size or _same(one, other)

            self.run.share_subsample(self.program.role, (name, size), msg["value"], same)
        elif kind == "control_flow":
            self.left(msg["value"])
        elif kind == "param":
            self.backend.touched[self.program.owner].add(name)
            if msg["args"]:
                check_parameter(name, msg["args"][0], msg["value"])
            start = msg["args"][0] if msg["args"] and not callable(msg["args"][0]) else msg["value"]
            self.backend.declared_params[name] = (
                jax.tree.map(lambda x: x if is_known(x) else jax.eval_shape(lambda: x), start),
                msg["kwargs"].get("constraint", constraints.real),
            )
            if self.backend.dry:
                msg["value"] = jax.tree.map(jnp.asarray, msg["value"])
            if self.program.held:
                msg["value"] = lax.stop_gradient(msg["value"])
        elif kind == "mutable":
            own = name.startswith(kept_name("baseline", "")) or name == STEP_KEY
            if self.run.apart and not own:
                self.run.note_problem(
                    message(
                        f"mutable site {name!r} inside replicates",
                        got="several copies of a state of which one can be kept",
                        expected="num_samples=1 and an objective without iid",
                        fix="num_samples=1, or take the mutable state out of the program",
                    ),
                    of_estimator=False,
                )
            self.backend.mutable[name] = msg["value"]
        elif kind == "sample" and not self.is_left_out(msg) and self.reading.wants(name):
            is_data = msg["is_observed"] and not isinstance(msg["fn"], Unit)
            if is_data and not msg["infer"].get("is_auxiliary"):
                self.run.note_observed(self.program.role, name)
            self.reading.record(self.density(msg))

    def plate_key(self, name: str) -> jax.Array:
        """The key of a minibatch: all replicates, programs and steps of a scan share it."""
        return random.fold_in(self.backend.shared_key, 2**31 + zlib.crc32(name.encode()) // 2)

    def is_left_out(self, msg: Any) -> bool:
        return is_copy(msg) and self.reading.leaves_out(msg["name"])

    def latent(self, msg: Any) -> None:
        if self.reading.stops_at(msg["name"], bool(msg["infer"].get("is_auxiliary"))):
            raise Stop
        fn, shape = msg["fn"], msg["kwargs"].get("sample_shape", ())
        if shape:
            fn = msg["fn"] = fn.expand((*shape, *fn.batch_shape))
            msg["kwargs"]["sample_shape"] = ()
        key = msg["kwargs"]["rng_key"]
        if key is None and isinstance(self.reading, Simulation):
            key = self.backend.new_key()
        elif key is None:  # of a site that is summed out, which is drawn in a dry run only
            key = random.fold_in(self.backend.key, 0)
        given = is_given(msg)
        dist = NumPyroDistribution(at_value(fn, msg["value"]) if given else fn, key)
        statement = Statement(msg["name"], dist, self.axes(msg), msg["infer"], given)
        value = self.reading.latent(statement)
        if value is None:
            value = dist.fn.sample(self.backend.new_key())
        by_moments = self.reading.drawn_from(msg["name"]) is not None
        msg["value"], msg["intermediates"] = value, [] if by_moments else dist.intermediates

    def key_besides_sites(self) -> jax.Array:
        """Of what the program draws besides its sites: at one draw always the same."""
        self.num_keys += 1
        return random.fold_in(random.fold_in(self.backend.key, self.noise), self.num_keys)

    def density(self, msg: Any) -> LogDensity:
        """The log density of a statement."""
        try:
            return self._density(msg)
        except NotImplementedError as error:
            dist, site = NumPyroDistribution(msg["fn"]), self.reading.site(msg["name"])
            raise no_density(msg["name"], dist, site, str(error)) from error

    def _density(self, msg: Any) -> LogDensity:
        fn, value, axes = smooth(msg["fn"]), msg["value"], self.axes(msg)
        if isinstance(value, int | float):  # NumPyro would compare it with traced values by NumPy
            value = jnp.asarray(value)
        is_latent = bool(self.run.plan.analytic) and not msg["is_observed"]
        if self.run.ignores_supports or (is_latent and isinstance(self.reading, Simulation)):
            fn = unchecked(fn)
        elif is_latent:  # whether it lies in the support is not known of a random value
            fn = without_validation(fn)
        if self.reading.relaxes(msg["name"]):
            fn = without_validation(fn)
        if self.backend.invents_data and msg["is_observed"]:
            value = invented(fn, value, self.backend.new_key())
        unmasked, kept = NumPyroDistribution(fn), msg["intermediates"]
        drawn = self.reading.drawn_from(msg["name"])
        if drawn is not None and not unmasked.hides_elements:
            plain = own_log_prob(unmasked, *drawn, value)
            log_prob = scaled_and_masked(plain, 1.0, unmasked.mask)
        elif unmasked.fn is fn:
            log_prob = plain = fn.log_prob(value, kept) if kept else fn.log_prob(value)
        else:
            log_prob = fn.log_prob(value)
            plain = log_prob if msg["is_observed"] else unmasked.log_prob(value)
        if msg["name"] in self.scanned:
            log_prob, plain = log_prob.sum(0), plain.sum(0)
        log_prob, plain = (self.declared(x, axes) for x in (log_prob, plain))
        return LogDensity.of(msg["name"], axes, plain, log_prob, unmasked, msg["scale"])

    def declared(self, log_prob: jax.Array, axes: tuple[Axis, ...]) -> jax.Array:
        """Sum over batch dims that no plate declares, as NumPyro does."""
        ndim, plates = jnp.ndim(log_prob), {a.order for a in axes}
        self.backend.deepest_dim = max(self.backend.deepest_dim, ndim)
        known = min(ndim, self.run.plan.max_plate_nesting)
        dims = [-d for d in range(1, known + 1) if d not in plates and log_prob.shape[-d] > 1]
        return jnp.sum(log_prob, axis=tuple(dims), keepdims=True) if dims else log_prob

    def axes(self, msg: Any) -> tuple[Axis, ...]:
        """Plates of a statement."""
        axes = []
        for frame in msg["cond_indep_stack"]:
            self.backend.deepest_dim = max(self.backend.deepest_dim, -frame.dim)
            if frame.dim < -self.run.plan.max_plate_nesting:
                raise Replan
            full = self.full_sizes.get(frame.name, frame.size)
            is_cut = isinstance(frame, CutPlate)
            scale = (frame.full_size if is_cut else full) / frame.size
            axes.append(Axis(PLATE, -frame.dim, frame.name, int(frame.size), scale, is_cut))
        return self.run.one_name(self.program.role, axes)

    # Control flow: the statements of a body come back as one each, with a dim in front after a scan.

    def inside(self, msg: Any, is_reversed: bool) -> jax.Array | None:
        """The value of a latent site in the body of a scan or cond, of all steps in a scan if it is given."""
        assert isinstance(self.reading, Simulation)
        if msg["type"] != "sample" or msg["value"] is not None or msg["is_observed"]:
            return None
        name = self.prefix + msg["name"]
        if not self.reading.draws(name):
            return self.replayed(msg, is_reversed)
        dist = NumPyroDistribution(widened(msg["fn"]), msg["kwargs"]["rng_key"])
        return self.reading.latent_inside(Statement(name, dist, self.axes(msg), msg["infer"]))

    def replayed(self, msg: Any, is_reversed: bool) -> jax.Array | None:
        """The value of a site of the draw in the body of a scan or cond, of all steps in a scan."""
        assert isinstance(self.reading, AtDraw)
        draw, name = self.reading.draw, self.prefix + msg["name"]
        if name not in draw:
            return None
        value = draw.replayed(name)
        if not is_reversed or value.ndim == len(msg["fn"].shape()):
            return value
        return jnp.flip(value, 0)  # NumPyro counts steps in the order in which it takes them

    def run_scan(self, scan: Any, *args: Any, substitute_stack: Any, **kwargs: Any) -> Any:
        """Run a scan in a replay; where its body has finite sites that the draw lacks, they are summed out. One that
        is to be taken step by step is not run."""
        assert isinstance(self.reading, Replay)
        reading, replayed = self.reading, partial(self.replayed, is_reversed=args[4])

        def inside(msg: Any) -> jax.Array | None:
            is_sought = is_open(self, msg) and isinstance(reading, Advance)
            if is_sought or finite_size(self, msg) is not None:
                raise OpenSite
            return replayed(msg)

        try:
            stack = [*substitute_stack, ("substitute", inside)]
            return scan(*args, substitute_stack=stack, **kwargs)
        except OpenSite:
            parts = self, scan, args, kwargs, substitute_stack, replayed
            if not isinstance(reading, Advance):
                return SummedScan(*parts).result()
            reading.scan = ScanAtDraw(*parts)
            reading.following = self.prefix + next(iter(reading.scan.open))
            self.run.repeated.add(reading.following)
            raise Stop from None

    def run_filter(self, scan: Any, *args: Any, substitute_stack: Any, **kwargs: Any) -> Any:
        """Run the scan of a proposal together with the model's."""
        assert isinstance(self.reading, Filtering)
        return self.reading.result_of(self, scan, args, kwargs, substitute_stack)

    def left(self, result: Any) -> None:
        """Note which sites a scan brought back."""
        is_scan = not isinstance(result[1], PytreeTrace)
        trace = result[1][0].trace if is_scan else result[1].trace
        if is_scan:
            self.backend.has_loops = True  # a dim that lies left of the plates
            sites = {self.prefix + name for name in trace}
            self.scanned.update(sites)
            self.run.repeated.update(sites)

    def came_out(self, msg: Any) -> None:
        name = msg["name"]
        if isinstance(self.reading, Simulation) and self.reading.draws(name):
            if name not in self.reading.inside:
                raise _data_inside(name, self.program.role)
            self.reading.came_out(name, msg["value"])
        else:
            statement = Statement(
                name, NumPyroDistribution(msg["fn"]), self.axes(msg), msg["infer"]
            )
            if self.reading.draws(name) and self.reading.sums(statement):
                self.run.refuse(
                    message(
                        f"site {name!r} is in the body of a cond, and cannot be summed out",
                        got="a finite site that the draw lacks, in a branch",
                        expected="finite sites that are always sampled",
                        fix=f"the site outside the cond, jnp.where in its place, or {name!r} in the guide too",
                    ),
                    of_estimator=False,
                )
                return
            self.reading.latent(statement)


def _by_chunks(
    fn: Callable[..., list[jax.Array]], xs: Any, chunk: int, *, together: bool
) -> list[jax.Array]:
    """A function of each of some arrays' rows, so many at a time; their gradients are of what is made again."""

    def of_chunk(xs: Any) -> list[jax.Array]:
        return jax.vmap(fn)(*xs) if together else lax.map(lambda x: fn(*x), xs)

    rows = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), xs)
    made = lax.map(jax.checkpoint(of_chunk, prevent_cse=False), rows)
    return [x.reshape(-1, *x.shape[2:]) for x in made]


def _prefix() -> str:
    """What the handlers around put before the names of sites, which those of a body get when they come out."""
    scopes = [h for h in _PYRO_STACK if isinstance(h, handlers.scope)]
    return "".join(h.prefix + h.divider for h in scopes if "sample" not in h.hide_types)


def _data_inside(name: str, role: str) -> ObjectiveError:
    """The error about data that are to be drawn, in the body of control flow."""
    return ObjectiveError(
        message(
            f"{role} site {name!r} is observed in the body of a scan or cond, and cannot be drawn instead",
            got="an objective that simulates the data",
            expected="data outside of control flow",
            fix="a Python loop over the steps, or an objective that draws from the guide only",
        )
    )


def refuse_unknown(name: str) -> ObjectiveError:
    """The error about a parameter of the objective that would never be trained: SVI runs model and guide only."""
    return ObjectiveError(
        message(
            f"parameter {name!r} of the objective is not among those that the loss was given",
            got=f"numpyro.param({name!r}, ...) in the objective only, of which SVI knows nothing",
            expected="parameters that the model or the guide declares too",
            fix=f"numpyro.param({name!r}, ...), with the same start, in the guide",
        )
    )


IN_THE_DARK = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises when a program looks at a traced value."""


def refuse_in_the_dark(error: Exception) -> BackendError:
    """The error about a program that looks at values while it is traced."""
    by_numpy = isinstance(error, jax.errors.TracerArrayConversionError)
    return BackendError(
        message(
            "model or guide looks at a value that is not known while the program is traced",
            got=str(error).splitlines()[0],
            expected="a program that can be traced, as under jax.jit",
            fix="data as jnp.asarray(x) where a plate's indices take rows of them (x[i]); jax.numpy instead of numpy;"
            " in functions of costs those of vi.array_namespace(array)"
            if by_numpy
            else "jnp.where or numpyro.contrib.control_flow.cond instead of if; in functions of costs those of"
            " vi.array_namespace(array) instead of numpy",
        )
    )
