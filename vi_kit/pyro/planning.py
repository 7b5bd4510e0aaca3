"""How a plan is made of Pyro programs: dry runs, and readings of their operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance

from vi_kit.analysis.blocked import Blocked
from vi_kit.analysis.degrees import DegreeProbe, Form
from vi_kit.analysis.jumps import OTHERS, JumpProbe, Jumps
from vi_kit.analysis.mixing import find
from vi_kit.base.named import PLATE, Axis
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.engine.dry_run import ClosedFormRun, DryRun, ProbingRun
from vi_kit.engine.plan import Plan, Replan
from vi_kit.engine.planning import Planner, left_of_nesting
from vi_kit.engine.run import Run
from vi_kit.engine.settings import Settings
from vi_kit.language.programs import Program
from vi_kit.pyro.backend import PyroBackend
from vi_kit.pyro.degrees import Reads, degree_probe, degrees_found, find_jumps_in
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.pyro.leak_probe import LeakProbe
from vi_kit.pyro.mixing import Mixing
from vi_kit.pyro.reader import Record
from vi_kit.pyro.told import harmless_lines


class RecordedRun(DryRun):
    """A dry run whose operations are recorded.

    Args:
        backend: the library.
        plan: what is known about the program.
        mixing: is told of which elements of plates the values of sites are made.
    """

    def __init__(self, backend: PyroBackend, plan: Plan, mixing: Mixing):
        super().__init__(backend, plan)
        self.mixing = mixing

    def drawn(self, site: Site, dist: Distribution, pathwise: bool) -> torch.Tensor:
        assert isinstance(dist, PyroDistribution)
        if dist.name == "Delta" or self.is_aside:
            return super().drawn(site, dist, pathwise)
        event_ndim = len(dist.event_shape)
        plates = (a for a in site.axes if a.kind == PLATE and a.order and a.size > 1)
        dims = {a: -a.order - event_ndim for a in plates}
        if pathwise:
            return self.mixing.drawn(dist.fn, dims, True)
        with torch.no_grad():
            return self.mixing.drawn(dist.unrounded or dist.fn, dims, False).detach()


class PyroPlanner(Planner):
    """See `Planner`."""

    def __init__(self, settings: Settings, programs: tuple[Program, Program]):
        self.settings, self.programs = settings, programs
        self.deepest = 0
        self.backend = PyroBackend()
        self.is_told = self.takes_steps = False
        self.known: dict[Any, Jumps] = {}

    def dry_run(self, plan: Plan) -> RecordedRun:
        model, _ = self.programs
        record, self.backend = Record(), PyroBackend()
        self.probe = self.backend.probe = LeakProbe(record)
        mixing = Mixing(record, (model.args, model.kwargs), plan.harmless)
        self.run = RecordedRun(self.backend, plan, mixing)
        return self.run

    def execute(self, run: Run) -> None:
        try:
            self.settings.execute(run, *self.programs)
        except Replan:
            raise left_of_nesting(self.settings.max_plate_nesting) from None
        self.deepest = max(self.deepest, run.deepest_dim)
        if isinstance(run, RecordedRun):
            record = run.mixing.record
            self.is_told |= record.is_told
            self.takes_steps |= record.takes_steps

    def watched(self, draft: Plan) -> tuple[Plan, bool]:
        """See `Planner.watched`. The programs are run once more if they draw besides their sites, as a guide does that
        sets itself up when it is called first, and if they are told values."""
        for _ in range(2):
            self.is_told = self.takes_steps = False
            plan = self.made(draft)
            if not plan.noisy:
                break
        if self.is_told and not draft.harmless:
            harmless = harmless_lines(plan, self.execute)
            plan = self.made(replace(draft, harmless=harmless)) if harmless else plan
        return plan, self.takes_steps

    def placed(self, plan: Plan) -> Plan:
        if plan.in_turn:  # which statements are taken at which values is known by provenance alone
            plan = replace(plan, tracked=True, entangled=False)
        return replace(plan, provenance=self._untraceable(plan))

    def _untraceable(self, plan: Plan) -> frozenset[str]:
        """Labels of the sites whose provenance gets lost in the program."""
        if not plan.tracked:
            return frozenset()
        try:
            self.probe.catch_up()
            is_all = self.probe.may_branch
        except (
            Exception
        ):  # what cannot be followed is taken to get lost, which is right, if noisier
            is_all = True
        return frozenset(plan.selection.resolved if is_all else self.probe.untraceable)

    def jumps(self, plan: Plan) -> Jumps:
        key = plan.pathwise, plan.continuous
        if key not in self.known:
            self.known[key] = self._jumps(plan)
        return self.known[key]

    def _jumps(self, plan: Plan) -> Jumps:
        plain = replace(plan, num_slots=1, tracked=False, analytic=frozenset())
        held_any = False

        def dry(probe: DegreeProbe) -> None:
            nonlocal held_any
            self.execute(ProbingRun(PyroBackend(), plain, probe))
            held_any |= isinstance(probe, JumpProbe) and probe.held_any

        leaves: dict[str, torch.Tensor] = {}
        for role in ("model", "guide"):
            for name, leaf in self.backend.params[role].items():
                is_other = leaves.get(name, leaf) is not leaf
                if leaf.requires_grad:
                    leaves[f"{name} ({role})" if is_other else name] = leaf
        found, labels = Jumps(), sorted(plan.pathwise)
        numbers = OTHERS if plan.draws_others() else OTHERS[:1]
        passes = [(number, False) for number in numbers]
        passes += [(OTHERS[0], True)] * self.is_told
        for number, one_way in passes:
            if found.of_all(plan.pathwise) and (found.moving or not leaves):
                break
            try:
                found = found.joined(
                    find_jumps_in(labels, leaves, dry, number, one_way, harmless=plan.harmless)
                )
            except Exception:  # the program may do what tensors of another class refuse
                found = found.joined(Jumps.unknown(plan.pathwise))
        if leaves and (held_any or not plan.continuous <= plan.pathwise):
            labels = sorted(plan.continuous)
            for number in numbers:
                if found.moving:
                    break
                try:
                    other = find_jumps_in(labels, leaves, dry, number, holds=False)
                    found = found.joined(Jumps(assumed=other.assumed, moving=other.moving))
                except Exception:
                    found = found.joined(Jumps.unknown(labels))
        return found

    def mixed(self, plan: Plan, plates: Sequence[Axis]) -> set[tuple[str, Axis]]:
        mixing = self.run.mixing
        return find(
            plates,
            (
                (t.label, t.base.axes, mixing.along(plates, detach_provenance(t.base.array)))
                for t in self.run.terms
            ),
        )

    def degrees(self, plan: Plan) -> list[tuple[str, str, Form]]:
        probe, plain = degree_probe(plan), replace(plan, num_slots=1, tracked=False)
        try:
            with Reads():
                self.execute(ProbingRun(PyroBackend(), plain, probe))
        except (RuntimeError, TypeError, ValueError) as error:
            error.add_note(
                "while the degrees of the terms were found; biased=True does not ask for them"
            )
            raise
        return degrees_found(probe)

    def closed_forms(self, plan: Plan) -> Mapping[Any, Blocked | None]:
        run = ClosedFormRun(PyroBackend(), replace(plan, num_slots=1, tracked=False))
        self.execute(run)
        return run.forms
