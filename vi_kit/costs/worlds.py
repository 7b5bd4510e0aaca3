"""The worlds of enumerated sites: summed exactly, or replaced by one that is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.named import Array, Axis, Named, combine, union
from vi_kit.costs.terms import Site, Term, held_fixed, lift, stopped


def contract_world(site: Site, weights: Term, term: Term) -> Term:
    """Replace a world axis by the sum over it, each world times its weight."""
    assert site.world is not None
    world = site.world

    def weighted_sum(q: Named, value: Named) -> Named:
        axes = union(q.axes, value.axes)
        p, v = q.aligned(axes), value.aligned(axes)
        return Named(p * that_happens(p, v), axes).sum([world])

    if site in term.held:
        weights = held_fixed(weights)
    base, alternatives = lift(weighted_sum, weights, term)
    return term.changed(
        base=base,
        alternatives=alternatives,
        slopes={s: weighted_sum(weights.base, slope) for s, slope in term.slopes.items()},
        upstream=(term.upstream | weights.upstream) - {site},
        held=term.held | weights.held,
    )


def that_happens(p: Array, value: Array) -> Array:
    """A value, zero where it is infinite and has no probability: that world does not happen. A finite value is what
    the probability has a gradient for."""
    xp = array_namespace(value)
    return xp.where((p == 0) & ~xp.isfinite(value), xp.zeros_like(value), value)


def happening(term: Term, sites: Iterable[Site]) -> Term:
    """A term as a nonlinear function may see it, which would have a gradient at worlds that do not happen."""
    for site in sites:
        if site.world not in term.base.axes:
            continue
        weights = world_weights(site).base
        if set(weights.axes) <= set(term.base.axes):
            term = term.changed(base=combine(that_happens, stopped(weights), term.base))
    return term


def choose(site: Site, before: Sequence[Site]) -> Term:
    """Draw one world of an enumerated site, as a one-hot array: the same draw whenever it is asked for.

    One uniform number per element serves all worlds and alternatives of the sites before it, so
    that what does not depend on them stays the same.
    """
    if site.chosen is None:
        assert site.world is not None
        world, probs = site.world, settle(world_weights(site), before)
        backend = current().backend
        shape = tuple(a.size for a in site.axes)
        noise = Named(backend.uniform(shape, like=probs.base.array), site.axes)

        def one_hot(probs: Named) -> Named:
            axes = union(probs.axes, noise.axes)
            dim = axes.index(world)
            p, u = probs.aligned(axes), noise.aligned(axes)
            xp = array_namespace(p)
            cdf = xp.cumulative_sum(backend.stop_gradient(p), axis=dim)
            index = xp.sum(cdf <= u, axis=dim, keepdims=True)
            index = xp.clip(index, max=world.size - 1)  # rounding may leave the last cdf below one
            values = Named(xp.arange(world.size, device=device(p)), (world,))
            return Named(values.aligned(axes) == index, axes)

        base, alternatives = lift(one_hot, probs)
        site.chosen = Term(
            base, alternatives, upstream=probs.upstream, drawn=probs.drawn, held=probs.held
        )
    return site.chosen


def world_weights(site: Site) -> Term:
    """What the expectation weights each world with: its probability, if the site has no other weights."""
    if site.weights is not None:
        return site.weights
    assert site.log_q is not None
    base, alternatives = lift(_exp, site.log_q)
    return site.log_q.changed(base=base, alternatives=alternatives)


def _exp(named: Named) -> Named:
    return Named(array_namespace(named.array).exp(named.array), named.axes)


def settle(term: Term, sites: Iterable[Site]) -> Term:
    """Replace the worlds of `sites` by a draw, and keep the worlds as alternatives to it."""
    sites = [s for s in sites if s.world is not None]
    for i, site in enumerate(sites):
        world, slots = site.world, site.slots
        assert world is not None and slots is not None
        if not any(world in n.axes for n in (term.base, *term.alternatives.values())):
            continue
        chosen = choose(site, sites[:i])
        if site in term.held:
            chosen = chosen.changed(alternatives={}, held=chosen.upstream)

        def pick(one_hot: Named, value: Named, world: Axis = world) -> Named:
            if world not in value.axes:
                return value
            axes = union(one_hot.axes, value.axes)
            h, v = one_hot.aligned(axes), value.aligned(axes)
            xp = array_namespace(v)
            return Named(xp.where(h, v, xp.zeros_like(v)), axes).sum([world])

        base, alternatives = lift(pick, chosen, term)
        if site not in term.held and world in term.base.axes:
            alternatives[site] = stopped(term.base.renamed(world, slots))
        term = term.changed(
            base=base,
            alternatives=alternatives,
            slopes={s: pick(chosen.base, slope) for s, slope in term.slopes.items()},
            upstream=term.upstream | chosen.upstream,
            held=term.held | chosen.held,
            drawn=term.drawn | chosen.drawn | {site},
        )
    return term
