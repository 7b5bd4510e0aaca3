"""Whether the starts of a fit have ended in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vi_kit.workflow.asking import Asked, Trained
from vi_kit.workflow.draws import Site
from vi_kit.workflow.error_bounds import latent_sites
from vi_kit.workflow.history import last_tenth
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.series import autocorrelation_time

NUM_DRAWS = 200
"""Of each start, by which its means are known to a fourteenth of a standard deviation."""
APART = 3.0
"""Standard deviations between means from which on two starts have ended in two places."""
NEAR = 3.0
"""Nats by which a bound may be lower for its mode to have a twentieth of the other's mass."""
AGREED = 0.5
"""Nats between bounds that are the same."""


@dataclass(frozen=True)
class Start:
    """Where a start ended.

    Attributes:
        lost: by how much its objective is worse than the best one's (nats, the mean of the last tenth of the steps).
        error: the standard error of that, by autocorrelated steps.
        distance: of the means of latent sites from those of the best start, the greatest, in standard deviations.
    """

    lost: float
    error: float
    distance: float


def starts_of(who: Asked, latent: Mapping[str, Site], seed: int) -> tuple[Start, ...]:
    """The other starts of a fit, those that failed left out.

    Args:
        who: asks, and has the record of the fit.
        latent: sites at draws of the best start.
        seed: of draws of the others.
    """
    record = who.record
    if record is None or not record.restart_params:
        return ()
    best, its_error = end_of(record.losses)
    found = []
    for losses, params in zip(record.restarts, record.restart_params, strict=True):
        if len(losses) < len(record.losses) or np.array_equal(losses, record.losses):
            continue
        lost, error = end_of(losses)
        at = replace(who, params={**(who.params or {}), **params})
        draws = drawn(at, NUM_DRAWS, seed, densities=False)
        distance = _distance(latent, latent_sites(dict(draws.guide)))
        found.append(Start(lost - best, float(np.hypot(error, its_error)), distance))
    return tuple(found)


def end_of(losses: np.ndarray) -> tuple[float, float]:
    """The mean of the last tenth, and its standard error."""
    last = losses[-last_tenth(len(losses)) :]
    time = max(1.0, float(autocorrelation_time(last)))
    spread = float(last.std(ddof=1)) if len(last) > 1 else 0.0
    return float(last.mean()), spread * (time / len(last)) ** 0.5


def _distance(ours: Mapping[str, Site], theirs: Mapping[str, Site]) -> float:
    most = 0.0
    for name in ours.keys() & theirs.keys():
        a, b = (np.asarray(own[name].value, float) for own in (ours, theirs))
        if a.shape[1:] != b.shape[1:]:
            continue
        off = abs(a.mean(axis=0) - b.mean(axis=0))
        scale = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 2)
        far = np.where(off > 0, np.inf, 0.0)
        parts = np.divide(off, scale, out=far, where=scale > 0)
        most = max(most, float(parts.max(initial=0.0)))
    return most


def said_of(starts: Sequence[Start], record: Trained | None) -> tuple[list[str], bool]:
    """What is said of them, and whether they show that the guide misses a mode."""
    if not starts or record is None:
        return [], False
    num, is_bound = len(starts) + 1, record.loss.settings.sign < 0
    away = [s for s in starts if s.distance > APART]
    modes = [s for s in away if s.lost < NEAR + 2 * s.error] if is_bound else []
    worse = [s for s in starts if s not in modes and s.lost > AGREED + 5 * s.error]
    reasons = []
    if modes:
        far, lost = max(s.distance for s in modes), max(max(s.lost for s in modes), 0.0)
        reasons.append(
            f"{len(modes)} of {num} starts ended elsewhere, with means up to {far:.2g} s.d. away and bounds at most"
            f" {lost:.2g} nats lower: the posterior has several modes, and the guide is at one of them"
        )
    if worse:
        most = max(s.lost for s in worse)
        elsewhere = sum(s in away for s in worse)
        reasons.append(
            f"{len(worse)} of {num} starts ended up to {most:.2g} nats worse, {elsewhere} of them elsewhere: there may"
            " be better optima than this one"
        )
    if not reasons and not away:
        reasons.append(f"all {num} starts ended in one place")
    return reasons, bool(modes)
