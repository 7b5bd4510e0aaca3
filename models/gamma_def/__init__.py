"""A sparse gamma deep exponential family of handwritten digits: positive latent layers, most of whose units are off.

Real 8 x 8 images (scikit-learn's `load_digits`, no download) of whole-number intensities, 0 to 16. Image n has layers
of z[n, l, k] ~ Gamma(0.1, 0.1 / m) with mean m = sum_i z[n, l + 1, i] w[l, i, k]; at the top Gamma(0.1, 0.1). The
weights are w ~ Gamma(0.1, 0.3), and the pixels Poisson(sum_i z[n, 1, i] w[0, i, d]). The guide has an independent
variable for each z and w: a Gamma with its shape and mean as parameters, or a log-normal one.

References:
    Ranganath, Tang, Charlin and Blei 2015, Deep Exponential Families.
    Naesseth, Ruiz, Linderman and Blei 2017, Reparameterization Gradients through Acceptance-Rejection Sampling
        Algorithms.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_PIXELS, LAYERS = 64, (40, 15, 8)
"""Units per layer, from the one above the pixels to the top."""

SPARSITY = 0.1
"""The shape of every prior; far below one, most of the mass is near zero."""

TOP_RATE, WEIGHT_RATE = 0.1, 0.3

LEAST_SHAPE, LEAST_MEAN = 0.05, 1e-4
"""Of the Gamma variables of the guide. Naesseth et al. have 0.001 for the shape, at which half the draws are below the
least number of double precision, and clip the draws at 0.00001; here draws stay as they are."""

LEARNING_RATE = 0.05


def load_data(num_images: int = 100) -> np.ndarray:
    """Intensities from 0 to 16, `(num_images, 64)`."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    return np.asarray(pixels)[:num_images]


def data() -> tuple[np.ndarray]:
    """The first 100 images."""
    return (load_data(),)


def picture(fit: vi.Fit, ax: Any) -> None:
    """What the units above the pixels draw: their mean weights, the strongest first."""
    weights = fit.sample(50)["w_0"].mean(0)
    strongest = weights[np.argsort(-weights.sum(-1))[:32]].reshape(4, 8, 8, 8)
    ax.imshow(strongest.transpose(0, 2, 1, 3).reshape(32, 64), cmap="gray_r")
    ax.set_title("weights of the strongest units", fontsize="medium")
    ax.axis("off")


def _log_normal(lib: Any) -> tuple[Any, Any]:
    return lib.model, partial(lib.guide, family=lib.log_normal)


RECIPES = {
    "gamma": Recipe(
        objectives=(vi.elbo(),),
        estimators=vi.RejectionReparam(4),
        num_steps=500,
        step_size=LEARNING_RATE,
        double=True,
    ),
    "log-normal": Recipe(
        _log_normal,
        objectives=(vi.elbo(),),
        num_steps=500,
        step_size=LEARNING_RATE,
        double=True,
    ),
}
"""The families of the guide; in single precision, Gamma variables of a small shape are often zero."""
