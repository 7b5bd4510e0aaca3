"""Whether a fitted guide can be trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vi_kit.base.errors import whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.converging import fall_of, found_of
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.draws import Site
from vi_kit.workflow.error_bounds import (
    Moments,
    divergence_bound,
    latent_sites,
    moments_of,
    wasserstein_bounds,
)
from vi_kit.workflow.psis import MAX_K, effective_sample_size, pareto_smoothed
from vi_kit.workflow.restarts import starts_of
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.smoothed import Smoothed, along, smoothed
from vi_kit.workflow.verdict import MIN_ESS, judged
from vi_kit.workflow.weights import (
    drawn_by_row,
    likelihoods_by_row,
    log_mean_error,
    log_mean_exp,
    refuse_without_weights,
)


def diagnose(
    fit: Any,
    *args: Any,
    num_samples: int = 2000,
    num_gradients: int = 50,
    by_site: bool = False,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> Diagnosis:
    r"""Whether a fitted guide can be trusted, from one pass of draws.

    It reports Pareto's k and the effective number of the importance weights (over everything, and of each row where all
    sites stand in one plate: jointly the weights of many rows always degenerate); ELBO, the bound of all draws, and
    upper bounds; means and variances by the guide against those corrected by Pareto-smoothed weights; bounds of their
    errors by the 2-divergence (Huggins et al. 2020); the log evidence by draws of the prior; signal and noise of the
    gradient by parameter (and by site), and what one more step would gain; and how the losses of the fit ended. Where
    all sites stand in one plate, bounds, moments and evidence are those of each row by its own weights, or their sums;
    rows of a minibatch then count for themselves.

    The verdict follows from these. "more samples": there are under 200 draws, too few for k, or k is good and they are
    worth too few. "not converged", before all that draws could say: one more step along the mean gradient, its length
    by a line search with held noise, gains more than half a nat (and more than a twentieth of the gap between the
    bounds, or of a nat per parameter: by so much steps of one size end in noise), and more than five of its standard
    errors; or the losses of the last fifth of the steps still fell by so much, by signed ranks of their batches. A
    gradient alone would not do: with gradients enough it is clearly away from zero wherever a fit ends in noise, and
    its size does not say what it costs. "trust": k is under 0.5, the gap between the bounds is under 0.1 nats (per row,
    where rows are independent), and no corrected mean or variance is far off. "correct by importance sampling": k is
    under 0.7 (for few draws less) and the weights are worth 25 draws, so that `vi.expectation(fit, psis=True)` and
    `vi.resample(fit)` are good where the guide is not. "richer guide": they are not. "another divergence": k is usable,
    but prior draws find more evidence than the guide's: mass is missed.

    Of a fit with `num_restarts` it is said where the other starts ended. If means are over three standard deviations
    away where the bound is less than three nats lower, the posterior has several modes: "another divergence".

    What cannot be seen: a mode that the guide misses, unless another start has ended there, or draws of the prior find
    it, which they do in few dimensions and with weak data. The bounds are estimates, and where k is over 0.5 too low;
    they are then infinite.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        num_samples: draws of the guide, and of the prior.
        num_gradients: gradients of the loss, and a few times as many of what a step gains, if their mean is not about
            zero; 0: none.
        by_site: whether also the noise of each site is told by itself, as in `Loss.gradient_variance`: as many
            gradients more for each.
        seed: of all.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        All of it, with a verdict; it prints well.

    Raises:
        BackendError: there are no importance weights (sites at a point, or summed out), or no ArviZ.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 0.5**0.5))
        >>> vi.diagnose(Loss(), model, guide).verdict
        'trust'

    References:
        Yao et al. 2018, Yes, but Did It Work? Evaluating Variational Inference. Vehtari et al. 2024, Pareto Smoothed
        Importance Sampling. Huggins et al. 2020, Validated Variational Inference via Practical Posterior Error Bounds.
    """
    num_samples = whole_number("diagnose", "num_samples", num_samples, least=25)
    num_gradients = whole_number("diagnose", "num_gradients", num_gradients, least=0)
    if num_gradients:
        num_gradients = whole_number("diagnose", "num_gradients", num_gradients, least=10)
    who = asked("diagnose", fit, args, kwargs, params)
    first = drawn(who, 1, seed)
    refuse_without_weights(who, first)
    own, draws, rows = drawn_by_row(who, num_samples, seed, first)
    joint = draws.log_weights
    parts = joint[None] if rows is None else rows.log_weights.T
    weights = smoothed(joint, rows)
    means, bounds = parts.mean(axis=1), log_mean_exp(parts)
    shares = np.exp(parts - np.logaddexp.reduce(parts, axis=1, keepdims=True))
    divergences = np.where(
        weights.pareto_k < 0.5, [divergence_bound(part) for part in parts], math.inf
    )
    divergence = float(divergences.sum())
    latent = latent_sites(dict(draws.guide))
    evidence, error = _by_prior(own, num_samples, seed, None if rows is None else rows.plate)
    found = {
        "num_samples": num_samples,
        "pareto_k": weights.worst_k if rows is None else float(pareto_smoothed(joint)[1]),
        "ess": float(effective_sample_size(joint)),
        "least_ess": weights.least_ess,
        "row_k": None if rows is None else weights.pareto_k,
        "elbo": float(means.sum()),
        "elbo_error": float(joint.std(ddof=1) / num_samples**0.5),
        "iwae": float(bounds.sum()),
        "eubo": float((shares * parts).sum()),
        "cubo": float(log_mean_exp(2 * parts).sum() / 2),
        "prior_evidence": evidence,
        "prior_error": error,
        "divergence": divergence,
        "wasserstein": wasserstein_bounds(list(latent.values()), divergence),
        "moments": {n: _moments(s, weights, divergences) for n, s in latent.items()},
        **_of_gradients(who, num_gradients, seed, by_site=by_site),
        "fall": None
        if who.record is None or who.record.fixed_draws is not None
        else fall_of(who.record.losses),
        "notes": (f"Draws were made one by one, which is slow: {draws.one_by_one}.",)
        if draws.one_by_one
        else (),
        "starts": starts_of(who, latent, seed + 2),
    }
    evidence_error = _root_sum(log_mean_error(parts))
    row_gap = float((bounds - means).max())
    return judged(Diagnosis("", (), "", **found), row_gap, evidence_error, who.record)


def _of_gradients(who: Asked, num: int, seed: int, *, by_site: bool) -> dict[str, Any]:
    """Signal and noise of gradients, and what one more step gains; it cannot be told by other data than the fit's."""
    noise, site_noise, gain = {}, {}, None
    if num:
        with who.plain[0].runs.replay(who.loss, seed) as replay:
            noise, site_noise, gain = found_of(replay, who.loss, num, seed, by_site=by_site)
    is_part = who.is_new or (who.record is not None and not who.record.is_whole)
    return {"noise": noise, "site_noise": site_noise, "gain": None if is_part else gain}


