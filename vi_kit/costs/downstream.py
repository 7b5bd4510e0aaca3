"""What `Estimator.contract` is given: the part of a cost that depends on its site, and how to act on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.named import SLOT, Named, combine, total
from vi_kit.base.value import value
from vi_kit.costs.terms import Site, Term, centred, cost_context, stopped
from vi_kit.costs.worlds import contract_world, settle, that_happens, world_weights


@value()
class Downstream:
    """The terms that depend on a site; they ascend the same parameters, given the same draws of the sites before it.

    What elements of the site are worth has one number for each (nats), summed over all axes that the site is not in,
    with the scale of subsampled plates; and one for each world of the sites before it.

    Attributes:
        site: to be contracted.
        terms: that depend on it, in value or through the density from which it was drawn.
    """

    site: Site
    terms: Sequence[Term]

    def worth(self) -> Named:
        """What each element is worth, as a constant."""
        return stopped(total(self.worths()))

    def worths(self) -> list[Named]:
        """What each element is worth by each term, with its gradient."""
        return [self._own(t, t.base) for t in self.terms]

    def alternatives(self) -> Named:
        """What each element would be worth with each of its alternatives alone in its place, along `site.slots`; with
        its gradient, if `Alternatives.are_live`."""
        return total(self._own(t, t.alternatives[self.site]) for t in self.terms)

    def differences(self) -> Named:
        """What each element would be worth with each of its alternatives, less what it is worth, as a constant."""
        return stopped(self.alternatives()) - self.worth()

    def slope(self) -> Named | None:
        """The derivative of the cost by the log density of each element alone, as a function of the element; `None`
        where the cost does not depend on that. For estimators with `holds_params`."""
        own = [self._own(t, t.slopes[self.site]) for t in self.terms if self.site in t.slopes]
        return total(own) if own else None

    def weighted(self, coefficient: Term | Named, worth: Named | None = None) -> Term:
        """A term whose value is zero and whose gradient is that of a coefficient, times what it weights.

        Args:
            coefficient: of each element, such as `site.log_q`, and of each alternative.
            worth: that it weights; one if left out. Sums over the alternatives.
        """
        if isinstance(coefficient, Term):
            coefficient = self.given(coefficient)
        product = centred(coefficient)
        if worth is not None:
            product = product * worth
        product = product.sum([a for a in product.axes if a.kind == SLOT])
        worlds = frozenset(
            s for s in cost_context().sites if s.world is not None and s.world in product.axes
        )
        like = self.terms[0]
        return Term(product, upstream=worlds, drawn=like.drawn, group=like.group, label=like.label)

    def by_differences(self) -> list[Term]:
        """The terms, and the gradient of a site with alternatives: coefficients times differences from the drawn
        value."""
        site, swapped = self.site, self.swapped()
        if site.coefficients is None:
            name = type(site.estimator).__name__
            raise EstimatorError(
                message(
                    f"site {site.name!r}: {name}.expand gives no coefficients",
                    got="Downstream.by_differences, which weights alternatives by them",
                    expected="vi.Expansion(..., coefficients=...)",
                    fix=f"return coefficients from {name}.expand",
                )
            )
        if not swapped.terms:
            return list(self.terms)
        coefficients = centred(swapped.given(site.coefficients))
        worth = swapped.differences()
        array, xp = worth.array, array_namespace(worth.array)
        largest = xp.finfo(array.dtype).max
        finite = Named(xp.clip(array, -largest, largest), worth.axes)
        # a gradient that is infinite, of a value that is 0 and not 0 * inf
        more = Named(xp.where(xp.isinf(array), largest, xp.ones_like(array)), worth.axes)
        return [*self.terms, swapped.weighted(coefficients * finite, more)]

    def by_worlds(self) -> list[Term]:
        """The terms with the worlds of the site summed, each times its weight; where one of them was drawn, the terms
        and the gradient of the weights times what each world would be worth in its place."""
        site, swapped = self.site, self.swapped()
        assert site.world is not None and site.slots is not None
        world, weights = site.world, world_weights(site)
        done = [contract_world(site, weights, t) if world in t.base.axes else t for t in self.terms]
        if swapped.terms:
            of_slots = swapped.given(weights).renamed(world, site.slots)
            worth = combine(that_happens, stopped(of_slots), stopped(swapped.alternatives()))
            done.append(swapped.weighted(of_slots, worth))
        return done

    def swapped(self) -> Downstream:
        """Of these the terms that know what they would be with each alternative."""
        return replace(self, terms=[t for t in self.terms if self.site in t.alternatives])

    def linear(self) -> Downstream:
        """Of these the terms in which an element's value is its own and no alternative is known."""
        return replace(self, terms=[t for t in self.terms if self.site not in t.alternatives])

    @property
    def unit(self) -> float:
        """The factor by which a mean over replicates or a subsampled plate scales what an element is worth."""
        factors = []
        for t in self.terms:
            if isinstance(t.weight, float | int) and t.weight != 0.0:
                scales = [current().scale(a) for a in t.pending if not a.is_cut]
                factors.append(abs(t.weight) * math.prod(scales))
        return max(factors, default=1.0)

    def _own(self, term: Term, named: Named) -> Named:
        """A value of a term, or a number like it, for each element of the site: summed over other axes."""
        others = [a for a in named.axes if a.kind < SLOT and a not in self.site.axes]
        return term.scaled(named.sum(others), term.pending)

    def given(self, what: Term) -> Named:
        """A number of each element of the site in the worlds that were drawn for the sites before it."""
        drawn = (s for s in self.terms[0].drawn if s is not self.site)
        return settle(what, sorted(drawn, key=lambda s: s.order)).base


def parts(site: Site, terms: Iterable[Term]) -> list[Downstream]:
    """What is downstream of a site, by what may share one gradient term."""
    groups: dict[Any, list[Term]] = {}
    for t in terms:
        groups.setdefault((t.group, t.drawn), []).append(t)
    return [Downstream(site, group) for group in groups.values()]
