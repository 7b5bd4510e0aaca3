"""One evaluation of a loss on NumPyro programs, and how its plan is made: traces, and readings of their operations.

The program is traced for its shapes, and evaluated only where its operations leave something open.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.distributions.constraints import real
from numpyro.primitives import _PYRO_STACK
from numpyro.util import not_jax_tracer

from vi_kit.analysis.blocked import Blocked
from vi_kit.analysis.degrees import DegreeProbe, Form
from vi_kit.analysis.jumps import OTHERS, Jumps
from vi_kit.base.errors import BackendError
from vi_kit.base.named import Axis
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.engine.arguments import closed_over, described
from vi_kit.engine.dry_run import ClosedFormRun, DryRun, ProbingRun
from vi_kit.engine.plan import Findings, Plan, Replan
from vi_kit.engine.planning import UNKNOWN_NESTING, Planner, left_of_nesting
from vi_kit.engine.run import Run
from vi_kit.engine.settings import Settings
from vi_kit.estimators import Estimator
from vi_kit.language.programs import Program
from vi_kit.numpyro.backend import (
    IN_THE_DARK,
    NumPyroBackend,
    refuse_in_the_dark,
)
from vi_kit.numpyro.degrees import (
    degrees_found,
    find_jumps_in,
    is_known,
    nearby,
    plausible,
    takes_steps,
)
from vi_kit.numpyro.dependence import Provenance, asked_of, sources
from vi_kit.numpyro.expectations import evaluated, finding, with_expectations
from vi_kit.numpyro.markers import elements_p
from vi_kit.numpyro.mixing import find_mixed_in
from vi_kit.numpyro.sharding import ONE, Devices
from vi_kit.objectives import elbo

MAX_TRACES = 8
"""How often programs are traced, each time by what was read of what depends on what, until that is found again."""

SIZES = (1.0, 0.3, 1.0, 3.0, 0.3, 1.0, 10.0, 3.0, 1.0, 0.1, 1.0, 3.0)
"""Of the numbers in the place of what is not known."""


@dataclass(frozen=True)
class LossStep:
    """One evaluation of a loss: its arguments, and what is traced with them."""

    settings: Settings
    key: jax.Array
    params: Mapping[str, Any]
    programs: tuple[Program, Program]
    devices: Devices = ONE

    def holding(self, names: Collection[str]) -> LossStep:
        """The step with all parameters but `names` as constants."""
        return self.at(
            {k: v if k in names else lax.stop_gradient(v) for k, v in self.params.items()}
        )

    def at(self, params: Mapping[str, Any]) -> LossStep:
        """The step with other values of its parameters."""
        return replace(self, params=params)

    def run(
        self, plan: Plan, *, learning: bool = False
    ) -> tuple[dict[str | None, jax.Array], Run, NumPyroBackend]:
        backend = NumPyroBackend(
            self.key, self.params, provenance=plan.provenance, devices=self.devices
        )
        run = Run(backend, plan, learning=learning)
        run.salts = self.settings.salts
        names: list[str | None] = []

        def execute() -> Any:
            groups = self.settings.execute(run, *self.programs)
            names[:] = list(groups)
            values = [named.array for named in groups.values()]
            made = values, run.own_losses, run.new_state, mutable_state(backend, plan)
            run.own_losses, run.new_state, backend.mutable = [], {}, {}
            run.forget()
            return made

        try:
            if plan.analytic:
                results = evaluated(execute, with_expectations(plan.closed))
            else:
                results = execute()
        except Replan:
            raise changing() from None
        values, run.own_losses, run.new_state, backend.mutable = results
        for key, value in run.new_state.items():
            backend.set_state(key, value)
        return dict(zip(names, values, strict=True)), run, backend

    def squared_gradient(self, plan: Plan, names: Collection[str], learned: set[str]) -> jax.Array:
        """The squared norm of the gradient of the guide's parameters, as a function of the learned ones only."""
        own = {k: self.params[k] for k in self.params.keys() & set(names) - learned}
        leaves, tree = jax.tree.flatten(lax.stop_gradient(own))
        moved = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        fixed = {k: v if k in learned else lax.stop_gradient(v) for k, v in self.params.items()}

        def total(values: list[jax.Array]) -> jax.Array:
            for i, value in zip(moved, values, strict=True):
                leaves[i] = value
            step = self.at({**fixed, **jax.tree.unflatten(tree, leaves)})
            return total_of(step.run(plan, learning=True)[0], (None, "guide"))

        slopes = jax.grad(total)([leaves[i] for i in moved])
        return functools.reduce(operator.add, [jnp.sum(g**2) for g in slopes], jnp.zeros(()))

    def kind(self) -> Any:
        """What tells apart steps that need plans of their own; `None` under handlers from outside."""
        if _PYRO_STACK:
            return None
        model, guide = self.programs
        of_programs = closed_over([model.fn, guide.fn])
        given = jax.tree.map(_of_any_trace, (self.params, model.args, model.kwargs))
        return of_programs, described(given[:2], given[2])

    def first_not_finite(self, plan: Plan) -> str | None:
        """The first statement whose log density is not finite, found in one plain draw."""
        plain = replace(self.settings, objective=elbo(), num_samples=1)
        run = Run(NumPyroBackend(self.key, self.params, provenance=plan.provenance), plan)
        try:
            plain.execute(run, *self.programs)
        except Replan:
            return None
        return run.first_not_finite()


