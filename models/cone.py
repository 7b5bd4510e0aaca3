"""The noisy cone: which points (x, y) explain the height z that was observed?

x, y ~ Normal(0, 10) and z ~ Normal(x^2 + y^2, 0.1 + (x^2 + y^2) / 100), second arguments being standard
deviations. The posterior is a thin ring, which no mean-field Normal guide can cover.
The programs are in `cone_pyro.py` and `cone_numpyro.py`; here are the exact answers, in NumPy.
Run it: `python -m models.cone [--lib numpyro]`.

References:
    Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
"""

from __future__ import annotations

import argparse
import importlib

import numpy as np

Z_OBS = 5.0
PRIOR_SCALE = 10.0
HIDDEN = 16


def exact_log_evidence(z_obs: float = Z_OBS, num_nodes: int = 200_001) -> float:
    """log p(z), in nats, by the trapezoid rule in NumPy.

    The squared radius s = x^2 + y^2 is Exponential with mean 2 * PRIOR_SCALE^2, so one integral is left.
    """
    mean = 2 * PRIOR_SCALE**2
    s = np.linspace(0.0, 4 * abs(z_obs) + 20.0, num_nodes)
    noise = 0.1 + s / 100
    likelihood = np.exp(-0.5 * ((z_obs - s) / noise) ** 2) / (noise * np.sqrt(2 * np.pi))
    return float(np.log(np.trapezoid(likelihood * np.exp(-s / mean) / mean, s)))


def posterior_grid(
    z_obs: float = Z_OBS, half_width: float = 3.5, num_nodes: int = 301
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior density on a square grid, for pictures.

    Returns:
        The grid of either coordinate, `(num_nodes,)`, and the density, `(num_nodes, num_nodes)`, whose
        first axis is y (as `imshow` and `contour` expect).
    """
    grid = np.linspace(-half_width, half_width, num_nodes)
    height = grid[None, :] ** 2 + grid[:, None] ** 2
    noise = 0.1 + height / 100
    log_joint = -np.log(2 * np.pi * PRIOR_SCALE**2) - height / (2 * PRIOR_SCALE**2)
    log_joint -= 0.5 * ((z_obs - height) / noise) ** 2 + np.log(noise * np.sqrt(2 * np.pi))
    return grid, np.exp(log_joint - exact_log_evidence(z_obs))


def main(lib: str = "pyro", num_steps: int = 1500) -> None:
    """Fit both guides to two bounds and compare with the exact log evidence."""
    import vi_kit as vi

    cone = importlib.import_module(f"models.cone_{lib}")
    for guide in (cone.guide, cone.guide_autoregressive):
        for objective in (vi.elbo(), vi.iwae(num_particles=10)):
            bound = cone.fit(guide, objective, num_steps)
            print(f"{guide.__name__:21} {objective!r:24} {bound:8.3f} nats")
    print(f"{'exact log evidence':46} {exact_log_evidence():8.3f} nats")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lib", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--num-steps", type=int, default=1500)
    main(**vars(parser.parse_args()))
