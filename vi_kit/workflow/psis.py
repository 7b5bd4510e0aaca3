"""Pareto-smoothed importance weights, by ArviZ.

`psis_diagnostic` of NumPyro and of Pyro are not called: they draw weights of their own, of programs that they can map,
and return k alone, of everything jointly. Here k comes with smoothed weights, row by row, of the draws that all else is
made of, and of any program (`tests/workflow/test_shipped_diagnostics.py`: of the same weights it is NumPyro's k).
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, message

MAX_K = 0.7
"""Up to which weights can be relied on."""
MIN_TIES = 10
"""Draws of the largest weight, of which its probability is known to a third."""
MIN_EXCESS = 0.005
"""Of the sum of weights, that the tail has over its threshold."""
MIN_VARIANCE = 0.05
"""Of the squared mean."""
MIN_SHORT = 25
"""Draws in a part of the tail."""


def arviz_of(what: str, *names: str) -> Any:
    """The first of some modules of ArviZ that is installed.

    Raises:
        BackendError: none is.
    """
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of its own plans
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise BackendError(
        message(
            f"{what} needs ArviZ",
            got="no module " + " or ".join(names),
            expected="ArviZ 0.23 (Python 3.11) or 1.x",
            fix="pip install arviz",
        )
    )


def has_old_arviz() -> bool:
    """Whether ArviZ is of before 1.0, with its `InferenceData`."""
    arviz = arviz_of("vi_kit", "arviz", "arviz_base")
    return arviz.__name__ == "arviz" and int(arviz.__version__.split(".")[0]) < 1


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log weights whose tail is smoothed and which sum to one, and Pareto's k.

    k is a shape: it says how fast the excesses over a threshold fall off, whatever they amount to, and supposes that no
    two are the same. Three cases are told from the weights themselves, which are then left as they are.

    - The largest weight is that of `MIN_TIES` draws or more, as of discrete sites with few values: it is the end of the
      tail, and k is minus infinity. With fewer, and no other weight over the threshold, k is infinite: how often such a
      value is drawn is not known.
    - k is over `MAX_K`, but the excesses are under `MIN_EXCESS` of the sum of weights: minus infinity. Of a k of 0.9
      the excesses of 2000 draws are about 40% of what they are in the mean: less than 0.05 nats are at stake.
    - k is over `MAX_K`, but the variance is under `MIN_VARIANCE` of the squared mean: the threshold may lie in a clump
      of almost equal weights. Where a quarter of the tail (25 draws at least) has a k under a half, that is k, and the
      weights are smoothed by it.

    Args:
        log_weights: shape `(*batch, num)`.

    Returns:
        Of that shape, and of shape `(*batch,)`. Equal weights have a k of minus infinity: no tail. Draws that the model
        has as impossible (a log weight of minus infinity) stay so.
    """
    log_weights = np.asarray(log_weights, float)
    num = log_weights.shape[-1]
    with np.errstate(all="ignore"):
        smoothed, k = _by_arviz(log_weights, 1.0)
        relative = np.exp(log_weights - np.logaddexp.reduce(log_weights, axis=-1, keepdims=True))
        largest = log_weights.max(axis=-1, keepdims=True)
        precision = 1e-9 * (1 + abs(largest))
        is_tied = log_weights >= largest - precision
        threshold = np.sort(relative, axis=-1)[..., num - 1 - _tail_length(num)]
        above = relative > threshold[..., None]
        excess = np.where(above, relative - threshold[..., None], 0.0).sum(axis=-1)
        ties = is_tied.sum(axis=-1)
        is_single = (ties < MIN_TIES) & (above.sum(axis=-1) <= ties)
        k = np.where(is_single, np.inf, k)
        is_heavy = ~(k <= MAX_K)
        variance = num * (relative**2).sum(axis=-1) - 1
        is_close = is_heavy & ~is_single & (variance < MIN_VARIANCE)
        if is_close.any():
            other, other_k = _by_arviz(log_weights, max(1.0, min(16.0, 9 * num / MIN_SHORT**2)))
            is_clump = is_close & (other_k < 0.5)
            smoothed = np.where(is_clump[..., None], other, smoothed)
            k, is_heavy = np.where(is_clump, other_k, k), is_heavy & ~is_clump
        has_none = (ties >= MIN_TIES) | (is_heavy & (excess < MIN_EXCESS)) | (ties == num)
        k = np.where(has_none, -np.inf, k)
        smoothed = np.where(np.isinf(k)[..., None], log_weights, smoothed)
        total = np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
        return smoothed - total, k


def _tail_length(num: int) -> int:
    """Of how many draws ArviZ reads k."""
    return min(num - 1, math.ceil(min(num / 5, 3 * num**0.5)))


def _by_arviz(log_weights: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed weights and k, of a tail that is shorter by the root of a ratio."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is said of k is said by who asks
        if has_old_arviz():
            arviz = arviz_of("psis", "arviz")
            smoothed, k = arviz.psislw(log_weights.copy(), reff=ratio, normalize=True)
        else:
            stats = arviz_of("psis", "arviz_stats.base").array_stats
            rows = [
                _row(stats, row, ratio) for row in log_weights.reshape(-1, log_weights.shape[-1])
            ]
            smoothed = np.reshape([row for row, _ in rows], log_weights.shape)
            k = np.reshape([k for _, k in rows], log_weights.shape[:-1])
    return np.asarray(smoothed, float), np.asarray(k, float)


def _row(stats: Any, log_weights: np.ndarray, ratio: float) -> tuple[np.ndarray, Any]:
    """By ArviZ 1.x, which raises where it has no tail to read k from; then k is infinite, as in 0.23."""
    try:
        return stats.psislw(-log_weights, r_eff=ratio)  # of likelihoods that are left out
    except ValueError as error:
        # "All tail values are the same", "n_draws_tail must be at least 5"
        if "tail" not in str(error):
            raise
        return log_weights, np.inf


def effective_sample_size(log_weights: np.ndarray) -> np.ndarray:
    r"""That of importance weights, $(\sum w)^2 / \sum w^2$, along the last axis."""
    weights = np.exp(log_weights - np.max(log_weights, axis=-1, keepdims=True))
    return weights.sum(axis=-1) ** 2 / (weights**2).sum(axis=-1)
