"""What a loss was given, checked, and what it does the same way for every library."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from vi_kit.analysis.blocked import Blocked, analytic_error
from vi_kit.analysis.jumps import Jumps, moving_refusal, refusal
from vi_kit.analysis.mixing import in_words
from vi_kit.base.errors import BackendError, EstimatorError, ObjectiveError, message, whole_number
from vi_kit.base.layouts import Closed
from vi_kit.base.named import Named
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, is_tracked
from vi_kit.engine.backend import Backend
from vi_kit.engine.dry_run import DryRun
from vi_kit.engine.plan import Findings, Plan
from vi_kit.engine.run import Run, running
from vi_kit.engine.select import DEFAULT_MAX_WORLDS, Given, Selection
from vi_kit.estimators import Reparam
from vi_kit.estimators.base import estimator_of
from vi_kit.language.programs import Program
from vi_kit.language.words import Objective, iid
from vi_kit.objectives import elbo

MAX_SCOUTS = 10
"""A pattern that matches nothing is looked for in so many further dry runs, where sites may differ from run to run."""

SETTINGS = ("objective", "estimators", "num_samples", "max_plate_nesting", "vectorize")
"""Of a `Loss`."""


def of_other_library(library: str) -> BackendError:
    """The error about a loss that is used as the other library uses its own."""
    return BackendError(
        message(
            f"vi_kit.{library.lower()}.Loss is a loss for {library}",
            got="a call as another library makes it, not of two programs",
            expected=f"the SVI of {library}",
            fix="Loss from vi_kit.pyro for Pyro's SVI, from vi_kit.numpyro for NumPyro's",
        )
    )


UNKNOWN_NESTING = 32
"""Stands for the number of plate dims while it is being found."""


@dataclass(frozen=True)
class Settings:
    """The settings of a `Loss`.

    Attributes:
        objective: what is maximised or minimised.
        estimators: as the user gave them.
        num_samples: independent estimates that are averaged.
        max_plate_nesting: dims reserved for plates, `None` to find out.
        vectorize: whether replicates are drawn in one pass; `None` to find out.
        selection: the estimators by pattern.
    """

    objective: Objective
    estimators: Mapping[str, Given] | Given | None
    num_samples: int
    max_plate_nesting: int | None
    vectorize: bool | None
    selection: Selection

    @classmethod
    def of(
        cls,
        objective: Objective | None,
        estimators: Mapping[str, Given] | Given | None,
        num_samples: int,
        max_plate_nesting: int | None,
        vectorize: bool | None,
    ) -> Settings:
        """Check what a user gave.

        Raises:
            ObjectiveError: not an objective, or fewer than one sample.
            EstimatorError: not estimators.
        """
        objective = elbo() if objective is None else objective
        if not isinstance(objective, Objective):
            raise ObjectiveError(
                message(
                    "the first argument of Loss is not an objective",
                    got=repr(objective),
                    expected="an Objective, such as vi.elbo() or vi.iwae(num_particles=5)",
                    fix="call it with its settings, or decorate your program with @vi.objective",
                )
            )
        num_samples = whole_number("Loss", "num_samples", num_samples)
        selection = Selection.of(estimators)
        return cls(objective, estimators, num_samples, max_plate_nesting, vectorize, selection)

    def describe(self) -> str:
        """As the call that makes it."""
        parts = [repr(self.objective)]
        if self.estimators is not None:
            parts.append(f"estimators={self.estimators!r}")
        if self.num_samples != 1:
            parts.append(f"num_samples={self.num_samples}")
        return f"Loss({', '.join(parts)})"

    @property
    def sign(self) -> float:
        """What makes a loss of the objective."""
        return -1.0 if self.objective.maximised else 1.0

    def averaged(self, model: Program, guide: Program) -> Cost:
        """The objective program, averaged over `num_samples` replicates; a mixture of two such, if estimators are
        annealed."""

        def once() -> Cost:
            if self.num_samples == 1:
                return self.objective(model, guide)
            return iid(lambda: self.objective(model, guide), self.num_samples).mean()

        schedule, run, first = self.selection.schedule, running(), once()
        if schedule is None or not first.terms:
            return first
        run.variant = 1
        second, run.variant = once(), 0
        weight = schedule(run.step(first.terms[0].base.array))
        return first * weight + second * (1.0 - weight)

    def execute(self, run: Run, model: Program, guide: Program) -> dict[str | None, Named]:
        """Run the objective; an error that comes of parameters that are not numbers names them, and one that comes of
        values between those of a support names their site."""
        try:
            with run.backend.session(run):
                return run.execute(self.averaged, model, guide)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            spoilt = run.backend.spoilt_params()
            if spoilt:
                raise not_numbers(spoilt, None) from error
            relaxed = [s for s in run.sites if estimator_of(s).relaxes]
            if relaxed and isinstance(error, IndexError | TypeError):
                raise _no_values_between(relaxed, error) from error
            raise


def _no_values_between(sites: Sequence[Site], error: Exception) -> EstimatorError:
    """The error about a program that cannot be run between the values of a support."""
    texts = [
        message(
            f"site {site.name!r}: the program cannot be run at the values of {type(site.estimator).__name__}(), which"
            " lie between those of its support",
            got=str(error).splitlines()[0],
            expected="arithmetic with the value, where the program has it as an index or a key",
            fix=f'table[0] * (1 - z) + table[1] * z; or estimators={{"{site.name}": vi.Enumerate()}}',
        )
        for site in sites
    ]
    return EstimatorError("\n".join(texts))


def make_plan(
    make_backend: Callable[[], Backend], plan: Plan, execute: Callable[[DryRun], None]
) -> Plan:
    """Dry runs until every estimator is settled; raises one error for all problems.

    Args:
        make_backend: of the library.
        plan: the user's selection and the plate nesting.
        execute: runs the objective program in a given run.

    Raises:
        EstimatorError: a site that its estimator cannot handle, a pattern that matches no site, too
            many joint values.
        ObjectiveError: model and guide disagree.
    """
    while True:
        run = DryRun(make_backend(), plan)
        findings = run.findings
        execute(run)
        plates = {**plan.plates, **findings.same_plates()}
        if plates != plan.plates:
            plan = replace(plan, plates=plates)
            continue
        if findings.sampled:
            sampled = {**plan.selection.sampled, **findings.sampled}
            plan = replace(plan, selection=replace(plan.selection, sampled=sampled))
            continue
        if findings.over_bound is None:
            break
        what, worlds, sites = findings.over_bound
        names = {s.label for s in sites if findings.choices[s.label].rule == "default"}
        if not names:
            bound = max(s.max_worlds(otherwise=0) for s in sites)
            each = ", ".join(f"{s.name!r} has {findings.sizes[s]}" for s in sites)
            findings.problem(
                message(
                    f"{what} depends on {worlds} joint values of enumerated sites, above"
                    f" max_worlds={bound}",
                    got=each,
                    expected=f"at most {bound} joint values in one term",
                    fix=f"vi.Enumerate(max_worlds={worlds}), or another estimator for one of them",
                ),
                of_estimator=True,
            )
            break
        why = f"over {DEFAULT_MAX_WORLDS} joint values"
        last = max((s for s in sites if s.label in names), key=lambda s: s.order)
        selection = replace(plan.selection, sampled={**plan.selection.sampled, last.label: why})
        plan = replace(plan, selection=selection)
    for pattern, deltas in _idle(plan.selection, findings):
        drawn = [n for n in sorted(findings.names) if n not in deltas]
        findings.problem(
            message(
                f"estimators[{pattern!r}] matches only sites with a Delta, which draw nothing",
                got=f"{deltas}, values that are functions of other sites",
                expected=f"a pattern for one of {drawn}",
                fix="the pattern of the site of which they are functions",
            ),
            of_estimator=True,
        )
    names, structures = set(findings.names), {frozenset(findings.names)}
    for _ in range(MAX_SCOUTS if run.backend.structure_varies else 0):
        if not plan.selection.unmatched(names):
            break
        scouting = DryRun(make_backend(), plan)
        execute(scouting)
        scout = scouting.findings
        names |= scout.names
        structures.add(frozenset(scout.names))
    auxiliary = {site.name for site in findings.auxiliary}
    shown = sorted((names | plan.selection.seen) - auxiliary)
    for pattern in plan.selection.unmatched(names):
        if len(structures) > 1:
            warnings.warn(
                f"estimators[{pattern!r}] has matched no latent site so far; the sites differ from run to run, and"
                f" those found are {sorted(names)}",
                stacklevel=2,
            )
            continue
        findings.problem(
            message(
                f"estimators[{pattern!r}] matches no latent site",
                got=repr(pattern),
                expected=f"a pattern for one of {shown}, the sites of this call or one before",
                fix='correct the pattern or leave it out; of a site that other calls have infer={"estimator": ...}',
            ),
            of_estimator=True,
        )
    plan.selection.seen.update(names)
    if findings.split:
        model, guide, objective = map(run.backend.params_of, ("model", "guide", "objective"))
        both = sorted({model[p] for p in model.keys() & guide.keys()})
        if both:
            findings.problem(
                message(
                    f"split_gradients: parameters {both} belong to model and guide",
                    got="parameters that would ascend both bounds",
                    expected="parameters of the model only or of the guide only",
                    fix="separate parameters, or one bound for all",
                ),
                of_estimator=False,
            )
        neither = sorted({objective[p] for p in objective.keys() - model.keys() - guide.keys()})
        if neither:
            findings.problem(
                message(
                    f"split_gradients: parameters {neither} belong neither to model nor to guide",
                    got="parameters of the objective itself, which would ascend no bound",
                    expected="parameters that model or guide declares too",
                    fix="declare them in the model or in the guide, or one bound for all",
                ),
                of_estimator=False,
            )
    findings.raise_if_any()
    for text in findings.ignored:
        warnings.warn(text, stacklevel=2)
    resolved = {**plan.selection.resolved, **findings.choices}
    return replace(
        plan,
        selection=replace(plan.selection, resolved=resolved),
        num_slots=findings.num_slots,
        num_replicates=findings.num_replicates,
        slots_of=findings.slots_of,
        has_worlds=findings.has_worlds,
        degrees=findings.degrees,
        analytic=frozenset(findings.analytic),
        pathwise=frozenset(findings.pathwise),
        continuous=frozenset(findings.continuous),
        apart=frozenset(findings.apart),
        met=tuple(findings.met),
        tracked=any(is_tracked(c.acting, c.layout) for c in resolved.values())
        or sum(size > 1 for size in findings.sizes.values()) > Run.max_world_dims,
        entangled=findings.entangled,
        leaves=findings.leaves,
        noisy=frozenset(findings.noisy),
        states=findings.states,
        table=tuple(findings.rows.values()),
        notes=(
            *findings.notes(pattern for pattern, _ in plan.selection.patterns),
            *in_words(plan.joined),
        ),
    )


def _idle(selection: Selection, findings: Findings) -> Iterator[tuple[str, list[str]]]:
    """Patterns of one's own that say something of sites with a Delta only, and these sites."""
    rows = list(findings.rows.values())
    for pattern, estimator in selection.patterns:
        found = [r for r in rows if fnmatchcase(r.site.split(" (")[0], pattern)]
        used = any(r.rule == f"pattern {pattern!r}" for r in rows)
        deltas = [r.site for r in found if r.distribution.split()[0] == "Delta"]
        plain = pattern == "*" or isinstance(estimator, Reparam)
        if deltas and len(deltas) == len(found) and not used and not plain:
            yield pattern, deltas