def _moments(site: Site, weights: Smoothed, divergences: np.ndarray) -> Moments:
    """The moments of a latent site: those of each row by its own weights and divergence, if rows are independent."""
    against, axis = weights.against(site), weights.axis(site)
    assert against is not None  # where rows are independent all latent sites stand in their plate
    of_row = divergences if axis is None else along(divergences[None], site, axis)[0]
    return moments_of(site, against, of_row)


def _root_sum(errors: np.ndarray) -> float:
    """The standard error of a sum of independent numbers."""
    return float(np.sqrt((errors**2).sum()))


def _by_prior(who: Asked, num_samples: int, seed: int, plate: str | None) -> tuple[float, float]:
    """The log evidence by draws of the prior, and its standard error; `nan` if there is no prior to draw from. The
    error is infinite if few draws have all the weight, of a row where rows are independent.

    Args:
        who: asks.
        num_samples: draws of the prior.
        seed: of them.
        plate: the name of the rows' plate, if rows are independent.
    """
    try:
        draws = who.plain[0].runs.prior(num_samples, seed + 1, conditioned=True)
    except Exception:  # an improper prior, or a model that is an energy
        return math.nan, math.nan
    likelihoods = (
        draws.log_likelihoods[None] if plate is None else likelihoods_by_row(draws, plate).T
    )
    if not np.isfinite(likelihoods.max(axis=1)).all():
        return math.nan, math.nan
    error = _root_sum(log_mean_error(likelihoods))
    is_poor = effective_sample_size(likelihoods).min() < MIN_ESS
    if is_poor or np.max(pareto_smoothed(likelihoods)[1]) > MAX_K:
        error = math.inf
    return float(log_mean_exp(likelihoods).sum()), error
