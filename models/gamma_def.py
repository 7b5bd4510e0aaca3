"""A sparse gamma deep exponential family of handwritten digits: positive latent layers, most of whose units are off.

Real 8 x 8 images (scikit-learn's `load_digits`, no download) of whole-number intensities, 0 to 16. Image n has layers
of z[n, l, k] ~ Gamma(0.1, 0.1 / m) with mean m = sum_i z[n, l + 1, i] w[l, i, k]; at the top Gamma(0.1, 0.1). The
weights are w ~ Gamma(0.1, 0.3), and the pixels Poisson(sum_i z[n, 1, i] w[0, i, d]). The guide has an independent
variable for each z and w: a Gamma with its shape and mean as parameters, or a log-normal one. The programs are in
`gamma_def_pyro.py` and `gamma_def_numpyro.py`; here is what both share.
Run it: `python -m models.gamma_def [--lib numpyro]`.

References:
    Ranganath, Tang, Charlin and Blei 2015, Deep Exponential Families.
    Naesseth, Ruiz, Linderman and Blei 2017, Reparameterization Gradients through Acceptance-Rejection Sampling
        Algorithms.
"""

from __future__ import annotations

import argparse
import importlib

import numpy as np

import vi_kit as vi

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


def main(lib: str = "pyro", num_images: int = 100, num_steps: int = 500) -> None:
    """Fit with the path through an acceptance-rejection sampler."""
    programs = importlib.import_module(f"models.gamma_def_{lib}")
    elbos = programs.fit(load_data(num_images), vi.RejectionReparam(4), num_steps)
    print("ELBO (nats per image), mean of 10 steps")
    for start in range(0, num_steps - 9, max(num_steps // 10, 10)):
        print(f"  from step {start:5d}  {elbos[start : start + 10].mean():8.1f}")
    print(f"  the last        {elbos[-10:].mean():8.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lib", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--num-steps", type=int, default=500)
    main(**vars(parser.parse_args()))
