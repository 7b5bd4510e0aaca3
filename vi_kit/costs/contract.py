"""From the cost of one run to a number whose gradient is unbiased.

The sites are contracted last sampled first. Each estimator turns the terms that depend on its site (`Downstream`)
into terms that do not, with value and gradient unbiased given everything sampled before the site; by
induction the sum that is left is unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence

from vi_kit.base.layouts import Gradient
from vi_kit.base.named import Named, total
from vi_kit.costs.cost import Cost
from vi_kit.costs.downstream import parts
from vi_kit.costs.terms import Site, Term, merge, stopped


def contract(cost: Cost, sites: Sequence[Site]) -> dict[str | None, Named]:
    """Contract every site.

    Args:
        cost: what the objective program returned.
        sites: in the order in which they were sampled.

    Returns:
        For each group of parameters (`None`: all of them) a scalar to differentiate.
    """
    terms = [_without_noise(t) for t in cost.terms]
    for site in reversed(sites):
        active = [t for t in terms if site in t.upstream]
        if not active:
            continue
        rest = [t for t in terms if site not in t.upstream]
        done = [t for t in active if site in t.held and site.world is None]
        live = [t for t in active if not (site in t.held and site.world is None)]
        if live:
            done += [t for p in parts(site, merge(live)) for t in site.estimator.contract(p)]
        terms = rest + [without(t, site) for t in done]
    groups: dict[str | None, list[Named]] = {}
    for t in merge(terms):
        groups.setdefault(t.group, []).append(t.scaled(t.base.sum(t.base.axes), t.pending))
    return {group: total(parts) for group, parts in groups.items()}


def _without_noise(term: Term) -> Term:
    """Without the gradient of a log density at a value drawn from it, whose mean is zero."""
    own = term.own
    if own is None or own.has_path or own.estimator.gradient is not Gradient.NONE:
        return term
    return term.changed(base=stopped(term.base))


def without(term: Term, site: Site) -> Term:
    """The term, no longer depending on a contracted site."""
    if not any(site in group for group in (term.upstream, term.alternatives, term.slopes)):
        return term
    return term.changed(
        upstream=term.upstream - {site},
        alternatives={s: a for s, a in term.alternatives.items() if s is not site},
        slopes={s: a for s, a in term.slopes.items() if s is not site},
    )
