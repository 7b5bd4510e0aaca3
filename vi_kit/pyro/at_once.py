"""Many draws of two programs in one run, under an outer plate, if they are found to broadcast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger

from vi_kit.workflow.draws import Kind, Site

DRAWS = "_vi_kit_draws"
CHUNK_BYTES = 2**25
"""Of the values and log densities that one run holds."""
MOST_SAID = 100
"""Letters of an error."""
COMPARED = 5
"""Draws of the first run that are run by themselves and compared."""

Seeds = tuple[int, int]
Values = dict[str, torch.Tensor]
Found = dict[str, Site]
Run = Callable[[Seeds, Values, bool], tuple[Found, Found]]
"""Sites of guide and model: at seeds, with given values, with or without densities."""


class Given(Messenger):
    """Sample statements take the values that are given."""

    def __init__(self, values: Values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def lifted(pair: tuple[Found, Found]) -> tuple[Found, Found]:
    """One draw as draws of which there is one."""
    first, second = ({n: _lifted(s) for n, s in own.items()} for own in pair)
    return first, second


def _lifted(site: Site) -> Site:
    scale, log_prob = site.scale, site.log_prob
    if np.ndim(scale) and log_prob is not None:
        scale = np.broadcast_to(scale, log_prob.shape)[None]
    elif np.ndim(scale):
        scale = 1.0  # of use with densities alone
    value = np.asarray(site.value)[None]
    log_prob, mask = (None if x is None else np.asarray(x)[None] for x in (log_prob, site.mask))
    return replace(site, value=value, log_prob=log_prob, mask=mask, scale=scale)


def at_once(
    run: Run, seeds: list[Seeds], densities: bool
) -> tuple[list[tuple[Found, Found]] | None, str]:
    """Draws in few runs; `None` if there are few, or they are found to differ from draws one by one, and why.

    Each site of some of the draws is compared with a run by itself at the same values: log densities, masks, scales,
    and the values of deterministic sites. Programs with minibatches draw one minibatch for all, so they are not tried.
    """
    if len(seeds) <= COMPARED:
        return None, ""
    single = run(seeds[0], {}, True)
    sites = [s for own in single for s in own.values()]
    held = sum(s.value.nbytes + (0 if s.log_prob is None else s.log_prob.nbytes) for s in sites)
    chunk = min(len(seeds), CHUNK_BYTES // max(held, 1))
    if any(s.kind is Kind.ROWS for s in sites):
        return None, "each draws a minibatch of its own"
    if chunk <= COMPARED:
        return None, "they are too large for several to be held at a time"
    nesting = max((_batch_ndim(s) for s in sites), default=0)
    pieces = []
    try:
        for start in range(0, len(seeds), chunk):
            num = min(chunk, len(seeds) - start)
            with pyro.plate(DRAWS, num, dim=-nesting - 1):
                wide = run(seeds[start], {}, densities or start == 0)
            first, second = (
                _narrowed(*own, num, nesting) for own in zip(wide, single, strict=True)
            )
            piece = first, second
            other = _other(run, piece, seeds[0]) if start == 0 else None
            if other is not None:
                return None, f"site {other!r} is another one where many draws are made in one run"
            if start == 0 and not densities:  # the first run has them, to be compared by
                piece = _without_densities(first), _without_densities(second)
                single = _without_densities(single[0]), _without_densities(single[1])
            pieces.append(piece)
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, f"the programs do not broadcast over a dim in front ({text[:MOST_SAID]})"
    return pieces, ""


def _without_densities(own: Found) -> Found:
    """Sites as a run makes them that is asked for no densities."""
    return {
        n: replace(s, log_prob=None, mask=None, scale=1.0 if np.ndim(s.scale) else s.scale)
        for n, s in own.items()
        if s.kind is not Kind.FACTOR
    }


def _batch_ndim(site: Site) -> int:
    """How many dims to the left of its event dims a site needs."""
    of_plates = max((-p.dim for p in site.plates), default=0)
    return max(of_plates, np.ndim(site.value) - (site.event_dim or 0))


def _narrowed(wide: Found, single: Found, num: int, nesting: int) -> Found:
    """Sites of a run under the plate of draws, in the shapes of single draws behind it."""
    if wide.keys() != single.keys():
        raise ValueError("other sites")
    return {n: _narrow(s, single[n], num, nesting) for n, s in wide.items()}


def _narrow(site: Site, single: Site, num: int, nesting: int) -> Site:
    def narrow(array: Any, like: Any, event_dim: int | None = 0) -> Any:
        if array is None:
            return None
        shape = (num, *np.shape(like))
        is_short = np.ndim(array) <= nesting + (event_dim or 0)
        if np.shape(array) == np.shape(like) and (is_short or np.shape(array)[:1] != (num,)):
            return np.broadcast_to(array, shape)
        return np.reshape(array, shape)

    mask_like = single.log_prob if single.mask is None else single.mask
    scale = site.scale
    if np.ndim(scale):
        if site.log_prob is not None:
            scale = narrow(np.broadcast_to(scale, site.log_prob.shape), single.log_prob)
        else:
            scale = 1.0
    return replace(
        site,
        value=narrow(site.value, single.value, site.event_dim),
        log_prob=narrow(site.log_prob, single.log_prob),
        mask=narrow(site.mask, mask_like),
        scale=scale,
        plates=single.plates,
    )


def _other(run: Run, piece: tuple[Found, Found], seeds: Seeds) -> str | None:
    """The first site that, at some of the draws, is not what runs by themselves say."""
    num = len(next(iter({**piece[0], **piece[1]}.values())).value) if any(piece) else 0
    for i in np.linspace(0, num - 1, COMPARED).astype(int):
        values = {
            n: torch.as_tensor(np.array(s.value[i]))
            for own in piece
            for n, s in own.items()
            if s.kind not in (Kind.DETERMINISTIC, Kind.FACTOR, Kind.ROWS) and not s.is_fixed
        }
        alone = run(seeds, values, True)
        for own, other in zip(piece, alone, strict=True):
            for name in dict.fromkeys((*own, *other)):
                if name not in own or name not in other or not _same(own[name], other[name], i):
                    return name
    return None


def _same(site: Site, alone: Site, i: int) -> bool:
    at = site.take(np.array([i]))
    pairs = [(at.value[0], alone.value)]
    if at.log_prob is not None and alone.log_prob is not None:
        pairs += [(at.elements[0], alone.elements), (at.log_prob[0], alone.log_prob)]
    single = np.finfo(np.float32).eps
    return all(
        np.shape(a) == np.shape(b)
        and np.allclose(a, b, rtol=single**0.5, atol=single**0.5, equal_nan=True)
        for a, b in pairs
    )
