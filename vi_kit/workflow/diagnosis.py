"""What `diagnose` finds, and how it reads."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vi_kit.workflow.converging import Fall, Gain, Noise
from vi_kit.workflow.error_bounds import Moments
from vi_kit.workflow.restarts import Start

BLIND = (
    "Draws of the guide say nothing of where it does not draw: a mode that it misses, and that prior draws do not find"
    " either, is not seen here. Fit again from other starts and compare."
)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `vi.diagnose` found (nats).

    Attributes:
        verdict: `"trust"`, `"correct by importance sampling"`, `"richer guide"`, `"more samples"`,
            `"another divergence"` or `"not converged"`.
        reasons: why, in words.
        advice: what to do.
        num_samples: draws of the guide.
        pareto_k: of the joint importance weights; minus infinity if they are equal.
        ess: their effective number.
        least_ess: of smoothed weights: these, or if rows are independent those of the row that has the least.
        row_k: Pareto's k of each row, if rows are independent; `None` if not.
        elbo: the mean log weight.
        elbo_error: its standard error.
        iwae: the bound of all draws together, an estimate of the log evidence; if rows are independent the sum of
            theirs, as are the next four.
        eubo: the self-normalised mean log weight, and
        cubo: half the log of the mean squared weight: upper bounds, which few draws estimate too low.
        prior_evidence: the log evidence by draws of the prior, and
        prior_error: its standard error, infinite if few draws have all the weight: they do not tell it then;
            both `nan` if there is none.
        divergence: a bound of the 2-divergence of the posterior from the guide.
        wasserstein: bounds of the 1- and 2-Wasserstein distances of all latent sites.
        moments: by latent site.
        noise: of the gradient, by parameter; empty if there are none, or no gradients were wanted.
        site_noise: what the noise of each site does to it; empty if not asked for.
        gain: of one more step; `None` if there are no parameters, or it cannot be told.
        fall: of the losses at the end of the fit; `None` without one.
        starts: where its other starts ended, if there were several.
        notes: what else there is to know.
    """

    verdict: str
    reasons: tuple[str, ...]
    advice: str
    num_samples: int
    pareto_k: float
    ess: float
    least_ess: float
    row_k: np.ndarray | None = field(compare=False)
    elbo: float
    elbo_error: float
    iwae: float
    eubo: float
    cubo: float
    prior_evidence: float
    prior_error: float
    divergence: float
    wasserstein: tuple[float, float]
    moments: Mapping[str, Moments] = field(compare=False)
    noise: Mapping[str, Noise] = field(compare=False)
    site_noise: Mapping[str, Noise] = field(compare=False)
    gain: Gain | None
    fall: Fall | None
    starts: tuple[Start, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """The log evidence by all draws less the ELBO: about the KL divergence of guide and posterior."""
        return self.iwae - self.elbo

    def __repr__(self) -> str:
        lines = [f"{self.verdict}: {self.advice}", *(f"- {r}" for r in self.reasons)]
        lines += [
            f"{self.num_samples} draws: Pareto k {self.pareto_k:.2f}, effective {self.ess:.0f}"
            + (
                " (of all rows jointly; what follows is row by row)"
                if self.row_k is not None
                else ""
            ),
            f"elbo {self.elbo:.4g} (s.e. {self.elbo_error:.2g}) <= log evidence, about {self.iwae:.4g}"
            f" <= eubo {self.eubo:.4g}, cubo {self.cubo:.4g}",
        ]
        if self.row_k is not None:
            lines.append(
                f"Pareto k of {len(self.row_k)} rows: {np.mean(self.row_k > 0.7):.0%} above 0.7, at most"
                f" {np.max(self.row_k):.2f}"
            )
        if np.isfinite(self.prior_evidence):
            lines.append(
                f"log evidence by prior draws {self.prior_evidence:.4g} (s.e. {self.prior_error:.2g})"
                if np.isfinite(self.prior_error)
                else f"prior draws do not tell the log evidence (they say {self.prior_evidence:.4g}): few of them have"
                " all the weight"
            )
        lines.append(
            f"2-divergence at most {self.divergence:.3g}; Wasserstein distances at most"
            f" {self.wasserstein[0]:.3g} (1), {self.wasserstein[1]:.3g} (2)"
        )
        if self.gain is not None:
            lines.append(
                f"one more step gains {self.gain.nats:.2g} nats (s.e. {self.gain.error:.1g})"
            )
        width = max([len(n) for n in (*self.moments, *self.noise, *self.site_noise)] + [4])
        if self.moments:
            lines.append(
                f"{'site':{width}}  mean is off by  variance ratio   bounds of mean, variance"
            )
        for name, own in self.moments.items():
            low, high = own.ratios
            most = np.max(own.mean_bound, initial=0), np.max(own.variance_bound, initial=0)
            lines.append(
                f"{name:{width}}  {own.shift:9.2f} s.d.  {low:6.2f} - {high:5.2f}  {most[0]:.3g}, {most[1]:.3g}"
            )
        for head, own in (("gradient", self.noise), ("by noise of site", self.site_noise)):
            if own:
                lines.append(f"{head:{width}}  signal to noise  |mean| / s.e.")
            lines += [
                f"{name:{width}}  {f'{n.signal:.2g} (s.e. {n.error:.1g})':>15}  {n.z:13.1f}"
                for name, n in own.items()
            ]
        return "\n".join([*lines, *self.notes, BLIND])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
