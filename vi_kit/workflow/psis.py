"""Pareto-smoothed importance weights, by ArviZ.

`psis_diagnostic` of NumPyro and of Pyro are not called: they draw weights of their own, of programs that they can map,
and return k alone, of everything jointly. Here k comes with smoothed weights, row by row, of the draws that all else is
made of, and of any program (`tests/workflow/test_shipped_diagnostics.py`: of the same weights it is NumPyro's k).
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, message


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

    Args:
        log_weights: shape `(*batch, num)`.

    Returns:
        Of that shape, and of shape `(*batch,)`. Equal weights have a k of minus infinity: no tail. Draws that the model
        has as impossible (a log weight of minus infinity) stay so.
    """
    log_weights = np.asarray(log_weights, float)
    greatest, impossible = log_weights.max(axis=-1), np.isneginf(log_weights)
    least = np.min(log_weights, axis=-1, where=~impossible, initial=np.inf)
    equal = greatest - least <= 1e-9 * (1 + abs(greatest))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what is said of k is said by who asks
        if has_old_arviz():
            smoothed, k = arviz_of("psis", "arviz").psislw(log_weights.copy(), normalize=True)
        else:
            stats = arviz_of("psis", "arviz_stats.base").array_stats
            smoothed, k = stats.psislw(-log_weights)  # of likelihoods that are left out
    smoothed, k = np.asarray(smoothed, float), np.asarray(k, float)
    flat = np.where(impossible, -np.inf, 0.0)
    smoothed = np.where(equal[..., None], flat, smoothed)
    total = np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
    return smoothed - total, np.where(equal, -np.inf, k)


def effective_sample_size(log_weights: np.ndarray) -> np.ndarray:
    r"""That of importance weights, $(\sum w)^2 / \sum w^2$, along the last axis."""
    weights = np.exp(log_weights - np.max(log_weights, axis=-1, keepdims=True))
    return weights.sum(axis=-1) ** 2 / (weights**2).sum(axis=-1)
