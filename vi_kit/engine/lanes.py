"""What a run made of one program, once its arrays have the worlds and alternatives that the program did not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vi_kit.base.named import SLOT, Array, Axis, Named, ordered
from vi_kit.costs.copies import OF_A_SITE
from vi_kit.costs.terms import Site, Term
from vi_kit.engine.run import Run


@dataclass(frozen=True, eq=False)
class Part:
    """An array with the axes that it has in front of the dims that the program sees, in canonical order."""

    array: Array
    axes: tuple[Axis, ...] = ()


Parts = Mapping["Site | None", Part]
"""What an array is, by the site that has its alternatives; at `None` where every site has what was drawn."""


class Made:
    """The terms that a part of a run has made, and the sites that it has opened.

    Args:
        run: as it is before.
        own: the terms that the part returns, some of them the run's.
    """

    def __init__(self, run: Run, own: list[Term]):
        self.run = run
        self.own = own
        self.first_term, self.first_site = len(run.terms), len(run.sites)

    @property
    def sites(self) -> Sequence[Site]:
        return self.run.sites[self.first_site :]

    def _all(self) -> Iterator[Term]:
        seen: set[int] = set()
        of_sites = (getattr(s, name) for s in self.sites for name in OF_A_SITE)
        for term in (*self.run.terms[self.first_term :], *self.own, *of_sites):
            if term is not None and id(term) not in seen:
                seen.add(id(term))
                yield term

    @property
    def count(self) -> int:
        return sum(1 for _ in self._all())

    def take_out(self) -> list[Array]:
        """The arrays that the program made, in a fixed order; they are gone until they are put back."""
        old = list(self._all())
        hollow = [replace(t, base=Named(None, t.base.axes)) for t in old]
        self._exchange({id(o): h for o, h in zip(old, hollow, strict=True)})
        return [t.base.array for t in old]

    def put_back(self, parts: Sequence[Parts]) -> None:
        """What the arrays are, for all values of the sites."""
        worlds = {s.world: s for s in self.run.sites if s.world is not None}
        old = list(self._all())
        self._exchange({id(t): _with(t, p, worlds) for t, p in zip(old, parts, strict=True)})

    def _exchange(self, found: Mapping[int, Term]) -> None:
        def exchanged(term: Term) -> Term:
            return found[id(term)]

        self.run.terms[self.first_term :] = map(exchanged, self.run.terms[self.first_term :])
        self.own[:] = map(exchanged, self.own)
        for site in self.sites:
            for name in OF_A_SITE:
                if getattr(site, name) is not None:
                    setattr(site, name, exchanged(getattr(site, name)))


def _with(term: Term, parts: Parts, worlds: Mapping[Axis, Site]) -> Term:
    """A term with worlds and alternatives."""
    base = along(term.base, parts[None])
    reached = {worlds[a] for a in base.axes if a in worlds}
    upstream = term.upstream | reached
    is_held = bool(term.held) and term.upstream <= term.held
    held = term.held | reached if is_held else term.held
    if is_held or any(a.kind == SLOT for a in term.base.axes):
        return replace(term, base=base, upstream=upstream, held=held)
    alternatives = {s: along(term.base, p) for s, p in parts.items() if s is not None}
    upstream = upstream.union(alternatives)
    return replace(term, base=base, alternatives=alternatives, upstream=upstream)


def along(named: Named, part: Part) -> Named:
    """An array in the place of one that the program made."""
    return ordered(part.array, (*part.axes, *named.axes))
