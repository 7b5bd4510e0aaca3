"""Models with exact gradients, for Pyro; parameters are one flat vector `theta`."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests import oracles


def theta_of(values: np.ndarray) -> torch.Tensor:
    return pyro.param("theta", torch.tensor(values, dtype=torch.float64))


def gradients(loss, model, guide, values, num_draws, seed):
    """Independent gradient estimates of the loss by `theta`, shape `(num_draws, len(values))`."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed % 2**31)
    theta_of(values)
    leaf = pyro.get_param_store()._params["theta"]
    draws = []
    for _ in range(num_draws):
        leaf.grad = None
        loss.loss_and_grads(model, guide)
        draws.append(leaf.grad.numpy().copy())
    return np.array(draws)


class TwoLevelBernoulli:
    """z1 global, z2 in a plate of 3, Normal likelihood.

    theta: guide logit of z1; guide logits of z2 (3) and their shift by z1; model logit of z1; slope.
    """

    values = np.array([0.3, -0.5, 0.2, 0.8, 0.7, -0.4, 1.2])
    x = np.array([0.6, -0.3, 1.4])

    def model(self):
        theta = theta_of(self.values)
        z1 = pyro.sample("z1", dist.Bernoulli(logits=theta[5]))
        with pyro.plate("data", 3):
            z2 = pyro.sample("z2", dist.Bernoulli(logits=0.4 - 0.9 * z1))
            x = torch.tensor(self.x)
            pyro.sample("x", dist.Normal(theta[6] * z2 + 0.5 * z1, 0.8), obs=x)

    def guide(self):
        theta = theta_of(self.values)
        z1 = pyro.sample("z1", dist.Bernoulli(logits=theta[0]))
        with pyro.plate("data", 3):
            pyro.sample("z2", dist.Bernoulli(logits=theta[1:4] + theta[4] * z1))

    def table(self, theta):
        """Log q and log weight of each of the 16 joint values."""
        log_q, log_p = [], []
        for z1, *z2 in np.ndindex(2, 2, 2, 2):
            z2 = np.array(z2)
            q = oracles.log_bernoulli(theta[0], z1)
            q = q + oracles.log_bernoulli(theta[1:4] + theta[4] * z1, z2).sum()
            p = (
                oracles.log_bernoulli(theta[5], z1)
                + oracles.log_bernoulli(0.4 - 0.9 * z1, z2).sum()
            )
            p = p + oracles.log_normal(self.x, theta[6] * z2 + 0.5 * z1, 0.8).sum()
            log_q.append(q)
            log_p.append(p)
        return np.array(log_q), np.array(log_p) - np.array(log_q)

    def exact(self, particles):
        """Gradient of the *loss* (minus the bound)."""

        def bound(theta):
            return oracles.expected_log_mean_exp(*self.table(theta), particles)

        return -oracles.gradient(bound, self.values)
