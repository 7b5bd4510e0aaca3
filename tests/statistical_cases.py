"""Models of the statistical tier, with exact expectations by quadrature or enumeration in NumPy."""

from __future__ import annotations

import functools
import math

import numpy as np

import vi_kit as vi
from tests import oracles

DISCRETE = {
    "score": vi.Score(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "enumerate": vi.Enumerate(),
    "local": vi.Enumerate(max_worlds=4),
    "measure": vi.MeasureValued(),
}
"""The estimators of sites with few values, by the names of the tests."""


def log_mean_exp(x):
    """Along dim 0, of complex numbers too."""
    top = x.real.max(axis=0)
    return np.log(np.exp(x - top).mean(axis=0)) + top


def variance(x):
    """Unbiased, along dim 0, of complex numbers too (no absolute value)."""
    return ((x - x.mean(axis=0)) ** 2).sum(axis=0) / (len(x) - 1)


def expectation(log_q, num_copies, fn, *columns):
    """E[fn(columns)] over independent copies of a draw from a finite distribution.

    Args:
        log_q: log probabilities of the values, or log weights of the nodes of a quadrature.
        num_copies: of the draw.
        fn: takes one array per column with the copies along dim 0, and reduces that.
        columns: what is computed from a draw, at each value.
    """
    copies = np.indices((len(log_q),) * num_copies)
    return (np.exp(log_q[copies].sum(axis=0)) * fn(*(c[copies] for c in columns))).sum()


def independent(first, second):
    """Log probabilities and a column of every pair of values, from those of two draws."""
    return tuple(np.add.outer(x, y).ravel() for x, y in zip(first, second, strict=True))


@functools.cache
def exact(case, num_particles):
    """Gradient of the loss of an importance weighted bound with `num_particles`."""

    def bound(theta):
        return sum(
            expectation(log_q, num_particles, log_mean_exp, log_w)
            for log_q, log_w in case.tables(theta)
        )

    return -oracles.gradient(bound, case.values)


class Case:
    """A model, a guide, and `tables`: log probabilities and log weights, one pair per bound."""

    values: np.ndarray

    def __init__(self, lib):
        self.lib = lib

    def gradients(self, loss, num_draws, seed):
        return self.lib.gradients(loss, self.model, self.guide, self.values, num_draws, seed)


class ConjugateNormal(Case):
    """Global mean, plate of 3 data. theta: guide mean, its log scale; prior mean."""

    values = np.array([0.2, -0.6, -0.5])
    x = np.array([0.9, 1.6, 0.3])
    step = 0.25

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        z = lib.sample("z", lib.dist.Normal(theta[2], 1.3))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(z, 0.9), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    @classmethod
    def nodes(cls, loc, scale):
        """Values, log densities and log masses of a trapezoidal rule, which is exact to rounding."""
        z = loc + scale * np.arange(-9.0, 9.0, cls.step)
        log_q = oracles.log_normal(z, loc, scale)
        return z, log_q, log_q + np.log(cls.step * scale)

    @classmethod
    def tables(cls, theta):
        z, log_q, mass = cls.nodes(theta[0], np.exp(theta[1]))
        log_p = oracles.log_normal(z, theta[2], 1.3)
        log_p = log_p + oracles.log_normal(cls.x, z[:, None], 0.9).sum(axis=1)
        return [(mass, log_p - log_q)]

    @classmethod
    def closed_form_elbo(cls, theta):
        """The same as from `tables`, by algebra."""
        loc, scale = theta[0], np.exp(theta[1])
        prior = oracles.log_normal(loc, theta[2], 1.3) - scale**2 / (2 * 1.3**2)
        likelihood = (oracles.log_normal(cls.x, loc, 0.9) - scale**2 / (2 * 0.9**2)).sum()
        return prior + likelihood + 0.5 * np.log(2 * np.pi * np.e) + theta[1]


class TwoNormals(Case):
    """A chain of two. theta: guide mean and log scale of the first; slope, mean and log scale of the second."""

    values = np.array([0.3, 0.1, 0.5, 0.4, -0.2])
    x = 1.5

    def model(self):
        lib = self.lib
        first = lib.sample("first", lib.dist.Normal(lib.array(0.0), 1.0))
        second = lib.sample("second", lib.dist.Normal(first, 1.0))
        lib.sample("x", lib.dist.Normal(second, 0.8), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        first = lib.sample("first", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))
        loc = theta[2] * first + theta[3]
        lib.sample("second", lib.dist.Normal(loc, lib.xp.exp(theta[4])))

    @classmethod
    def tables(cls, theta):
        """A trapezoidal rule in both, which is exact to 1e-7."""
        noise, step = np.arange(-5.5, 5.6, 0.55), 0.55
        first = theta[0] + np.exp(theta[1]) * noise[:, None]
        loc = theta[2] * first + theta[3]
        second = loc + np.exp(theta[4]) * noise
        log_q = oracles.log_normal(first, theta[0], np.exp(theta[1]))
        log_q = log_q + oracles.log_normal(second, loc, np.exp(theta[4]))
        log_p = oracles.log_normal(first, 0.0, 1.0) + oracles.log_normal(second, first, 1.0)
        log_p = log_p + oracles.log_normal(cls.x, second, 0.8)
        mass = log_q + 2 * np.log(step) + theta[1] + theta[4]
        return [(mass.ravel(), (log_p - log_q).ravel())]


class GammaPoisson(Case):
    """Global rate, plate of 3 counts. theta: log rate of the guide, log concentration."""

    values = np.array([0.5, 1.8])
    x = np.array([3.0, 1.0, 4.0])
    step = 0.05

    def model(self):
        lib = self.lib
        z = lib.sample("z", lib.dist.Gamma(lib.array(2.0), lib.array(1.0)))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Poisson(z), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        lib.sample("z", lib.dist.Gamma(*self.guide_parameters(lib.xp, theta)))

    @staticmethod
    def guide_parameters(xp, theta):
        return xp.exp(theta[1]), xp.exp(theta[0])

    @classmethod
    def tables(cls, theta):
        """A trapezoidal rule in log z, which gives the Gamma function too."""
        shape, rate = cls.guide_parameters(np, theta)
        log_z = np.arange(-12.0, 5.0, cls.step)
        z = np.exp(log_z)
        mass = shape * log_z - rate * z
        mass = mass - np.log(np.exp(mass).sum())
        log_q = mass - np.log(cls.step) - log_z
        log_p = log_z - z
        for x in cls.x:
            log_p = log_p + x * log_z - z - math.lgamma(x + 1)
        return [(mass, log_p - log_q)]


class GammaPoissonRate(GammaPoisson):
    """Only the rate of the guide is a parameter. theta: its log."""

    values = np.array([0.5])

    @staticmethod
    def guide_parameters(xp, theta):
        return 6.0, xp.exp(theta[0])


class Mixture(Case):
    """Assignments to 3 components in a plate of 2 data. theta: guide logits (2, 3); component means."""

    values = np.array([0.4, -0.3, 0.2, -0.8, 0.5, 0.1, -1.0, 0.3, 1.4])
    x = np.array([-0.4, 1.1])
    log_prior = np.log([0.5, 0.2, 0.3])

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        self.data(theta[6:9], lib.array(0.0))

    def data(self, means, shift):
        lib = self.lib
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Categorical(logits=lib.array(self.log_prior)))
            lib.sample("x", lib.dist.Normal(means[z] + shift, 0.7), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Categorical(logits=theta[:6].reshape((2, 3))))

    @classmethod
    def tables(cls, theta):
        return [cls.datum(i, theta[3 * i : 3 * i + 3], theta[6:9]) for i in range(2)]

    @classmethod
    def datum(cls, i, logits, means):
        log_q = logits - np.log(np.exp(logits).sum())
        return log_q, cls.log_prior + oracles.log_normal(cls.x[i], means, 0.7) - log_q


