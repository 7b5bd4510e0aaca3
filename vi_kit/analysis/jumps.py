"""Whether costs jump in the values of reparameterised sites: where the result of an operation changes between two
draws, both sides of the change are compared.

Which operations take steps, and which terms they reach, is read off the program (`vi_kit.analysis.degrees`); that is
all of them. Whether a term jumps there is tested: all sites move on a line through a draw of theirs; where a result
changes, bisection finds two neighbouring points, and the term must be the same at both. It is for `relu`, the
absolute value, a Huber loss or `where` with branches that meet. Of a division it is looked at where its denominator
stops shrinking, unless it is far from zero by its slope: if it is zero there, the two sides may be far apart. A
comparison of which no change is seen may have another result in a narrow window: it is looked at where its sides come
near to each other. Of an operation with few results, or with whole numbers, all changes are looked at that a grid
shows, since a table may be flat but for one entry. What is not known while a step is traced is tried at several
numbers, where no change is seen or it is no jump. Of a loop the turns are counted; it may go on until something is
small. Parameters are moved a little, so that branches do not meet by the values that they start from.

No estimator has the gradient of a place at which a cost jumps. Of the operations whose operands depend on a parameter,
but by way of sites, it is looked whether their results change at a jump if the parameter moves and no site does.

A value that the program reads, as a Python number or an array of NumPy, may reach a term without the operations that
are read off, and without a derivative: then the program makes something else of moved sites than those operations do.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import device

from vi_kit.analysis.degrees import (
    CONSTANT,
    INVERSES,
    POLES,
    SIDES,
    TESTS,
    Cut,
    DegreeProbe,
    Degrees,
)
from vi_kit.base.errors import message
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.estimators import Estimator

NUM_DRAWS = 6
"""Of which the first is where the way starts, the second says in which direction, and all of them, how far."""

PLACES = (0.0, 1.0, -1.0, 2.5, -2.0, 6.0, -5.0, 20.0, -20.0)
"""Where on the way a program is evaluated, in steps as far as draws are apart."""

GRID = tuple(np.linspace(-5.0, 6.0, 67).tolist())
"""Where on the way it is looked for what the places above may miss: narrow windows of a comparison of which no change
was seen, all steps of a table; and where a program that reads values is compared with the operations that were
followed."""

MAX_HALVINGS = 25
"""How closely it is looked where the sides of a comparison come near to each other."""

Aside = tuple[float, ...]

HERE: Aside = (0.0,) * (NUM_DRAWS - 2)

ASIDE = [(*HERE[:i], by, *HERE[i + 1 :]) for by in (5.0, -5.0) for i in range(len(HERE))]
"""How far beside this way others are, towards further draws, on which an operation is looked at that jumps at some
values of several operands together."""

MAX_CHANGES = 3
"""How many changes of an operation's result are looked at, if it is a truth value."""

MAX_STEPS = 32
"""How many, if it has more than two values or few elements: a table may be flat but for one entry."""

MAX_CALM = 4
"""With how many other numbers it is looked again where none of these changes was a jump."""

MAX_FEW = 16
"""How many elements are few."""

MAX_WAYS = 8
"""How many of the ways are looked at that a program may choose by what does not depend on the sites."""

OTHERS = (3, 0, 1, 2)
"""At which of their values sites are that do not move, which may hide a jump; see `Distribution.one_of_many`."""

MAX_RUNS = 3 * MAX_STEPS
"""How often the program is run once more, to see what it does on either side of an `if`."""

SLOPE_PLACES = (0.0, 0.7, -1.3)
"""Where a derivative is compared with differences."""

WIDTHS = (0.03, 0.005)
"""Of these, and of half of each."""

POLE_FREE_WIDTH = 0.1
"""How short a stretch must be that is left alone if it is far shorter than the way to a zero of a denominator."""

CALM_WIDTH = 1e-3
"""How near to a change its sides are compared, beside where it is: terms that are the same there do not jump."""

EQUALITIES = frozenset(("eq", "ne"))
"""Whose result changes at single values only, unless it was seen to change elsewhere."""

POLE_WIDTH = 1e-9
"""How near to a pole the two sides are compared, in steps as far as draws are apart: a denominator that is kept from
zero by a smaller number is zero."""

