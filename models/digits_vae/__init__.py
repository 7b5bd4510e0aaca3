"""A variational autoencoder of handwritten digits with a discrete code and a continuous style.

1,797 real 8 x 8 images (scikit-learn's `load_digits`, no download), binarised. Each has a code of eight
bits and a style of four numbers. The bits have no reparameterised sampler and the style has one, so each
site gets its own estimator. The recipe "categorical" has ten codes of eight classes, and nothing else: after 2000 steps
held-out images have -17.5 nats each (NumPyro; Pyro, whose layers start otherwise, -18.0), with bits and style -16.8
after as many, and -24.6 if pixels were independent. `python -m models.digits_vae --demo` is a longer run of bits and
style, with held-out images: `demo.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vi_kit as vi
from models.recipe import Recipe

NUM_PIXELS, NUM_BITS, NUM_STYLE, NUM_HIDDEN = 64, 8, 4, 128
NUM_CODES, NUM_CLASSES = 10, 8
NUM_TRAIN = 1400

OBJECTIVE = vi.iwae(num_particles=4)
ESTIMATORS = {"code": vi.Score(baseline=vi.LeaveOneOut()), "style": vi.Reparam()}


def load_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Binary images, `(1400, 64)` to train on and `(397, 64)` held out."""
    from sklearn.datasets import load_digits

    images = load_digits().data / 16.0 > 0.5
    order = np.random.default_rng(seed).permutation(len(images))
    x = images[order].astype(np.float32)
    return x[:NUM_TRAIN], x[NUM_TRAIN:]


def independent_pixels(train: np.ndarray, held_out: np.ndarray) -> float:
    """Log likelihood of the held-out images (nats per image) if pixels were independent."""
    rate = (train.sum(0) + 1) / (len(train) + 2)
    return float((held_out @ np.log(rate) + (1 - held_out) @ np.log1p(-rate)).mean())


def data() -> tuple[np.ndarray]:
    """The images to train on."""
    return (load_data()[0],)


def picture(fit: vi.Fit, ax: Any) -> None:
    """Held-out images above their reconstructions, the mean of the pixels over draws of the guide."""
    shown = load_data()[1][:10]
    images = fit.args[0]
    given = vi.array_namespace(images).asarray(shown, dtype=images.dtype)
    pixels = fit.predictive(given, num_samples=50)["x"].mean(0)
    rows = [own.reshape(-1, 8, 8).transpose(1, 0, 2).reshape(8, -1) for own in (shown, pixels)]
    ax.imshow(np.concatenate(rows), cmap="gray_r", vmin=0, vmax=1)
    ax.set_title("held-out digits and reconstructions", fontsize="medium")
    ax.axis("off")


RECIPES = {
    "bits": Recipe(
        lambda lib: lib.programs(),
        objectives=(OBJECTIVE,),
        estimators=ESTIMATORS,
        step_size=5e-3,
        options={"batch_size": 100},
    ),
    "categorical": Recipe(
        lambda lib: lib.categorical_programs(),
        objectives=(OBJECTIVE,),
        estimators=vi.Score(baseline=vi.LeaveOneOut()),
        num_steps=2000,
        step_size=5e-3,
        options={"batch_size": 100},
    ),
}
