"""What is concluded from the numbers of a diagnosis."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vi_kit.workflow.asking import Trained
from vi_kit.workflow.converging import LEVEL
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.psis import MAX_K
from vi_kit.workflow.restarts import said_of

GOOD_K = 0.5
MAX_GAP = 0.1
MAX_SHIFT, MAX_RATIO = 0.3, 1.5
MIN_SAMPLES = 200
MIN_ESS = 25.0
"""Effective draws, of which a corrected mean is known to a fifth of a standard deviation."""
MARKOV = 10.0
"""Nats by which few draws that have all the weight are too high with a chance of 1 in 20,000 at most."""
MIN_SHARE = 0.01
"""Of draws that weigh: of a guide that has fewer it is too much to ask."""
MIN_GAIN = 0.5
"""Nats that more steps gain, and are worth them: as many as `Stationary` lets go."""
GAIN_SHARE = 0.05
"""Of the gap between the bounds, and of a nat per parameter: steps of one size end in noise, which costs each parameter
about so much, and where the gap is larger it is the guide that makes it."""

ADVICE = {
    "not converged": "more steps from here (num_steps, or stop=vi.Stationary()), then diagnose again: what else is said"
    " is of parameters on their way",
    "trust": "the guide's means and variances can be used as they are",
    "correct by importance sampling": "vi.expectation(fit, psis=True) or vi.resample(fit)",
    "richer guide": "one with correlations (AutoMultivariateNormal), a flow, or the model in other coordinates"
    " (non-centred); weights do not repair this one",
    "more samples": "num_samples of 1000 or more",
    "another divergence": "the guide misses mass: one that covers, as vi.cubo(2.0, ...) or vi.forward_kl(...), a"
    " mixture, or fits from several starts",
}


SMALLER_STEPS = (
    "the losses no longer fall, but steps of this size end away from the optimum: a smaller one, or"
    " stop=vi.IterateAverage(), then diagnose again"
)
MORE_FIXED = (
    "the optimum of the fixed draws is away from that of all: more fixed_draws, then diagnose again"
)


def judged(
    found: Diagnosis, row_gap: float, evidence_error: float, record: Trained | None
) -> Diagnosis:
    """The diagnosis with a verdict.

    Args:
        found: the numbers.
        row_gap: the greatest gap between the bounds of a row.
        evidence_error: the standard error of the log evidence by the guide's draws.
        record: how the parameters came about, if it is known.
    """
    reasons: list[str] = []
    by_rows = found.row_k is not None
    k = float(np.max(found.row_k)) if found.row_k is not None else found.pareto_k
    limit = min(1 - 1 / math.log10(found.num_samples), MAX_K)
    whose = "of the worst row " if by_rows else ""
    moving = _moving(found, record)
    reasons += moving
    reasons.append(f"Pareto k {whose}is {k:.2f} (good under {GOOD_K}, usable under {limit:.2f})")
    gap = row_gap if by_rows else found.gap
    if gap > MAX_GAP:
        reasons.append(
            f"the bound of all draws is {gap:.2g} nats above the ELBO{' in a row' * by_rows}"
        )
    if found.least_ess < MIN_ESS:
        reasons.append(
            f"the weights {whose}are worth {found.least_ess:.3g} of {found.num_samples} draws: too few to correct by,"
            " whatever k is"
        )
    usable = k < limit and found.least_ess >= MIN_ESS
    few = k < limit and not usable and found.least_ess >= MIN_SHARE * found.num_samples
    if not by_rows or usable:
        reasons += _moments(found)
    missed = _missed(found, evidence_error)
    reasons += [missed] if missed else []
    of_starts, shows_modes = said_of(found.starts, record)
    reasons += of_starts
    advice = None
    if found.num_samples < MIN_SAMPLES:
        verdict = "more samples"
    elif moving:
        verdict = "not converged"
        advice = _advice(found, record)
    elif few:
        verdict = "more samples"
        advice = (
            f"num_samples of {math.ceil(2 * MIN_ESS / found.least_ess) * found.num_samples} or more"
        )
    elif not usable:
        verdict = "richer guide"
    elif missed or shows_modes:
        verdict = "another divergence"
    elif k < GOOD_K and gap <= MAX_GAP and not _moments(found):
        verdict = "trust"
    else:
        verdict = "correct by importance sampling"
    if record is not None and record.by_rule is False:
        reasons.append(f"the fit ended before its rule said that it was done: {record.stopped}")
    return replace(found, verdict=verdict, reasons=tuple(reasons), advice=advice or ADVICE[verdict])


def _tolerance(found: Diagnosis) -> float:
    """What more steps may gain without being worth them (nats)."""
    num = math.inf if found.gain is None else found.gain.num_coordinates
    return max(MIN_GAIN, GAIN_SHARE * min(found.gap, num))


def _moving(found: Diagnosis, record: Trained | None) -> list[str]:
    """What is said of parameters that are not where the objective is best."""
    reasons, tolerance = [], _tolerance(found)
    if found.fall is not None and found.fall.is_over(tolerance):
        reasons.append(
            f"the loss still fell by {found.fall.nats:.2g} nats in {found.fall.num_steps} steps at the end"
        )
    if found.gain is not None and found.gain.is_over(tolerance):
        reasons.append(
            f"one more step, along the mean gradient, gains {found.gain.nats:.2g} nats (s.e. {found.gain.error:.1g})"
        )
    if reasons and record is not None:
        reasons.append(f"the fit ended: {record.stopped}")
    return reasons


def _advice(found: Diagnosis, record: Trained | None) -> str:
    """What brings the parameters to where the objective is best."""
    if record is not None and record.fixed_draws is not None and record.by_rule:
        return MORE_FIXED
    is_flat = found.fall is not None and found.fall.num_steps and found.fall.chance > LEVEL
    return SMALLER_STEPS if is_flat else ADVICE["not converged"]


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
    """What is said if draws of the prior find more evidence than those of the guide.

    Where their standard error is infinite, Markov's inequality is left: a mean of weights is unbiased, so it is over
    $e^t$ times the evidence with a chance of at most $e^{-t}$.
    """
    more, is_known = found.prior_evidence - found.iwae, np.isfinite(found.prior_error)
    error = np.hypot(found.prior_error, evidence_error) if is_known else evidence_error
    least = max(5 * error, MAX_GAP) + (0.0 if is_known else MARKOV)
    if not (np.isfinite(more) and more > least):
        return None
    told = f" (s.e. {error:.1g})" if is_known else ""
    return (
        f"draws of the prior find {more:.2g} nats{told} more evidence than the guide's: a part of the posterior is"
        " missed"
    )
