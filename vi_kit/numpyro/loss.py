"""The loss that a NumPyro user hands to `SVI`."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import Categorical
from numpyro.handlers import trace
from numpyro.infer import ELBO
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.elbo import LossWithMutableState
from numpyro.primitives import _PYRO_STACK, Messenger, mutable, param
from numpyro.util import not_jax_tracer

from vi_kit.costs.terms import kept_name, label_of
from vi_kit.engine.loss import CommonLoss
from vi_kit.engine.plan import Plan
from vi_kit.engine.run import STEP_KEY
from vi_kit.engine.settings import not_finite
from vi_kit.estimators.memory import Learned, State, Step
from vi_kit.language.marginal import mapped_part
from vi_kit.language.programs import THE_DRAW, Program, ancestor_of
from vi_kit.language.smc import Resampled
from vi_kit.numpyro.backend import (
    predictions,
)
from vi_kit.numpyro.distributions import NumPyroDistribution
from vi_kit.numpyro.draws import NumPyroRuns
from vi_kit.numpyro.filter import ALGORITHM
from vi_kit.numpyro.planning import LossStep, of_value_zero, plan_for, total_of
from vi_kit.numpyro.replay import NumPyroReplay
from vi_kit.numpyro.sharding import ONE, PARTICLES, Devices, no_replicates


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
        marginalize: names or patterns of latent sites that only the model has, which are summed out exactly. Those that
            are marked by `infer={"enumerate": "parallel"}` are so without being named.

    Raises:
        EstimatorError: at the first step, before any gradient, for all bad sites at once.
        ObjectiveError: likewise, if model and guide disagree.

    Example:
        >>> import vi_kit as vi
        >>> from vi_kit.numpyro import Loss
        >>> Loss(vi.iwae(num_particles=5), estimators={"b": vi.MeasureValued()})
        Loss(iwae(num_particles=5), estimators={'b': MeasureValued()})
    """

    library = "NumPyro"
    replays = NumPyroReplay
    drawn = NumPyroRuns
    array = staticmethod(jnp.asarray)
    state_is_given = True

    def _start(self) -> None:
        self.devices = ONE

    def along(self, devices: Devices) -> Loss:
        """The same loss, with replicates divided among devices."""
        divided = copy.copy(self)
        divided.devices = devices
        return divided

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What Pyro's SVI asks for."""
        raise self._of_other_library()

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
        programs = self._programs(model, guide, args, kwargs)
        step = LossStep(self.settings, rng_key, param_map, programs, self.devices)
        plan, (groups, run, backend) = self._run(step)
        if self.devices.count(PARTICLES) > 1 and not backend.is_divided:
            raise no_replicates(self.devices, backend.replicates)
        loss = total_of(groups, (None, "model"))
        if groups.keys() - {None}:  # XLA finds that the forward passes are one
            loss = lax.stop_gradient(loss)
            for role in ("model", "guide"):
                own = total_of(step.holding(plan.leaves[role]).run(plan)[0], (None, role))
                loss = loss + of_value_zero(own)
        loss = self.settings.sign * loss
        for own in run.own_losses:
            loss = loss + of_value_zero(own)
        if run.learns:
            own = step.squared_gradient(plan, plan.leaves["guide"], backend.kept)
            loss = loss + of_value_zero(own)
        if not_jax_tracer(loss) and not bool(jnp.isfinite(loss)):
            raise not_finite(float(loss), step.first_not_finite(plan), backend.spoilt_params())
        return {"loss": loss, "mutable_state": backend.mutable or None}

    def _run(self, step: LossStep) -> tuple[Plan, Any]:
        """A plan and a run by it: the plan that is kept for such a step, if it still serves."""
        key = step.kind()
        plan = None if key is None else self._plans.find(key, ())
        if plan is not None:
            with contextlib.suppress(Exception):  # what was not seen to change; a new plan will say
                return plan, step.run(plan)
        plan = plan_for(step, self._plans.found)
        made = step.run(plan)
        if key is not None:
            self._plans.keep(key, (), plan)
        return plan, made

    def latest_plan(self) -> Plan:
        """Of the last step of a new kind."""
        return next(reversed(next(reversed(self._plans.kept.values())).values()))

    def with_state(self, guide: Callable) -> Callable:
        """The guide with room in `SVI`'s mutable state for what baselines keep from step to step.

        Example:
            >>> import vi_kit as vi
            >>> from vi_kit.numpyro import Loss
            >>> loss = Loss(vi.elbo(), vi.Score(vi.MovingAverage()))
            >>> # SVI(model, loss.with_state(guide), optax.adam(1e-2), loss)
        """

        return mapped_part(guide, self._with_state, "guide")

    def _with_state(self, guide: Callable, role: str) -> Callable:
        """A program of some role with room for what the estimators of its sites keep."""
        selection = self.settings.selection

        @functools.wraps(guide)
        def with_state(*args: Any, **kwargs: Any) -> Any:
            with _Latents() as latents:
                result = guide(*args, **kwargs)
            needs_step = selection.schedule is not None
            for own, choice, dist, plates in self._chosen(guide, role, latents):
                for what, kept in choice.acting.memory.items():
                    key = kept_name(what, own)
                    if isinstance(kept, State):
                        mutable(key, jnp.zeros(kept.shape(plates)))
                    elif isinstance(kept, Step):
                        needs_step = True
                    elif isinstance(kept, Learned):
                        param(key, jnp.asarray(kept.start, jnp.result_type(float)))
                    else:
                        predictions(key, kept.network, kept.inputs(dist, args, kwargs))
            if needs_step and not _has_step():
                mutable(STEP_KEY, jnp.zeros(()))
            return result

        with_state.fresh_copy = lambda: self._with_state(_fresh(guide), role)  # type: ignore[attr-defined]
        return with_state

    def _chosen(self, guide: Callable, role: str, latents: dict[str, Any]) -> Iterator[Any]:
        """The sites of a program: label, choice, distribution and sizes of plates."""
        selection = self.settings.selection
        # by the default rule a site may have to be sampled after all, which needs more state
        variants = range(1 + (selection.schedule is not None))
        for name, (fn, infer, plates, _) in latents.items():
            for variant in variants:
                own, dist = label_of(name, role, variant), NumPyroDistribution(fn)
                choice = selection.choose(name, own, dist, (), infer, lambda: "sampled", variant)
                yield own, choice, dist, plates
        if isinstance(guide, Resampled):
            dist = NumPyroDistribution(Categorical(logits=jnp.zeros(2)))
            before: list[int] | None = None
            ancestors: list[tuple[str, list[int]]] = []
            for name, (*_, plates, in_scan) in latents.items():
                if in_scan:  # all in plates are resampled together
                    before = plates = []
                if before is not None:
                    ancestors.append((name, before))
                before = plates
            for name, plates in (*ancestors, (THE_DRAW, before or [])):
                for variant in variants:
                    own = label_of(ancestor_of(name), role, variant)
                    choice = selection.of_algorithm(own, dist, (), guide.how.estimator)
                    yield own, choice, dist, plates

    def explain(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> str:
        return super().explain(model, _fresh(guide), *args, **kwargs)

    def explain_step(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        model: Callable,
        guide: Callable,
        arrays: Sequence[Any],
        call_of: Callable[[Sequence[Any]], tuple[Any, Any]],
    ) -> str:
        """As `explain`, of a step that is traced, with arguments made of arrays; its plan is kept."""
        said: list[str] = []

        def step(rng_key: jax.Array, params: dict[str, Any], arrays: Sequence[Any]) -> None:
            programs = self._programs(model, guide, *call_of(arrays))
            plan, _ = self._run(LossStep(self.settings, rng_key, params, programs, self.devices))
            said.append(self._said(plan))

        jax.eval_shape(step, rng_key, params, arrays)
        return said[0]

    def _explained(self, programs: tuple[Program, Program]) -> tuple[Plan, list[str]]:
        step = LossStep(self.settings, random.key(0), {}, programs)
        plan = plan_for(step, self._plans.found, has_state=True)
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
        return plan, texts


def _fresh(guide: Callable) -> Callable:
    """A guide to be traced: an autoguide sets itself up where it is run first, and must not keep tracers."""
    if isinstance(guide, AutoGuide):
        return copy.deepcopy(guide)
    return guide.fresh_copy() if hasattr(guide, "fresh_copy") else guide


def _has_step() -> bool:
    """Whether another part of the program has made room for the number of steps."""
    return any(isinstance(h, trace) and STEP_KEY in getattr(h, "trace", ()) for h in _PYRO_STACK)


class _Latents(Messenger):
    """Collects the latent sites of a program."""

    def __enter__(self) -> dict[str, Any]:  # type: ignore[override]
        super().__enter__()
        self.found: dict[str, Any] = {}
        return self.found

    def postprocess_message(self, msg: Any) -> None:
        is_latent = msg["type"] == "sample" and not msg["is_observed"]
        if is_latent and ALGORITHM not in msg["infer"]:
            frames = sorted(msg["cond_indep_stack"], key=lambda f: f.dim)
            plates, in_scan = [int(f.size) for f in frames], "_control_flow_done" in msg
            self.found[msg["name"]] = msg["fn"], msg["infer"], plates, in_scan
