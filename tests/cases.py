"""Models with exact gradients; parameters are one flat vector `theta`."""

from __future__ import annotations

import functools

import numpy as np

from tests import oracles


class TwoLevelBernoulli:
    """z1 global, z2 in a plate of 3, Normal likelihood.

    theta: guide logit of z1; guide logits of z2 (3) and their shift by z1; model logit of z1; slope.
    """

    values = np.array([0.3, -0.5, 0.2, 0.8, 0.7, -0.4, 1.2])
    x = np.array([0.6, -0.3, 1.4])

    def __init__(self, lib):
        self.lib = lib

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        z1 = lib.sample("z1", lib.dist.Bernoulli(logits=theta[5]))
        with lib.plate("data", 3):
            z2 = lib.sample("z2", lib.dist.Bernoulli(logits=0.4 - 0.9 * z1))
            loc = theta[6] * z2 + 0.5 * z1
            lib.sample("x", lib.dist.Normal(loc, 0.8), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        z1 = lib.sample("z1", lib.dist.Bernoulli(logits=theta[0]))
        with lib.plate("data", 3):
            lib.sample("z2", lib.dist.Bernoulli(logits=theta[1:4] + theta[4] * z1))

    def gradients(self, loss, num_draws, seed):
        return self.lib.gradients(loss, self.model, self.guide, self.values, num_draws, seed)

    @classmethod
    def table(cls, theta):
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
            p = p + oracles.log_normal(cls.x, theta[6] * z2 + 0.5 * z1, 0.8).sum()
            log_q.append(q)
            log_p.append(p)
        return np.array(log_q), np.array(log_p) - np.array(log_q)

    @classmethod
    @functools.cache
    def exact(cls, particles):
        """Gradient of the *loss* (minus the bound)."""

        def bound(theta):
            return oracles.expected_log_mean_exp(*cls.table(theta), particles)

        return -oracles.gradient(bound, cls.values)
