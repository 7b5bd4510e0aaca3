"""What is known about a program before its gradient is taken, and what a dry run found wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vi_kit.analysis.mixing import Met
from vi_kit.base.demands import ContinuousBetween, Polynomial
from vi_kit.base.errors import EstimatorError, ObjectiveError
from vi_kit.base.layouts import Alternatives
from vi_kit.base.named import PLATE, Axis
from vi_kit.costs.terms import Site
from vi_kit.engine.select import Choice, Selection


class Replan(Exception):
    """The program has another structure than the plan was made for. Its text, if any, is the error that it is if a
    new plan does not help."""


SlotKey = tuple[int, str]
"""The order and the label of a site with alternatives."""


def shared_slots(
    nums: Mapping[SlotKey, int], together: Iterable[Collection[SlotKey]]
) -> dict[SlotKey, int]:
    """Where the slots of each site begin: as far in front as those allow on which an array depends with it.

    Args:
        nums: of the alternatives, in the order in which sites were sampled.
        together: sites on which one array depends.
    """
    apart = {key: {k for keys in together if key in keys for k in keys} for key in nums}
    starts: dict[SlotKey, int] = {}
    for key, num in nums.items():
        start = 1
        for at, size in sorted((starts[k], nums[k]) for k in apart[key] if k in starts):
            if start + num <= at:
                break
            start = max(start, at + size)
        starts[key] = start
    return starts


@dataclass(frozen=True)
class Plan:
    """What must be known about a program before it is run with worlds and alternatives.

    Attributes:
        selection: estimators by site.
        max_plate_nesting: dims that plates take.
        vectorize: whether replicates are drawn in one pass, or in turn.
        in_turn: why worlds and alternatives are run one after the other, if so.
        settled: whether a run with this plan was found to be right.
        compared: runs of programs, by role and number of terms before, in which alternatives are evaluated apart from
            what is drawn.
        num_slots: one plus the alternatives of all sites.
        slots_of: the alternatives of each site, by label.
        slot_starts: where the slots of each site begin, by order and label; empty if one site's follow the other's.
        has_worlds: whether sites have several values at once.
        num_replicates: of one draw, those within those of others counted in.
        tracked: whether provenance is needed.
        scoped: whether what the programs declare of their chains tells worlds apart that have one dim.
        entangled: whether everything depends on every site before it, so that provenance need not be followed.
        degrees: what is asked of costs, by label of the site, where it has to be proved from their degrees.
        analytic: labels of the sites of which moments are carried.
        closed: of which terms the expectation over these sites is known.
        states: of which of the guide's sites each term of the model needs the last, counted from one, by label.
        plates: by role and plate, the plate of another program that is the same under another name.
        pathwise: labels of the sites whose gradient is that of a path, along which no cost may jump.
        continuous: labels of the sites in whose values a cost may jump, but not where a parameter says.
        apart: plates whose elements an estimator or a bound tells apart.
        summed: names of the plates that are summed inside a nonlinear function.
        met: every log density.
        joined: terms, by where they come from, and the plates of which they see several elements: they are summed over
            these.
        table: rows for `explain`.
        notes: lines after them, on the whole estimate.
        terms: further rows: every term that depends on these sites, and what it gets.
        provenance: what a backend that traces programs found out about dependence.
        leaves: by role and name, what a backend found to be trained.
        evaluations: of the model in one step, on how many draws.
        harmless: lines of the programs at which what they are told of values makes no difference.
        noisy: roles whose programs draw random numbers besides their sites.
    """

    selection: Selection
    max_plate_nesting: int
    vectorize: bool = True
    in_turn: str = ""
    settled: bool = False
    compared: frozenset[tuple[str, int]] = frozenset()
    num_slots: int = 1
    slots_of: Mapping[str, int] = field(default_factory=dict)
    slot_starts: Mapping[SlotKey, int] = field(default_factory=dict)
    has_worlds: bool = False
    num_replicates: int = 1
    tracked: bool = True
    scoped: bool = False
    entangled: bool = False
    degrees: Mapping[str, Polynomial | ContinuousBetween] = field(default_factory=dict)
    analytic: frozenset[str] = frozenset()
    closed: frozenset[Any] = frozenset()
    states: Mapping[str, int] = field(default_factory=dict)
    plates: Mapping[tuple[str, Axis], Axis] = field(default_factory=dict)
    pathwise: frozenset[str] = frozenset()
    continuous: frozenset[str] = frozenset()
    apart: frozenset[Axis] = frozenset()
    summed: frozenset[str] = frozenset()
    met: tuple[Met, ...] = ()
    joined: frozenset[tuple[str, Axis]] = frozenset()
    table: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    provenance: Any = None
    leaves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    noisy: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    evaluations: int = 1

    @property
    def expands(self) -> bool:
        """Whether the model is evaluated on more values than are drawn."""
        return self.has_worlds or self.num_slots > 1

    @property
    def only_compares(self) -> bool:
        """Whether no alternative is differentiated."""
        layouts = (c.layout for c in self.selection.resolved.values())
        is_live = any(isinstance(one, Alternatives) and one.are_live for one in layouts)
        return self.num_slots > 1 and not (is_live or self.analytic)

    @property
    def has_front(self) -> bool:
        """Whether programs are to be run with dims in front of their own."""
        return not self.in_turn and (self.expands or (self.vectorize and self.num_replicates > 1))

    def draws_others(self) -> bool:
        """Whether there are draws besides those of `pathwise` sites."""
        others = (c for label, c in self.selection.resolved.items() if label not in self.pathwise)
        return any(choice.kind[0] != "Delta" for choice in others)


@dataclass(slots=True)  # no state of a program that holds its loss: see `closed_over`
class Plans:
    """Plans by programs and arguments.

    Attributes:
        max_plans: of kinds of arguments; the oldest make room.
        max_numbers: numbers that take more values than this are data, unless something was proved of them.
        kept: the plans.
        found: what plans are made of, by what was asked, where a program is known by its operations.
    """

    max_plans: int = 256
    max_numbers: int = 16
    kept: dict[Any, dict[Any, Plan]] = field(default_factory=dict)
    found: dict[Any, Any] = field(default_factory=dict)

    def find(self, key: Any, numbers: Any) -> Plan | None:
        """The plan for some numbers among arguments that are else the same."""
        plans = self.kept.get(key, {})
        plan = plans.get(numbers)
        if plan is None and len(plans) >= self.max_numbers:
            latest = next(reversed(plans.values()))
            plan = None if latest.degrees or latest.analytic else latest
        return plan

    def keep(self, key: Any, numbers: Any, plan: Plan) -> None:
        plans = self.kept.setdefault(key, {})
        plans.pop(numbers, None)
        plans[numbers] = plan
        for one, bound in ((plans, self.max_numbers), (self.kept, self.max_plans)):
            if len(one) > bound:
                del one[next(iter(one))]


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
    names: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    choices: dict[str, Choice] = field(default_factory=dict)
    estimator_problems: list[str] = field(default_factory=list)
    program_problems: list[str] = field(default_factory=list)
    num_slots: int = 1
    slots_of: dict[str, int] = field(default_factory=dict)
    sizes: dict[Site, int] = field(default_factory=dict)
    scoped: bool = True
    all_at_once: set[Site] = field(default_factory=set)
    has_worlds: bool = False
    degrees: dict[str, Polynomial | ContinuousBetween] = field(default_factory=dict)
    analytic: set[str] = field(default_factory=set)
    sampled: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    pathwise: set[str] = field(default_factory=set)
    continuous: set[str] = field(default_factory=set)
    split: bool = False
    leaves: dict[str, dict[str, Any]] = field(default_factory=dict)
    noisy: set[str] = field(default_factory=set)
    entangled: bool = True
    auxiliary: set[Site] = field(default_factory=set)
    above: dict[Site, frozenset[Site]] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
    masked: dict[str, set[str]] = field(default_factory=dict)
    observed: dict[str, set[str]] = field(default_factory=dict)
    num_replicates: int = 1
    num_worlds: int = 1
    methods: dict[str, None] = field(default_factory=dict)
    bounds: dict[str, None] = field(default_factory=dict)
    seen_plates: set[tuple[str, Axis]] = field(default_factory=set)
    met_plates: set[tuple[str, Axis, Axis]] = field(default_factory=set)
    apart: set[Axis] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    met: list[Met] = field(default_factory=list)
    over_bound: tuple[str, int, tuple[Site, ...]] | None = None

    def notes(self, patterns: Iterable[str]) -> Iterator[str]:
        """What is to be known of the whole estimate: what patterns matched, its bounds and what a step costs."""
        for pattern in patterns:
            rows = [r.site for r in self.rows.values() if r.rule == f"pattern {pattern!r}"]
            yield f"pattern {pattern!r}: {', '.join(rows) or 'no site left for it'}"
        yield from self.methods
        yield from self.bounds
        parts = " x ".join(f"{n} {what}" for what, n in self.counts().items() if n > 1)
        total = self.evaluations()
        yield (
            f"a step evaluates the model on {total} draw{'s' * (total > 1)}"
            + f": {parts}" * bool(parts)
        )

    def counts(self) -> dict[str, int]:
        """Of what a step evaluates the model on, by its kind."""
        held = 1 + any(c.estimator.holds_params for c in self.choices.values())
        return {
            "replicates": self.num_replicates,
            "joint values of enumerated sites": self.num_worlds,
            "values and their alternatives": self.num_slots,
            "runs, one with parameters held": held,
        }

    def evaluations(self) -> int:
        """See `Plan`."""
        return math.prod(self.counts().values())

    def tells_apart(self, plates: Iterable[Axis]) -> None:
        """Note plates whose elements count as independent."""
        self.apart.update(a for a in plates if a.kind == PLATE and a.size > 1)

    def same_plates(self) -> dict[tuple[str, Axis], Axis]:
        """Plates that two programs have under two names, as far as their common sites pair them off one to one."""
        own = Counter((role, a) for role, a, _ in self.met_plates)
        theirs = Counter((role, b) for role, _, b in self.met_plates)
        one_to_one = [
            (role, a, b)
            for role, a, b in self.met_plates
            if own[role, a] == 1 and theirs[role, b] == 1
        ]
        renamed = {(role, a) for role, a, b in one_to_one if a != b}
        return {
            (role, a): b
            for role, a, b in one_to_one
            if a != b and ((role, b) not in self.seen_plates or (role, b) in renamed)
        }

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


def explanation(plan: Plan, *notes: str) -> str:
    """The site table as text, notes, and what terms get if not all get the same."""
    head = Row("site", "distribution", "plates", "estimator", "chosen by", "why")
    rows = [tuple(vars(r).values()) for r in (head, *plan.table)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    in_turn = [f"one value and one replicate after the other: {plan.in_turn}"] * bool(plan.in_turn)
    return "\n".join(
        [
            lines[0],
            "  ".join("-" * w for w in widths),
            *lines[1:],
            "",
            *plan.notes,
            *notes,
            *plan.terms,
            *in_turn,
        ]
    )
