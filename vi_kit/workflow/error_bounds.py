r"""How far means and variances of a guide can be from those of the posterior, by its 2-divergence.

For any function f the Cauchy-Schwarz inequality gives $|E_p f - E_q f| \le \chi\, \mathrm{sd}_q(f)$ with
$\chi^2 = E_q[(p / q)^2] - 1 = \exp(D_2) - 1$; and
$D_2 = 2 (\mathrm{CUBO}_2 - \log Z) \le 2 (\mathrm{CUBO}_2 - \mathrm{ELBO})$.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vi_kit.workflow.draws import Kind, Site

LARGE = 50.0
"""Nats of a divergence from which on bounds say nothing."""


def divergence_bound(log_weights: np.ndarray) -> float:
    """An upper bound of the 2-divergence of the posterior from the guide (nats), as draws estimate it."""
    twice = 2 * log_weights
    cubo = (np.logaddexp.reduce(twice) - np.log(len(twice))) / 2
    return float(max(0.0, 2 * (cubo - log_weights.mean())))


@dataclass(frozen=True)
class Moments:
    """Means and variances of a site, by the guide and corrected, with bounds of the error of the guide's.

    Attributes:
        mean: of the guide, shape `(*batch, *event)`.
        variance: likewise.
        corrected_mean: by Pareto-smoothed weights.
        corrected_variance: likewise.
        mean_bound: no mean of the posterior is further from the guide's.
        variance_bound: likewise.
    """

    mean: np.ndarray
    variance: np.ndarray
    corrected_mean: np.ndarray
    corrected_variance: np.ndarray
    mean_bound: np.ndarray = field(repr=False)
    variance_bound: np.ndarray = field(repr=False)

    @property
    def shift(self) -> float:
        """How many standard deviations of the guide the corrected mean is away, at most."""
        scale = np.sqrt(np.where(self.variance > 0, self.variance, np.inf))
        return float(np.max(abs(self.corrected_mean - self.mean) / scale, initial=0.0))

    @property
    def ratios(self) -> tuple[float, float]:
        """The least and the greatest ratio of the guide's variance to the corrected one."""
        ok = self.corrected_variance > 0
        ratios = self.variance[ok] / self.corrected_variance[ok]
        return float(np.min(ratios, initial=np.inf)), float(np.max(ratios, initial=0.0))


def moments_of(site: Site, weights: np.ndarray, divergence: float | np.ndarray) -> Moments:
    """The moments of a site.

    Args:
        site: at draws of the guide.
        weights: of the draws, in a shape that broadcasts against the site's values; they sum to one over the draws.
        divergence: a bound of the 2-divergence, of all or such that it broadcasts against one value.
    """
    value = np.asarray(site.value, float)
    mean, variance = value.mean(axis=0), value.var(axis=0)
    by_weight = (weights * value).sum(axis=0)
    square = (weights * (value - by_weight) ** 2).sum(axis=0)
    spread = ((value - mean) ** 2).std(axis=0)
    is_known = np.asarray(divergence) < LARGE
    chi_square = np.expm1(np.where(is_known, divergence, 0.0))
    mean_bound = np.where(is_known, np.sqrt(chi_square * variance), np.inf)
    variance_bound = np.where(
        is_known, np.sqrt(chi_square) * spread + chi_square * variance, np.inf
    )
    return Moments(mean, variance, by_weight, square, mean_bound, variance_bound)


def wasserstein_bounds(sites: list[Site], divergence: float) -> tuple[float, float]:
    r"""Bounds of the 1- and 2-Wasserstein distances, $2^{1 - 1/p} (E_q \|z - E z\|^{2p})^{1/2p} \chi^{1/p}$.

    Args:
        sites: latent ones, at draws of the guide, all of them coordinates of one vector.
        divergence: a bound of the 2-divergence.
    """
    flat = [np.asarray(s.value, float).reshape(len(s.value), -1) for s in sites]
    if not flat:
        return 0.0, 0.0
    if not divergence < LARGE:
        return np.inf, np.inf
    joint = np.concatenate(flat, axis=1)
    norms = np.linalg.norm(joint - joint.mean(axis=0), axis=1)
    chi = np.sqrt(np.expm1(divergence))
    first = float((norms**2).mean() ** 0.5 * chi)
    return first, float(2**0.5 * (norms**4).mean() ** 0.25 * chi**0.5)


def latent_sites(sites: dict[str, Site]) -> dict[str, Site]:
    """Those that are drawn, and are numbers."""
    return {
        n: s
        for n, s in sites.items()
        if s.kind is Kind.LATENT and s.value.dtype.kind in "iufb" and s.value.size
    }
