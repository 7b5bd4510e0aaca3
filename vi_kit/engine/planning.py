"""How a plan is made: dry runs until every estimator is settled, then proofs; the same for every library."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from vi_kit.analysis.blocked import Blocked, analytic_error
from vi_kit.analysis.degrees import Form
from vi_kit.analysis.jumps import Jumps, moving_refusal, refusal
from vi_kit.analysis.mixing import in_words, looked_at
from vi_kit.base.errors import BackendError, message
from vi_kit.base.layouts import Closed
from vi_kit.base.named import Axis
from vi_kit.costs.terms import is_tracked
from vi_kit.engine.backend import Backend
from vi_kit.engine.dry_run import DryRun
from vi_kit.engine.plan import Findings, Plan
from vi_kit.engine.refusals import shortfalls
from vi_kit.engine.run import Run
from vi_kit.engine.select import DEFAULT_MAX_WORLDS, Selection
from vi_kit.estimators import Reparam

MAX_SCOUTS = 10
"""A pattern that matches nothing is looked for in so many further dry runs, where sites may differ from run to run."""

UNKNOWN_NESTING = 32
"""Stands for the number of plate dims while it is being found."""


class Planner(ABC):
    """Makes the plan of two programs. Each library says how one runs them, and reads its own operations."""

    # What a library does

    @abstractmethod
    def dry_run(self, plan: Plan) -> DryRun:
        """A dry run of the whole program."""

    @abstractmethod
    def execute(self, run: DryRun) -> None:
        """Run the objective program."""

    @abstractmethod
    def watched(self, draft: Plan) -> tuple[Plan, bool]:
        """The plan that is `made`, and whether the programs have operations that take steps."""

    @abstractmethod
    def jumps(self, plan: Plan) -> Jumps:
        """Which terms jump in the values of reparameterised sites; and in those of any, where a parameter says."""

    @abstractmethod
    def mixed(self, plan: Plan, plates: Sequence[Axis]) -> set[tuple[str, Axis]]:
        """Which terms see several elements of which plates."""

    @abstractmethod
    def placed(self, plan: Plan) -> Plan:
        """The plan, with what the dry runs found out about dependence."""

    @abstractmethod
    def degrees(self, plan: Plan) -> list[tuple[str, str, Form]]:
        """What the terms are, as `DegreeProbe.found` says it."""

    @abstractmethod
    def closed_forms(self, plan: Plan) -> Mapping[Any, Blocked | None]:
        """By the key of each term that depends on sites of which moments are carried what has no closed form, if
        something has none."""

    # What is the same for all

    def plan(self, draft: Plan) -> Plan:
        """Choose the estimators, and prove what they rely on.

        Args:
            draft: the user's selection and the plate nesting.

        Raises:
            EstimatorError: see `made`; or an estimator is biased by jumps, or exact for terms of lower degree only.
            ObjectiveError: model and guide disagree.
            AnalyticError: a term has no closed form, and a site on which it depends no fallback.
        """
        plan = self.without_jumps(draft)
        joined, assumed = looked_at(plan.apart, plan.met, lambda plates: self.mixed(plan, plates))
        if joined:
            draft = replace(draft, joined=joined, plates=plan.plates, harmless=plan.harmless)
            plan = self.without_jumps(draft)
        plan = self.placed(replace(plan, notes=(*plan.notes, *assumed)))
        if plan.degrees:
            problems = shortfalls(plan, self.degrees(plan))
            Findings(estimator_problems=problems).raise_if_any()
        return with_closed_forms(plan, self.closed_forms(plan)) if plan.analytic else plan

    def without_jumps(self, draft: Plan) -> Plan:
        """The plan of a program, with other estimators for the sites that are reparameterised by default and in whose
        values a cost jumps.

        Raises:
            EstimatorError: a chosen estimator is biased by jumps, or every one.
        """
        plan, takes_steps = self.watched(draft)
        if not takes_steps or not (plan.pathwise or plan.continuous):
            return plan
        found = self.jumps(plan)
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
            selection = replace(
                plan.selection, resolved=kept, jumps={**plan.selection.jumps, **jumps}
            )
            plan = self.made(replace(draft, selection=selection, harmless=plan.harmless))
        notes = {
            label: f"; assumed to have no jumps at {', '.join(texts)}"
            for label, texts in found.assumed.items()
        }
        table = tuple(replace(r, why=r.why + notes.get(r.site, "")) for r in plan.table)
        return replace(plan, table=table)

    def made(self, plan: Plan) -> Plan:
        """Dry runs until every estimator is settled; raises one error for all problems.

        Raises:
            EstimatorError: a site that its estimator cannot handle, a pattern that matches no site, too
                many joint values.
            ObjectiveError: model and guide disagree.
        """
        while True:
            run = self.dry_run(plan)
            self.execute(run)
            findings = run.findings
            plates = {**plan.plates, **findings.same_plates()}
            if plates != plan.plates:
                plan = replace(plan, plates=plates)
                continue
            if findings.sampled:
                sampled = {**plan.selection.sampled, **findings.sampled}
                plan = replace(plan, selection=replace(plan.selection, sampled=sampled))
                continue
            if findings.alone - plan.selection.alone:
                alone = plan.selection.alone | findings.alone
                kept = {k: c for k, c in plan.selection.resolved.items() if k not in alone}
                plan = replace(plan, selection=replace(plan.selection, alone=alone, resolved=kept))
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
            scouting = self.dry_run(plan)
            self.execute(scouting)
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
        for pattern in plan.selection.marginalize:
            if f"marginalize {pattern!r}" in findings.summed:
                continue
            findings.problem(
                message(
                    f"marginalize={[pattern]} matches no site that only the model has",
                    got=repr(pattern),
                    expected="a latent site of the model that the guide lacks",
                    fix="correct the pattern or leave it out; a site of the guide has an estimator instead",
                ),
                of_estimator=False,
            )
        plan.selection.seen.update(names)
        if findings.split:
            _check_split(findings, run.backend)
        findings.raise_if_any()
        for text in findings.ignored:
            warnings.warn(text, stacklevel=2)
        for name, roles in findings.masked.items():
            if "model" in roles and "guide" not in roles:
                warnings.warn(
                    f"site {name!r} is masked in the model and not in the guide: where the mask is false the guide's"
                    " density counts alone, and the objective is no bound; the same mask around the guide's site, or no"
                    " site for what is observed",
                    stacklevel=2,
                )
        for name, roles in findings.observed.items():
            if roles == {"guide"}:
                warnings.warn(
                    f"site {name!r} is observed in the guide, and no site of the model: its log density is taken from"
                    " the bound. Were model and guide exchanged? If it is meant, infer={'is_auxiliary': True} at the"
                    " site says so",
                    stacklevel=2,
                )
        resolved = {**plan.selection.resolved, **findings.choices}
        shares_dims = sum(size > 1 for size in findings.sizes.values()) > Run.max_world_dims
        is_tracked_at_all = any(is_tracked(c.acting, c.layout) for c in resolved.values())
        return replace(
            plan,
            selection=replace(plan.selection, resolved=resolved),
            evaluations=findings.evaluations(),
            num_slots=findings.num_slots,
            num_replicates=findings.num_replicates,
            slots_of=findings.slots_of,
            has_worlds=findings.has_worlds,
            degrees=findings.degrees,
            analytic=frozenset(findings.analytic),
            pathwise=frozenset(findings.pathwise),
            continuous=frozenset(findings.continuous),
            apart=frozenset(findings.apart),
            summed=frozenset(findings.summed),
            met=tuple(findings.met),
            tracked=is_tracked_at_all or (shares_dims and not findings.scoped),
            scoped=shares_dims and findings.scoped and not is_tracked_at_all,
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


def _check_split(findings: Findings, backend: Backend) -> None:
    """Note parameters whose gradients cannot be split."""
    model, guide, objective = map(backend.params_of, ("model", "guide", "objective"))
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


def left_of_nesting(nesting: int | None) -> BackendError:
    """The error about a plate for which no dim is reserved."""
    return BackendError(f"a plate lies left of max_plate_nesting={nesting}; give Loss a larger one")