LOOPS = frozenset(("while",))
"""Operations that may go on until something is small enough: their results are turns, after each of which a term may
be off by its share of what is small."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a program made at one place.

    Attributes:
        results: of each operation that takes steps, `None` where it is not known; of one with a pole, whether its
            denominator grows.
        terms: of each term, its elements.
        is_elsewhere: whether the program would have taken another way than the one that was followed.
        gaps: of comparisons, by how much their sides differ.
        reaches: of operations with a pole, how far on the way their denominators would be zero, by their slope; with
            the signs of these.
    """

    results: Mapping[Cut, np.ndarray | None]
    terms: Sequence[np.ndarray]
    is_elsewhere: bool = False
    gaps: Mapping[Cut, np.ndarray] = field(default_factory=dict)
    reaches: Mapping[Cut, np.ndarray] = field(default_factory=dict)


@dataclass(eq=False)
class JumpProbe(DegreeProbe):
    """What a dry run notes in which all reparameterised sites move on a line.

    Attributes:
        zeros: for each such site how far it has moved, by label.
        draw: makes the value of a site, from its label, its distribution and how far it has moved.
        cut: makes a constant of a value.
        known: what is drawn for a site that does not move, from its label and its sampler.
        number: of the value that this is.
        held_any: whether there were draws that are held; if `holds`, they do not move.
    """

    draw: Callable[[str, Any, Any], Any] = field(kw_only=True)
    cut: Callable[[Any], Any] = field(kw_only=True)
    known: Callable[[str, Callable[[], Any]], Any] = field(
        default=lambda label, sample: sample(), kw_only=True
    )
    number: int = field(default=OTHERS[0], kw_only=True)
    held_any: bool = field(default=False, kw_only=True)

    def value(self, site: Site, dist: Distribution, estimator: Estimator) -> Any:
        """The value of a site, a constant if it does not move."""
        del estimator
        if dist.name == "Delta":
            return dist.rsample()
        if site.label in self.zeros:
            return self.draw(site.label, dist, self.zeros[site.label])
        return self.cut(self.known(site.label, lambda: dist.one_of_many(self.number, dist.sample)))

    def held(self, value: Any) -> Any:
        self.held_any = True
        return self.cut(value) if self.holds else value

    def drawn(self, label: str, dist: Distribution, log_prob: Any) -> None:
        if dist.name != "Delta":
            self.draws.append((label, log_prob))

    def sources(self) -> list[str]:
        """Where each of `values` comes from; nothing, if the objective does not have it."""
        of_terms = [what if what in self.used else "" for what, _ in self.terms]
        return [*of_terms, *(f"the draw of site {label!r}" for label, _ in self.draws)]


@dataclass(frozen=True)
class Jumps:
    """What was found out about the jumps of a program.

    Attributes:
        found: for the label of a site the terms that jump in it, and because of which operation.
        assumed: the operations of which nothing was found out, for sites that are taken for differentiable.
        lost: for the label of a site the terms that its value reaches without a derivative, and how.
        moving: for the label of a site the terms that jump in it at a place that a parameter moves.
    """

    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assumed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    moving: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def unknown(cls, labels: Iterable[str]) -> Jumps:
        """Where a program could not be followed."""
        return cls(assumed={label: ("operations that could not be followed",) for label in labels})

    def joined(self, other: Jumps) -> Jumps:
        """What either found."""
        both = [
            {k: tuple(dict.fromkeys((*a.get(k, ()), *b.get(k, ())))) for k in {**a, **b}}
            for a, b in (
                (self.found, other.found),
                (self.assumed, other.assumed),
                (self.lost, other.lost),
                (self.moving, other.moving),
            )
        ]
        return Jumps(*both)

    def of_all(self, labels: Iterable[str]) -> bool:
        """Whether something was found in each of these sites."""
        return all(label in self.found or label in self.lost for label in labels)

    def reasons(self) -> dict[str, str]:
        """Why sites must not be differentiated, by label."""
        both = {label: [f"a cost jumps: {'; '.join(texts)}"] for label, texts in self.found.items()}
        for label, texts in self.lost.items():
            both.setdefault(label, []).append(f"the path is broken: {'; '.join(texts)}")
        return {label: "; ".join(texts) for label, texts in both.items()}