def _of_any_trace(x: Any) -> Any:
    """What is known of an array, where it is not more."""
    return x if not_jax_tracer(x) else jax.ShapeDtypeStruct(x.shape, x.dtype)


def changing() -> BackendError:
    return BackendError(
        "the sites of model or guide change from one trace to the next; they may depend on nothing"
        " but the arguments"
    )


def total_of(groups: Mapping[str | None, jax.Array], wanted: tuple[str | None, ...]) -> jax.Array:
    """What the parameters of the wanted groups ascend or descend."""
    found = [groups[g] for g in wanted if g in groups]
    return functools.reduce(operator.add, found) if found else jnp.zeros(())


def mutable_state(backend: NumPyroBackend, plan: Plan) -> dict[str, Any]:
    """The mutable state after a run. What depends on random values in it is settled as in a term."""
    if not plan.analytic:
        return backend.mutable
    state = {}
    for name, value in backend.mutable.items():
        leaves, tree = jax.tree.flatten(value)
        what = f"mutable site {name!r}"
        leaves = [backend.expectation(x, (f"leaf {i}", what)) for i, x in enumerate(leaves)]
        state[name] = jax.tree.unflatten(tree, leaves)
    return state


def of_value_zero(own: jax.Array) -> jax.Array:
    return own - lax.stop_gradient(own)


def plan_for(step: LossStep, known: dict[Any, Any], *, has_state: bool = False) -> Plan:
    """The plan of a step.

    Args:
        step: to be planned.
        known: what was found out of programs before, by what was asked.
        has_state: whether there will be room for all that is kept from step to step.
    """
    settings = step.settings
    selection = replace(settings.selection, kept=None if has_state else frozenset(step.params))
    draft = Plan(selection, UNKNOWN_NESTING, settings.vectorize is not False)
    return NumPyroPlanner(step, known).plan(draft)


