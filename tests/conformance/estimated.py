"""Programs whose densities are estimated, with all that they draw counted off."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

import vi_kit as vi
from tests import oracles
from tests.conformance.shapes import Shape
from tests.statistical_cases import LocalBernoulli, log_mean_exp

SIZE = 2
"""Particles of each estimate."""


@dataclass(frozen=True)
class Resampled(Shape):
    """A shape with a posterior by resampling for its guide: the bound is that of as many times the particles."""

    shape: Shape

    @property
    def values(self):
        return self.shape.values

    @property
    def guide_params_of_each_site(self):
        return self.shape.guide_params_of_each_site

    def model(self, lib):
        self.shape.model(lib)

    def guide(self, lib):
        self.shape.guide(lib)

    def gradients(self, lib, loss, num_draws, seed):
        model, guide = functools.partial(self.model, lib), functools.partial(self.guide, lib)
        posterior = vi.normalize(model, vi.SIR(guide, SIZE))
        return lib.gradients(loss, model, posterior, self.values, num_draws, seed)

    def bound(self, theta, particles):
        return self.shape.bound(theta, particles * SIZE)


class Posterior(LocalBernoulli):
    """The posterior of `LocalBernoulli` by resampling draws of its guide."""

    def program(self, model):
        return vi.normalize(model, vi.SIR(self.guide, SIZE))

    @classmethod
    def drawn(cls, theta):
        """Of each element, by what is drawn: log probability, latent value, log p and the estimate of log q."""
        for log_q, log_w in super().tables(theta):
            chosen, *zs = np.indices((SIZE, *(2,) * SIZE)).reshape(1 + SIZE, -1)
            w = np.stack([log_w[z] for z in zs])
            z = np.choose(chosen, zs)
            log_choice = log_w[z] - log_mean_exp(w) - np.log(SIZE)
            log_p = (log_q + log_w)[z]
            yield log_q[np.stack(zs)].sum(0) + log_choice, z, log_p, log_p - log_mean_exp(w)

    @classmethod
    def anew(cls, theta):
        """Of each element, by its value and what is drawn given it: log probability and the estimate of log q."""
        for log_q, log_w in super().tables(theta):
            z, *others = np.indices((2,) * SIZE).reshape(SIZE, 2, -1)
            w = np.stack([log_w[v] for v in (z, *others)])
            yield log_q[np.stack(others)].sum(0), (log_q + log_w)[z] - log_mean_exp(w)


class Filtered(Posterior):
    """The same by a particle filter of one step: what is drawn, and with what probability, is as there."""

    def program(self, model):
        return vi.normalize(model, vi.SMC(self.guide, SIZE))


class Hierarchical(LocalBernoulli):
    """A guide with an auxiliary value above each latent one, both in the plate, and a proposal that guesses it.

    theta: as before; guide logit of the auxiliary value, and how it shifts that of the latent one; logit of the
    proposal per unit of the latent value.
    """

    values = np.array([*LocalBernoulli.values, 0.4, 1.3, 0.9])

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate() as data:
            u = lib.sample("u", lib.dist.Bernoulli(logits=theta[5] + 0.0 * theta[:3][data]))
            lib.sample("z", lib.dist.Bernoulli(logits=theta[:3][data] + theta[6] * u))

    def proposal(self, kept):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate():
            lib.sample("u", lib.dist.Bernoulli(logits=theta[7] * (kept["z"] - 0.5)))

    @staticmethod
    def log_proposal(theta, z, u):
        return oracles.log_bernoulli(theta[7] * (z - 0.5), u)

    def program(self, model):
        del model
        return vi.marginal(self.guide, ["z"], vi.ImportanceSampling(SIZE, self.proposal))

    @classmethod
    def particles(cls, theta, logit):
        """By a latent value and auxiliary ones: log joint density and log probability of each of the latter."""
        z, *us = np.indices((2,) * (1 + SIZE)).reshape(1 + SIZE, 2, -1)
        joint = [
            oracles.log_bernoulli(theta[5], u) + oracles.log_bernoulli(logit + theta[6] * u, z)
            for u in us
        ]
        proposed = [cls.log_proposal(theta, z, u) for u in us]
        return z, np.stack(joint), np.stack(proposed)

    @classmethod
    def drawn(cls, theta):
        """See `Posterior.drawn`."""
        for logit, (log_q, log_w) in zip(theta[:3], super().tables(theta), strict=True):
            z, joint, proposed = cls.particles(theta, logit)
            log_mass = joint[0] + proposed[1:].sum(0)
            columns = log_mass, z, (log_q + log_w)[z], log_mean_exp(joint - proposed)
            yield tuple(c.ravel() for c in columns)

    @classmethod
    def anew(cls, theta):
        """See `Posterior.anew`."""
        for logit in theta[:3]:
            _, joint, proposed = cls.particles(theta, logit)
            yield proposed.sum(0), log_mean_exp(joint - proposed)
