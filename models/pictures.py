"""What pictures of several models share."""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi


def weights_beside_nuts(fit: vi.Fit, by_nuts: tuple[np.ndarray, np.ndarray], ax: Any) -> None:
    """The weights of a regression as the guide has them, beside means and standard deviations of NUTS; with two
    standard deviations."""
    weights = fit.sample(2000)["weights"]
    at = np.arange(weights.shape[1])
    ax.errorbar(at - 0.15, by_nuts[0], 2 * by_nuts[1], fmt="k.", alpha=0.5, label="NUTS")
    ax.errorbar(at + 0.15, weights.mean(0), 2 * weights.std(0), fmt=".", label="guide")