class ShiftedMixture(Mixture):
    """All component means have a global shift with a Normal prior, on which the guide's assignments depend.

    theta: as before; guide mean and log scale of the shift; its effect on the logits.
    """

    values = np.array([*Mixture.values, 0.3, -0.7, 0.6])
    slopes = np.array([-1.0, 0.0, 1.0])

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        self.data(theta[6:9], lib.sample("m", lib.dist.Normal(0.0, 0.8)))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        m = lib.sample("m", lib.dist.Normal(theta[9], lib.xp.exp(theta[10])))
        logits = theta[:6].reshape((2, 3)) + theta[11] * m[..., None] * lib.array(self.slopes)
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Categorical(logits=logits))

    @classmethod
    def tables(cls, theta):
        m, log_q, mass = ConjugateNormal.nodes(theta[9], np.exp(theta[10]))
        pieces = []
        for at, q, w in zip(m, mass, oracles.log_normal(m, 0.0, 0.8) - log_q, strict=True):
            both = independent(
                *(
                    cls.datum(i, theta[3 * i : 3 * i + 3] + theta[11] * at * cls.slopes, means)
                    for i, means in enumerate([theta[6:9] + at] * 2)
                )
            )
            pieces.append(independent(([q], [w]), both))
        return [tuple(np.concatenate(p) for p in zip(*pieces, strict=True))]


class LocalBernoulli(Case):
    """Everything in a plate of 3. theta: guide logits (3); model logit; slope."""

    values = np.array([0.9, -0.7, 0.4, -0.3, 1.5])
    x = np.array([0.2, 1.3, -0.4])
    subsample_size = None

    def plate(self):
        return self.lib.plate("data", 3, subsample_size=self.subsample_size)

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate() as data:
            z = lib.sample("z", lib.dist.Bernoulli(logits=theta[3]))
            lib.sample("x", lib.dist.Normal(theta[4] * z, 0.8), obs=lib.array(self.x)[data])

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with self.plate() as data:
            lib.sample("z", lib.dist.Bernoulli(logits=theta[:3][data]))

    @classmethod
    def tables(cls, theta):
        z, tables = np.array([0.0, 1.0]), []
        for logit, x in zip(theta[:3], cls.x, strict=True):
            log_q = oracles.log_bernoulli(logit, z)
            log_p = oracles.log_bernoulli(theta[3], z) + oracles.log_normal(x, theta[4] * z, 0.8)
            tables.append((log_q, log_p - log_q))
        return tables

    @classmethod
    def joint(cls, theta):
        """One table of all elements of the plate together."""
        return functools.reduce(independent, cls.tables(theta))


class SubsampledBernoulli(LocalBernoulli):
    """Two elements of the plate in a minibatch."""

    subsample_size = 2
