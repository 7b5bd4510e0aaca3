"""The loss that a NumPyro user hands to `SVI`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.distributions.constraints import real
from numpyro.infer import ELBO
from numpyro.infer.elbo import LossWithMutableState
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import _PYRO_STACK, Messenger, mutable, param
from numpyro.util import not_jax_tracer

from vi_kit.analysis.degrees import DegreeProbe
from vi_kit.analysis.jumps import OTHERS, Jumps
from vi_kit.analysis.mixing import looked_at
from vi_kit.base.errors import BackendError
from vi_kit.base.named import Axis
from vi_kit.costs.terms import kept_name, label
from vi_kit.engine.arguments import closed_over, described
from vi_kit.engine.dry_run import ClosedFormRun, DryRun, ProbingRun
from vi_kit.engine.loss import CommonLoss
from vi_kit.engine.plan import Findings, Plan, Plans, Replan, explanation
from vi_kit.engine.refusals import shortfalls
from vi_kit.engine.run import STEP_KEY, Run
from vi_kit.engine.select import Selection
from vi_kit.engine.settings import (
    UNKNOWN_NESTING,
    Settings,
    make_plan,
    not_finite,
    of_other_library,
    with_closed_forms,
    without_jumps,
)
from vi_kit.estimators.memory import Learned, State, Step
from vi_kit.language.programs import Program
from vi_kit.numpyro.backend import (
    IN_THE_DARK,
    PARAMS,
    NumPyroBackend,
    Provenance,
    TooFewMarks,
    predictions,
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
from vi_kit.numpyro.distributions import NumPyroDistribution
from vi_kit.numpyro.expectations import evaluated, finding, with_expectations
from vi_kit.numpyro.mixing import find_mixed_in
from vi_kit.numpyro.replay import NumPyroReplay
from vi_kit.objectives import elbo

SIZES = (1.0, 0.3, 1.0, 3.0, 0.3, 1.0, 10.0, 3.0, 1.0, 0.1, 1.0, 3.0)
"""Of the numbers in the place of what is not known."""

NOTHING = "no latent site of NumPyro: vi_kit.pyro.Loss is for Pyro's programs"


class Loss(CommonLoss, ELBO):
    """An objective and a gradient estimator per sample site, as a NumPyro loss.

    Replicates are mapped by `jax.vmap`; all planning happens while the step is traced. Outside `jax.jit` a plan is kept
    while shapes stay and programs do: their code, what they close over and find among their globals.

    Args:
        objective: what is maximised (or minimised); `vi.elbo()` if left out.
        estimators: estimators by pattern of site names, or one for all; a site that no pattern matches
            takes `infer={"estimator": ...}` of its sample statement, else the default rule's.
        num_samples: independent estimates that are averaged.
        max_plate_nesting: dims reserved for plates; found by tracing model and guide if left out.
        vectorize: whether replicates are mapped by `jax.vmap`, or one after the other by `jax.lax.map`;
            `None` is the same as `True`.

    Raises:
        EstimatorError: at the first step, before any gradient, for all bad sites at once.
        ObjectiveError: likewise, if model and guide disagree.

    Example:
        >>> import vi_kit as vi
        >>> from vi_kit.numpyro import Loss
        >>> Loss(vi.iwae(num_particles=5), estimators={"b": vi.MeasureValued()})
        Loss(iwae(num_particles=5), estimators={'b': MeasureValued()})
    """

    def _start(self) -> None:
        self.known: dict[Any, Any] = {}
        self._plans = Plans()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: what is known belongs to the programs of this process."""
        return {**self.__dict__, "known": {}, "_plans": Plans()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What Pyro's SVI asks for."""
        raise of_other_library("NumPyro")

    def replay(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any, params: Any
    ) -> NumPyroReplay:
        """Model and guide at their present parameters, for `vi.check_unbiased`."""
        return NumPyroReplay(model, guide, args, kwargs, params)

    # NumPyro's interface

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> LossWithMutableState:
        """An estimate of the loss (nats) whose gradient is unbiased, and the mutable state after it.

        Outside `jax.jit` and `jax.grad` a loss that is not finite is an error.
        """
        if not callable(model) or not callable(guide):
            raise of_other_library("NumPyro")
        step = _Step(self.settings, rng_key, param_map, model, guide, args, kwargs, self.known)
        plan, (groups, run, backend) = self._run(step)
        loss = _total(groups, (None, "model"))
        if groups.keys() - {None}:  # XLA finds that the forward passes are one
            loss = lax.stop_gradient(loss)
            for role in ("model", "guide"):
                own = _total(step.holding(plan.leaves[role]).run(plan)[0], (None, role))
                loss = loss + _of_value_zero(own)
        loss = self.settings.sign * loss
        for own in run.own_losses:
            loss = loss + _of_value_zero(own)
        if run.learns:
            own = step.squared_gradient(plan, plan.leaves["guide"], backend.kept)
            loss = loss + _of_value_zero(own)
        if not_jax_tracer(loss) and not bool(jnp.isfinite(loss)):
            raise not_finite(float(loss), step.first_not_finite(plan), backend.spoilt_params())
        return {"loss": loss, "mutable_state": backend.mutable or None}

    def _run(self, step: _Step) -> tuple[Plan, Any]:
        """A plan and a run by it: the plan that is kept for such a step, if it still serves."""
        key = step.kind()
        plan = None if key is None else self._plans.find(key, ())
        if plan is not None:
            with contextlib.suppress(Exception):  # what was not seen to change; a new plan will say
                return plan, step.run(plan)
        plan = step.plan()
        made = step.run(plan)
        if key is not None:
            self._plans.keep(key, (), plan)
        return plan, made

    def with_state(self, guide: Callable) -> Callable:
        """The guide with room in `SVI`'s mutable state for what baselines keep from step to step.

        Example:
            >>> import vi_kit as vi
            >>> from vi_kit.numpyro import Loss
            >>> loss = Loss(vi.elbo(), vi.Score(vi.MovingAverage()))
            >>> # SVI(model, loss.with_state(guide), optax.adam(1e-2), loss)
        """

        selection = self.settings.selection

        @functools.wraps(guide)
        def with_state(*args: Any, **kwargs: Any) -> Any:
            with _Latents() as latents:
                result = guide(*args, **kwargs)
            needs_step = selection.schedule is not None
            for name, (fn, infer, plates) in latents.items():
                dist = NumPyroDistribution(fn)
                # by the default rule a site may have to be sampled after all, which needs more state
                for variant in range(1 + (selection.schedule is not None)):
                    own = label(name, "guide", variant)
                    choice = selection.choose(name, own, dist, (), infer, "sampled", variant)
                    estimator = choice.acting
                    for what, kept in estimator.memory.items():
                        key = kept_name(what, own)
                        if isinstance(kept, State):
                            mutable(key, jnp.zeros(kept.shape(plates)))
                        elif isinstance(kept, Step):
                            needs_step = True
                        elif isinstance(kept, Learned):
                            param(key, jnp.asarray(kept.start, jnp.result_type(float)))
                        else:
                            predictions(key, kept.network, kept.inputs(dist, args, kwargs))
            if needs_step:
                mutable(STEP_KEY, jnp.zeros(()))
            return result

        return with_state

    def explain(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> str:
        """Which estimator each latent site has, the rule that chose it, and why; no gradient is taken."""
        step = _Step(self.settings, random.key(0), {}, model, guide, args, kwargs, self.known)
        plan = step.plan(has_state=True)
        choices = plan.selection.resolved.items()
        labels = [label for label, c in choices if c.acting.memory]
        chosen = [k for k in labels if plan.selection.resolved[k].rule != "default"]
        room = "loss.with_state(guide) in place of guide, for"
        texts = [f"SVI needs {room} {', '.join(chosen)}"] * bool(chosen)
        if labels != chosen:
            by_default = ", ".join(k for k in labels if k not in chosen)
            texts.append(
                f"less variance needs {room} {by_default}: without it there is no baseline"
            )
        return explanation(plan, *texts, *[NOTHING] * (not plan.table))


def _total(groups: Mapping[str | None, jax.Array], wanted: tuple[str | None, ...]) -> jax.Array:
    """What the parameters of the wanted groups ascend or descend."""
    found = [groups[g] for g in wanted if g in groups]
    return functools.reduce(operator.add, found) if found else jnp.zeros(())


def _state(backend: NumPyroBackend, plan: Plan) -> dict[str, Any]:
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


def _of_value_zero(own: jax.Array) -> jax.Array:
    return own - lax.stop_gradient(own)


class _Latents(Messenger):
    """Collects the latent sites of a program."""

    def __enter__(self) -> dict[str, Any]:  # type: ignore[override]
        super().__enter__()
        self.found: dict[str, Any] = {}
        return self.found

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not msg["is_observed"]:
            frames = sorted(msg["cond_indep_stack"], key=lambda f: f.dim)
            self.found[msg["name"]] = (msg["fn"], msg["infer"], [int(f.size) for f in frames])


class _Step:
    """One evaluation of a loss: its arguments, and what is traced with them."""

    def __init__(
        self,
        settings: Settings,
        key: jax.Array,
        params: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: dict[Any, Any] | None = None,
    ):
        self.settings = settings
        self.known = {} if known is None else known
        self.key = key
        self.params = params
        self.programs = (
            Program(model, args, kwargs, "model"),
            Program(guide, args, kwargs, "guide"),
        )

    def holding(self, names: Collection[str]) -> _Step:
        """The step with all parameters but `names` as constants."""
        return self.at(
            {k: v if k in names else lax.stop_gradient(v) for k, v in self.params.items()}
        )

    def at(self, params: Mapping[str, Any]) -> _Step:
        """The step with other values of its parameters."""
        model, guide = self.programs
        return _Step(self.settings, self.key, params, model.fn, guide.fn, model.args, model.kwargs)

    def run(
        self, plan: Plan, *, learning: bool = False
    ) -> tuple[dict[str | None, jax.Array], Run, NumPyroBackend]:
        backend = NumPyroBackend(self.key, self.params, provenance=plan.provenance)
        run = Run(backend, plan, learning=learning)
        names: list[str | None] = []

        def execute() -> Any:
            groups = self.settings.execute(run, *self.programs)
            names[:] = list(groups)
            values = [named.array for named in groups.values()]
            made = values, run.own_losses, run.new_state, _state(backend, plan)
            run.own_losses, run.new_state, backend.mutable = [], {}, {}
            run.forget()
            return made

        try:
            if plan.analytic:
                results = evaluated(execute, with_expectations(plan.closed))
            else:
                results = execute()
        except Replan:
            raise BackendError(
                "the sites of model or guide change from one trace to the next; they may depend on nothing"
                " but the arguments"
            ) from None
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
            return _total(step.run(plan, learning=True)[0], (None, "guide"))

        slopes = jax.grad(total)([leaves[i] for i in moved])
        return functools.reduce(operator.add, [jnp.sum(g**2) for g in slopes], jnp.zeros(()))

    def kind(self) -> Any:
        """What tells apart steps that need plans of their own; `None` under handlers from outside."""
        if _PYRO_STACK:
            return None
        model, guide = self.programs
        of_programs = closed_over([model.fn, guide.fn])
        return of_programs, described([self.params, *model.args], model.kwargs)

    def plan(self, *, has_state: bool = False) -> Plan:
        """Choose the estimators, find the provenance and who has which parameters, and check everything.

        The program is traced for its shapes, and evaluated only where its operations leave something open.

        Args:
            has_state: whether there will be room for all that is kept from step to step.
        """
        settings = self.settings
        kept = None if has_state else frozenset(self.params)
        selection = replace(settings.selection, kept=kept)
        nesting = settings.max_plate_nesting
        found: dict[str, Any] = {}

        def make_backend() -> NumPyroBackend:
            return NumPyroBackend(self.key, self.params, dry=True)

        def execute(run: DryRun) -> None:
            given = run.plan
            provenance, depth = self.provenance(given)
            run.plan = replace(given, max_plate_nesting=depth if nesting is None else nesting)

            def dry() -> None:
                backend = NumPyroBackend(self.key, self.params, provenance=provenance, dry=True)
                traced = DryRun(backend, run.plan, run.findings)
                self.settings.execute(traced, *self.programs)
                found.update(touched=backend.touched, declared=backend.declared_params)
                traced.forget()

            try:
                dry_run = jax.make_jaxpr(dry)()
            except Replan:
                raise BackendError(
                    f"a plate lies left of max_plate_nesting={nesting}; give Loss a larger one"
                ) from None
            except IN_THE_DARK as error:
                raise refuse_in_the_dark(error) from error
            assert isinstance(run.backend, NumPyroBackend)
            run.backend.touched = found["touched"]
            found.update(
                provenance=provenance, nesting=run.plan.max_plate_nesting, jaxpr=dry_run.jaxpr
            )

        def made(draft: Plan) -> Plan:
            plan = make_plan(make_backend, draft, execute)
            if not (plan.pathwise or plan.continuous) or not takes_steps(found["jaxpr"]):
                return plan

            def remake(selection: Selection) -> Plan:
                return make_plan(make_backend, replace(draft, selection=selection), execute)

            return without_jumps(plan, self.jumps(plan, found), remake)

        draft = Plan(selection, UNKNOWN_NESTING, settings.vectorize is not False)
        plan = made(draft)
        joined, assumed = looked_at(
            plan.apart, plan.met, lambda plates: self.mixed(plan, plates, found)
        )
        if joined:
            plan = made(replace(draft, joined=joined, plates=plan.plates))
        plan = replace(plan, notes=(*plan.notes, *assumed))
        plan = replace(plan, max_plate_nesting=found["nesting"], provenance=found["provenance"])
        plan = replace(plan, tracked=plan.tracked or plan.has_worlds)
        if plan.degrees:
            self.prove_degrees(plan)
        if plan.analytic:
            plan = self.with_closed_forms(plan)
        roles = ("model", "guide")
        return replace(plan, leaves={r: dict.fromkeys(found["touched"][r]) for r in roles})

    def provenance(self, plan: Plan) -> tuple[Provenance, int]:
        """On which sites and parameters each watched value depends, and how deep plates lie."""
        depth = 0

        def watched(params: Any, **marks: jax.Array) -> dict[Any, jax.Array]:
            nonlocal depth
            flags = [marks[str(i)] for i in range(len(marks))]
            backend = NumPyroBackend(self.key, params, marks=flags, dry=True)
            scratch = DryRun(backend, replace(plan, max_plate_nesting=UNKNOWN_NESTING))
            self.settings.execute(scratch, *self.programs)
            depth = backend.deepest_dim
            keys.extend(backend.watched)
            return dict(enumerate(backend.watched.values()))

        size = 32
        while True:
            keys: list[Any] = []
            marks = {str(i): jnp.asarray(True) for i in range(size)}
            try:
                by_number = eval_provenance(watched, **{PARAMS: dict(self.params)}, **marks)
            except TooFewMarks:
                size *= 4
                continue
            except IN_THE_DARK as error:
                raise refuse_in_the_dark(error) from error
            return {keys[i]: names for i, names in by_number.items()}, depth

    def digest(self) -> str:
        """Of the numbers among the arguments, as far as they are known."""
        leaves = jax.tree.leaves((self.programs[0].args, self.programs[0].kwargs))
        numbers = (int, float, np.ndarray, np.generic, jax.Array)
        known = [x for x in leaves if isinstance(x, numbers) and not_jax_tracer(x)]
        known = [x for x in known if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)]
        return hashlib.blake2b(b"".join(np.asarray(x).tobytes() for x in known)).hexdigest()

    def jumps(self, plan: Plan, found: Mapping[str, Any]) -> Jumps:
        """Which terms jump in the values of reparameterised sites; and in those of any, where a parameter says."""
        key = str(found["jaxpr"]), self.digest(), plan.pathwise, plan.continuous
        if key not in self.known:
            jumps = Jumps()
            for labels, find in ((plan.pathwise, self._jumps), (plan.continuous, self._moving)):
                try:
                    jumps = jumps.joined(find(plan, found) if labels else Jumps())
                except Exception:  # the program may do what cannot be evaluated by itself
                    jumps = jumps.joined(Jumps.unknown(labels))
            self.known[key] = jumps
        return self.known[key]

    def _jumps(self, plan: Plan, found: Mapping[str, Any]) -> Jumps:
        plausibly, jumps = _Plausibly(self, plan, found), Jumps()
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

    def _moving(self, plan: Plan, found: Mapping[str, Any]) -> Jumps:
        """Which terms jump where a parameter says."""
        plausibly = _Plausibly(self, plan, found)
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

    def mixed(
        self, plan: Plan, plates: Sequence[Axis], found: Mapping[str, Any]
    ) -> set[tuple[str, Axis]]:
        """Which terms see several elements of which plates."""
        key = str(found["jaxpr"]), self.digest(), tuple(plates)
        if key not in self.known:
            plausibly = _Plausibly(self, plan, found)
            self.known[key] = find_mixed_in(plates, plausibly.inputs(0), plausibly.execute)
        return self.known[key]

    def prove_degrees(self, plan: Plan) -> None:
        """Refuse terms of higher degree than their sites' estimators are exact for."""
        plain = replace(plan, num_slots=1, tracked=False)

        def execute(probe: DegreeProbe) -> None:
            backend = NumPyroBackend(self.key, self.params, provenance=plan.provenance, dry=True)
            run = ProbingRun(backend, plain, probe)
            self.settings.execute(run, *self.programs)

        findings = Findings(estimator_problems=shortfalls(plan, degrees_found(plan, execute)))
        findings.raise_if_any()

    def with_closed_forms(self, plan: Plan) -> Plan:
        """The plan, with the terms that have a closed form."""
        plain, found = replace(plan, num_slots=1, tracked=False), {}

        def execute() -> None:
            backend = NumPyroBackend(self.key, self.params, provenance=plan.provenance, dry=True)
            run = ClosedFormRun(backend, plain)
            self.settings.execute(run, *self.programs)
            _state(backend, plan)

        jax.eval_shape(lambda: evaluated(execute, finding(found)))
        return with_closed_forms(plan, found)

    def first_not_finite(self, plan: Plan) -> str | None:
        """The first statement whose log density is not finite, found in one plain draw."""
        plain = replace(self.settings, objective=elbo(), num_samples=1)
        run = Run(NumPyroBackend(self.key, self.params, provenance=plan.provenance), plan)
        try:
            plain.execute(run, *self.programs)
        except Replan:
            return None
        return run.first_not_finite()


class _Plausibly:
    """Dry runs of a step with numbers for what is not known while it is traced, and with parameters moved a little."""

    def __init__(self, step: _Step, plan: Plan, found: Mapping[str, Any]):
        self.settings, (model, guide) = step.settings, step.programs
        self.programs = model.fn, guide.fn
        self.plan = replace(
            plan,
            num_slots=1,
            has_worlds=False,
            tracked=False,
            analytic=frozenset(),
            max_plate_nesting=found["nesting"],
            provenance=found["provenance"],
        )
        self.rng, declared = np.random.default_rng(0), dict(found["declared"])
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
        step = _Step(self.settings, self.key, params, *self.programs, args, kwargs)
        backend = NumPyroBackend(
            self.key, params, provenance=self.plan.provenance, invents_data=self.invents_data
        )
        run = ProbingRun(backend, self.plan, probe)
        self.settings.execute(run, *step.programs)
        return run
