"""Attend, infer, repeat: how many digits are in an image, where, and what.

Images of 50 x 50 with none to two real digits (scikit-learn's `load_digits`, no download). Up to three times a bit says
whether there is one more; then come its place and its code. The bits decide how much of the rest counts, and have no
reparameterised sampler: they are served by the score function, by enumeration or by measure-valued derivatives.

References:
    Eslami et al. 2016, Attend, Infer, Repeat: Fast Scene Understanding with Generative Models.
    Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_STEPS, SIDE, WINDOW = 3, 50, 20
NUM_STATE, NUM_HIDDEN, NUM_WHAT, NUM_WHERE = 256, 200, 50, 3
PRIOR_LOGIT, NOISE = -1.0, 0.3
WHERE_LOC, WHERE_SCALE = (2.5, 0.0, 0.0), (0.2, 0.6, 0.6)
"""Of an object's place: how often its window goes into the image, and where it is."""


def composites(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images, `(num_images, SIDE, SIDE)`, and how many digits each has; they may overlap."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    digits = np.kron(load_digits().images / 16.0, np.ones((2, 2))).astype(np.float32)
    counts = rng.integers(3, size=num_images)
    images, wide = np.zeros((num_images, SIDE, SIDE), np.float32), digits.shape[-1]
    for image, count in zip(images, counts, strict=True):
        for _ in range(count):
            i, j = rng.integers(SIDE - wide, size=2)
            window = image[i : i + wide, j : j + wide]
            np.maximum(window, digits[rng.integers(len(digits))], out=window)
    return images, counts


def data() -> tuple[np.ndarray]:
    """The images."""
    return (composites(500)[0],)


def counted(fit: vi.Fit) -> np.ndarray:
    """How many digits a draw of the guide has in each image."""
    draws = fit.sample(1)
    bits = np.stack([draws[f"bit_{t}"][0] for t in range(NUM_STEPS)])
    return np.cumprod(bits, 0).sum(0).astype(int)


def accuracy(fit: vi.Fit) -> float:
    """The share of the images in which as many are counted as there are."""
    return float((counted(fit) == composites(500)[1]).mean())


def picture(fit: vi.Fit, ax: Any) -> None:
    """Images, and how many digits are counted."""
    images, counts = data()[0][:6], counted(fit)
    ax.imshow(np.concatenate(images, 1), cmap="gray_r")
    for i in range(len(images)):
        ax.text(SIDE * i + 2, 8, str(counts[i]), color="red")
    ax.set_title(f"as many as there are: {accuracy(fit):.0%}", fontsize="medium")
    ax.axis("off")


def _recipe(bits: vi.Estimator, *objectives: vi.Objective) -> Recipe:
    return Recipe(
        lambda lib: lib.programs(),
        objectives=(vi.elbo(), *objectives),
        estimators={"bit_*": bits, "where_*": vi.Reparam(), "what_*": vi.Reparam()},
        num_steps=5000,
        step_size=1e-3,
        options={"batch_size": 50},
    )


RECIPES = {
    "measure-valued": _recipe(vi.MeasureValued(), vi.iwae(num_particles=2)),
    "enumerate": _recipe(vi.Enumerate()),
    "score": _recipe(vi.Score()),
}
