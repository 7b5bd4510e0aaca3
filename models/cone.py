"""The noisy cone: which points (x, y) explain the height z that was observed?

x, y ~ Normal(0, 10) and z ~ Normal(x^2 + y^2, 0.1 + (x^2 + y^2) / 100), second arguments being standard
deviations. The posterior is a thin ring, which no mean-field Normal guide can cover.
Run it: `python -m models.cone`.

References:
    Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

Z_OBS = 5.0
PRIOR_SCALE = 10.0
HIDDEN = 16


def model(z_obs: float = Z_OBS) -> None:
    x = pyro.sample("x", dist.Normal(0.0, PRIOR_SCALE))
    y = pyro.sample("y", dist.Normal(0.0, PRIOR_SCALE))
    height = x**2 + y**2
    pyro.sample("z", dist.Normal(height, 0.1 + height / 100), obs=torch.as_tensor(z_obs))


def guide(z_obs: float = Z_OBS) -> None:
    """Mean field: a Normal for x and one for y."""
    del z_obs
    for name, loc in (("x", 0.5), ("y", 2.0)):
        loc = pyro.param(f"{name}_loc", torch.tensor(loc))
        scale = pyro.param(f"{name}_scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample(name, dist.Normal(loc, scale))


def guide_autoregressive(z_obs: float = Z_OBS) -> None:
    """A Normal for x, then one for y whose location and scale are a small network of x.

    Given x it has one mode, so it can follow half of the ring, not both halves.
    """
    del z_obs
    x_loc = pyro.param("x_loc", torch.tensor(0.0))
    x_scale = pyro.param("x_scale", torch.tensor(1.0), constraint=constraints.positive)
    x = pyro.sample("x", dist.Normal(x_loc, x_scale))
    slopes = pyro.param("slopes", lambda: torch.randn(HIDDEN))
    offsets = pyro.param("offsets", lambda: torch.randn(HIDDEN))
    weights = pyro.param("weights", lambda: 0.1 * torch.randn(HIDDEN, 2))
    bias = pyro.param("bias", torch.tensor([1.5, 0.0]))
    # The network acts on a new last dim, so x may have any batch shape.
    out = torch.tanh(x[..., None] * slopes + offsets) @ weights + bias
    scale = torch.nn.functional.softplus(out[..., 1]) + 1e-3
    pyro.sample("y", dist.Normal(out[..., 0], scale))


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


def main(num_steps: int = 1500) -> None:
    """Fit both guides to two bounds and compare with the exact log evidence."""
    import vi_kit as vi
    from vi_kit.pyro import Loss

    for chosen in (guide, guide_autoregressive):
        for objective in (vi.elbo(), vi.iwae(num_particles=10)):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            loss = Loss(objective, num_samples=8)
            optim = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / num_steps)})
            svi = pyro.infer.SVI(model, chosen, optim, loss=loss)
            for _ in range(num_steps):
                svi.step(Z_OBS)
            bound = -Loss(objective, num_samples=4000).loss(model, chosen, Z_OBS)
            print(f"{chosen.__name__:21} {objective!r:24} {bound:8.3f} nats")
    print(f"{'exact log evidence':46} {exact_log_evidence():8.3f} nats")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the arrays are small; a second thread only waits
    main()
