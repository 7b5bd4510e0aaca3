"""What is known of numbers that come one after the other, and depend on those before."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def autocovariances(x: np.ndarray) -> np.ndarray:
    """Of all lags (biased, divided by the length), along the first axis."""
    x = np.asarray(x, float)
    num = len(x)
    x = x - x.mean(axis=0)
    spectrum = np.fft.rfft(x, n=2 ** int(np.ceil(np.log2(2 * max(num, 1)))), axis=0)
    return np.fft.irfft(abs(spectrum) ** 2, axis=0)[:num] / num


def autocorrelation_time(x: np.ndarray) -> np.ndarray:
    r"""$1 + 2 \sum_k \rho_k$ along the first axis: how many numbers are worth as much as one independent one.

    By the initial monotone sequence of Geyer: sums of neighbouring autocorrelations, until one is negative.

    Args:
        x: shape `(num, *batch)`.

    Returns:
        Shape `(*batch,)`. Numbers that are all equal have a time of one; negative correlations give less than one.

    References:
        Geyer 1992, Practical Markov Chain Monte Carlo.
    """
    cov = autocovariances(x)
    even = 2 * (len(cov) // 2)
    if even == 0:
        return np.ones(np.shape(x)[1:])
    variance = cov[0]
    is_equal = variance <= 1e-24 * (1 + np.square(np.asarray(x, float)).mean(axis=0))
    rho = cov / np.where(is_equal, 1.0, variance)
    pairs = rho[0:even:2] + rho[1:even:2]
    initial = np.cumprod(pairs > 0, axis=0)
    sums = np.minimum.accumulate(np.where(initial, pairs, 0.0), axis=0)
    floor = 1 / max(np.log10(max(len(cov), 10)), 1.0)  # as Stan has it: no more than num log10(num)
    return np.where(is_equal, 1.0, np.maximum(2 * sums.sum(axis=0) - 1, floor))


def without_line(x: np.ndarray) -> np.ndarray:
    """Residuals of the line by least squares, along the first axis."""
    x = np.asarray(x, float)
    time = np.arange(len(x)) - (len(x) - 1) / 2
    slope = np.tensordot(time, x, 1) / max(float(time @ time), 1.0)
    return x - x.mean(axis=0) - np.multiply.outer(time, slope)


def clipped(x: np.ndarray, width: float = 3.0) -> np.ndarray:
    """Without what is further from the median than so many robust standard deviations."""
    middle = np.median(x, axis=0)
    reach = width * 1.4826 * np.median(abs(x - middle), axis=0)
    return np.clip(x, middle - reach, middle + reach)


def signed_rank(x: np.ndarray) -> float:
    r"""The chance of a sum of positive ranks this small if the numbers are symmetric about zero or lie above it.

    Wilcoxon's test, by the exact distribution of $W^+ = \sum_i r_i [x_i \ge 0]$, with $r_i$ the rank of $|x_i|$. What
    is equal in size is ranked against rejection.
    """
    x = np.asarray(x, float)
    order = np.lexsort((x >= 0, abs(x)))
    positive = int((np.arange(1, len(x) + 1) * (x[order] >= 0)).sum())
    return float(_signed_rank_cdf(len(x))[positive])


@lru_cache
def _signed_rank_cdf(num: int) -> np.ndarray:
    ways = np.zeros(num * (num + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, num + 1):
        ways[rank:] += ways[:-rank].copy()
    return np.cumsum(ways) / 2.0**num


def split_rhat(x: np.ndarray) -> np.ndarray:
    r"""$\hat R$ of the two halves of each series, along the first axis; one where nothing varies.

    References:
        Gelman et al. 2013, Bayesian Data Analysis, third edition, section 11.4.
    """
    half = len(x) // 2
    if half < 2:
        return np.full(np.shape(x)[1:], np.inf)
    x = np.asarray(x, float)
    halves = np.stack([x[:half], x[len(x) - half :]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = half * halves.mean(axis=1).var(axis=0, ddof=1)
    whole = (half - 1) / half * within + between / half
    rounding = 1e-24 * (1 + np.square(x).mean(axis=0))
    return np.where(whole <= rounding, 1.0, np.sqrt(whole / np.maximum(within, rounding)))