class NumPyroPlanner(Planner):
    """See `Planner`."""

    def __init__(self, step: LossStep, known: dict[Any, Any]):
        self.step, self.known = step, known
        self.nesting, self.has_loops = 0, False
        self.provenance: Provenance = {}
        self.jaxpr: Any = None
        self.terms: list[tuple[str, tuple[Axis, ...]]] = []
        self.touched: dict[str, set[str]] = {}
        self.declared: Mapping[str, tuple[Any, Any]] = {}

    def dry_run(self, plan: Plan) -> DryRun:
        return DryRun(self.make_backend(), plan)

    def make_backend(self, provenance: Provenance | None = None) -> NumPyroBackend:
        return NumPyroBackend(self.step.key, self.step.params, provenance=provenance, dry=True)

    def execute(self, run: DryRun) -> None:
        given = self.step.settings.max_plate_nesting
        if given is not None:
            run.plan = replace(run.plan, max_plate_nesting=given)
        for _ in range(MAX_TRACES):
            try:
                is_settled = self._traced(run)
            except Replan:
                raise left_of_nesting(given) from None
            except IN_THE_DARK as error:
                raise refuse_in_the_dark(error) from error
            if given is None:
                run.plan = replace(run.plan, max_plate_nesting=self.nesting)
            if is_settled:
                break
        else:
            raise changing()
        assert isinstance(run.backend, NumPyroBackend)
        run.backend.touched.update(self.touched)

    def _traced(self, run: DryRun) -> bool:
        """Trace the programs, given what is known of what depends on what; whether that is what is then read."""
        run.findings, known, nesting = Findings(), {}, run.plan.max_plate_nesting

        def dry(key: jax.Array, params: dict[str, Any]) -> list[jax.Array]:
            backend = NumPyroBackend(
                key, params, provenance=self.provenance, watches=True, dry=True
            )
            traced = TracedRun(backend, run.plan, run.findings)
            self.step.settings.execute(traced, *self.step.programs)
            known.update((name, of) for name, (_, of) in backend.watched.items())
            self.touched, self.declared = backend.touched, backend.declared_params
            self.nesting = nesting if nesting != UNKNOWN_NESTING else backend.deepest_dim
            self.has_loops = backend.has_loops
            self.terms = [(t.label, t.base.axes) for t in traced.terms]
            terms = [t.base.array for t in traced.terms]
            traced.forget()
            return [*(value for value, _ in backend.watched.values()), *terms]

        self.jaxpr = jax.make_jaxpr(dry)(self.step.key, dict(self.step.params))
        watched = zip(known, sources(self.jaxpr), strict=False)
        self.provenance = {name: asked_of(name, of) for name, of in watched}
        is_seen = not self.has_loops or nesting == self.nesting
        return is_seen and self.provenance == known

    def watched(self, draft: Plan) -> tuple[Plan, bool]:
        return self.made(draft), takes_steps(self.jaxpr.jaxpr)

    def placed(self, plan: Plan) -> Plan:
        return replace(
            plan,
            max_plate_nesting=self.nesting,
            provenance=self.provenance,
            tracked=plan.tracked or plan.has_worlds,
            leaves={role: dict.fromkeys(self.touched[role]) for role in ("model", "guide")},
        )

    def digest(self) -> str:
        """Of the numbers among the arguments, as far as they are known."""
        leaves = jax.tree.leaves((self.step.programs[0].args, self.step.programs[0].kwargs))
        numbers = (int, float, np.ndarray, np.generic, jax.Array)
        known = [x for x in leaves if isinstance(x, numbers) and not_jax_tracer(x)]
        known = [x for x in known if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)]
        return hashlib.blake2b(b"".join(np.asarray(x).tobytes() for x in known)).hexdigest()

    def jumps(self, plan: Plan) -> Jumps:
        key = str(self.jaxpr), self.digest(), plan.pathwise, plan.continuous
        if key not in self.known:
            jumps = Jumps()
            for labels, find in ((plan.pathwise, self._jumps), (plan.continuous, self._moving)):
                try:
                    jumps = jumps.joined(find(plan) if labels else Jumps())
                except Exception:  # the program may do what cannot be evaluated by itself
                    jumps = jumps.joined(Jumps.unknown(labels))
            self.known[key] = jumps
        return self.known[key]

    def _jumps(self, plan: Plan) -> Jumps:
        plausibly, jumps = self._plausibly(plan), Jumps()
        for seed, number in enumerate(OTHERS if plan.draws_others() else OTHERS[:1]):
            if not jumps.of_all(plan.pathwise):
                inputs = plausibly.inputs(seed)
                found_in = find_jumps_in(
                    sorted(plan.pathwise),
                    inputs,
                    plausibly.execute,
                    number,
                    others=plausibly.others(inputs),
                )
                jumps = jumps.joined(found_in)
        return jumps

    def _moving(self, plan: Plan) -> Jumps:
        """Which terms jump where a parameter says."""
        plausibly = self._plausibly(plan)
        inputs = plausibly.inputs(0)
        trained = plausibly.trained(inputs)
        if not trained:
            return Jumps()
        jumps, labels, rows = Jumps(), sorted(plan.continuous), plausibly.others(inputs)
        for number in OTHERS if plan.draws_others() else OTHERS[:1]:
            if not jumps.moving:
                found_in = find_jumps_in(labels, inputs, plausibly.execute, number, trained, rows)
                jumps = jumps.joined(found_in)
        return Jumps(assumed=jumps.assumed, moving=jumps.moving)

    def mixed(self, plan: Plan, plates: Sequence[Axis]) -> set[tuple[str, Axis]]:
        key = str(self.jaxpr), self.digest(), tuple(plates)
        if key not in self.known:
            self.known[key] = find_mixed_in(plates, self.jaxpr, self.terms)
        return self.known[key]

    def degrees(self, plan: Plan) -> list[tuple[str, str, Form]]:
        plain = replace(plan, num_slots=1, tracked=False)

        def execute(probe: DegreeProbe) -> None:
            run = ProbingRun(self.make_backend(plan.provenance), plain, probe)
            self.step.settings.execute(run, *self.step.programs)

        return degrees_found(plan, execute)

    def closed_forms(self, plan: Plan) -> Mapping[Any, Blocked | None]:
        plain, found = replace(plan, num_slots=1, tracked=False), {}

        def execute() -> None:
            backend = self.make_backend(plan.provenance)
            self.step.settings.execute(ClosedFormRun(backend, plain), *self.step.programs)
            mutable_state(backend, plan)

        jax.eval_shape(lambda: evaluated(execute, finding(found)))
        return found

    def _plausibly(self, plan: Plan) -> _Plausibly:
        placed = replace(plan, max_plate_nesting=self.nesting, provenance=self.provenance)
        return _Plausibly(self.step, placed, self.declared)


