"""Sites whose estimator asks for parameters to be held (`Estimator.holds_params`): what a cost would be if
their values alone changed, as functions of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vi_kit.base.layouts import Gradient
from vi_kit.base.named import Named
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Varied
from vi_kit.language.programs import Draw, Program, session


def vary(draw: Draw) -> Draw:
    """A new draw, ready for that: its own log densities have their parameters held."""
    draw = replace(draw, varied=_together(draw))
    held, terms = held_densities(draw.program, draw, draw.density), []
    for t in with_alternatives(draw.density, draw, held).terms:
        if t.statement in draw.factors:
            t = replace(t, base=held[t.statement], slopes=_slopes(draw, t.statement))
        terms.append(t)
    return replace(draw, density=Cost(terms))


def _together(draw: Draw) -> Site:
    """One site for all that hold parameters: their joint draw is a function of the parameters."""
    run, sites = session(), [draw.sites[name] for name in draw.factors]
    site = sites[0]
    if len(sites) > 1:
        axes = tuple(a for a in site.axes if all(a in s.axes for s in sites))
        site = Site(", ".join(draw.factors), site.order, axes, site.estimator, site.layout)
        run.sites.insert(run.sites.index(sites[0]), site)
    apart = [
        name
        for name, other in draw.sites.items()
        if _has_path(other) and name not in draw.factors and draw.details[name].dist.name != "Delta"
    ]
    numbers = {f.number for f in draw.factors.values()}
    pending = {
        frozenset(a for a in t.pending if run.scale(a) != 1.0)
        for t in draw.density.terms
        if t.upstream.intersection(sites)
    }
    hidden = any(draw.details[name].dist.hides_elements for name in draw.factors)
    alike = len(sites) == 1 or (numbers != {None} and len(numbers) == len(pending) == 1)
    run.varied[site] = Varied(tuple(sites), tuple(apart), alike and not hidden)
    return site


def _has_path(site: Site) -> bool:
    return site.estimator.gradient is not Gradient.NONE


def _slopes(draw: Draw, name: str) -> dict[Site, Named]:
    """The derivative of a site's own term by the log density of what is varied: noted once per draw."""
    assert draw.varied is not None
    if name != next(iter(draw.factors)):
        return {}
    slope = draw.factors[name].values
    for axis in slope.axes:
        if axis not in draw.varied.axes:  # the same number at every index
            slope = slope.index(axis, 0)
    return {draw.varied: slope}


def held_densities(program: Program, draw: Draw, cost: Cost) -> dict[str, Named]:
    """The log densities of a program with its parameters held fixed, by statement."""
    if not program.held or draw.deltas:
        at = replace(draw, by_name={**draw.by_name, **draw.deltas})
        cost = session().log_density(replace(program, held=True), at)
    return {t.statement: t.base for t in cost.terms}


def with_alternatives(cost: Cost, draw: Draw, held: Mapping[str, Named]) -> Cost:
    """The cost, with what it would be if one element of the varied sites alone changed."""
    assert draw.varied is not None
    site, sites = draw.varied, {draw.sites[name] for name in draw.factors}
    return Cost(
        replace(
            t,
            alternatives={**t.alternatives, site: held[t.statement]},
            upstream=t.upstream | {site},
        )
        if t.upstream & sites
        else t
        for t in cost.terms
    )
