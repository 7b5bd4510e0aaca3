"""Exact enumeration inside a nonlinear function, as long as the joint values are few.

A nonlinear function that reduces an axis sees several elements of a site at once. Its exact expectation
needs every joint value of those elements. The program need not be run again for that: each element gets
a world axis of its own, and what was computed per element is laid out along it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vi_kit.base.errors import EstimatorError
from vi_kit.base.named import WORLD, Axis, Named, stack, total
from vi_kit.costs.terms import Site, Term, cost_context

Index = Mapping[Axis, int]


def unfold(
    rows: Sequence[Sequence[Term]], local: Sequence[Site], summed: set[Axis], over: Axis | None
) -> list[Named] | None:
    """The sum of each row of terms over `summed`, with a world axis per element of the `local` sites.

    Args:
        rows: the terms of each argument of the nonlinear function.
        local: enumerated sites of which it sees several elements.
        summed: axes that are summed before it is applied.
        over: the replicate axis that it reduces.

    Returns:
        One array per row, or `None` where one value per element has to be drawn instead: other
        estimators act inside the function, or there are too many joint values.
    """
    reduced = summed | ({over} if over else set())
    local = _involved(rows, local)
    if not _possible(rows, local, reduced):
        if any(site.elements for site in local):
            raise EstimatorError(
                f"sites {[s.name for s in local]} were enumerated jointly in one nonlinear function and"
                " cannot be in another of the same objective; give them vi.Score()"
            )
        return None
    for site in local:
        _make_elements(site, local, reduced)

    def laid_out(row: Sequence[Term], at: Index) -> Named:
        parts = []
        for t in row:
            axes = [a for a in t.base.axes if a in summed]
            for position in itertools.product(*(range(a.size) for a in axes)):
                index = {**at, **dict(zip(axes, position, strict=True))}
                parts.append(t.scaled(_at(t.base, index, local, reduced), summed))
        return total(parts)

    if over is None:
        return [laid_out(row, {}) for row in rows]
    return [stack([laid_out(r, {over: k}) for k in range(over.size)], over) for r in rows]


def _possible(rows: Sequence[Sequence[Term]], local: Sequence[Site], reduced: set[Axis]) -> bool:
    if not local or any(site.chosen is not None for site in local):
        return False
    terms = [t for row in rows for t in row] + [s.log_q for s in local if s.log_q is not None]
    inside = {s for t in terms for s in t.upstream if reduced.intersection(s.axes)}
    if inside - set(local) or any(t.alternatives or t.held for t in terms):
        return False
    joint = math.prod(s.world.size ** _count(s, reduced) for s in local if s.world is not None)
    return joint <= min(s.max_worlds(otherwise=1) for s in local)


def _involved(rows: Sequence[Sequence[Term]], local: Sequence[Site]) -> list[Site]:
    """The sites that the terms, or the densities of sites so found, depend on; in sampling order."""
    found: list[Site] = []
    terms = [t for row in rows for t in row]
    for site in reversed(local):
        if any(site.world in t.base.axes for t in terms):
            found.insert(0, site)
            terms += [site.log_q] if site.log_q is not None else []
    return found


def _own(site: Site, reduced: set[Axis]) -> tuple[Axis, ...]:
    return tuple(a for a in site.axes if a in reduced)


def _count(site: Site, reduced: set[Axis]) -> int:
    return math.prod(a.size for a in _own(site, reduced))


def _make_elements(site: Site, local: Sequence[Site], reduced: set[Axis]) -> None:
    """Make each element of a site a site of its own, once per run."""
    if site.elements:
        return
    assert site.world is not None and site.log_q is not None
    run, axes = cost_context(), _own(site, reduced)
    for position in itertools.product(*(range(a.size) for a in axes)):
        name = f"{site.name}[{', '.join(map(str, position))}]"
        world = Axis(WORLD, site.order, f"worlds of {name}", site.world.size)
        element = replace(
            site,
            name=name,
            axes=tuple(a for a in site.axes if a not in reduced),
            world=world,
            slots=replace(site.slots, name=f"slots of {name}") if site.slots else None,
            elements={},
        )
        site.elements[position] = element
        index = dict(zip(axes, position, strict=True))
        element.log_q = _term_at(site.log_q, index, local, reduced)
        if site.weights is not None:
            element.weights = _term_at(site.weights, index, local, reduced)
        run.sites.append(element)
    run.sites.sort(key=lambda s: s.order)


def _term_at(term: Term, index: Index, local: Sequence[Site], reduced: set[Axis]) -> Term:
    upstream = (term.upstream - set(local)) | _elements_at(term, index, local, reduced)
    return term.changed(base=_at(term.base, index, local, reduced), upstream=upstream)


def _element(site: Site, index: Index, reduced: set[Axis]) -> Site:
    return site.elements[tuple(index[a] for a in _own(site, reduced))]


def _elements_at(term: Term, index: Index, local: Sequence[Site], reduced: set[Axis]) -> set[Site]:
    return {_element(s, index, reduced) for s in local if s in term.upstream}


def _at(named: Named, index: Index, local: Sequence[Site], reduced: set[Axis]) -> Named:
    """The array at one index of the reduced axes, each world axis renamed to its element's."""
    for axis, position in index.items():
        if axis in named.axes:
            named = named.index(axis, position)
    for site in local:
        if site.world in named.axes:
            element = _element(site, index, reduced)
            assert site.world is not None and element.world is not None
            named = named.renamed(site.world, element.world)
    return named


def with_elements(sites: frozenset[Site]) -> frozenset[Site]:
    """The sites, those that were told apart into elements replaced by these."""
    return frozenset(e for s in sites for e in (s.elements.values() or (s,)))
