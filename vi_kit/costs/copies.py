"""Replicates that a library runs apart, by its own map or one after the other, under one axis again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.errors import BackendError, message
from vi_kit.base.named import Array, Axis, Named, ordered, union
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Term

OF_A_SITE = ("log_q", "weights", "coefficients", "control", "log_noise", "chosen")


@dataclass(frozen=True, eq=False)
class Copy:
    """What one replicate made: the costs that it returned and the sites that it sampled."""

    costs: tuple[Cost, ...]
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, costs: Sequence[Cost], sites: Sequence[Site]) -> Copy:
        """With weights that are arrays multiplied in, so that they are copied too."""
        return cls(tuple(Cost(map(_weighted, c.terms)) for c in costs), tuple(sites))

    def terms(self) -> list[Term]:
        own = [getattr(s, name) for s in self.sites for name in OF_A_SITE]
        return [t for c in self.costs for t in c.terms] + [t for t in own if t is not None]

    def parts(self) -> list[Named]:
        """Whatever has an array, in a fixed order."""
        return [
            n for t in self.terms() for n in (t.base, *t.alternatives.values(), *t.slopes.values())
        ]

    def arrays(self) -> list[Array]:
        return [n.array for n in self.parts()]

    def hollow(self) -> Copy:
        """The same without arrays, its sites too: what a map has traced may not outlive its trace."""
        for site in self.sites:
            for name in OF_A_SITE:
                if getattr(site, name) is not None:
                    setattr(site, name, _hollow(getattr(site, name)))
        return replace(self, costs=tuple(Cost(map(_hollow, c.terms)) for c in self.costs))


def _weighted(term: Term) -> Term:
    if isinstance(term.weight, float | int):
        return term
    alternatives = {s: term.scaled(a, ()) for s, a in term.alternatives.items()}
    slopes = {s: term.scaled(a, ()) for s, a in term.slopes.items()}
    base = term.scaled(term.base, ())
    return term.changed(base=base, alternatives=alternatives, slopes=slopes, weight=1.0)


def _hollow(term: Term) -> Term:
    def without(values: Mapping[Site, Named]) -> dict[Site, Named]:
        return {s: Named(None, n.axes) for s, n in values.items()}

    alternatives, slopes = without(term.alternatives), without(term.slopes)
    return term.changed(base=Named(None, term.base.axes), alternatives=alternatives, slopes=slopes)


def merged(
    copies: Sequence[Copy],
    arrays: Sequence[Array] | None,
    axis: Axis,
    part: Axis | None = None,
) -> tuple[tuple[Cost, ...], dict[Site, Site]]:
    """Costs along a replicate axis. A summand that a copy does not have is zero there.

    Args:
        copies: as many as there are, or the one that a library's map traced.
        arrays: those of `Copy.arrays` of that one, with one more dim in front, for `axis`.
        axis: the replicate axis.
        part: the axis that each has of its own, if it is several, which becomes a part of the other.

    Returns:
        The costs; and for each site of a copy the one that stands for it, that of the first copy that has it. These
        gain the axis.

    Raises:
        BackendError: a site that only some copies have has several values.
    """
    kept = _standing_for_all(copies)
    known = {} if arrays is None else dict(zip(map(id, copies[0].parts()), arrays, strict=True))

    def along(parts: Sequence[Named | None]) -> Named:
        like = next(p for p in parts if p is not None)
        array, axes = known.get(id(like)), tuple(a for a in like.axes if a != part)
        if array is None:
            xp = array_namespace(like.array)
            nothing = Named(xp.zeros_like(like.array), like.axes)
            own = [nothing if p is None else p for p in parts]
            if part is None:
                array = xp.stack([p.array for p in own])
            else:
                own = [p.broadcast([part]) for p in own]
                array = xp.concat([xp.moveaxis(p.array, p.axes.index(part), 0) for p in own])
        return ordered(array, (axis, *axes))

    def joined(row: Sequence[Term | None]) -> Term:
        found = [t for t in row if t is not None]

        def of_sites(name: str) -> dict[Site, Named]:
            return {
                s: along([t and getattr(t, name)[s] for t in row]) for s in getattr(found[0], name)
            }

        return found[0].changed(
            base=along([t and t.base for t in row]),
            alternatives=of_sites("alternatives"),
            slopes=of_sites("slopes"),
            upstream=frozenset(s for t in found for s in t.upstream),
            drawn=frozenset(s for t in found for s in t.drawn),
            held=frozenset(s for t in found for s in t.held),
        )

    costs = []
    for same in zip(*(c.costs for c in copies), strict=True):
        rows: dict[Any, list[Term | None]] = {}
        for i, cost in enumerate(same):
            met: Counter[Any] = Counter()
            for term in cost.terms:
                key = _key(term := _with_sites(term, kept))
                met[key] += 1
                rows.setdefault((key, met[key]), [None] * len(copies))[i] = term
        costs.append(Cost(map(joined, rows.values())))
    for site in dict.fromkeys(kept.values()):
        owners = [next((s for s in c.sites if kept[s] is site), None) for c in copies]
        for name in OF_A_SITE:
            if getattr(site, name) is not None:
                row = [s and _with_sites(getattr(s, name), kept) for s in owners]
                setattr(site, name, joined(row))
        site.axes = union((a for a in site.axes if a != part), [axis])
    return tuple(costs), kept


def _standing_for_all(copies: Sequence[Copy]) -> dict[Site, Site]:
    """For each site of a copy the site of the first copy that has met the same sites so far: whether a copy has it
    must depend on nothing that was drawn later, or a baseline of its own would be a bias."""
    kept: dict[Site, Site] = {}
    nodes: dict[Any, Site] = {}
    for copy in copies:
        before, shift = None, 0
        free = max((s.order for s in nodes.values()), default=-1) + 1
        for own in copy.sites:
            terms = [(name, getattr(own, name)) for name in OF_A_SITE]
            parts = tuple((n, t and (t.base.axes, len(t.alternatives))) for n, t in terms)
            key = before, own.label, own.axes, own.world, own.slots, repr(own.estimator), parts
            site = kept[own] = nodes.setdefault(key, own)
            if site is own:
                shift = shift or max(free - own.order, 0)
                own.order += shift
            before = site
    counts = Counter(kept.values())
    uneven = [s for s, n in counts.items() if n < len(copies) and (s.world or s.slots)]
    if uneven:
        names = ", ".join(repr(s.name) for s in uneven)
        raise BackendError(
            message(
                f"replicates of one program have different sites, and {names} have several values",
                got="; ".join(sorted({", ".join(s.name for s in c.sites) for c in copies})),
                expected="an estimator of single draws for sites that only some replicates have",
                fix="estimators={" + ", ".join(f'"{s.name}": vi.Score()' for s in uneven) + "}",
            )
        )
    return kept


def _with_sites(term: Term, kept: Mapping[Site, Site]) -> Term:
    """A term of the sites that stand for those of its copy."""

    def of(sites: Iterable[Site]) -> frozenset[Site]:
        return frozenset(kept.get(s, s) for s in sites)

    return term.changed(
        alternatives={kept.get(s, s): n for s, n in term.alternatives.items()},
        slopes={kept.get(s, s): n for s, n in term.slopes.items()},
        upstream=of(term.upstream),
        drawn=of(term.drawn),
        held=of(term.held),
        own=term.own and kept.get(term.own, term.own),
    )


def _key(term: Term) -> Any:
    """Equal for the same summand of two copies."""
    sites = frozenset(term.alternatives), frozenset(term.slopes)
    own = term.label, term.own, term.weight, term.group
    return *own, term.base.axes, term.pending, term.inside, *sites
