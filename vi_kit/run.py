"""One execution of an objective program: where axes are placed, sites recorded and terms made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from vi_kit._errors import BackendError, EstimatorError, ObjectiveError, message
from vi_kit._named import (
    PLATE,
    REPLICATE,
    SLOT,
    WORLD,
    Array,
    Axis,
    Named,
    from_layout,
    stack,
    union,
)
from vi_kit.backend import Backend, Distribution, _current
from vi_kit.cost import Cost, Site, Term
from vi_kit.estimators import Enumerate, Estimator, Expansion, MeasureValued, Reparam, Score
from vi_kit.select import Choice, Selection
from vi_kit.transform import contract

if TYPE_CHECKING:
    from vi_kit.language import Program


class Replan(Exception):
    """The program has another structure than the plan was made for."""


@dataclass(frozen=True)
class Plan:
    """What must be known about a program before it is run with worlds and alternatives.

    Attributes:
        selection: estimators by site.
        max_plate_nesting: dims that plates take.
        vectorize: whether replicates are drawn in one pass, or in turn.
        num_slots: one plus the alternatives of all sites.
        tracked: whether provenance is needed.
        table: rows for `explain`.
    """

    selection: Selection
    max_plate_nesting: int
    vectorize: bool = True
    num_slots: int = 1
    tracked: bool = True
    table: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of `explain`."""

    site: str
    distribution: str
    plates: str
    estimator: str
    rule: str
    why: str


@dataclass
class Findings:
    """What a dry run collects instead of raising at the first site."""

    rows: dict[str, Row] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    estimator_problems: list[str] = field(default_factory=list)
    program_problems: list[str] = field(default_factory=list)
    num_slots: int = 1
    sizes: dict[Site, int] = field(default_factory=dict)
    all_at_once: set[Site] = field(default_factory=set)
    over_bound: tuple[str, int, tuple[Site, ...]] | None = None

    def problem(self, text: str, *, of_estimator: bool) -> None:
        problems = self.estimator_problems if of_estimator else self.program_problems
        if text not in problems:
            problems.append(text)

    def raise_if_any(self) -> None:
        """One error for all bad sites."""
        texts = self.estimator_problems + self.program_problems
        if texts:
            kind = EstimatorError if self.estimator_problems else ObjectiveError
            raise kind("\n".join(texts))


MAX_WORLD_DIMS = 40
"""Dims for the supports of enumerated sites; further sites use them again, from the oldest on."""

ALTERNATIVES: tuple[Estimator, ...] = (Reparam(), Enumerate(), MeasureValued(), Score())
"""What an error about a site suggests, in this order, as far as they can handle it."""


