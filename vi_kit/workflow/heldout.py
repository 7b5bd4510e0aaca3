"""How probable new data are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, whole_number
from vi_kit.workflow.asking import asked
from vi_kit.workflow.predicting import at_arguments
from vi_kit.workflow.psis import MAX_K, effective_sample_size, pareto_smoothed
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.weights import (
    drawn_by_row,
    log_mean_error,
    log_mean_exp,
    refuse_without_weights,
)

MIN_DRAWS = 25
"""That Pareto's k is told from."""


@dataclass(frozen=True, repr=False)
class Heldout:
    """What `vi.heldout` found (nats).

    Attributes:
        log_prob: the estimate of the log density of the data.
        error: its standard error, by the delta method.
        ess: the effective number of draws; of rows the smallest one.
        pareto_k: Pareto's k of the weights; of rows the greatest one. `nan` with under 25 draws, or without ArviZ.
        rows: of each row, shape `(size,)`, if rows are independent; `None` if not.
        row_errors: their standard errors.
        plate: that the rows are of.
        num_samples: how many draws.
    """

    log_prob: float
    error: float
    ess: float
    pareto_k: float
    rows: np.ndarray | None = field(compare=False)
    row_errors: np.ndarray | None = field(compare=False)
    plate: str | None
    num_samples: int

    def __repr__(self) -> str:
        of = "" if self.rows is None else f", of {len(self.rows)} rows of plate {self.plate!r}"
        shown = (
            f"log density {self.log_prob:.6g} (s.e. {self.error:.2g}){of}; {self.num_samples} draws: Pareto k"
            f" {self.pareto_k:.2f}, effective {self.ess:.0f}"
        )
        if not self.pareto_k > MAX_K:
            return shown
        whose = "" if self.rows is None else " of the worst row"
        return (
            f"{shown}\nwarning: Pareto k{whose} is over {MAX_K}: the estimate is likely too low, and its standard error"
            " means nothing; another guide, or see vi.diagnose"
        )


def heldout(
    fit: Any,
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> Heldout:
    r"""The log density of data under the model, by importance sampling from the guide.

    It is $\log \frac1n \sum_i p(x^*, z_i) / q(z_i)$, $z_i \sim q(\cdot\,; x^*)$: of all of the data together, with all
    latent sites integrated over their *prior*. The guide is run at the new arguments: local sites are anew where it is
    amortised. So for a model with global sites it is the evidence of the new data alone, not their predictive density
    given those of the fit; what a global guide has learnt is where to look. Where every site stands in one plate, rows
    are independent: the log density is the sum of theirs, each by its own weights, which is far more exact.

    A mean of weights is unbiased, its logarithm is too low by about half its variance. The standard error is that of
    the delta method, and means little where `ess` is small; where `pareto_k` is over 0.7, a warning is printed.
    The density counts masks and the scales of handlers, as the model says; that which `fit` gives the rows of a
    minibatch counts if they are taken together, and not row by row.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: new arguments; or those of the programs.
        num_samples: how many draws of the guide.
        seed: of them.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        The estimate, its standard error, and both for each row if rows are independent.

    Raises:
        BackendError: the guide does not fit these arguments (see `vi.predictive`), or has no density at a site; or the
            model draws a minibatch of its own.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior
        >>> found = vi.heldout(Loss(), model, guide, torch.tensor([0.0, 2.0]), num_samples=10)
        >>> [round(float(v), 3) for v in found.rows]  # log Normal(x | 0, sqrt(2))
        [-1.266, -2.266]

    References:
        Burda et al. 2016, Importance Weighted Autoencoders. Wu et al. 2017, On the Quantitative Analysis of
        Decoder-Based Generative Models.
    """
    num_samples = whole_number("heldout", "num_samples", num_samples)
    who = asked("heldout", fit, args, kwargs, params)
    first = at_arguments(who)
    refuse_without_weights(who, first)
    _, draws, rows = drawn_by_row(who, num_samples, seed, drawn(who, 1, seed))
    parts = draws.log_weights[None] if rows is None else rows.log_weights.T
    value, error = log_mean_exp(parts), log_mean_error(parts)
    return Heldout(
        float(value.sum()),
        float(np.sqrt((error**2).sum())),
        float(effective_sample_size(parts).min()),
        _worst_k(parts),
        None if rows is None else value,
        None if rows is None else error,
        None if rows is None else rows.plate,
        num_samples,
    )


def _worst_k(log_weights: np.ndarray) -> float:
    """The greatest of Pareto's k; `nan` where it cannot be told."""
    if log_weights.shape[1] < MIN_DRAWS:
        return math.nan
    try:
        return float(np.max(pareto_smoothed(log_weights)[1]))
    except BackendError:  # no ArviZ, which the estimate does not need
        return math.nan
