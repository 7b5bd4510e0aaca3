"""Sites that are summed out of a density: variable elimination in log space, along the worlds of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import message
from vi_kit.base.named import PLATE, Array, Axis
from vi_kit.costs.contract import without
from vi_kit.costs.nonlinear import Reduction, applied
from vi_kit.costs.terms import Site, Term


def eliminated(
    terms: Sequence[Term],
    sites: Sequence[Site],
    *,
    max_worlds: int,
    num_values: Callable[[Site], int],
    scale_of: Callable[[Axis], float],
) -> list[Term]:
    """Log densities with sites summed out.

    Those in most plates come first, since elements of a plate are independent given what is outside it, and among
    these the last sampled: a chain of T sites of K values takes T K^2.

    Args:
        terms: log densities, each but for its weight neither scaled nor added to others (nats).
        sites: to be summed out, in sampling order.
        max_worlds: of joint values on which what is summed may depend.
        num_values: of a site.
        scale_of: the factor on a sum over a plate.
    """
    left = dict(enumerate(terms))
    order = sorted(sites, key=lambda s: (len(_plates(s)), s.order), reverse=True)
    place = {site: i for i, site in enumerate(order)}
    found: dict[Site, set[int]] = {site: set() for site in order}

    def note(number: int, term: Term) -> None:
        for s in term.upstream & found.keys():
            found[s].add(number)

    for number, term in left.items():
        note(number, term)
    for i, site in enumerate(order):
        own = [left[number] for number in sorted(found[site])]
        if not own:
            continue
        later = {s for t in own for s in t.upstream if place.get(s, -1) > i}
        weights = sorted({float(t.weight) for t in own})
        problem = (
            _crossing(site, own, later, scale_of)
            or _too_many(site, later, max_worlds, num_values)
            or _unequal(site, own, weights)
        )
        if problem:
            current().refuse(problem)
            left.update((number, without(left[number], site)) for number in found[site])
            continue
        own = [t.changed(weight=1.0) for t in own]
        (total,) = applied(_Summed(site), [own], site.world, None)
        name = f"the sum over site {site.name!r}"
        total = total.changed(weight=weights[0], label=name, statement=name)
        for number in found.pop(site):
            for s in left.pop(number).upstream & found.keys():
                found[s].discard(number)
        left[len(terms) + i] = without(total, site)
        note(len(terms) + i, left[len(terms) + i])
    return list(left.values())


class _Summed(Reduction):
    """The log of the sum of exponentials over the values of a site; in a dry run it has one value."""

    def __init__(self, site: Site) -> None:
        def log_sum_exp(x: Array) -> Array:
            return x if site.world is None else sum_of_possible(x, 0)

        log_sum_exp.__name__ = f"the sum over the values of {site.name!r}"
        super().__init__(log_sum_exp)


def sum_of_possible(x: Array, axis: int) -> Array:
    """The log of the sum of exponentials; where all are zero, as of a state that cannot be reached, it has a gradient
    of zero."""
    xp, nothing = array_namespace(x), -float("inf")
    possible = xp.max(x, axis=axis, keepdims=True) != nothing
    found = current().backend.logsumexp(xp.where(possible, x, xp.zeros_like(x)), axis)
    return xp.where(xp.squeeze(possible, axis=axis), found, nothing)


def _plates(site: Site) -> frozenset[Axis]:
    return frozenset(a for a in site.axes if a.kind == PLATE)


def _crossing(
    site: Site, own: Sequence[Term], later: set[Site], scale_of: Callable[[Axis], float]
) -> str:
    """What is no product of independent sums: plates that cross, and minibatches under the logarithm."""
    crossing = sorted(s.name for s in later if not _plates(s) <= _plates(site))
    if crossing:
        return message(
            f"site {site.name!r} cannot be summed together with {crossing}: their plates cross",
            got=f"{site.name!r} in {_names(_plates(site))}, terms that depend on it and on {crossing} too",
            expected="plates that nest, such as one site inside the plate of the other",
            fix=f"{site.name!r} in the guide too",
        )
    scaled = {
        a for t in own for a in (*t.base.axes, *t.pending) if a.kind == PLATE and scale_of(a) != 1.0
    } - _plates(site)
    if scaled:
        return message(
            f"site {site.name!r} is outside a subsampled plate, and cannot be summed by a minibatch",
            got=f"terms in {_names(scaled)}, of which the sum over a minibatch would stand under a logarithm",
            expected="a site inside the plate, or all data at once",
            fix=f"{site.name!r} in the guide too, or a plate without subsampling",
        )
    return ""


def _too_many(
    site: Site, later: set[Site], max_worlds: int, num_values: Callable[[Site], int]
) -> str:
    sizes = {s.name: num_values(s) for s in (site, *sorted(later, key=lambda s: s.order))}
    joint = math.prod(sizes.values())
    if joint <= max_worlds:
        return ""
    return message(
        f"site {site.name!r} is summed over {joint} joint values at once, above {max_worlds}",
        got=", ".join(f"{name!r} has {size}" for name, size in sizes.items()),
        expected="terms that depend on few sites each",
        fix=f"{site.name!r}, or another of these, in the guide too",
    )


def _unequal(site: Site, own: Sequence[Term], weights: Sequence[float]) -> str:
    if len(weights) == 1:
        return ""
    return message(
        f"site {site.name!r} is summed out of terms with unequal scales",
        got="; ".join(f"{t.label} by {float(t.weight):.3g}" for t in own),
        expected="one scale for all that depends on it, since a density that is scaled is no density",
        fix=f"the scale handler around the whole model, or {site.name!r} in the guide too",
    )


def _names(axes: frozenset[Axis] | set[Axis]) -> str:
    names = sorted(repr(a.name) for a in axes)
    return "plate " * bool(names) + ", ".join(names) if names else "no plate"
