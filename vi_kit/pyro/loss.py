"""The loss that a Pyro user hands to `SVI`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self, TypeVar

import torch
from pyro.infer import ELBO

from vi_kit.base.errors import (
    BackendError,
    EstimatorError,
    ObjectiveError,
    ViKitError,
    message,
)
from vi_kit.base.layouts import Single
from vi_kit.engine.arguments import described
from vi_kit.engine.loss import CommonLoss
from vi_kit.engine.plan import Plan, Replan
from vi_kit.engine.planning import UNKNOWN_NESTING
from vi_kit.engine.run import Run
from vi_kit.engine.select import Given
from vi_kit.engine.settings import not_finite, not_numbers
from vi_kit.estimators import Score
from vi_kit.language.programs import Program
from vi_kit.language.words import Objective
from vi_kit.pyro.backend import PyroBackend
from vi_kit.pyro.broadcasting import Mismatch, checked, refused
from vi_kit.pyro.capture import Follow, is_made
from vi_kit.pyro.compiled import Call, Compiler, Estimate
from vi_kit.pyro.devices import one_device
from vi_kit.pyro.draws import PyroRuns
from vi_kit.pyro.frames import in_one_thread
from vi_kit.pyro.front import in_words
from vi_kit.pyro.leaves import reached
from vi_kit.pyro.mixing import Mixing
from vi_kit.pyro.noise import Generators, buffers_kept, noise_kept
from vi_kit.pyro.planning import PyroPlanner
from vi_kit.pyro.precision import in_full_precision
from vi_kit.pyro.reader import Record
from vi_kit.pyro.replay import PyroReplay

T = TypeVar("T")


def with_grad(method: Callable[..., T]) -> Callable[..., T]:
    """A method that takes a gradient, also where its caller has switched gradients off."""

    @functools.wraps(method)
    def enabled(*args: Any, **kwargs: Any) -> T:
        if torch.is_inference_mode_enabled():
            raise BackendError(
                message(
                    f"{method.__name__} under torch.inference_mode() has no gradient",
                    got="tensors that cannot require a gradient",
                    expected="a call outside torch.inference_mode()",
                    fix="loss.loss(model, guide, ...) for the value alone",
                )
            )
        with torch.enable_grad():
            return method(*args, **kwargs)

    return enabled


class Loss(CommonLoss, ELBO):
    """An objective and a gradient estimator per sample site, as a Pyro loss.

    Args:
        objective: what is maximised (or minimised); `vi.elbo()` if left out.
        estimators: estimators by pattern of site names, or one for all; a site that no pattern matches
            takes `infer={"estimator": ...}` of its sample statement, else the default rule's.
        num_samples: independent estimates that are averaged.
        max_plate_nesting: dims reserved for plates; found by running model and guide if left out.
        vectorize: whether replicates are drawn in one pass, as batch dims in front of the program's own, or one after
            the other. Left out, the first step finds out: it follows of which replicates, and values of enumerated
            sites, every log density is made, and compares one of each with model and guide run by themselves. A
            program that does not broadcast then has its replicates, and these values, one after the other.
        marginalize: names or patterns of latent sites that only the model has, which are summed out exactly. Those that
            are marked by `infer={"enumerate": "parallel"}` (`pyro.infer.config_enumerate`) are so without being named.
        compile: whether `loss_and_grads`, and so `SVI.step`, is compiled. The first step of a kind (programs, shapes
            and types of tensors, other arguments, and what programs read of attributes, globals and closures) runs as
            it is written; the second is captured, and compiled by inductor in some tens of seconds; later ones ask
            nothing of Pyro. Parameters, buffers, data and random numbers are always the present ones; what a compiled
            step cannot follow is refused, with the line. `loss` and `differentiable_loss` are not compiled.

    Attributes:
        state: what moving averages and schedules keep from step to step, by name. It is not among the parameters:
            to go on where a run stopped, save it beside the param store and assign it to the new loss. A loss that
            is without it starts its averages anew, which costs no bias.

    Programs are checked at the first step, and again when one of them, the shape or type of an array or another
    argument changes: numbers count by their values, but for those that change from step to step. What else a
    program is made of (variables that it closes over, attributes of its modules) must not change what it computes
    of which values; if that changes, make a new `Loss`.

    Raises:
        EstimatorError: at the first step, before any gradient, for all bad sites at once.
        ObjectiveError: likewise, if model and guide disagree or the loss is not finite.
        CaptureError: at the second step with `compile=True`, if a value becomes a Python number or decides on a branch.

    Example:
        >>> import vi_kit as vi
        >>> from vi_kit.pyro import Loss
        >>> Loss(vi.iwae(num_particles=5), estimators={"b": vi.MeasureValued()})
        Loss(iwae(num_particles=5), estimators={'b': MeasureValued()})
    """

    library = "Pyro"
    replays = PyroReplay
    drawn = PyroRuns
    array = staticmethod(torch.as_tensor)

    def __init__(
        self,
        objective: Objective | None = None,
        estimators: Mapping[str, Given] | Given | None = None,
        *,
        num_samples: int = 1,
        max_plate_nesting: int | None = None,
        vectorize: bool | None = None,
        marginalize: Sequence[str] = (),
        compile: bool = False,
        **others: Any,
    ):
        super().__init__(
            objective,
            estimators,
            num_samples=num_samples,
            max_plate_nesting=max_plate_nesting,
            vectorize=vectorize,
            marginalize=marginalize,
            **others,
        )
        if not isinstance(compile, bool):
            raise ObjectiveError(
                message(
                    "Loss: compile is True or False",
                    got=f"compile={compile!r}",
                    expected="a bool",
                    fix="compile=True",
                )
            )
        self.compile = compile

    def _start(self) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self._compiler = Compiler()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiler": Compiler()}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, compile=True)" if self.compile else super().__repr__()

    def _changed(self, estimators: Mapping[str, Given] | Given | None, num_samples: int) -> Self:
        changed = super()._changed(estimators, num_samples)
        changed.compile = self.compile
        return changed

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("vi_kit runs model and guide itself")

    def loss_with_mutable_state(self, *args: Any, **kwargs: Any) -> Any:
        """What NumPyro's SVI asks for."""
        raise self._of_other_library()

    # Pyro's interface

    @in_full_precision
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """One estimate of the loss (nats), without gradient."""
        # not under no_grad, which is the caller's to choose: a guide may take gradients itself
        groups, run = self._estimate(
            self._programs(model, guide, args, kwargs), with_gradient=False
        )
        value = self._number(groups)
        if math.isnan(value):
            raise not_finite(value, run.first_not_finite(), run.backend.spoilt_params())
        return value

    @with_grad
    @in_full_precision
    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """A scalar whose value is an estimate of the loss and whose gradient is unbiased."""
        groups, run = self._estimate(self._programs(model, guide, args, kwargs), with_gradient=True)
        loss = self._with_gradient(groups, run)
        self._advance(run)
        return loss

    @with_grad
    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Add an unbiased gradient to the parameters' `.grad`; returns the estimate of the loss."""
        if self.compile and callable(model) and callable(guide):
            return self._compiler.step(Call(self, model, guide, args, kwargs))
        return self.eager_step(model, guide, args, kwargs)

    # What is compiled

    @in_full_precision
    def eager_step(self, model: Any, guide: Any, args: Any, kwargs: Any) -> float:
        """As without `compile=True`."""
        programs = self._programs(model, guide, args, kwargs)
        groups, run = self._estimate(programs, with_gradient=True)
        value = self._number(groups)
        if not math.isfinite(value):
            raise not_finite(value, run.first_not_finite(), run.backend.spoilt_params())
        loss = self._with_gradient(groups, run)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
            self._check_gradients(run, programs)
        self._advance(run)
        return value

    @in_full_precision
    def eager_value(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Run the programs, to see whether they can be run."""
        with noise_kept(), buffers_kept():
            self._estimate(self._programs(model, guide, args, kwargs), with_gradient=False)

    def follow(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Follow | None:
        """What watches a step that is captured; `None` if there is no plan for it yet."""
        plan = self._plans.find(*_told_apart(self._programs(model, guide, args, kwargs)))
        if plan is None or not plan.settled:
            return None
        return Follow(plan.harmless, repeats=bool(plan.noisy or plan.in_turn))

    @in_full_precision
    def captured_step(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Estimate:
        """One gradient, whose operations are recorded."""
        programs = self._programs(model, guide, args, kwargs)
        plan = self._plans.find(*_told_apart(programs))
        assert plan is not None
        backend = PyroBackend(dict(self.state))
        backend.may_remake = False
        run = Run(backend, plan, with_gradient=True, learning=True)
        named = self.settings.execute(run, *programs)
        groups = {group: one.array for group, one in named.items()}
        if groups.keys() - {None}:
            backend.refuse_unknown(groups.values())
        value, loss = self._value(groups), self._with_gradient(groups, run)
        leaves = [p for p in reached([loss]) if p not in backend.steps and not is_made(p)]
        grads = torch.autograd.grad(loss, leaves) if leaves else ()
        state = {key: kept.detach() for key, kept in run.new_state.items()}
        return Estimate(value, leaves, list(grads), state)

    @in_full_precision
    def _explained(self, programs: tuple[Program, Program]) -> tuple[Plan, list[str]]:
        with torch.no_grad(), noise_kept():
            self._estimate(programs, with_gradient=False)
        return self._plan(programs), self._compiler.notes() if self.compile else []

    # How it is done

    def _check_gradients(self, run: Run, programs: tuple[Program, Program]) -> None:
        """Refuse gradients that are not numbers; the graph is gone, so the statement is found in another run."""
        assert isinstance(run.backend, PyroBackend)
        spoilt = run.backend.spoilt_gradients()
        if not spoilt:
            return
        for p in spoilt.values():
            p.grad = None
        _, run = self._estimate(programs, with_gradient=True)
        leaves, where = list(spoilt.values()), "the objective itself"
        for term in run.terms:
            if not term.base.array.requires_grad:
                continue
            total = term.base.array.sum()
            grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
            if any(g is not None and bool(g.isnan().any()) for g in grads):
                where = term.label
                break
        raise not_numbers(list(spoilt), where)

    def _estimate(
        self, programs: tuple[Program, Program], *, with_gradient: bool
    ) -> tuple[dict[str | None, torch.Tensor], Run]:
        plan, reason, num_replans = self._plan(programs), "", 0
        refusal: EstimatorError | None = (
            None  # of what is in front, which is truer than what comes after it
        )
        while num_replans < 3:
            # an attempt that is given up leaves no trace
            here = nullcontext() if plan.settled else in_one_thread()
            with here, nullcontext({}) if plan.settled else buffers_kept() as written:
                backend = PyroBackend(self.state)
                noise = None if plan.settled else Generators.now()
                run = Run(backend, plan, with_gradient=with_gradient, learning=with_gradient)
                backend.recorded = None if plan.settled else []
                run.salts = self.settings.salts if plan.settled else {}
                if plan.has_front and not plan.settled:
                    arguments = programs[0].args, programs[0].kwargs
                    backend.reader = Mixing(Record(), arguments, plan.harmless)
                try:
                    named = self.settings.execute(run, *programs)
                    groups = {group: one.array for group, one in named.items()}
                    if groups.keys() - {None}:
                        backend.refuse_unknown(groups.values())
                except Replan as replan:
                    num_replans, reason = num_replans + 1, str(replan)
                    plan = self._plan(programs, again=True)
                    continue
                except Exception as error:
                    if not run.has_front:
                        raise
                    if plan.compared:  # with parameters held there may be no gradient that the program takes itself
                        plan = replace(plan, compared=frozenset())
                        self._keep(plan, programs)
                        continue
                    if isinstance(error, EstimatorError):
                        refusal = refusal or error
                    plan = self._fallback(run, in_words(error), refusal or error, programs)
                    continue
                if plan.settled:
                    return groups, run
                with noise_kept(), buffers_kept():
                    found, compared = checked(run, backend.recorded or [], PyroBackend(self.state))
                if found is not None and not found.is_certain and plan.analytic:
                    found = self._without_moments(plan, found, programs)
                must_be_certain = not (self.settings.vectorize or plan.in_turn)
                if found is None or not (found.is_certain or must_be_certain):
                    plan = replace(run.with_shared_slots(), compared=compared, settled=True)
                    self._keep(plan, programs)
                    if run.shortened and noise is not None:
                        noise.restore()
                        continue
                    written.clear()
                    return groups, run
                plan = self._fallback(run, found.text, None, programs)
        if reason:
            raise ObjectiveError(reason)
        raise BackendError(
            "the sites of model or guide change from one run to the next in a way that worlds and"
            " alternatives cannot follow; use vi.Score() or vi.Reparam() for the changing sites"
        )

    def _without_moments(
        self, plan: Plan, found: Mismatch, programs: tuple[Program, Program]
    ) -> Mismatch | None:
        """What differs where sites have draws in the place of moments, which are computed by the same operations."""
        estimators = {
            label: Score() if label in plan.analytic else choice.estimator
            for label, choice in plan.selection.resolved.items()
        }
        drawn = self.with_estimators(estimators)
        try:
            with noise_kept():
                drawn._estimate(programs, with_gradient=False)
        except ViKitError:
            return found
        reason = drawn._plan(programs).in_turn
        return Mismatch(reason) if reason else None

    def _fallback(
        self,
        run: Run,
        reason: str,
        error: Exception | None,
        programs: tuple[Program, Program],
    ) -> Plan:
        """Another plan, after a run in which what lies in front of the programs' own dims was in the way."""
        plan = run.plan
        if self.settings.vectorize and not plan.in_turn:
            raise BackendError(
                message(
                    "vectorize=True: model or guide does not broadcast over dims in front of its own",
                    got=reason,
                    expected="a program that computes the same for each replicate, and for each value of an"
                    " enumerated site, as for that one alone",
                    fix="leave vectorize out, and they are run one after the other",
                )
            ) from error
        in_turn = plan.in_turn or reason
        selection = plan.selection if plan.in_turn else plan.selection.in_turn()
        if plan.in_turn:
            self._keep(plan, programs)
            labels = [
                label
                for label, choice in selection.resolved.items()
                if choice.rule == "default" and not isinstance(choice.layout, Single)
            ]
            if not labels and not selection.max_values:
                raise refused(run, reason, error) from error
            selection = replace(
                selection,
                max_values=selection.max_values if labels else 0,
                sampled={
                    **selection.sampled,
                    **dict.fromkeys(labels, f"cannot be run apart: {reason}"),
                },
                resolved={k: v for k, v in selection.resolved.items() if k not in labels},
            )
        plan = replace(plan, selection=selection, in_turn=in_turn)
        return self._plan(programs, again=True, previous=plan)

    def _keep(self, plan: Plan, programs: tuple[Program, Program]) -> None:
        self._plans.keep(*_told_apart(programs), plan)

    def _plan(
        self,
        programs: tuple[Program, Program],
        again: bool = False,
        previous: Plan | None = None,
    ) -> Plan:
        known = self._plans.find(*_told_apart(programs))
        if known is not None and not again:
            return known
        previous, nesting = previous or known, self.settings.max_plate_nesting
        selection = self.settings.selection if previous is None else previous.selection
        in_turn = "" if previous is None else previous.in_turn
        # nothing lies in front in a dry run
        depth = UNKNOWN_NESTING if nesting is None else nesting
        planner = PyroPlanner(self.settings, programs)
        model, _ = programs
        with (
            torch.enable_grad(),
            noise_kept(),
            buffers_kept(),
            in_one_thread(),
            one_device(model.args, model.kwargs),
        ):
            plan = planner.plan(Plan(selection, depth, vectorize=False, in_turn=in_turn))
        plan = replace(
            plan,
            max_plate_nesting=planner.deepest if nesting is None else nesting,
            vectorize=self.settings.vectorize is not False and not in_turn,
        )
        self._keep(plan, programs)
        return plan

    def _value(self, groups: Mapping[str | None, torch.Tensor]) -> torch.Tensor:
        return self.settings.sign * torch.as_tensor(sum(v.detach() for v in _reported(groups)))

    def _number(self, groups: Mapping[str | None, torch.Tensor]) -> float:
        return self.settings.sign * sum(v.item() for v in _reported(groups))

    def _surrogate(self, groups: Mapping[str | None, torch.Tensor], run: Run) -> torch.Tensor:
        if not groups:
            return torch.zeros(())
        if set(groups) == {None}:
            return -groups[None] if self.settings.objective.maximised else groups[None]
        shared = groups.get(None)
        loss = self._value(groups)
        for role in ("model", "guide"):
            own = [v for v in (shared, groups.get(role)) if v is not None and v.requires_grad]
            assert isinstance(run.backend, PyroBackend)
            params = run.backend.leaves(role)
            if not own or not params:
                continue
            grads = torch.autograd.grad(own, params, retain_graph=True, allow_unused=True)
            for p, g in zip(params, grads, strict=True):
                if g is not None:
                    loss = loss + self.settings.sign * ((p - p.detach()) * g).sum()
        return loss

    def _with_gradient(self, groups: Mapping[str | None, torch.Tensor], run: Run) -> torch.Tensor:
        """The loss, with the gradients of what estimators train by losses of their own."""
        assert isinstance(run.backend, PyroBackend)
        loss, learned = self._surrogate(groups, run), run.backend.announce()
        if run.learns and learned and loss.requires_grad:
            loss = loss + self._variance(groups, run.backend.leaves("guide"), learned)
        for own in run.own_losses:
            loss = loss + own - own.detach()
        return loss

    def _variance(
        self,
        groups: Mapping[str | None, torch.Tensor],
        params: list[torch.Tensor],
        learned: list[torch.Tensor],
    ) -> torch.Tensor:
        """Of value zero. Its gradient for what is learned is that of the squared norm of the gradient of
        `params`, in place of that of the surrogate."""
        own = [v for g, v in groups.items() if g != "model" and v.requires_grad]
        grads = torch.autograd.grad(own, [*params, *learned], create_graph=True, allow_unused=True)
        squared = torch.zeros_like(own[0])
        for slope in grads[: len(params)]:
            squared = squared if slope is None else squared + (slope**2).sum()
        wanted: Sequence[Any] = [None] * len(learned)
        if squared.requires_grad:
            wanted = torch.autograd.grad(squared, learned, retain_graph=True, allow_unused=True)
        result = torch.zeros_like(squared)
        for p, new, old in zip(learned, wanted, grads[len(params) :], strict=True):
            if new is not None:
                result = result + ((p - p.detach()) * new).sum()
            # a surrogate that is split has no gradient by what is learned
            if old is not None and groups.keys() == {None}:
                result = result - self.settings.sign * ((p - p.detach()) * old.detach()).sum()
        return result

    def _advance(self, run: Run) -> None:
        for key, value in run.new_state.items():
            run.backend.set_state(key, value)


def _reported(groups: Mapping[str | None, torch.Tensor]) -> list[torch.Tensor]:
    """What adds up to the value of an objective."""
    return [v for group, v in groups.items() if group != "guide"]


def _told_apart(programs: tuple[Program, Program]) -> tuple[Any, Any]:
    """The key of a plan."""
    model, guide = programs
    rest, numbers = described(model.args, model.kwargs)
    return (model.fn, guide.fn, rest), numbers
