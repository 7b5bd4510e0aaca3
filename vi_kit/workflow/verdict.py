"""What is concluded from the numbers of a diagnosis."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vi_kit.workflow.diagnosis import Diagnosis

GOOD_K, MAX_K = 0.5, 0.7
MAX_GAP = 0.1
MAX_SHIFT, MAX_RATIO = 0.3, 1.5
MIN_SAMPLES = 200

ADVICE = {
    "trust": "the guide's means and variances can be used as they are",
    "correct by importance sampling": "vi.expectation(fit, psis=True) or vi.resample(fit)",
    "richer guide": "one with correlations (AutoMultivariateNormal), a flow, or the model in other coordinates"
    " (non-centred); weights do not repair this one",
    "more samples": "num_samples of 1000 or more",
    "another divergence": "the guide misses mass: one that covers, as vi.cubo(2.0, ...) or vi.forward_kl(...), a"
    " mixture, or fits from several starts",
}


def judged(found: Diagnosis, row_gap: float, evidence_error: float) -> Diagnosis:
    """The diagnosis with a verdict.

    Args:
        found: the numbers.
        row_gap: the greatest gap between the bounds of a row.
        evidence_error: the standard error of the log evidence by the guide's draws.
    """
    reasons: list[str] = []
    by_rows = found.row_k is not None
    k = float(np.max(found.row_k)) if found.row_k is not None else found.pareto_k
    limit = min(1 - 1 / math.log10(found.num_samples), MAX_K)
    whose = "of the worst row " if by_rows else ""
    reasons.append(f"Pareto k {whose}is {k:.2f} (good under {GOOD_K}, usable under {limit:.2f})")
    gap = row_gap if by_rows else found.gap
    if gap > MAX_GAP:
        reasons.append(
            f"the bound of all draws is {gap:.2g} nats above the ELBO{' in a row' * by_rows}"
        )
    usable = k < limit
    if not by_rows or usable:
        reasons += _moments(found)
    missed = _missed(found, evidence_error)
    reasons += [missed] if missed else []
    reasons += [
        f"the gradient of {name!r} is {n.z:.0f} standard errors from zero: training has not ended"
        for name, n in found.noise.items()
        if n.z > 5
    ]
    if found.num_samples < MIN_SAMPLES:
        verdict = "more samples"
    elif not usable:
        verdict = "richer guide"
    elif missed:
        verdict = "another divergence"
    elif k < GOOD_K and gap <= MAX_GAP and not _moments(found):
        verdict = "trust"
    else:
        verdict = "correct by importance sampling"
    return replace(found, verdict=verdict, reasons=tuple(reasons), advice=ADVICE[verdict])


def _moments(found: Diagnosis) -> list[str]:
    """What is said of sites whose corrected moments are far off."""
    reasons = []
    for name, own in found.moments.items():
        low, high = own.ratios
        if own.shift > MAX_SHIFT:
            reasons.append(f"the corrected mean of {name!r} is {own.shift:.2g} s.d. away")
        if low < 1 / MAX_RATIO:
            reasons.append(f"the variance of {name!r} is {low:.2g} of the corrected one: too small")
        if high > MAX_RATIO:
            reasons.append(
                f"the variance of {name!r} is {high:.2g} of the corrected one: too large"
            )
    return reasons


def _missed(found: Diagnosis, evidence_error: float) -> str | None:
    """What is said if draws of the prior find more evidence than those of the guide."""
    more, error = found.prior_evidence - found.iwae, np.hypot(found.prior_error, evidence_error)
    if not (np.isfinite(more) and more > 5 * error and more > MAX_GAP):
        return None
    return (
        f"draws of the prior find {more:.2g} nats (s.e. {error:.1g}) more evidence than the guide's: a part of the"
        " posterior is missed"
    )