class TracedRun(DryRun):
    """A dry run in whose jaxpr the values of all sites are marked."""

    def sampled(
        self, site: Site, dist: Distribution, estimator: Estimator, pathwise: bool
    ) -> jax.Array:
        value = super().sampled(site, dist, estimator, pathwise)
        if dist.name == "Delta" or self.is_aside:
            return value
        return elements_p.bind(value, axes=site.axes, event_ndim=len(dist.event_shape))


class _Plausibly:
    """Dry runs of a step with numbers for what is not known while it is traced, and with parameters moved a little."""

    def __init__(self, step: LossStep, plan: Plan, declared: Mapping[str, tuple[Any, Any]]):
        self.settings, self.programs = step.settings, step.programs
        model, _ = step.programs
        self.plan = replace(
            plan,
            num_slots=1,
            has_worlds=False,
            tracked=False,
            analytic=frozenset(),
        )
        self.rng, declared = np.random.default_rng(0), dict(declared)
        for name, value in step.params.items():
            start, constraint = declared.get(name, (value, real))
            is_open = any(not not_jax_tracer(x) for x in jax.tree.leaves(value))
            declared[name] = (start if is_open else value), constraint
        params = {
            name: jax.tree.map(lambda x, c=constraint: nearby(x, self.rng, c), value)
            for name, (value, constraint) in declared.items()
        }
        self.leaves, self.tree = jax.tree.flatten((params, model.args, model.kwargs))
        self.starts = jax.tree.leaves({name: value for name, (value, _) in declared.items()})
        self.owners = [
            (name, declared[name][1])
            for name in sorted(params)
            for _ in jax.tree.leaves(params[name])
        ]
        of_params = len(self.owners)
        is_open = [not not_jax_tracer(leaf) for leaf in self.leaves]
        self.unknown = [i for i, open_ in enumerate(is_open) if open_ or i < of_params]
        self.invents_data = any(is_open[of_params:])

    def inputs(self, seed: int) -> list[Any]:
        """Numbers for what is not known, and with them a random key for the runs."""
        with jax.ensure_compile_time_eval():
            self.key = random.key(seed)
        return [plausible(self.leaves[i], self.rng) for i in self.unknown]

    def others(self, inputs: list[Any]) -> list[list[Any]]:
        """Other numbers for what is not known, of several sizes; none if all is."""
        starts = [*self.starts, *self.leaves[len(self.owners) :]]
        constraints = [*(c for _, c in self.owners), *[real] * len(self.leaves)]
        is_open = {at: i for at, i in enumerate(self.unknown) if not is_known(starts[i])}
        rows = []
        for size in SIZES if is_open else ():
            rows.append(list(inputs))
            for at, i in is_open.items():
                rows[-1][at] = plausible(starts[i], self.rng, constraints[i], size)
        return rows

    def trained(self, inputs: list[Any]) -> dict[int, tuple[str, Any]]:
        """Of inputs that belong to parameters: whose names and constraints."""
        own = enumerate(zip(self.owners, inputs, strict=False))
        return {i: of for i, (of, x) in own if jnp.issubdtype(jnp.result_type(x), jnp.floating)}

    def execute(self, probe: DegreeProbe, inputs: list[Any]) -> Run:
        """A dry run with a probe."""
        given = list(self.leaves)
        for i, value in zip(self.unknown, inputs, strict=True):
            given[i] = value
        params, args, kwargs = jax.tree.unflatten(self.tree, given)
        model, guide = (replace(p, args=args, kwargs=kwargs) for p in self.programs)
        backend = NumPyroBackend(
            self.key, params, provenance=self.plan.provenance, invents_data=self.invents_data
        )
        run = ProbingRun(backend, self.plan, probe)
        self.settings.execute(run, model, guide)
        return run