def find_jumps(
    sources: Sequence[str],
    degrees: Sequence[Degrees],
    at: Callable[[float, Aside], Snapshot],
    again: Again | None = None,
    branches: frozenset[Cut] = frozenset(),
    reads: frozenset[Cut] = frozenset(),
    stops: frozenset[Cut] = frozenset(),
    slopes: Slopes | None = None,
    trained: Mapping[Cut, Sequence[str]] | None = None,
    shifted: Shifted = lambda cut, place, name: None,
    others: Sequence[tuple[Callable[[float], Snapshot], Shifted]] = (),
    at_many: Callable[[Sequence[float], Aside], list[Snapshot]] | None = None,
) -> Jumps:
    """Test every operation that takes steps and reaches a term.

    Args:
        sources: by `JumpProbe.sources`.
        degrees: of `JumpProbe.values`.
        at: evaluates the program, as it was traced, at a place, so far aside of the way.
        again: runs the program itself there, and evaluates it as it was traced, where all sites have moved or, given a
            label, one; `None` where it cannot be run.
        branches: the operations by which it chooses its way, so that it has to be run.
        reads: where it reads a value that it may use without a derivative.
        stops: where it says that a value has none.
        slopes: derivatives of the terms, and their differences; `None` if there are none.
        trained: names of the parameters on which operands of an operation depend, but by way of sites.
        shifted: evaluates an operation where one of them has moved.
        others: `at` and `shifted` with other numbers for what is not known, for operations of which no change is seen.
        at_many: `at` for many places together, if that is less work and what it makes is small enough to be kept.
    """
    terms: dict[Cut, dict[int, None]] = {}
    labels: dict[Cut, dict[str, None]] = {}
    for i, (source, forms) in enumerate(zip(sources, degrees, strict=True)):
        for label, form in forms.items():
            for cut in form.cuts if source else ():
                terms.setdefault(cut, {})[i] = None
                labels.setdefault(cut, {})[label] = None
    found: dict[str, dict[str, None]] = {}
    assumed: dict[str, dict[str, None]] = {}
    together = at_many or (lambda places, aside: [at(place, aside) for place in places])
    ways = [
        _Way(lambda places, a=a: together(places, a), again, branches, shifted, at_many is not None)
        for a in (HERE, *ASIDE)
    ]
    ways_of_others = [
        _Way(lambda places, one=one: [*map(one, places)], None, branches, shift)
        for one, shift in others
    ]
    way = ways[0]
    lost: dict[str, dict[str, None]] = {}
    moving: dict[str, dict[str, None]] = {}
    read = [cut for cut in sorted(terms) if cut in reads]
    verdicts = _by_label(way.differing, [k for cut in read for k in labels[cut]])
    for cut in read:
        for label in labels[cut]:
            if verdicts[label] is None:
                assumed.setdefault(label, {})[str(cut)] = None
            for i in verdicts[label] or ():
                if cut in degrees[i].get(label, CONSTANT).cuts:
                    lost.setdefault(label, {})[f"{sources[i]}, because of {cut}"] = None
    stopping = [cut for cut in sorted(terms) if cut in stops]
    stopped = [k for cut in stopping for k in labels[cut] if k not in lost]
    verdicts = _by_label(functools.partial(_broken, slopes), stopped)
    for cut in stopping:
        for label in verdicts.keys() & labels[cut].keys():
            if verdicts[label] is None:
                assumed.setdefault(label, {})[str(cut)] = None
            for i in verdicts[label] or ():
                if cut in degrees[i].get(label, CONSTANT).cuts:
                    lost.setdefault(label, {})[f"{sources[i]}, because of {cut}"] = None
    tested = sorted(terms.keys() - reads - stops)
    for one in ways if at_many is not None else ():
        its = [cut for cut in tested if one is way or cut.name in SIDES]
        one.look_ahead([cut for cut in its if cut not in branches], terms)
    for cut in tested:
        verdict, seen_on = None, way
        num_calm = MAX_CALM if way.is_small(cut) else 0
        for one in ways if cut.name in SIDES else (*ways[:1], *ways_of_others):
            if verdict is not None and one in ways_of_others[num_calm:]:
                break
            new = one.jumping(cut, list(terms[cut]))
            verdict, seen_on = (verdict, seen_on) if new is None else (new, one)
            if verdict:
                break
        if verdict is None and cut.name in LOOPS and not way.is_calm(cut):
            verdict = list(terms[cut])
        for label in labels[cut]:
            if verdict is None and not way.is_calm(cut):
                assumed.setdefault(label, {})[str(cut)] = None
            for i in verdict or ():
                if cut in degrees[i].get(label, CONSTANT).cuts:
                    found.setdefault(label, {})[f"{sources[i]}, because of {cut}"] = None
        names = (trained or {}).get(cut, ()) if verdict else ()
        ways_seen = dict.fromkeys((seen_on, *ways_of_others[:MAX_CALM])) if names else ()
        found_on = ([*one.moved_by(cut, list(terms[cut]), names)] for one in ways_seen)
        for i, name in next(filter(None, found_on), ()):
            for label in labels[cut]:
                if cut in degrees[i].get(label, CONSTANT).cuts:
                    text = (
                        f"{sources[i]}, because of {cut}, at a place that parameter {name!r} moves"
                    )
                    moving.setdefault(label, {})[text] = None
    return Jumps(
        {label: tuple(texts) for label, texts in found.items()},
        {k: tuple(texts) for k, texts in assumed.items() if k not in found and k not in lost},
        {label: tuple(texts) for label, texts in lost.items()},
        {label: tuple(texts) for label, texts in moving.items()},
    )