class Run:
    """State of one execution of an objective program.

    Args:
        backend: the library.
        plan: what is known about the program.
        findings: makes it a dry run, in which every site is plainly sampled and problems are noted.
        with_gradient: whether state (moving averages) advances.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        *,
        findings: Findings | None = None,
        with_gradient: bool = True,
    ):
        self.backend = backend
        self.plan = plan
        self.findings = findings
        self.with_gradient = with_gradient
        self.sites: list[Site] = []
        self.terms: list[Term] = []
        self.new_state: dict[str, Array] = {}
        self.in_turn: frozenset[Axis] = frozenset()
        self.subsamples: dict[str, Any] = {}
        self.open_replicates: frozenset[Axis] = frozenset()
        self.slot_axis = Axis(SLOT, -1, "slots", plan.num_slots)
        self.slot_dim = -1 - plan.max_plate_nesting
        self.slots: dict[Site, range] = {}
        self.next_slot = 1
        self.dims: dict[Axis, int] = {}
        self.placed_dims = 0
        self._replicates = 0
        self._free_dim = self.slot_dim
        if plan.num_slots > 1:
            self.place(self.slot_axis)

    # Execution

    def execute(
        self, objective: Callable[[Program, Program], Any], model: Program, guide: Program
    ) -> dict[str | None, Named]:
        """Run an objective program and contract its sites; scalars by group of parameters."""
        token = _current.set(self)
        try:
            cost = objective(model, guide)
            if self.findings is not None:
                return {}
            if self.next_slot != self.plan.num_slots:
                raise Replan
            return contract(cost, self.sites)
        finally:
            _current.reset(token)

    # Replicates

    def new_replicate_axis(self, size: int) -> Axis:
        self._replicates += 1
        return Axis(REPLICATE, self._replicates, f"iid_{self._replicates}", size)

    def replicate(self, fn: Callable[[], Any], axis: Axis) -> tuple[Any, ...]:
        """Run `fn` for all copies along `axis`: costs, as a tuple."""
        opened, in_turn = self.open_replicates, self.in_turn
        dims, free = dict(self.dims), self._free_dim
        try:
            if not self.plan.vectorize:
                self.in_turn = in_turn | {axis}
                return self._one_after_the_other(fn, axis)
            self.open_replicates = opened | {axis}
            with self.backend.replicated(self, axis):
                return as_tuple(fn())
        finally:
            self.open_replicates, self.in_turn = opened, in_turn
            self.dims, self._free_dim = dims, free

    def _one_after_the_other(self, fn: Callable[[], Any], axis: Axis) -> tuple[Any, ...]:
        """Run `fn` once per copy and stack what it returns."""
        start = (
            len(self.sites),
            self.next_slot,
            self._replicates,
            dict(self.dims),
            self._free_dim,
        )
        results, sites = [], []
        for _ in range(axis.size if self.findings is None else 1):
            num_sites, self.next_slot, self._replicates, dims, self._free_dim = start
            self.dims = dict(dims)
            results.append(as_tuple(fn()))
            sites.append(self.sites[num_sites:])
            del self.sites[num_sites:]
        self.sites += sites[0]
        if self.findings is not None or not all(isinstance(c, Cost) for r in results for c in r):
            return results[0]
        return stack_replicates(results, sites, axis)

    def place(self, axis: Axis) -> int:
        """Reserve a dim, left of all others, for an axis."""
        worlds = [d for a, d in self.dims.items() if a.kind == WORLD]
        if axis.kind == WORLD and len(worlds) >= MAX_WORLD_DIMS:
            if not self.plan.tracked:
                raise Replan
            dim = worlds[len(worlds) % MAX_WORLD_DIMS]
        else:
            dim = self._free_dim
            self._free_dim -= 1
        self.placed_dims += 1
        self.dims[axis] = dim
        return dim

    def layout(
        self, plates: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> dict[int, Axis]:
        """Which axis lies at which dim of an array that depends on the sites `upstream`."""
        layout = {-a.order: a for a in plates if a.kind == PLATE}
        shared = len(self.dims) > len(set(self.dims.values()))
        seen = {s.world for s in upstream}
        for axis, dim in self.dims.items():
            if shared and axis.kind == WORLD and axis not in seen:
                continue
            if dim in layout:
                raise EstimatorError(
                    message(
                        f"{what} depends on more than {MAX_WORLD_DIMS} enumerated sites, or on sites as"
                        " far apart",
                        got=f"{layout[dim].name} and {axis.name}",
                        expected=f"terms that span at most {MAX_WORLD_DIMS} successive enumerated sites",
                        fix="another estimator for some of the sites",
                    )
                )
            layout[dim] = axis
        return layout

    def note_nonlinear(self, summed: Iterable[Axis]) -> None:
        """Warn, in the dry run, of minibatches inside a nonlinear function."""
        plates = sorted(a.name for a in summed if a.kind == PLATE and a.scale != 1.0)
        if self.findings is not None and plates:
            warnings.warn(
                f"subsampled plates {plates} are summed inside a nonlinear function (some terms are"
                " outside them): the bound of a minibatch is not an unbiased estimate of that of all"
                " the data",
                stacklevel=2,
            )

    # Sites

    def draw(
        self, name: str, dist: Distribution, plates: Sequence[Axis], infer: Mapping[str, Any]
    ) -> tuple[Array, Site]:
        """Offer a latent site to its estimator.

        Args:
            name: of the site.
            dist: its distribution, expanded to its plates.
            plates: its plates and replicate axes.
            infer: its annotations.

        Returns:
            The value for the program, and the site.
        """
        axes = tuple(sorted(plates, key=lambda a: a.key, reverse=True))
        choice = self.plan.selection.choose(name, dist, (*axes, *self.in_turn), infer)
        site = Site(name, len(self.sites), axes, choice.estimator)
        self.sites.append(site)
        if self.findings is not None:
            return self._try(site, dist, choice), site
        if name not in self.plan.selection.resolved:  # the structure changes from run to run
            reason = self._reason_against(site, dist)
            if reason:
                raise EstimatorError(self._refusal(site, dist, choice, reason))
        if site.estimator.tracked and not self.plan.tracked:
            raise Replan
        expansion = site.estimator.expand(dist)
        event_ndim = len(dist.event_shape)
        if expansion.is_support:
            return self.backend.track(self._support(site, expansion, event_ndim), site), site
        if expansion.alternatives is not None:
            value = self._alternatives(site, expansion, event_ndim)
        else:
            value = self._aligned_slots(expansion.value, event_ndim)
        return (self.backend.track(value, site) if site.estimator.tracked else value), site

    def _reason_against(self, site: Site, dist: Distribution) -> str | None:
        estimator = site.estimator
        return estimator.reason_against(dist) or estimator.unmet_need((*site.axes, *self.in_turn))

    def _refusal(self, site: Site, dist: Distribution, choice: Choice, reason: str) -> str:
        """The text of the error about a site that its estimator cannot handle."""
        name = type(site.estimator).__name__
        others = [e for e in ALTERNATIVES if e.reason_against(dist) is None]
        others = [type(e).__name__ for e in others if type(e).__name__ != name] or [name]
        expected = " or ".join(f"{other}()" for other in others)
        fix = f'estimators={{"{site.name}": vi.{others[0]}()}}'
        if "replicates" in reason:
            expected, fix = "num_samples >= 2, or another baseline", "num_samples=2"
        if "max_worlds" in reason:
            fix += f", or vi.Enumerate(max_worlds={dist.support_size()})"
        return message(
            f"site {site.name!r}: {name}() {reason}",
            got=f"{site.estimator!r}, from {choice.rule}",
            expected=expected,
            fix=fix,
        )

    def _try(self, site: Site, dist: Distribution, choice: Choice) -> Array:
        """Dry run: check the choice, note it, and sample plainly."""
        findings, estimator = self.findings, choice.estimator
        assert findings is not None
        reason = self._reason_against(site, dist)
        if reason:
            findings.problem(self._refusal(site, dist, choice, reason), of_estimator=True)
        else:
            findings.num_slots += estimator.num_slots(dist)
            findings.sizes[site] = estimator.num_worlds(dist)
            if estimator.num_worlds(dist) > 1 or estimator.num_slots(dist) > 0:
                findings.all_at_once.add(site)
        findings.choices[site.name] = choice
        plates = ", ".join(a.name for a in site.axes if a.kind == PLATE)
        event = f" {tuple(dist.event_shape)}" if dist.event_shape else ""
        findings.rows[site.name] = Row(
            site.name, dist.name + event, plates or "-", repr(estimator), choice.rule, choice.why
        )
        if isinstance(estimator, Reparam) and not reason:
            return dist.rsample()
        value = dist.sample()
        if findings.sizes.get(site, 1) > 1:  # its support depends on nothing
            value = self.backend.untracked(value)
        return self.backend.track(value, site)

    def _support(self, site: Site, expansion: Expansion, event_ndim: int) -> Array:
        values = expansion.value
        size = values.shape[0]
        site.world = Axis(WORLD, site.order, f"worlds of {site.name}", size)
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", size)
        dim = self.place(site.world)
        event = tuple(values.shape)[values.ndim - event_ndim :]
        return array_namespace(values).reshape(values, (size, *(1,) * (-dim - 1), *event))

    def _alternatives(self, site: Site, expansion: Expansion, event_ndim: int) -> Array:
        """Put the drawn value and its alternatives along the slot axis."""
        assert expansion.alternatives is not None and expansion.coefficients is not None
        num, n, start = expansion.alternatives.shape[0], self.plan.num_slots, self.next_slot
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", num)
        self.slots[site] = range(start, start + num)
        self.next_slot += num
        if self.next_slot > n:
            raise Replan
        coefficients = self._first_slot(expansion.coefficients, 0, lead=1)
        upstream = self.backend.upstream(coefficients)
        layout = self.layout(site.axes, upstream, f"site {site.name!r}")
        coefficients = self.backend.untracked(coefficients)
        layout[-coefficients.ndim] = site.slots
        named = from_layout(coefficients, layout, (*site.axes, site.slots))
        site.coefficients = Term(named)
        value = self._padded(expansion.value, event_ndim)
        xp = array_namespace(value)
        dim = value.ndim + self.slot_dim - event_ndim
        others = self._first_slot(expansion.alternatives, event_ndim, lead=1)
        others = xp.reshape(
            others, (num, *(1,) * (value.ndim - others.ndim + 1), *others.shape[1:])
        )
        others = xp.moveaxis(xp.squeeze(others, axis=dim + 1), 0, dim)
        base = value[(slice(None),) * dim + (slice(0, 1),)]
        pieces = [value[(slice(None),) * dim + (slice(0, start),)]] if value.shape[dim] > 1 else []
        if not pieces:
            pieces.append(_repeated(base, dim, start))
        pieces.append(others)
        if n > self.next_slot:
            pieces.append(_repeated(base, dim, n - self.next_slot))
        return xp.concat(pieces, axis=dim)

    def _aligned_slots(self, value: Array, event_ndim: int) -> Array:
        """Where a drawn value is drawn once per slot, keep the draw of slot 0 wherever nothing upstream
        of it differs from slot 0."""
        n = self.plan.num_slots
        if n == 1:
            return value
        dim = value.ndim + self.slot_dim - event_ndim
        if dim < 0 or value.shape[dim] == 1:
            return value
        upstream = self.backend.upstream(value)
        own = {i for site, slots in self.slots.items() if site in upstream for i in slots}
        xp = array_namespace(value)
        index = xp.asarray([i if i in own else 0 for i in range(n)], device=device(value))
        return xp.take(value, index, axis=dim)

    def _padded(self, value: Array, event_ndim: int) -> Array:
        need = -self.slot_dim + event_ndim
        if value.ndim >= need:
            return value
        shape = (1,) * (need - value.ndim) + tuple(value.shape)
        return array_namespace(value).reshape(value, shape)

    def _first_slot(self, array: Array, event_ndim: int, lead: int) -> Array:
        """Values in slot 0, with a dim of size one kept; `lead` dims in front are not batch dims."""
        dim = array.ndim + self.slot_dim - event_ndim
        if dim < lead:
            if event_ndim == 0:
                return array
            pad = (1,) * (lead - dim)
            return array_namespace(array).reshape(
                array, (*array.shape[:lead], *pad, *array.shape[lead:])
            )
        return array[(slice(None),) * dim + (slice(0, 1),)]

    # Terms

    def named(
        self, array: Array, axes: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> Named:
        """Name the dims of an array that the program made at a site inside `axes`."""
        layout = self.layout(axes, upstream, what)
        try:
            return from_layout(array, layout, axes)
        except ValueError as error:
            raise ObjectiveError(
                message(
                    f"{what}: a batch dim of its log density is in no plate",
                    got=str(error),
                    expected=f"dims of the plates {[a.name for a in axes if a.kind == PLATE]} only",
                    fix="declare the dim by a plate, or make it an event dim with .to_event(1)",
                )
            ) from None

    def term(
        self,
        log_prob: Array,
        axes: Sequence[Axis],
        what: str,
        *,
        held: bool = False,
        own: Site | None = None,
    ) -> Term:
        """A term from log densities.

        Args:
            log_prob: with dims as in the program (nats).
            axes: plates and replicate axes of the statement.
            what: for error messages.
            held: whether the draw on which it depends is a constant.
            own: for a site's own density: the site, which is not upstream of it.
        """
        known = self.backend.upstream(log_prob)
        named = self.named(self.backend.untracked(log_prob), axes, known, what)
        upstream = known - {own}
        alternatives: dict[Site, Named] = {}
        if self.slot_axis in named.axes:
            for site, slots in self.slots.items():
                if site in upstream and not held:
                    alternatives[site] = _slice(named, self.slot_axis, slots, site.slots)
            named = named.index(self.slot_axis, 0)
        worlds = {s for s in self.sites if s.world is not None and s.world in named.axes}
        upstream = frozenset(upstream | worlds)
        if self.findings is not None:
            self._check_reach(upstream, axes, what)
        else:
            self._check_reach({s for s in upstream if s.world or s in self.slots}, axes, what)
        term = Term(
            named,
            alternatives,
            upstream=upstream,
            pending=frozenset(a for a in axes if a.kind == PLATE and a.scale != 1.0),
            held=upstream if held else frozenset(),
            label=what,
        )
        self.terms.append(term)
        return term

    def _check_reach(self, upstream: Iterable[Site], axes: Sequence[Axis], what: str) -> None:
        """Refuse terms outside the plate of a site whose elements all change at once."""
        enumerated = []
        for site in sorted(upstream, key=lambda s: s.order):
            if self.findings is None:
                all_at_once = site.world is not None or site in self.slots
            else:
                all_at_once = site in self.findings.all_at_once
                if self.findings.sizes.get(site, 1) > 1:
                    enumerated.append(site)
            missing = [a.name for a in site.axes if a.kind == PLATE and a not in axes]
            if not (all_at_once and missing):
                continue
            estimator = type(site.estimator).__name__
            text = message(
                f"site {site.name!r}: {estimator}() cannot serve {what}, which is outside plate"
                f" {', '.join(map(repr, missing))} of the site",
                got=f"{what} depends on {site.name!r} and sees all its elements at once",
                expected="terms inside the site's plates, or an estimator of single draws",
                fix=f'estimators={{"{site.name}": vi.Score()}}',
            )
            if self.findings is None:
                raise EstimatorError(text)
            self.findings.problem(text, of_estimator=True)
        if enumerated:
            assert self.findings is not None
            worlds = math.prod(self.findings.sizes[s] for s in enumerated)
            bounds = [getattr(s.estimator, "max_worlds", math.inf) for s in enumerated]
            if worlds > max(bounds):
                self.findings.over_bound = (what, worlds, tuple(enumerated))

    def first_not_finite(self) -> str | None:
        """The first statement whose log density is not finite."""
        for term in self.terms:
            xp = array_namespace(term.base.array)
            if not bool(xp.all(xp.isfinite(term.base.array))):
                return term.label
        return None


def _repeated(base: Array, dim: int, times: int) -> Array:
    shape = list(base.shape)
    shape[dim] = times
    return array_namespace(base).broadcast_to(base, tuple(shape))


def _slice(named: Named, axis: Axis, slots: range, new: Axis | None) -> Named:
    assert new is not None
    dim = named.axes.index(axis)
    part = named.array[(slice(None),) * dim + (slice(slots.start, slots.stop),)]
    return Named(part, named.axes).renamed(axis, new)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def stack_replicates(
    results: Sequence[tuple[Cost, ...]], sites: Sequence[Sequence[Site]], axis: Axis
) -> tuple[Cost, ...]:
    """Bring costs that were computed one copy after the other under one replicate axis.

    The sites of the first copy stand for those of all; they gain the axis.

    Raises:
        BackendError: the copies do not have the same sites and terms.
    """
    shapes = {
        (tuple(s.name for s in ss), tuple(len(c.terms) for c in r))
        for ss, r in zip(sites, results, strict=True)
    }
    if len(shapes) > 1:
        raise BackendError(
            message(
                "replicates of one program have different sites",
                got="; ".join(sorted(", ".join(names) for names, _ in shapes)),
                expected="the same sites in every replicate",
                fix="num_samples=1 and an objective without iid, or a program of fixed structure",
            )
        )
    first = {s: kept for ss in sites for s, kept in zip(ss, sites[0], strict=True)}

    def stacked(terms: Sequence[Term]) -> Term:
        head = terms[0]

        def known(group: frozenset[Site]) -> frozenset[Site]:
            return frozenset(first.get(s, s) for s in group)

        return replace(
            head,
            base=stack([t.base for t in terms], axis),
            alternatives={
                first.get(s, s): stack([list(t.alternatives.values())[i] for t in terms], axis)
                for i, s in enumerate(head.alternatives)
            },
            upstream=known(head.upstream).union(*(known(t.upstream) for t in terms)),
            drawn=known(head.drawn),
            held=known(head.held),
        )

    costs = tuple(
        Cost(stacked(terms) for terms in zip(*(c.terms for c in row), strict=True))
        for row in zip(*results, strict=True)
    )
    for copies in zip(*sites, strict=True):
        kept = copies[0]
        for name in ("log_q", "coefficients", "chosen"):
            if getattr(kept, name) is not None:
                setattr(kept, name, stacked([getattr(s, name) for s in copies]))
        kept.axes = union(kept.axes, [axis])
    return costs


def make_plan(backend: Backend, plan: Plan, execute: Callable[[Run], None]) -> Plan:
    """Dry runs until every estimator is settled; raises one error for all problems.

    Args:
        backend: the library.
        plan: the user's selection and the plate nesting.
        execute: runs the objective program in a given run.

    Raises:
        EstimatorError: a site that its estimator cannot handle, a pattern that matches no site, too
            many joint values.
        ObjectiveError: model and guide disagree.
    """
    while True:
        findings = Findings()
        execute(Run(backend, plan, findings=findings, with_gradient=False))
        if findings.over_bound is None:
            break
        what, worlds, sites = findings.over_bound
        names = {s.name for s in sites if findings.choices[s.name].rule == "default"}
        if not names:
            bound = max(getattr(s.estimator, "max_worlds", 0) for s in sites)
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
        last = max((s for s in sites if s.name in names), key=lambda s: s.order)
        selection = replace(plan.selection, sampled=plan.selection.sampled | {last.name})
        plan = replace(plan, selection=selection)
    for pattern in plan.selection.unmatched(findings.rows):
        findings.problem(
            message(
                f"estimators[{pattern!r}] matches no latent site",
                got=repr(pattern),
                expected=f"a pattern for one of {sorted(findings.rows)}",
                fix="correct the pattern or leave it out",
            ),
            of_estimator=True,
        )
    findings.raise_if_any()
    resolved = {**plan.selection.resolved, **findings.choices}
    return replace(
        plan,
        selection=replace(plan.selection, resolved=resolved),
        num_slots=findings.num_slots,
        tracked=any(c.estimator.tracked for c in resolved.values())
        or sum(size > 1 for size in findings.sizes.values()) > MAX_WORLD_DIMS,
        table=tuple(findings.rows.values()),
    )


def explanation(table: Sequence[Row]) -> str:
    """The site table as text."""
    head = Row("site", "distribution", "plates", "estimator", "chosen by", "why")
    rows = [tuple(vars(r).values()) for r in (head, *table)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
