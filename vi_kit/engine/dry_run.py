"""Runs that find out what to plan: every site is plainly sampled, and problems are noted instead of raised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vi_kit.analysis.blocked import Blocked
from vi_kit.analysis.degrees import DegreeProbe
from vi_kit.analysis.mixing import Met
from vi_kit.base.demands import ClosedForm, Continuous, ContinuousBetween, Polynomial
from vi_kit.base.errors import message
from vi_kit.base.layouts import Alternatives, Closed, Gradient, Worlds, is_support
from vi_kit.base.named import PLATE, Array, Axis, Named
from vi_kit.base.protocols import Distribution
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Nonlinear, Site, Term
from vi_kit.engine.backend import Backend
from vi_kit.engine.density import is_open
from vi_kit.engine.drawing import by_moments, undeclared, upstream_of
from vi_kit.engine.plan import Findings, Plan, Row
from vi_kit.engine.refusals import check_nonlinear, reason_against, refuse_scores_below, unable
from vi_kit.engine.run import Run, costs_of
from vi_kit.engine.select import Choice
from vi_kit.engine.statements import Replay
from vi_kit.estimators import Estimator
from vi_kit.estimators.base import estimator_of
from vi_kit.language.programs import Statement


class DryRun(Run):
    """A run that finds out which estimators can serve a program, and what they need.

    Args:
        backend: the library.
        plan: what is known about the program.
        findings: where to note what is found.
    """

    def __init__(self, backend: Backend[Run], plan: Plan, findings: Findings | None = None):
        super().__init__(backend, plan, with_gradient=False)
        self.findings = Findings() if findings is None else findings

    def result(self, cost: Cost) -> dict[str | None, Named]:
        refuse_scores_below(self)
        self.findings.split = any(t.group is not None for t in cost.terms)
        return {}

    @property
    def is_dry(self) -> bool:
        return True

    def refuse(self, text: str, *, of_estimator: bool = True) -> None:
        self.findings.problem(text, of_estimator=of_estimator)

    def before_nonlinear(self, function: Nonlinear) -> None:
        check_nonlinear(self, function)

    def state_of(self, term: Term, needed: int, met: int) -> int:
        self.findings.states[term.label] = needed  # all dependence is followed
        return needed

    def copies(
        self,
        fn: Callable[[], Any],
        axis: Axis,
        together: bool,
        chunk: int | None = None,
        part: Axis | None = None,
    ) -> tuple[Cost, ...]:
        self.numbers[axis] = 0
        return costs_of(fn())

    # Sites

    def open(self, site: Site, statement: Statement, choice: Choice) -> None:
        self.findings.ignored.update(_ignored_hints(site.name, statement.infer))
        if statement.infer.get("is_auxiliary"):
            self.findings.auxiliary.add(site)

    def plain_value(
        self, site: Site, dist: Distribution, choice: Choice | None, inside: bool = False
    ) -> Array | None:
        choice = choice or self.findings.choices[site.label]
        findings, estimator = self.findings, choice.estimator
        layout, demand = estimator.layout(dist), estimator.demand(dist)
        num_slots = layout.num if isinstance(layout, Alternatives) else 0
        is_closed = isinstance(layout, Closed)
        reason = reason_against(site, dist, estimator, self.apart)
        if reason is None and inside and is_closed:
            reason = "needs to see what is done with the value, which a scan or cond does not show"
        if reason is None and layout.size + num_slots > 1:
            if inside:
                reason = "needs several values at once, which a scan or cond cannot hold"
            elif undeclared(self, site.axes, dist):
                reason = "needs each of its batch dims in a plate, or made event dims by .to_event"
        if reason is None and inside and estimator.gradient is Gradient.PART:
            reason = "needs the density of its noise, which a scan or cond does not hand out"
        is_default = choice.rule == "default"
        before = findings.choices.get(site.label, choice).estimator
        unmet = estimator_of(site).unmet_need((*site.axes, *self.apart))
        is_known = site.label in self.plan.selection.alone
        if is_default and not is_known and (unmet or before != choice.estimator):
            findings.alone.add(site.label)  # one choice serves all draws of a site
        elif reason and is_default and num_slots:
            findings.sampled[site.label] = reason  # a single draw will do
        elif reason:
            text = unable(site, dist, choice, reason, inside)
            findings.problem(text, of_estimator=True)
        else:
            findings.slots_of[site.label] = num_slots
            findings.num_slots += num_slots
            findings.sizes[site] = layout.size
            if site.tracked or findings.sizes[site] > 1 or num_slots:
                findings.tells_apart(site.axes)
            findings.has_worlds |= isinstance(layout, Worlds)
            if isinstance(demand, Polynomial | ContinuousBetween):
                findings.degrees[site.label] = demand
            if isinstance(demand, ClosedForm):
                findings.analytic.add(site.label)
            elements = dist.elementary() if num_slots and dist.has_rsample else None
            has_path = elements is not None and elements.push_has_params
            on_path = isinstance(estimator_of(site).demand(dist), Continuous)
            if (on_path or has_path) and dist.name != "Delta":
                findings.pathwise.add(site.label)
            if dist.is_continuous and dist.name != "Delta" and not estimator.biased:
                findings.continuous.add(site.label)
            if layout.size > 1 or num_slots > 0:
                findings.all_at_once.add(site)
        findings.choices[site.label] = choice
        if site.summed:
            findings.summed.add(choice.rule)
        else:
            findings.names.add(site.name)
        plates = ", ".join(a.name for a in site.axes if a.kind == PLATE)
        event = f" {tuple(dist.event_shape)}" if dist.event_shape else ""
        findings.rows[site.label] = Row(
            site.label, dist.name + event, plates or "-", repr(estimator), choice.rule, choice.why
        )
        return self.sampled(
            site, dist, estimator, estimator.gradient is Gradient.PATH and not reason
        )

    def sampled(
        self, site: Site, dist: Distribution, estimator: Estimator, pathwise: bool
    ) -> Array:
        """The value of a site for the program."""
        findings, layout = self.findings, estimator.layout(dist)
        try:
            value = self.drawn(site, dist, pathwise and dist.has_rsample)
        except NotImplementedError:
            findings.problem(
                message(
                    f"{site.role} site {site.name!r}: one cannot draw from {dist.name}",
                    got=f"{dist.name}, which has no sampler",
                    expected=f"a {site.role} that can be simulated",
                    fix="an objective that draws from the guide only, or another distribution",
                ),
                of_estimator=False,
            )
            findings.raise_if_any()
            raise
        findings.above[site] = upstream_of(self, site, value)
        followed = site.tracked or isinstance(layout, Closed) or site in findings.auxiliary
        if pathwise and not followed:
            return value
        if is_support(layout):
            value = self.backend.untracked(value)
        return self.backend.track(value, site)

    def drawn(self, site: Site, dist: Distribution, pathwise: bool) -> Array:
        """A plain draw."""
        return dist.rsample() if pathwise else dist.sample()

    def replayed(self, reading: Replay, statement: Statement, value: Array) -> Array | None:
        if reading.draw.followed:
            value = self.backend.track(value, reading.draw.sites[statement.name])
        self.findings.ignored.update(_ignored_hints(statement.name, statement.infer))
        if self.agrees(reading, statement, value):
            return value
        if statement.dist.name == "ImproperUniform":  # there is no way to go on
            self.findings.raise_if_any()
        return None

    def agrees(self, reading: Replay, statement: Statement, value: Array) -> bool:
        """Whether a site is the same in two programs."""
        return reading.agrees(statement, value)

    def refuse_random_given(self, reading: Replay, auxiliary: str) -> None:
        """Refuse an auxiliary site of the guide that the model's sites do not determine: the guide's density of these
        is an integral over it, in whose place its joint density would stand."""
        draw = reading.draw
        if (reading.program.role, draw.program.role) != ("model", "guide"):
            return
        made_of_it = (
            name in reading.names
            and draw.details[name].dist.name == "Delta"
            and draw.sites[auxiliary] in self.findings.above[site]
            for name, site in draw.sites.items()
        )
        if not any(made_of_it):
            reading.problem(
                f"guide site {auxiliary!r}: the model's sites are random given this auxiliary one",
                got="a joint density of both, where that of the model's sites alone is wanted",
                expected="model sites with a Delta at a function of it, or the site in the model too",
                fix="vi.marginal(guide, keep=[...], algorithm) with the model's sites; or in the model"
                f" sample({auxiliary!r}, ...) given its other sites, to guess what was drawn",
            )

    def all_at_once(self, site: Site) -> bool:
        return site in self.findings.all_at_once

    def has_several(self, site: Site) -> bool:
        return self.findings.sizes.get(site, 1) > 1

    def num_values(self, site: Site) -> int:
        return self.findings.sizes.get(site, 1)

    def is_followed(self, site: Site) -> bool:
        return site.tracked or site.estimator.gradient is not Gradient.PATH

    def is_sampled_instead(self, site: Site, why: str) -> bool:
        is_default = self.findings.choices[site.label].rule == "default"
        if is_default:
            self.findings.sampled[site.label] = why
        return is_default

    def note_particles(self, site: Site) -> None:
        size = site.layout.size
        self.findings.sizes[site] = size
        self.findings.has_worlds |= size > 1
        self.findings.tells_apart(site.axes)
        self.findings.all_at_once.add(site)

    @contextmanager
    def aside(self) -> Iterator[None]:
        met = list(self.findings.met)
        try:
            with super().aside():
                yield
        finally:
            self.findings.met[:] = met

    # Programs

    @property
    def expands(self) -> bool:
        return False

    @property
    def finds_leaves(self) -> bool:
        return True

    def may_draw_more(self, role: str) -> bool:
        return True

    def missed_leaves(self, text: str) -> None: ...

    def check_subsample(
        self, role: str, plate: tuple[str, int], indices: Any, shared: Any, same: Any
    ) -> None:
        if len(indices) != len(shared) or not same(shared, indices):
            name, size = plate
            self.refuse(
                message(
                    f"plate {name!r}: model and guide are on different minibatches",
                    got=f"in the {role} indices that are not those drawn before it",
                    expected="one set of indices for both",
                    fix=f"AutoNormal(model, create_plates=lambda idx: plate({name!r}, {size}, subsample=idx)); in a"
                    " guide of your own the model's plate statement, with the same indices",
                ),
                of_estimator=False,
            )

    # Notes

    def note_problem(self, text: str, *, of_estimator: bool) -> None:
        self.findings.problem(text, of_estimator=of_estimator)

    def note_masks(self, role: str, name: str, masks: tuple[Any, ...]) -> None:
        if any(mask is False for mask in masks):  # a flat prior, or one that a factor counts
            return
        if not all(map(is_open, masks)):
            self.findings.masked.setdefault(name, set()).add(role)

    def note_observed(self, role: str, name: str) -> None:
        self.findings.observed.setdefault(name, set()).add(role)

    def note_method(self, text: str) -> None:
        self.findings.methods[text] = None

    def note_plates(self, role: str, axes: Iterable[Axis]) -> None:
        self.findings.seen_plates.update((role, a) for a in axes if a.kind == PLATE)

    def note_same_plate(self, role: str, own: Axis, other: Axis) -> None:
        self.findings.met_plates.add((role, own, other))

    def note_replicates(self, axes: Iterable[Axis]) -> None:
        num = math.prod(a.size for a in axes)
        self.findings.num_replicates = max(self.findings.num_replicates, num)

    def note_upstream(self, known: frozenset[Site], all_before: Callable[[], Any]) -> None:
        if not all_before() <= known:
            self.findings.entangled = False

    def note_noise(self, role: str) -> None:
        self.findings.noisy.add(role)

    def note_sum(self, rule: str) -> None:
        self.findings.summed.add(rule)

    def note_leaves(self, role: str, leaves: dict[str, Any]) -> None:
        self.findings.leaves[role] = leaves

    def note_term(
        self,
        what: str,
        axes: Sequence[Axis],
        upstream: Iterable[Site],
        own: Site | None,
        inside: frozenset[tuple[Axis, int]],
    ) -> None:
        plates = frozenset(a for a in axes if a.kind == PLATE)
        labels = frozenset(s.label for s in upstream)
        self.findings.met.append(Met(what, plates, labels, own.label if own else "", inside))
        enumerated = sorted(filter(self.has_several, upstream), key=lambda s: s.order)
        if not enumerated:
            return
        if self.findings.scoped:
            in_scope = set(filter(self.has_several, self.backend.in_scope(self) or ()))
            is_bounded = len(in_scope) <= self.max_world_dims
            self.findings.scoped = is_bounded and in_scope.issuperset(enumerated)
        worlds = math.prod(self.findings.sizes[s] for s in enumerated)
        self.findings.num_worlds = max(self.findings.num_worlds, worlds)
        if worlds > max(s.max_worlds(otherwise=math.inf) for s in enumerated):
            self.findings.over_bound = (what, worlds, tuple(enumerated))


class PartialRun(DryRun):
    """A dry run for one question, after one that has checked the programs."""

    @property
    def finds_leaves(self) -> bool:
        return False

    def agrees(self, reading: Replay, statement: Statement, value: Array) -> bool:
        return True

    def refuse_random_given(self, reading: Replay, auxiliary: str) -> None: ...


class ProbingRun(PartialRun):
    """A dry run in which a probe makes the values and is shown the terms."""

    def __init__(self, backend: Backend[Run], plan: Plan, probe: DegreeProbe):
        super().__init__(backend, plan)
        self.probe = probe

    def result(self, cost: Cost) -> dict[str | None, Named]:
        self.probe.used.update(t.label for t in cost.terms)
        return super().result(cost)

    def before_nonlinear(self, function: Nonlinear) -> None:
        self.probe.used.update(t.label for t in function.terms)
        super().before_nonlinear(function)

    def constant(self, value: Any) -> Any:
        return self.probe.held(super().constant(value))

    def sampled(
        self, site: Site, dist: Distribution, estimator: Estimator, pathwise: bool
    ) -> Array:
        return self.probe.value(site, dist, estimator)

    @property
    def ignores_supports(self) -> bool:
        return True

    def note_log_prob(self, what: str, log_prob: Array, held: bool) -> None:
        if not (held and self.probe.holds):
            self.probe.terms.append((what, log_prob))

    def note_density(self, site: Site, dist: Distribution, log_prob: Array) -> None:
        self.probe.drawn(site.label, dist, log_prob)

    @contextmanager
    def aside(self) -> Iterator[None]:
        probe = self.probe
        terms, draws = list(probe.terms), list(probe.draws)
        try:
            with super().aside():
                yield
        finally:
            probe.terms[:], probe.draws[:] = terms, draws


class ClosedFormRun(PartialRun):
    """A dry run that finds which terms have a closed form.

    Attributes:
        forms: of the terms that have one `None`, of the others why not, by their keys.
    """

    def __init__(self, backend: Backend[Run], plan: Plan):
        super().__init__(backend, plan)
        self.forms: dict[Any, Blocked | None] = {}

    def sampled(
        self, site: Site, dist: Distribution, estimator: Estimator, pathwise: bool
    ) -> Array:
        if isinstance(estimator.layout(dist), Closed):
            return by_moments(self, site, dist, self.backend.untracked(dist.sample()))
        return super().sampled(site, dist, estimator, pathwise)

    def takes_form(self, key: Any, value: Any) -> bool:
        if key is not None:
            self.forms[key] = value if isinstance(value, Blocked) else None
        return True


def _ignored_hints(name: str, infer: Mapping[str, Any]) -> dict[str, None]:
    """What is said once of annotations for other losses, which mean nothing here."""
    hints = []
    if infer.get("baseline"):
        hints.append(("baseline", "vi.Score(baseline)"))
    if infer.get("enumerate") and infer.get("num_samples"):
        hints.append(("num_samples", "vi.WithoutReplacement(k), or num_samples of Loss"))
    if infer.get("kl") == "analytic":
        hints.append(("kl", "vi.Analytic(fallback=vi.Reparam()) at the site"))
    return {
        f"site {name!r}: infer={{{hint!r}: ...}} has no effect on this loss; instead of it: {instead}": None
        for hint, instead in hints
    }