Again = Callable[[float, str | None], tuple[Snapshot, Snapshot] | None]

Sums = tuple[np.ndarray, np.ndarray]
"""Of each term a weighted sum over its elements, and by how much it may be rounded."""

Slopes = Callable[[float, str | None], tuple[np.ndarray, Callable[[float], Sums]]]
"""At a place, where all sites move or, given a label, one: the derivatives of sums, and the sums somewhat further."""

Shifted = Callable[[Cut, float, str], np.ndarray | None]
"""The result of an operation at a place, where a parameter has moved a little and no site with it."""

Verdict = list[int] | None


def _by_label(find: Callable[[str | None], Verdict], labels: Iterable[str]) -> dict[str, Verdict]:
    """What is found for each site, where it is found for all together."""
    labels = list(dict.fromkeys(labels))
    together = find(None) if labels else []
    if not together or len(labels) == 1:
        return dict.fromkeys(labels, together)
    alone = {label: find(label) for label in labels}
    return alone if any(alone.values()) else dict.fromkeys(labels, together)


def _broken(slopes: Slopes | None, label: str | None) -> Verdict:
    """Which terms change otherwise than their derivative says, where all sites or one move; `None` if that cannot be
    compared."""
    found: dict[int, None] = {}
    seen = False
    if slopes is None:
        return None
    for place in SLOPE_PLACES:
        try:
            slope, sums = slopes(place, label)
            is_off = np.logical_and.reduce([_is_off(slope, sums, width) for width in WIDTHS])
        except Exception:  # the program may refuse values, or have no derivative
            continue
        seen = seen or bool(np.isfinite(slope).any())
        found.update(dict.fromkeys(np.flatnonzero(is_off).tolist()))
    return list(found) if seen else None


def _is_off(slope: np.ndarray, sums: Callable[[float], Sums], width: float) -> np.ndarray:
    """Whether derivatives are none, by differences of two widths: what these differ by is their error."""
    wide, narrow = (_difference(sums, w) for w in (width, width / 2.0))
    best = narrow[0] + (narrow[0] - wide[0]) / 3.0
    error = 3.0 * np.abs(narrow[0] - wide[0]) + narrow[1]
    return np.abs(slope - best) > error + 1e-5 * (np.abs(slope) + np.abs(best))


def _difference(sums: Callable[[float], Sums], width: float) -> Sums:
    (above, noise), (below, _) = sums(width), sums(-width)
    return (above - below) / (2.0 * width), noise / width


