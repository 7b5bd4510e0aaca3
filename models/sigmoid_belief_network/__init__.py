"""A sigmoid belief network of digits: two layers of binary units, and which gradient do they get?

1,400 real 8 x 8 images (scikit-learn's `load_digits`), binarised. top ~ Bernoulli(1/2) for ten units, middle ~
Bernoulli(logits affine in top) for twenty, and pixels ~ Bernoulli(logits affine in middle). The guide goes upwards:
middle given the pixels, top given middle. Nothing has a reparameterised sampler. With several particles the
leave-one-out baseline of the score function is that of VIMCO; DisARM needs two evaluations, whatever the number of
units.

References:
    Neal 1992, Connectionist Learning of Belief Networks.
    Mnih and Gregor 2014, Neural Variational Inference and Learning in Belief Networks.
    Mnih and Rezende 2016, Variational Inference for Monte Carlo Objectives.
    Dong, Mnih and Tucker 2020, DisARM: An Antithetic Gradient Estimator for Binary Latent Variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi
from models.digits_vae import load_data
from models.recipe import Recipe

NUM_PIXELS, NUM_MIDDLE, NUM_TOP = 64, 20, 10


def data() -> tuple[np.ndarray]:
    """Binary images, `(1400, 64)`."""
    return (load_data()[0],)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Images that the model draws."""
    pixels = fit.predictive(fit.args[0][:40], num_samples=1, prior=True)["x"]
    images = np.pad(pixels.reshape(4, 10, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    ax.imshow(images.transpose(0, 2, 1, 3).reshape(40, 100), cmap="gray_r")
    ax.set_title("drawn by the model", fontsize="medium")
    ax.axis("off")


RECIPES = {
    "score": Recipe(
        objectives=(vi.iwae(num_particles=5),),
        estimators=vi.Score(baseline=vi.LeaveOneOut()),
        options={"batch_size": 100},
    ),
    "disarm": Recipe(objectives=(vi.elbo(),), estimators=vi.DisARM(), options={"batch_size": 100}),
    "moving-average": Recipe(
        objectives=(vi.elbo(),),
        estimators=vi.Score(baseline=vi.MovingAverage()),
        options={"batch_size": 100},
    ),
}
