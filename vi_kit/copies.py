"""Replicates that a library runs apart, by its own map or one after the other, under one axis again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vi_kit._errors import BackendError, message
from vi_kit._named import Array, Axis, Named, ordered, union
from vi_kit.cost import Cost, Site, Term

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

    def arrays(self) -> list[Array]:
        """All arrays, in a fixed order."""
        return [
            n.array
            for t in self.terms()
            for n in (t.base, *t.alternatives.values(), *t.slopes.values())
        ]

    def hollow(self) -> Copy:
        """The same without arrays, its sites too: what a map has traced may not outlive its trace."""
        for site in self.sites:
            for name in OF_A_SITE:
                if getattr(site, name) is not None:
                    setattr(site, name, _hollow(getattr(site, name)))
        return replace(self, costs=tuple(Cost(map(_hollow, c.terms)) for c in self.costs))

    def structure(self) -> Any:
        """What must be the same in all copies of a program."""
        names = tuple(s.name for s in self.sites)
        return names, tuple((t.base.axes, len(t.alternatives), len(t.slopes)) for t in self.terms())


def _weighted(term: Term) -> Term:
    if isinstance(term.weight, float | int):
        return term
    alternatives = {s: term.scaled(a, ()) for s, a in term.alternatives.items()}
    slopes = {s: term.scaled(a, ()) for s, a in term.slopes.items()}
    base = term.scaled(term.base, ())
    return replace(term, base=base, alternatives=alternatives, slopes=slopes, weight=1.0)


def _hollow(term: Term) -> Term:
    def without(values: Mapping[Site, Named]) -> dict[Site, Named]:
        return {s: Named(None, n.axes) for s, n in values.items()}

    alternatives, slopes = without(term.alternatives), without(term.slopes)
    return replace(term, base=Named(None, term.base.axes), alternatives=alternatives, slopes=slopes)


def merged(copies: Sequence[Copy], arrays: Sequence[Array], axis: Axis) -> tuple[Cost, ...]:
    """Costs along a replicate axis. The sites of the first copy stand for those of all; they gain the axis.

    Args:
        copies: as many as there are, or the one that a library's map traced.
        arrays: those of `Copy.arrays`, with one more dim in front, for `axis`.
        axis: the replicate axis.

    Raises:
        BackendError: the copies do not have the same sites and terms.
    """
    first = copies[0]
    if any(c.structure() != first.structure() for c in copies[1:]):
        found = sorted({", ".join(s.name for s in c.sites) for c in copies})
        raise BackendError(
            message(
                "replicates of one program have different sites",
                got="; ".join(found),
                expected="the same sites in every replicate",
                fix="num_samples=1 and an objective without iid, or a program of fixed structure",
            )
        )
    kept = {s: k for c in copies for s, k in zip(c.sites, first.sites, strict=True)}

    def known(groups: Sequence[frozenset[Site]]) -> frozenset[Site]:
        return frozenset(kept.get(s, s) for group in groups for s in group)

    remaining = iter(arrays)

    def along(named: Named) -> Named:
        return ordered(next(remaining), (axis, *named.axes))

    def joined(same: Sequence[Term]) -> Term:
        return replace(
            same[0],
            base=along(same[0].base),
            alternatives={kept.get(s, s): along(n) for s, n in same[0].alternatives.items()},
            slopes={kept.get(s, s): along(n) for s, n in same[0].slopes.items()},
            upstream=known([t.upstream for t in same]),
            drawn=known([t.drawn for t in same]),
            held=known([t.held for t in same]),
            own=same[0].own,
        )

    terms = iter([joined(same) for same in zip(*(c.terms() for c in copies), strict=True)])
    costs = tuple(Cost([next(terms) for _ in c.terms]) for c in first.costs)
    for site in first.sites:
        for name in OF_A_SITE:
            if getattr(site, name) is not None:
                setattr(site, name, next(terms))
        site.axes = union(site.axes, [axis])
    return costs
