"""`fit` with its noise held: the objective at a number of fixed draws, minimised until no step lowers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.engine.plan import Plan
from vi_kit.estimators import Analytic, Enumerate, Quadrature, Reparam
from vi_kit.objectives import elbo
from vi_kit.workflow.batches import Whole
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.fitting import Ended, Job, Library, fit_of, numbers_told
from vi_kit.workflow.held import Held
from vi_kit.workflow.lbfgs import Minimum, minimum
from vi_kit.workflow.progress import Progress
from vi_kit.workflow.request import Request
from vi_kit.workflow.training import Training, interruptible

EXACT_VALUE = (Reparam, Enumerate, Quadrature, Analytic)
"""Estimators whose gradient, with the noise held, is that of the value."""
MOST = 10_000
"""Iterations, if not said."""


def refuse(fixed_draws: Any, **others: tuple[Any, Any]) -> None:
    """Refuse settings that have no meaning with the noise held.

    Args:
        fixed_draws: as given.
        **others: settings, each with the value that stands for none.

    Raises:
        ObjectiveError: there are such, or no number of draws.
    """
    whole_number("fit", "fixed_draws", fixed_draws)
    given = [f"{name}={value!r}" for name, (value, none) in others.items() if value != none]
    if given:
        raise ObjectiveError(
            message(
                "fit: settings of noisy steps, with fixed_draws",
                got=f"fixed_draws={fixed_draws} and {', '.join(given)}",
                expected="fixed_draws with all data at once and one start: L-BFGS takes the steps and ends them",
                fix=f"leave {', '.join(one.split('=')[0] for one in given)} out, or fixed_draws",
            )
        )


def run(
    library: Library,
    loss: Any,
    model: Callable,
    guide: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    request: Request,
) -> Fit:
    """Everything before the first iteration, the iterations, and what is found."""
    if loss.settings.objective != elbo():
        raise ObjectiveError(
            message(
                "fit: fixed_draws is for the ELBO",
                got=repr(loss.settings.objective),
                expected="vi.elbo(), whose gradient is that of its value when the noise is held",
                fix="objective=vi.elbo(), or steps without fixed_draws",
            )
        )
    marks = [time.perf_counter()]
    args, kwargs = library.arrays(args), library.arrays(dict(kwargs))
    made = library.optimizer(None, shrinks=False)
    job = Job(loss, model, guide, Whole((args, kwargs)), made, request, {})
    progress = Progress(request.num_steps, loss.settings.sign, request.progress)
    with numbers_told(library, model, guide, job.source):
        trainer = library.starts(job)[0]()
        training = Training(trainer, request, None, progress)
        held = library.held(trainer)
    _refuse_noise(held.plan(), held.remembers())
    if not len(held.at):
        raise _not_held("no parameter", "a guide with parameters", "pyro.param or numpyro.param")
    marks.append(time.perf_counter())
    with numbers_told(library, model, guide, job.source):
        first = held.first()
    again = [held.evaluate(held.at) for _ in range(2)]
    if any(value != again[0][0] for value in (first, again[1][0])) or not np.array_equal(
        again[0][1], again[1][1]
    ):
        got = f"{first!r} and {again[1][0]!r} at the same parameters with the same random numbers"
        fix = "no random numbers besides those of sample statements, no state; or no fixed_draws"
        raise _not_held(got, "the same value each time: the model is noisy", fix)
    progress.start(0)
    marks.append(time.perf_counter())
    with interruptible() as interrupted:
        most = MOST if request.num_steps is None else request.num_steps
        try:
            found = minimum(
                held.evaluate, held.at, rounding=held.rounding, most=most, ends=interrupted.is_set
            )
        finally:
            progress.close("done")
    held.inverse = found.inverse
    why_not = _why_not(found, held, most)
    held.settle(found.at)
    training.history.add(np.array(found.losses), np.array(found.norms))
    trainer.done = len(found.losses)
    marks.append(time.perf_counter())
    seconds = np.diff(marks).tolist()
    training.seconds = dict(zip(("before", "first step", "steps"), seconds, strict=True))
    stopped = f"{found.why}, after {len(found.losses)} iterations"
    fit = fit_of(library, job, [Ended(training, stopped)])
    fit.held, fit.fixed_draws = held, loss.settings.num_samples
    fit.by_rule = found.converged
    if why_not:
        fit.notes = (*fit.notes, f"it did not converge: {why_not}")
    return fit


def _why_not(found: Minimum, held: Held, most: int) -> str:
    """Why no minimum was found, as far as it is known; parameters are moved."""
    if found.converged or found.why == "interrupted":
        return ""
    if len(found.losses) == most:
        return f"more than {most} iterations, or num_steps left out"
    if _has_its_gradient(found, held):
        return "what the guide has no minimum for (covariances of more dims than draws)?"
    return (
        "its gradient is not that of its value, as where samplers reject (Gamma, Beta, Dirichlet, StudentT): which"
        " draws they take jumps with the parameters. A guide by LogNormal, Weibull or transformed Normals has none such"
    )


def _has_its_gradient(found: Minimum, held: Held) -> bool:
    """Whether, where a fit has ended, the value changes along the gradient as the gradient says."""
    slope, size = found.gradient, float(np.linalg.norm(found.gradient))
    step = held.rounding ** (1 / 3) * max(1.0, float(np.abs(found.at).max())) / size * slope
    ends = [held.evaluate(found.at + s * step)[0] for s in (1, -1)]
    off = (ends[0] - ends[1]) / (2 * float(np.linalg.norm(step))) - size
    rounds = held.rounding ** (2 / 3) * max(1.0, abs(ends[0]))
    return not abs(off) > 0.01 * size + 10 * rounds


def _refuse_noise(plan: Plan, remembers: list[str]) -> None:
    """Refuse, by one error, sites whose gradient is not that of a value, and noise that is no site's."""
    bad = {
        label: choice.estimator
        for label, choice in plan.selection.resolved.items()
        if not isinstance(choice.acting, EXACT_VALUE) or choice.acting.memory
    }
    texts = [f"{label}: {estimator!r}" for label, estimator in bad.items()]
    texts += [f"the {role} draws random numbers besides its sites" for role in sorted(plan.noisy)]
    texts += [f"{name} is kept from one run to the next" for name in remembers]
    if plan.selection.schedule is not None:
        texts.append("estimators change from step to step")
    if texts:
        names = " and ".join(sorted(bad)) or "the programs"
        expected = "Reparam, Enumerate, Quadrature or Analytic at each site, and no other noise"
        fix = f"another estimator for {names}, dropout off; or steps without fixed_draws"
        raise _not_held("; ".join(texts), expected, fix)


def _not_held(got: str, expected: str, fix: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            "fit: with fixed_draws the objective must be a function of the parameters alone",
            got=got,
            expected=expected,
            fix=fix,
        )
    )
