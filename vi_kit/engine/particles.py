"""Values of replicates, brought out of them: along the worlds of a site that says which replicate it is."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.layouts import Worlds
from vi_kit.base.named import (
    EVENT,
    PLATE,
    SLOT,
    WORLD,
    Array,
    Axis,
    Named,
    combine,
    from_layout,
    ordered,
    total,
    union,
)
from vi_kit.costs.cost import Cost
from vi_kit.costs.nonlinear import shared_plates
from vi_kit.costs.terms import Site, Term, merge
from vi_kit.engine.backend import Backend
from vi_kit.estimators import Enumerate
from vi_kit.language.programs import (
    THE_DRAW,
    Draw,
    Program,
    Resampling,
    Session,
    Statement,
    Swarm,
    ancestor_of,
)


class Particles(Session, Protocol):
    """A run, as far as it is asked here."""

    num_sites: int
    variant: int
    by_order: dict[int, Site]

    @property
    def backend(self) -> Backend[Any]: ...
    def layout(
        self, plates: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> Mapping[int, Axis]: ...
    def is_followed(self, site: Site) -> bool:
        """Whether it is known what depends on a site."""
        ...

    def number(self, axis: Axis, like: Array) -> Named:
        """Which replicate it is, of those along an axis."""
        ...

    def named(self, array: Any, axes: Sequence[Axis], upstream: Iterable[Site], what: str) -> Named:
        """Name the dims of an array that the program made at a site inside `axes`."""
        ...

    def term(
        self,
        log_prob: Any,
        axes: Sequence[Axis],
        what: str,
        *,
        constants: frozenset[Site] = frozenset(),
    ) -> Term:
        """A term from log densities."""
        ...

    def note_particles(self, site: Site) -> None:
        """Give a site its worlds, or note that it has them."""
        ...


def values_of(run: Particles, draw: Draw) -> tuple[Cost, ...]:
    """The values of a draw as costs, which come out of replicates with all that depends on them."""
    return tuple(Cost([_value(run, draw, name)]) for name in draw)


def _value(run: Particles, draw: Draw, name: str) -> Term:
    statement, what = draw.details[name], f"site {name!r}"
    value = run.backend.one_value(draw.by_name[name])
    if value is None:
        raise EstimatorError(_several(what, "a value for each of a support"))
    sizes = tuple(statement.dist.event_shape)
    events = [Axis(EVENT, len(sizes) - i, f"event {i}", n) for i, n in enumerate(sizes)]
    layout = {dim - len(sizes): a for dim, a in run.layout(statement.axes, (), what).items()}
    layout |= {i - len(sizes): a for i, a in enumerate(events)}
    required = [*statement.axes, *events]
    if name in run.repeated:  # a dim for the steps lies left of the plates
        layout[-value.ndim] = steps = _steps(name, value.ndim - len(sizes), value.shape[0])
        required.append(steps)
    named = from_layout(value, layout, required)
    if any(a.kind in (WORLD, SLOT) for a in named.axes):
        raise EstimatorError(
            _several(what, [a.name for a in named.axes if a.kind in (WORLD, SLOT)])
        )
    return Term(named, label=what, statement=name)


def _steps(name: str, order: int, num: int) -> Axis:
    """The axis of the steps that a library takes by itself."""
    return Axis(PLATE, order, f"steps of {name}", num)


def _several(what: str, got: Any) -> str:
    return message(
        f"{what} is that of a particle, and has several values at once",
        got=f"values along {got}",
        expected="single draws in a proposal: Reparam() or Score()",
        fix="another estimator for the sites of the proposal",
    )


def chosen(
    run: Particles,
    program: Program,
    draw: Draw,
    axis: Axis,
    log_weights: Cost,
    values: Sequence[Cost],
) -> tuple[Draw, Axis | None]:
    """One of several draws, in proportion to their weights, and the axis along which all of them are.

    It is a site that is enumerated, whose worlds are the replicates.

    Args:
        run: the run.
        program: whose draw it is.
        draw: one of the replicates, or what stands for all of them.
        axis: of the replicates.
        log_weights: of each (nats), for each element of the plates that its terms share.
        values: by `values_of`.
    """
    weight = _weighed(run, log_weights)
    log_weight = weight.base
    site = _open(
        run, f"particle of the {program.role}", axis.size, weight.pending | run.open_replicates
    )
    if axis in log_weight.axes:
        log_weight = log_weight.renamed(axis, _world(site))
        dim = log_weight.axes.index(_world(site))
        rest = tuple(a for a in log_weight.axes if a != site.world)
        log_q = log_weight - Named(run.backend.logsumexp(log_weight.array, dim), rest)
    else:
        log_q = log_weight.scaled(0.0)
    site.log_q = replace(weight, base=log_q)
    by_name, details = {}, {}
    for name, cost in zip(draw, values, strict=True):
        (term,), statement = cost.terms, draw.details[name]
        named = term.base
        if axis in named.axes:
            named = named.index(axis, 0) if axis.size == 1 else named.renamed(axis, _world(site))
        details[name] = replace(statement, axes=tuple(a for a in statement.axes if a != axis))
        value = run.backend.with_worlds(run, named, len(statement.dist.event_shape))
        by_name[name] = run.backend.track(value, site)
    changes: dict[str, Any] = {"by_name": by_name, "details": details, "drawn_with": None}
    return replace(draw, program=program, density=Cost(()), **changes), site.world


def _weighed(run: Particles, log_weights: Cost, plates: frozenset[Axis] | None = None) -> Term:
    """What log weights add up to, for each element of plates and of open replicates."""
    terms = log_weights.terms
    wrong = sorted({s.name for t in terms for s in t.alternatives})
    if wrong:
        run.refuse(_several(f"the weight of a particle, which depends on {wrong},", wrong))
    plates = shared_plates(terms) if plates is None else plates
    parts = []
    for t in merge(replace(t, alternatives={}) for t in terms):
        summed = {a for a in (*t.base.axes, *t.pending) if a.kind == PLATE and a not in plates}
        parts.append(t.scaled(t.base.sum(summed), summed))
    return Term(
        total(parts),
        upstream=frozenset(s for t in terms for s in t.upstream),
        held=frozenset(s for t in terms for s in t.held),
        pending=plates,
    )


LOWEST = -1e30
"""The log weight of what is never drawn (nats): finite, as distributions ask for."""


def filtered(
    run: Particles,
    program: Program,
    target: Program,
    given: Draw,
    weight: Cost,
    axis: Axis,
    how: Resampling,
    first: Draw | None,
) -> tuple[Draw, Cost, Cost, frozenset[str]]:
    """See `Session.filtered`."""
    before = _weighed(run, weight, frozenset()).base.array if weight.terms else 0.0
    drawn, weights, met = run.backend.filtered(
        run, program, target, given, axis, how, before, first
    )
    if weights is None:
        return drawn, Cost(()), Cost(()), met
    steps = _steps(next(name for name in drawn if name not in given), 1, weights.shape[0])
    what = f"{target.role}: weight in the {steps.name}"
    term = run.term(weights, (steps,), what, constants=drawn.constants)
    earlier = replace(steps, size=steps.size - 1)
    base = Named(term.base.array[:-1], (earlier,))
    of_last = replace(term, base=term.base.index(steps, -1), pending=frozenset())
    return (
        drawn,
        Cost([replace(term, base=base, pending=frozenset([earlier]))] if earlier.size else ()),
        Cost([of_last]),
        met,
    )


def resampled(
    run: Particles,
    program: Program,
    swarm: Swarm,
    into: Axis | None,
    how: Resampling,
    *,
    keeps_first: bool = False,
) -> tuple[Draw, Cost]:
    """See `Session.resampled`. The number of the draw that is taken is a site."""
    backend, axis = run.backend, swarm.axis
    weight, is_due = _normalised(run, swarm, how)
    event = weight.base.axes[-1]
    logits, like = weight.base, weight.base.array
    xp = array_namespace(like)
    if how.held:
        logits = Named(run.constant(logits.array), logits.axes)
    if is_due is not None:
        assert into is not None
        numbers = xp.arange(event.size, device=device(like)) - (event.size - into.size)
        own = combine(operator.eq, Named(numbers, (event,)), run.number(into, like))
        kept = Named(_alone(own.array, like), own.axes)
        logits = combine(xp.where, is_due, logits, kept)
    if keeps_first:
        assert into is not None
        is_first = combine(lambda number: number == 0, run.number(into, like))
        kept = Named(_alone(xp.arange(event.size, device=device(like)) == 0, like), (event,))
        logits = combine(xp.where, is_first, kept, logits)
    axes = (*swarm.plates, *run.open_replicates)

    def tracked(value: Any, sites: Iterable[Site]) -> Any:
        for s in sites:
            value = backend.track(value, s)
        return value

    sites = {s for s in (*swarm.draw.sites.values(), *swarm.draw.others) if run.is_followed(s)}
    sites |= weight.upstream
    name = ancestor_of(swarm.following or THE_DRAW)
    given = tracked(backend.with_worlds(run, logits.broadcast(axes), 1), sites)
    statement = Statement(name, backend.categorical(given), axes, {}, algorithm=how)
    value, site = backend.draw_apart(run, statement, program.role, swarm.draw.constants)
    known, what = frozenset(sites | {site}), f"site {name!r}"
    index = run.named(backend.untracked(value), axes, known, what)
    by_name, details = {}, {}
    for name, cost in zip(swarm.draw, swarm.values, strict=True):
        (term,), before = cost.terms, swarm.draw.details[name]
        event_ndim = len(before.dist.event_shape)

        def make(named: Named = term.base, event_ndim: int = event_ndim) -> Any:
            return backend.with_worlds(run, _taken(named, axis, index), event_ndim)

        by_name[name] = tracked(backend.brought(run, make, event_ndim), known)
        within = [into if a == axis else a for a in before.axes]
        details[name] = replace(before, axes=tuple(a for a in within if a is not None))
    others = (*swarm.draw.others, site)
    given = replace(
        swarm.draw,
        program=program,
        by_name=by_name,
        details=details,
        density=Cost(()),
        others=others,
    )
    if is_due is None:
        return given, Cost(())
    left = _left(_taken(weight.base, event, index), is_due, event.size)
    return given, Cost([replace(weight, base=left, upstream=known)])


def first_left(run: Particles, swarm: Swarm, how: Resampling) -> Cost:
    """See `Session.first_left`."""
    weight, is_due = _normalised(run, swarm, how)
    if is_due is None:
        return Cost(())
    event = weight.base.axes[-1]
    return Cost([replace(weight, base=_left(weight.base.index(event, 0), is_due, event.size))])


def _normalised(run: Particles, swarm: Swarm, how: Resampling) -> tuple[Term, Named | None]:
    """The log weights of draws, along an event dim, and where they are to be resampled; `None` for everywhere."""
    weight, size = _weighed(run, swarm.log_weights, swarm.plates), swarm.axis.size
    named = weight.base.broadcast([swarm.axis]).renamed(swarm.axis, Axis(EVENT, 1, "draw", size))
    array, is_few = normalised(run.backend, named.array, how, run.constant)
    weight = replace(weight, base=Named(array, named.axes))
    return weight, None if is_few is None else Named(is_few, named.axes[:-1])


def normalised(
    backend: Backend[Any], log_weights: Array, how: Resampling, held: Callable[[Any], Any]
) -> tuple[Array, Array | None]:
    """The log weights of draws along the last dim, normalised, and where they are to be resampled, as `held` values of
    them say; `None` for everywhere."""
    xp = array_namespace(log_weights)
    norm = backend.logsumexp(log_weights, -1)[..., None]
    is_possible, nothing = norm > -math.inf, xp.zeros_like(norm)  # where none is, all are alike
    shares = xp.where(is_possible, log_weights, nothing) - xp.where(is_possible, norm, nothing)
    if how.ess_threshold == 1.0:
        return shares, None
    log_inverse = backend.logsumexp(2.0 * held(shares), -1)
    return shares, xp.exp(-log_inverse) < how.ess_threshold * log_weights.shape[-1]


def _alone(is_it: Array, like: Array) -> Array:
    """Log weights of which one is possible."""
    xp, kind = array_namespace(like), {"dtype": like.dtype, "device": device(like)}
    return xp.where(is_it, xp.zeros((), **kind), xp.full((), LOWEST, **kind))


def _left(log_weight: Named, is_due: Named, size: int) -> Named:
    """What a draw of so many still weighs, in units of the mean."""
    xp = array_namespace(log_weight.array)
    return combine(
        lambda due, x: xp.where(due, xp.zeros_like(x), x + math.log(size)), is_due, log_weight
    )


def with_first(run: Particles, swarm: Swarm, draw: Draw, log_weight: Cost) -> Swarm:
    """See `Session.with_first`."""
    axis = run.new_replicate_axis(swarm.axis.size + 1)

    def joined(own: Named, others: Named) -> Named:
        one, rest = replace(axis, size=1), replace(axis, size=axis.size - 1)
        others = others.broadcast([swarm.axis]).renamed(swarm.axis, rest)
        shared = [a for a in union(own.axes, others.axes) if a != rest]
        parts = [own.broadcast([*shared, one]), others.broadcast([*shared, rest])]
        axes = tuple(axis if a == rest else a for a in parts[1].axes)
        xp = array_namespace(own.array)
        return Named(xp.concat([p.array for p in parts], axis=axes.index(axis)), axes)

    weights = [_weighed(run, w, swarm.plates) for w in (log_weight, swarm.log_weights)]
    weight = replace(
        weights[0],
        base=joined(weights[0].base, weights[1].base),
        upstream=weights[0].upstream | weights[1].upstream,
        held=weights[0].held | weights[1].held,
    )
    values, details = [], {}
    for name, cost in zip(swarm.draw, swarm.values, strict=True):
        (term,), statement = cost.terms, swarm.draw.details[name]
        values.append(Cost([replace(term, base=joined(_value(run, draw, name).base, term.base))]))
        within = tuple(axis if a == swarm.axis else a for a in statement.axes)
        details[name] = replace(statement, axes=within)
    others = (*swarm.draw.others, *draw.sites.values(), *draw.others)
    return replace(
        swarm,
        axis=axis,
        draw=replace(
            swarm.draw,
            details=details,
            others=tuple(dict.fromkeys(others)),
            constants=swarm.draw.constants | draw.constants,
        ),
        values=tuple(values),
        log_weights=Cost([weight]),
    )


def _taken(named: Named, axis: Axis, index: Named) -> Named:
    """What lies along an axis at numbers of it."""
    if axis not in named.axes:
        return named
    events = tuple(a for a in named.axes if a.kind == EVENT and a != axis)
    new = tuple(a for a in index.axes if a not in named.axes)
    shared = tuple(a for a in named.axes if a != axis and a not in events)
    xp = array_namespace(named.array)
    order = [named.axes.index(a) for a in (axis, *shared, *events)]
    values = xp.permute_dims(named.array, tuple(order))
    order = [index.axes.index(a) for a in (*new, *(a for a in shared if a in index.axes))]
    numbers = xp.permute_dims(index.array, tuple(order))
    sizes = tuple(a.size if a in index.axes else 1 for a in shared)
    numbers = xp.reshape(numbers, (-1, *sizes, *(1 for _ in events)))
    taken = xp.take_along_axis(values, numbers, axis=0)
    return ordered(
        xp.reshape(taken, (*(a.size for a in new), *taken.shape[1:])), (*new, *shared, *events)
    )


def _world(site: Site) -> Axis:
    assert site.world is not None
    return site.world


def _open(run: Particles, name: str, size: int, axes: Iterable[Axis]) -> Site:
    """A site with the particles as its worlds."""
    own = tuple(sorted(axes, key=lambda a: a.key, reverse=True))
    site = Site(name, run.num_sites, own, Enumerate(), Worlds(size), "particle", run.variant)
    run.num_sites += 1
    run.sites.append(site)
    run.by_order[site.order] = site
    run.note_particles(site)
    return site
