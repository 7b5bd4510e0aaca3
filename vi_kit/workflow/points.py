"""Which latent sites a guide has put at a point, where it has no density."""

from __future__ import annotations

import numpy as np

from vi_kit.workflow.draws import Draws, Kind, Site


def point_masses(draws: Draws) -> list[str]:
    """The latent sites of the model at which the guide has no density.

    A Delta has none by itself. It is a change of variables where an auxiliary site is behind it, as guides have that
    draw unconstrained values (`AutoMultivariateNormal`). So there must be auxiliary values enough: continuous ones for
    continuous sites and discrete ones for discrete sites, at least one for each element of a batch. And the value of a
    continuous element must vary from draw to draw.
    """
    latent = {n: s for n, s in draws.guide.items() if s.kind is Kind.LATENT}
    fixed = {
        n: draws.model[n]
        for n, s in latent.items()
        if s.is_fixed and n in draws.model and not draws.model[n].is_fixed
    }
    auxiliary = [s for n, s in latent.items() if not s.is_fixed and n not in draws.model]
    found: set[str] = set()
    for is_discrete in (False, True):
        own = {n: s for n, s in fixed.items() if s.is_discrete == is_discrete}
        have = sum(s.value[0].size for s in auxiliary if s.is_discrete == is_discrete)
        still = {n for n, s in own.items() if _is_still(s)} if len(draws) > 1 else set()
        if have < sum(int(_counted(s).sum()) for s in own.values()):
            found |= still or own.keys()
        elif not is_discrete:  # two draws of few values are often the same
            found |= still
    return [n for n in latent if n in found]


def _counted(site: Site) -> np.ndarray:
    """Which elements of the batch count, in a draw."""
    batch = np.shape(site.value)[1 : np.ndim(site.value) - (site.event_dim or 0)]
    mask = np.asarray(True if site.mask is None else site.mask[0])
    return np.broadcast_to(mask if mask.shape == batch else True, batch)


def _is_still(site: Site) -> bool:
    """Whether an element that counts is the same at all draws."""
    value, counted = np.asarray(site.value), _counted(site)
    same = (value == value[:1]).all(axis=(0, *range(1 + counted.ndim, value.ndim)))
    return bool((same & counted).any())