def ways(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """What may be chosen among so many each: everything, if that is not too much."""
    if not sizes:
        return []
    if math.prod(sizes) <= MAX_WAYS:
        return list(itertools.product(*map(range, sizes)))
    ways = np.random.default_rng(0).integers(0, sizes, (MAX_WAYS, len(sizes)))
    equal = np.minimum(np.arange(min(max(sizes), MAX_WAYS))[:, None], np.array(sizes) - 1)
    ways[: len(equal)] = equal
    return [tuple(way) for way in ways.tolist()]


def with_cuts(degrees: Sequence[Degrees], cuts: Collection[Cut]) -> list[Degrees]:
    """Of what values are, that because of which they may jump at some operations."""
    return [
        {label: replace(form, cuts=form.cuts & frozenset(cuts)) for label, form in of.items()}
        for of in degrees
    ]


class _Way:
    """The way through two draws, with what was already evaluated on it."""

    def __init__(
        self,
        together: Callable[[Sequence[float]], list[Snapshot]],
        again: Again | None,
        branches: frozenset[Cut],
        shifted: Shifted,
        keeps_all: bool = False,
    ):
        self.together, self.again, self.branches, self.shifted = together, again, branches, shifted
        self.keeps_all = keeps_all
        self.known: dict[float, Snapshot] = {}
        self.runs: dict[float, Snapshot] = {}
        self.edge = (0.0, 0.0)

    def at(self, place: float) -> Snapshot:
        if place in self.known:
            return self.known[place]
        (made,) = self.together([place])
        if self.keeps_all or place in PLACES:
            self.known[place] = made
        return made

    def look_ahead(self, cuts: Sequence[Cut], terms: Mapping[Cut, Collection[int]]) -> None:
        """Evaluate together what the search for jumps of operations is about to ask for."""
        if not cuts:
            return
        self.keep(PLACES)
        searches = [
            self.comparing(cut, *stretch, terms[cut])
            for cut in cuts
            for stretch in self.changes(cut)
        ]
        while searches:
            asked = [(search, next(search, None)) for search in searches]
            searches = [search for search, places in asked if places is not None]
            self.keep(place for _, places in asked for place in places or ())

    def keep(self, places: Iterable[float]) -> None:
        new = list(dict.fromkeys(place for place in places if place not in self.known))
        self.known.update(zip(new, self.together(new), strict=True))

    def over_grid(self) -> Iterator[Snapshot]:
        if self.keeps_all:
            self.keep(GRID)
        return map(self.at, GRID)

    def run(self, place: float) -> Snapshot | None:
        """What the program itself makes at a place; `None` if it was run too often."""
        if place not in self.runs:
            if self.again is None or len(self.runs) >= MAX_RUNS:
                return None
            made = self.again(place, None)
            if made is None:
                return None
            self.runs[place] = made[0]
        return self.runs[place]

    def differing(self, label: str | None) -> list[int] | None:
        """Which terms the program makes otherwise than the operations that were followed, where all sites or one have
        moved; `None` if that was not seen."""
        found: dict[int, None] = {}
        seen = False
        for place in (0.0, *GRID):
            made = None if self.again is None else self.again(place, label)
            verdict = None
            if made is not None and not made[1].is_elsewhere:
                here, there = made
                terms = range(len(there.terms))
                is_same_way = len(here.terms) == len(there.terms)
                verdict = _apart(there, here, terms) if is_same_way else list(terms)
            if place == 0.0:
                if verdict != []:  # it has randomness of its own
                    return None
            elif verdict is not None:
                seen = True
                found.update(dict.fromkeys(verdict))
        return list(found) if seen else None

    def is_small(self, cut: Cut) -> bool:
        """Whether an operation has few results, or such that are no truth values."""
        result = self.at(0.0).results.get(cut)
        return result is not None and (result.dtype.kind != "b" or result.size <= MAX_FEW)

    def has_stairs(self, cut: Cut) -> bool:
        """Whether all changes of an operation on the grid are looked at."""
        return cut.name not in {*POLES, *SIDES, *LOOPS} and self.is_small(cut)

    def is_calm(self, cut: Cut) -> bool:
        """Whether an operation of which no change was seen is one that need not have any."""
        is_known = self.at(0.0).results.get(cut) is not None
        if cut.name in LOOPS:
            return is_known and not any(self.changes(cut))
        by_name = cut.name in POLES or cut.name in SIDES or cut.name in TESTS
        return cut.name in EQUALITIES or (is_known and by_name)

    def jumping(self, cut: Cut, terms: Sequence[int]) -> list[int] | None:
        """Which terms jump where the result of an operation changes; `None` if that was not seen."""
        seen = False
        for low, high in self.changes(cut):
            verdict = self.compared(cut, low, high, terms)
            is_done = cut in self.branches and not (self.has_stairs(cut) and cut in self.stairs)
            if verdict or (verdict is not None and is_done):
                return verdict
            seen = seen or verdict is not None
        return [] if seen else None

    def changes(self, cut: Cut) -> Iterable[tuple[float, float]]:
        """Stretches of the way, nearest first, within which the result of an operation changes."""
        if self.at(0.0).results.get(cut) is None:
            return
        count, inner = 0, {1: 0.0, -1: 0.0}
        for place in PLACES[1:]:
            side = 1 if place > 0 else -1
            start, inner[side] = inner[side], place
            if not _same(self.at(start), self.at(place), cut):
                yield start, place
                count += 1
            if count == MAX_CHANGES:
                break
        if count and self.has_stairs(cut) and cut in self.stairs:
            yield from self.stairs[cut]
        elif count == MAX_CHANGES:
            return
        if not (count or cut.name in POLES or cut.name in SIDES or cut.name in EQUALITIES):
            yield from filter(None, (self.window(cut, *near) for near in self.near.get(cut, ())))

    @functools.cached_property
    def steps(self) -> Mapping[Cut, Sequence[tuple[float, float]]]:
        """Between which places of the grid operations change, nearest first."""
        found: dict[Cut, list[tuple[float, float]]] = {}
        grid = self.over_grid()
        before = next(grid)
        for left, right in itertools.pairwise(GRID):
            after = next(grid)
            for cut, result in before.results.items():
                if result is not None and result.size and not _same(before, after, cut):
                    found.setdefault(cut, []).append((left, right))
            before = after
        nearest = {cut: sorted(of, key=lambda x: abs(sum(x))) for cut, of in found.items()}
        return {cut: of[:MAX_STEPS] for cut, of in nearest.items()}

    @functools.cached_property
    def stairs(self) -> Mapping[Cut, Sequence[tuple[float, float]]]:
        """The same of operations whose results are few, or no truth values: two changes that lie near to each other may
        have equal sides."""
        return {cut: of for cut, of in self.steps.items() if self.has_stairs(cut)}

    @functools.cached_property
    def near(self) -> Mapping[Cut, Sequence[tuple[float, float, int]]]:
        """Where operations change between places of the grid, or an element of a comparison may do so."""
        found: dict[Cut, list[tuple[float, float, float, int]]] = {}
        grid = self.over_grid()
        before, here = next(grid), next(grid)
        for left, place, right in zip(GRID, GRID[1:], GRID[2:], strict=False):
            after = next(grid)
            for cut, result in here.results.items():
                if result is not None and not _same(before, here, cut):
                    found.setdefault(cut, []).append((-1.0, left, place, 0))
            for cut in here.gaps:
                gaps = [np.abs(one.gaps[cut]) for one in (before, here, after)]
                if len({gap.shape for gap in gaps}) > 1 or not gaps[1].size:
                    continue
                with np.errstate(invalid="ignore"):
                    bend = np.maximum(gaps[0], gaps[2]) - gaps[1]
                    is_near = (gaps[1] <= np.minimum(gaps[0], gaps[2])) & (gaps[1] <= 2.0 * bend)
                nearest = int(np.argmin(np.where(is_near, gaps[1], np.inf)))
                if is_near[nearest] and bend[nearest] > 0.0:
                    found.setdefault(cut, []).append((gaps[1][nearest], left, right, nearest))
            before, here = here, after
        return {cut: [near[1:] for near in sorted(of)[:MAX_CHANGES]] for cut, of in found.items()}

    def window(self, cut: Cut, low: float, high: float, element: int) -> tuple[float, float] | None:
        """A stretch from a place to the nearest one where the operation has another result, by golden sections to
        where the sides of one of its elements are nearest."""
        start, end = self.at(low), self.at(high)
        if not _same(start, end, cut):
            return low, high
        origin, ratio, known = low, (math.sqrt(5.0) - 1.0) / 2.0, dict[float, float]()
        for _ in range(MAX_HALVINGS):
            inner = [high - ratio * (high - low), low + ratio * (high - low)]
            for place in inner:
                if place in known:
                    continue
                made = self.at(place)
                if not _same(start, made, cut):
                    return origin, place
                known[place] = abs(float(made.gaps[cut][element]))
            if known[inner[0]] < known[inner[1]]:
                high = inner[1]
            else:
                low = inner[0]
        return None

    def moved_by(
        self, cut: Cut, terms: Sequence[int], names: Sequence[str]
    ) -> Iterable[tuple[int, str]]:
        """Which terms jump where the result of an operation changes, at a place that which parameter moves."""
        for change in dict.fromkeys((*self.changes(cut), *self.steps.get(cut, ()))):
            jumping = self.compared(cut, *change, terms)
            if not jumping:
                continue
            low, high = self.edge
            step = 8.0 * (high - low)
            places = low - step, high + step
            known = [self.at(place).results[cut] for place in places]
            moved: dict[str, list[np.ndarray | None]] = {
                name: [self.shifted(cut, place, name) for place in places] for name in names
            }
            below, above = known
            if below is None or above is None or below.shape != above.shape:
                continue
            for name, results in moved.items():
                fits = [
                    (new, old)
                    for new, old in zip(results, (below, above), strict=True)
                    if new is not None and new.shape == old.shape
                ]
                if any(((new != old) & (below != above)).any() for new, old in fits):
                    yield from ((i, name) for i in jumping)

    def compared(self, cut: Cut, low: float, high: float, terms: Sequence[int]) -> list[int] | None:
        """Bisect to a change; which terms jump there, `None` if they cannot be compared."""
        search = self.comparing(cut, low, high, terms)
        while True:
            try:
                next(search)
            except StopIteration as end:
                return end.value

    def comparing(
        self, cut: Cut, low: float, high: float, terms: Collection[int]
    ) -> Generator[Sequence[float], None, list[int] | None]:
        """The same, which tells the places before it evaluates the program there."""
        below, above, calm = self.at(low), self.at(high), 0
        turns = _turns(below, above, cut) if cut.name in LOOPS else 0.0
        kinds = {below.terms[i].dtype for i in terms if below.terms[i].dtype.kind == "f"}
        # nearer than this, one operation may have two results in one compiled program
        width = 64.0 * max((float(np.finfo(kind).eps) for kind in kinds), default=0.0)
        is_pole = cut.name in POLES or cut.name in INVERSES
        width = max(width, POLE_WIDTH) if is_pole else width
        for _ in range(80):
            if _has_no_pole(below, above, cut, abs(high - low)):
                return None if below.is_elsewhere or above.is_elsewhere else []
            middle = 0.5 * (low + high)
            if middle in (low, high) or abs(high - low) <= width * max(1.0, abs(middle)):
                break
            yield (middle,)
            between = self.at(middle)
            if _same(below, between, cut):
                low, below = middle, between
            else:
                high, above = middle, between
            is_calm = cut not in self.branches and abs(high - low) < CALM_WIDTH
            calm = calm + 1 if is_calm and _apart(below, above, terms) == [] else 0
            if calm == 2:
                return None if below.is_elsewhere or above.is_elsewhere else []
        self.edge = low, high
        width = high - low
        if cut in self.branches:
            here, there, beside = map(self.run, (low, high, low - 8.0 * width))
            if here is None or there is None or beside is None:
                return None
            if len(here.terms) != len(there.terms):
                return list(terms)
            if len(here.terms) != len(below.terms):
                return None if not below.is_elsewhere else list(terms)
            if not below.is_elsewhere and _apart(below, here, terms):
                return None  # it has randomness of its own
            fits = len(beside.terms) == len(here.terms)
            below, above, noise = here, there, [(here, beside)] * fits
        elif below.is_elsewhere or above.is_elsewhere:
            return None
        else:
            factors = (1.0, 3.0, 8.0) if is_pole else (8.0,)  # 0 / 0 is rounded
            steps = [factor * width for factor in factors]
            yield [low - by for by in steps] + [high + by for by in steps]
            sides = [(below, self.at(low - by)) for by in steps]
            sides += [(above, self.at(high + by)) for by in steps]
            noise = [(a, b) for a, b in sides if _same(a, b, cut)]
        return _apart(below, above, terms, noise, 1e-2 / turns if turns else 0.0)


def _same(one: Snapshot, other: Snapshot, cut: Cut) -> bool:
    a, b = one.results[cut], other.results[cut]
    assert a is not None and b is not None
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def _has_no_pole(one: Snapshot, other: Snapshot, cut: Cut, width: float) -> bool:
    """Whether no denominator that stops shrinking between two places can be zero there."""
    arrays = [*(x.reaches.get(cut) for x in (one, other)), *(x.results[cut] for x in (one, other))]
    known = [x for x in arrays if x is not None]
    if width > POLE_FREE_WIDTH or len(known) < 4 or len({x.shape for x in known}) > 1:
        return False
    reach, other_reach, growth, other_growth = known
    is_far = np.minimum(np.abs(reach), np.abs(other_reach)) > 10.0 * width
    is_far &= np.sign(reach) == np.sign(other_reach)
    return bool(is_far[growth != other_growth].all())


def _turns(one: Snapshot, other: Snapshot, cut: Cut) -> float:
    """By how much the turns of a loop differ."""
    a, b = one.results[cut], other.results[cut]
    assert a is not None and b is not None
    return float(np.abs(a.astype(float) - b).max())


def _apart(
    one: Snapshot,
    other: Snapshot,
    terms: Collection[int],
    noise: Sequence[tuple[Snapshot, Snapshot]] = (),
    loose: float = 0.0,
) -> list[int] | None:
    """Which terms have an element that differs by more than rounding and slopes explain; `None` if none can be
    compared."""
    found, comparable = [], False
    for i in terms:
        if one.terms[i].shape != other.terms[i].shape:
            return [i]
        gap, scale = _gap(one.terms[i], other.terms[i])
        comparable = comparable or bool(np.isfinite(gap).any())
        strict = 1e-5 if one.terms[i].dtype == np.float32 else 1e-7
        bound = max(strict, loose) * scale
        for a, b in noise:
            if a.terms[i].shape == one.terms[i].shape == b.terms[i].shape:
                bound = np.fmax(bound, 5.0 * _gap(a.terms[i], b.terms[i])[0])
        if (gap > bound).any():
            found.append(i)
    return found if comparable else None


def _gap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much elements differ, not a number where one is not finite, and their size."""
    a, b = a.astype(float), b.astype(float)
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), np.nan)
    size = np.where(np.isfinite(a), np.abs(a), 0.0)
    return gap, 1.0 + size


def moving_refusal(label: str, moving: Sequence[str]) -> str:
    """The text of the error about a jump whose place parameters move."""
    return message(
        f"site {label!r}: a cost jumps in the value of {label.split(' (')[0]!r} at a place that a parameter moves; no"
        " estimator has that part of its gradient",
        got="; ".join(moving),
        expected="a place that does not depend on what is trained, or a cost that is continuous",
        fix="a smooth function in place of the step, such as sigmoid((z - b) / temperature); or the parameter held (by"
        " detach or stop_gradient), or moved into the distribution of a site",
    )


def refusal(label: str, estimator: Any, found: Sequence[str], lost: Sequence[str]) -> str:
    """The text of the error about a chosen estimator that is biased by jumps, or by a value without a derivative."""
    name, site = type(estimator).__name__, label.split(" (")[0]
    if not found:
        return message(
            f"site {label!r}: {name}() is biased if a cost has the value of {site!r} without a derivative",
            got="; ".join(lost),
            expected="values that keep their derivative, or an estimator that does not differentiate them: Score()",
            fix=f'the value itself in place of what is read from it or held there; or estimators={{"{site}":'
            f" vi.Score()}}, or vi.{name}(..., biased=True)",
        )
    if not hasattr(estimator, "biased"):
        return message(
            f"site {label!r}: {name}() is biased if a cost jumps in the value of {site!r}, which goes through a map"
            " with parameters",
            got="; ".join((*found, *lost)),
            expected="a cost that is continuous in the value, or an estimator that does not differentiate the map:"
            " Score()",
            fix=f'estimators={{"{site}": vi.Score()}}',
        )
    return message(
        f"site {label!r}: {name}() is biased if a cost jumps in the value of {site!r}",
        got="; ".join((*found, *lost)),
        expected="a cost that is continuous in the value, or an estimator that does not differentiate it:"
        " MeasureValued() or Score()",
        fix=f'estimators={{"{site}": vi.MeasureValued()}}, or vi.{name}(..., biased=True)',
    )


def weighted(terms: Sequence[Any], asarray: Callable[..., Any]) -> list[Any]:
    """Sums over the elements of terms, with weights that let none cancel another."""
    rng, sums = np.random.default_rng(0), []
    for term in terms:
        weights = asarray(rng.uniform(1.0, 2.0, tuple(term.shape)), device=device(term))
        sums.append((term * weights).sum())
    return sums


def rounded(terms: Sequence[np.ndarray]) -> np.ndarray:
    """By how much such sums may be rounded."""
    eps = [float(np.finfo(t.dtype).eps) if t.dtype.kind == "f" else 0.0 for t in terms]
    sizes = [2.0 * np.abs(t.astype(float)).sum() for t in terms]
    return 8.0 * np.array(eps) * (1.0 + np.array(sizes))