def with_closed_forms(plan: Plan, found: Mapping[Any, Blocked | None]) -> Plan:
    """The plan, with the terms that have a closed form.

    Args:
        plan: with the sites of which moments are carried.
        found: by the key of each term that depends on them what had no closed form, if something had none.

    Raises:
        AnalyticError: a term has none, and a site on which it depends no fallback.
    """
    refused, rows = [], []
    for (_, what), blocked in found.items():
        if blocked is None:
            rows.append(f"{what}: closed form")
            continue
        labels = sorted(label for _, label in blocked.sites)
        if any(isinstance(plan.selection.resolved[label].layout, Closed) for label in labels):
            has_path = all(plan.selection.resolved[label].kind[2] for label in labels)
            other = "Reparam" if has_path else "Score"
            refused.append(replace(blocked, term=what, other=other))
        used = ", ".join(
            f"{plan.selection.resolved[label].acting!r} for {label!r}" for label in labels
        )
        rows.append(f"{what}: {used}, because of {blocked}")
    if refused:
        raise analytic_error(refused)
    closed = frozenset(key for key, blocked in found.items() if blocked is None)
    return replace(plan, closed=closed, terms=tuple(dict.fromkeys(rows)))


def without_jumps(plan: Plan, found: Jumps, remake: Callable[[Selection], Plan]) -> Plan:
    """The plan, with other estimators for the sites that are reparameterised by default and in whose values a cost
    jumps.

    Args:
        plan: whose `pathwise` sites were looked at.
        found: by that.
        remake: makes the plan anew, for another selection.

    Raises:
        EstimatorError: a chosen estimator is biased by jumps, or every one.
    """
    resolved = dict(plan.selection.resolved)
    jumps = {  # that a value with moments is read has its own error
        label: why
        for label, why in found.reasons().items()
        if label in found.found or label not in plan.analytic
    }
    problems = [
        refusal(k, resolved[k].estimator, found.found.get(k, ()), found.lost.get(k, ()))
        for k in jumps
        if resolved[k].rule != "default" and k not in found.moving
    ]
    problems += [moving_refusal(label, texts) for label, texts in found.moving.items()]
    Findings(estimator_problems=problems).raise_if_any()
    if jumps:
        kept = {label: choice for label, choice in resolved.items() if label not in jumps}
        selection = replace(plan.selection, resolved=kept, jumps={**plan.selection.jumps, **jumps})
        plan = remake(selection)
    notes = {
        label: f"; assumed to have no jumps at {', '.join(texts)}"
        for label, texts in found.assumed.items()
    }
    table = tuple(replace(r, why=r.why + notes.get(r.site, "")) for r in plan.table)
    return replace(plan, table=table)


def not_numbers(params: Sequence[str], where: str | None) -> ObjectiveError:
    """The error about a gradient that is not a number, at a statement, or about parameters that one has spoilt."""
    names = ", ".join(map(repr, params))
    found = f"the gradient of parameter {names} is not a number"
    if where is None:
        found = f"parameter {names} is not a number"
    return ObjectiveError(
        message(
            found,
            got=f"a gradient through {where}" if where else "nan, after a step whose gradient was",
            expected="a finite gradient: it is 0 * inf where the log density is finite and its derivative is not",
            fix="keep arguments off the edge of their range (0 under log, sqrt or a rate), before any where",
        )
    )


def not_finite(value: float, where: str | None, spoilt: Sequence[str] = ()) -> ObjectiveError:
    """The error about a loss that is not finite, with the first statement whose log density is not."""
    if spoilt:
        return not_numbers(spoilt, None)
    return ObjectiveError(
        message(
            f"the loss is {value}"
            + (f": the log density of {where} is not finite" if where else ""),
            got=where or "finite log densities, so the objective itself overflows",
            expected="a finite loss; no gradient was taken and no parameter was changed",
            fix="check the data, the parameters and the supports at this site",
        )
    )
