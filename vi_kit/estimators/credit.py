"""What a site is worth: the functions by which estimators act on the cost downstream of their site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.named import SLOT, Named, combine, total
from vi_kit.costs.terms import Site, Term, centred, cost_context, stopped
from vi_kit.costs.worlds import contract_world, settle, that_happens, world_weights
from vi_kit.estimators.baselines import Baseline
from vi_kit.estimators.expansions import lacks_coefficients
from vi_kit.estimators.others import asked


def downstream(terms: Sequence[Term], site: Site, values: Callable[[Term], Named]) -> Named:
    """What each element of a site is worth, as a constant: the values of the terms, summed over other axes."""
    return stopped(own_sum(terms, site, values))


def own_sum(terms: Sequence[Term], site: Site, values: Callable[[Term], Named]) -> Named:
    """The values of the terms for each element of a site, summed over other axes."""
    return total(own_parts(terms, site, values))


def own_parts(terms: Sequence[Term], site: Site, values: Callable[[Term], Named]) -> list[Named]:
    """The value of each term for each element of a site, summed over other axes."""

    def part(t: Term) -> Named:
        named = values(t)
        others = [a for a in named.axes if a.kind < SLOT and a not in site.axes]
        return t.scaled(named.sum(others), t.pending)

    return [part(t) for t in terms]


def unit(terms: Sequence[Term]) -> float:
    """The factor by which a mean over replicates or a subsampled plate scales what a site is worth."""
    factors = []
    for t in terms:
        if isinstance(t.weight, float | int) and t.weight != 0.0:
            scales = [current().scale(a) for a in t.pending]
            factors.append(abs(t.weight) * math.prod(scales))
    return max(factors, default=1.0)


def matched(coefficients: Term, site: Site, drawn: frozenset[Site]) -> Named:
    """Coefficients of a site in the worlds that were drawn for the sites before it."""
    before = sorted((s for s in drawn if s is not site), key=lambda s: s.order)
    return settle(coefficients, before).base


def gradient_term(coefficient: Named, worth: Named | None, like: Term) -> Term:
    """A term of value zero whose gradient is the coefficient's, times `worth`."""
    product = coefficient
    if worth is not None:
        product = combine(lambda c, w: c * w, coefficient, worth)
    product = product.sum([a for a in product.axes if a.kind == SLOT])
    worlds = frozenset(
        s for s in cost_context().sites if s.world is not None and s.world in product.axes
    )
    return Term(product, upstream=worlds, drawn=like.drawn, group=like.group, label=like.label)


def grouped(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms that may share one gradient term."""
    groups: dict[Any, list[Term]] = {}
    for t in terms:
        groups.setdefault((t.group, t.drawn), []).append(t)
    return list(groups.values())


def contract_differences(site: Site, terms: Sequence[Term]) -> list[Term]:
    """Add the gradient of a site with alternatives: coefficients times differences from the drawn value."""
    if site.coefficients is None:
        raise lacks_coefficients(site)
    done = list(terms)
    for group in grouped(t for t in terms if site in t.alternatives):
        coefficient = matched(site.coefficients, site, group[0].drawn)
        other = downstream(group, site, lambda t: t.alternatives[site])
        own = downstream(group, site, lambda t: t.base)
        worth = combine(lambda x, y: x - y, other, own)
        done.append(gradient_term(coefficient, worth, group[0]))
    return done


def contract_score(
    site: Site, terms: Sequence[Term], log_density: Term, baseline: Baseline
) -> list[Term]:
    """Add the gradient of a log density times what the site is worth, less a baseline.

    Args:
        site: to be contracted.
        terms: that depend on it.
        log_density: of what was drawn: of the site's value, or of the noise from which it was made.
        baseline: what is subtracted.
    """
    done = list(terms)
    for group in grouped(terms):
        coefficient = centred(matched(log_density, site, group[0].drawn))
        worth = downstream(group, site, lambda t: t.base)
        linear = [t for t in group if site not in t.alternatives]
        swapped = [t for t in group if site in t.alternatives]
        if linear:
            factor = unit(linear)
            parts = own_parts(linear, site, lambda t: t.base)
            costs = [stopped(part).scaled(1.0 / factor) for part in parts]
            subtracted = asked(site, costs, baseline.subtracted)
            worth = _minus(worth, subtracted and subtracted.scaled(factor))
        if swapped:
            other = downstream(swapped, site, lambda t: t.alternatives[site])
            worth = _minus(worth, other)
        done.append(gradient_term(coefficient, worth, group[0]))
    return done


def _minus(worth: Named, baseline: Named | None) -> Named:
    """Subtract a baseline where it is finite; that depends on other draws only, so it may be left out."""
    if baseline is None:
        return worth
    xp = array_namespace(baseline.array)
    finite = xp.where(xp.isfinite(baseline.array), baseline.array, xp.zeros_like(baseline.array))
    return combine(lambda w, b: w - b, worth, Named(finite, baseline.axes))


def contract_worlds(site: Site, terms: Sequence[Term]) -> list[Term]:
    """Remove the worlds of a site: the sum over them, each times its weight; where one of them was drawn,
    the gradient of the weights times what each world would be worth in its place."""
    assert site.world is not None and site.slots is not None
    world, weights, done = site.world, world_weights(site), []
    for t in terms:
        done.append(contract_world(site, weights, t) if world in t.base.axes else t)
    for group in grouped(t for t in terms if site in t.alternatives):
        w = matched(weights, site, group[0].drawn - {site}).renamed(world, site.slots)
        worth = downstream(group, site, lambda t: t.alternatives[site])
        worth = combine(that_happens, stopped(w), worth)
        done.append(gradient_term(centred(w), worth, group[0]))
    return done
