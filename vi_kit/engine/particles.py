"""Values of replicates, brought out of them: along the worlds of a site that says which replicate it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.layouts import Worlds
from vi_kit.base.named import EVENT, PLATE, SLOT, WORLD, Axis, Named, from_layout, total
from vi_kit.costs.cost import Cost
from vi_kit.costs.nonlinear import shared_plates
from vi_kit.costs.terms import Site, Term, merge
from vi_kit.engine.backend import Backend
from vi_kit.estimators import Enumerate
from vi_kit.language.programs import Draw, Program, Session


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
    named = from_layout(value, layout, (*statement.axes, *events))
    if any(a.kind in (WORLD, SLOT) for a in named.axes):
        raise EstimatorError(
            _several(what, [a.name for a in named.axes if a.kind in (WORLD, SLOT)])
        )
    return Term(named, label=what, statement=name)


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
    terms = log_weights.terms
    plates = shared_plates(terms)
    wrong = sorted({s.name for t in terms for s in t.alternatives})
    if wrong:
        run.refuse(_several(f"the weight of a particle, which depends on {wrong},", wrong))
    keep = plates | run.open_replicates
    parts = []
    for t in merge(replace(t, alternatives={}) for t in terms):
        summed = {
            a for a in (*t.base.axes, *t.pending) if a.kind < SLOT and a not in keep and a != axis
        }
        parts.append(t.scaled(t.base.sum(summed), summed))
    log_weight = total(parts)
    site = _open(run, f"particle of the {program.role}", axis.size, keep)
    if axis in log_weight.axes:
        log_weight = log_weight.renamed(axis, _world(site))
        dim = log_weight.axes.index(_world(site))
        rest = tuple(a for a in log_weight.axes if a != site.world)
        log_q = log_weight - Named(run.backend.logsumexp(log_weight.array, dim), rest)
    else:
        log_q = log_weight.scaled(0.0)
    upstream = frozenset(s for t in terms for s in t.upstream)
    held = frozenset(s for t in terms for s in t.held)
    pending = frozenset(a for a in keep if a.kind == PLATE)
    site.log_q = Term(log_q, upstream=upstream, held=held, pending=pending)
    by_name, details = {}, {}
    for name, cost in zip(draw, values, strict=True):
        (term,), statement = cost.terms, draw.details[name]
        named = term.base.renamed(axis, _world(site)) if axis in term.base.axes else term.base
        details[name] = replace(statement, axes=tuple(a for a in statement.axes if a != axis))
        value = run.backend.with_worlds(run, named, len(statement.dist.event_shape))
        by_name[name] = run.backend.track(value, site)
    draw = replace(draw, program=program, by_name=by_name, details=details, density=Cost(()))
    return draw, site.world


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
