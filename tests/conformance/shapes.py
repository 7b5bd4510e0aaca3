"""Shapes of models and guides, each with its exact gradient, for sites of any family."""

from __future__ import annotations

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from tests import oracles
from tests.conformance.families import Family

NOISE = 0.8
"""Scale of the likelihood."""
NUM_JOINT_NODES = 32
"""Quadrature nodes of each of several sites in one bound."""


class Shape(ABC):
    """A model and a guide in a library's words; the last element of `theta` is the likelihood's slope."""

    guide_params_of_each_site: tuple[slice, ...] = (slice(0, -1),)

    @property
    @abstractmethod
    def values(self) -> np.ndarray:
        """The point at which gradients are taken."""

    @abstractmethod
    def model(self, lib): ...

    @abstractmethod
    def guide(self, lib): ...

    @abstractmethod
    def bound(self, theta, particles):
        """The exact bound (nats)."""

    def exact(self, particles):
        """Gradient of the *loss* (minus the bound)."""
        return exact_gradient(self, particles)

    def gradients(self, lib, loss, num_draws, seed):
        """Independent estimates, shape `(num_draws, len(values))`."""
        model, guide = functools.partial(self.model, lib), functools.partial(self.guide, lib)
        return lib.gradients(loss, model, guide, self.values, num_draws, seed)

    def check(self, lib, loss, particles, num_draws, seed):
        """The statistical rule, with power required of the guide's parameters of each site."""
        draws, exact = self.gradients(lib, loss, num_draws, seed), self.exact(particles)
        oracles.check_unbiased(draws, exact, power=False)
        for own in self.guide_params_of_each_site:
            oracles.check_unbiased(draws[:, own], exact[own])


@functools.cache
def exact_gradient(shape, particles):
    return -oracles.gradient(lambda theta: shape.bound(theta, particles), shape.values)


def plates(lib, sizes):
    """Nested plates, the last size innermost on the right."""
    stack = contextlib.ExitStack()
    for i in reversed(range(len(sizes))):
        stack.enter_context(lib.plate(f"plate_{i}", sizes[i]))
    return stack


def observations(*sizes):
    return np.linspace(2.2, 1.2, math.prod(sizes)).reshape(sizes)


def observe(lib, loc, x):
    lib.sample("x", lib.dist.Normal(loc, NOISE), obs=lib.array(x))


@dataclass(frozen=True)
class Independent(Shape):
    """A latent and an observed value per element.

    theta: guide parameters by element; slope.

    Attributes:
        family: of the latent site.
        sizes: of the plates, none for scalar sites.
        mask: of the latent site in model and guide, one for each element.
        scales: of all sites of the model, and of all sites of the guide.
    """

    family: Family
    sizes: tuple[int, ...] = (3,)
    mask: tuple[bool, ...] | None = None
    scales: tuple[float, float] = (1.0, 1.0)

    @property
    def values(self):
        return np.append(self.family.site_params(*self.sizes), self.family.slope)

    def guide_params(self, theta, xp):
        return xp.reshape(theta[:-1], (-1, *self.sizes))

    def masked(self, lib):
        if self.mask is None:
            return contextlib.nullcontext()
        return lib.handlers.mask(mask=lib.array(np.array(self.mask)))

    def model(self, lib):
        theta = lib.theta(self.values)
        with lib.handlers.scale(scale=self.scales[0]), plates(lib, self.sizes):
            with self.masked(lib):
                z = lib.sample("z", self.family.build(lib, *map(lib.array, self.family.prior)))
            observe(lib, theta[-1] * self.family.feature(z), observations(*self.sizes))

    def guide(self, lib):
        params = self.guide_params(lib.theta(self.values), lib.xp)
        with lib.handlers.scale(scale=self.scales[1]), plates(lib, self.sizes), self.masked(lib):
            lib.sample("z", self.family.build(lib, *params))

    def bound(self, theta, particles):
        nodes, log_measure = self.family.grid()
        params = self.guide_params(theta, np)
        log_q = self.family.log_q(params)
        log_prior = self.family.log_q(self.family.prior_params(params))
        loc = theta[-1] * self.family.feature(nodes)
        log_lik = oracles.log_normal(observations(*self.sizes)[..., None], loc, NOISE)
        kept = np.ones(self.sizes) if self.mask is None else np.array(self.mask)
        model, guide = self.scales
        log_w = model * (kept[..., None] * log_prior + log_lik) - guide * kept[..., None] * log_q
        return oracles.expected_bound(log_q + log_measure, log_w, particles).sum()


@dataclass(frozen=True)
class VectorEvent(Shape):
    """Two independent latent coordinates in one event, in a plate of 2, that meet in the likelihood.

    theta: guide parameters by element and coordinate; slope.
    """

    family: Family
    size = 2

    @property
    def values(self):
        return np.append(self.family.site_params(self.size, 2), self.family.slope)

    def guide_params(self, theta, xp):
        return xp.reshape(theta[:-1], (-1, self.size, 2))

    @staticmethod
    def feature(first, second):
        return first - 0.4 * second + 0.6 * first * second

    def model(self, lib):
        theta = lib.theta(self.values)
        prior = self.family.build(lib, *map(lib.array, self.family.prior))
        with lib.plate("data", self.size):
            z = lib.sample("z", prior.expand((2,)).to_event(1))
            observe(lib, theta[-1] * self.feature(z[..., 0], z[..., 1]), observations(self.size))

    def guide(self, lib):
        params = self.guide_params(lib.theta(self.values), lib.xp)
        with lib.plate("data", self.size):
            lib.sample("z", self.family.build(lib, *params).to_event(1))

    def bound(self, theta, particles):
        nodes, log_measure = self.family.grid(NUM_JOINT_NODES)
        params = self.guide_params(theta, np)
        log_q = self.family.log_q(params, NUM_JOINT_NODES)
        log_mass = log_q + log_measure
        local = self.family.log_q(self.family.prior_params(params), NUM_JOINT_NODES) - log_q
        loc = theta[-1] * self.feature(nodes[:, None], nodes)
        log_lik = oracles.log_normal(observations(self.size)[:, None, None], loc, NOISE)
        log_w = local[:, 0, :, None] + local[:, 1, None, :] + log_lik
        log_mass = log_mass[:, 0, :, None] + log_mass[:, 1, None, :]
        flat = (self.size, -1)
        return oracles.expected_bound(log_mass.reshape(flat), log_w.reshape(flat), particles).sum()


@dataclass(frozen=True)
class Subsampled(Shape):
    """A minibatch of 2 of 6 local latent values; the exact gradient is that of all the data.

    theta: guide parameters, the first of them for a covariate of 0; its slope; slope.
    """

    family: Family
    x = np.linspace(2.3, 2.6, 6)

    @property
    def values(self):
        return np.append(self.family.guide, [0.3, self.family.slope])

    @staticmethod
    def guide_params(theta, x):
        first, *others = theta[:-2]
        return [first + theta[-2] * x, *(p + 0.0 * x for p in others)]

    def model(self, lib):
        theta = lib.theta(self.values)
        with lib.plate("data", 6, subsample_size=2) as index:
            z = lib.sample("z", self.family.build(lib, *map(lib.array, self.family.prior)))
            observe(lib, theta[-1] * self.family.feature(z), lib.array(self.x)[index])

    def guide(self, lib):
        theta = lib.theta(self.values)
        with lib.plate("data", 6, subsample_size=2) as index:
            params = self.guide_params(theta, lib.array(self.x)[index])
            lib.sample("z", self.family.build(lib, *params))

    def bound(self, theta, particles):
        nodes, log_measure = self.family.grid()
        params = np.stack(self.guide_params(theta, self.x))
        log_q = self.family.log_q(params)
        log_prior = self.family.log_q(self.family.prior_params(params))
        loc = theta[-1] * self.family.feature(nodes)
        log_w = log_prior - log_q + oracles.log_normal(self.x[:, None], loc, NOISE)
        return oracles.expected_bound(log_q + log_measure, log_w, particles).sum()


@dataclass(frozen=True)
class ObservedPlate(Shape):
    """A global latent value above a plate of 3 observations.

    theta: guide parameters; slope.

    Attributes:
        family: of the latent site.
        subsample_size: of the plate, if it is to be subsampled.
    """

    family: Family
    subsample_size: int | None = None
    x = observations(3)

    @property
    def values(self):
        return np.append(self.family.guide, self.family.slope)

    def model(self, lib):
        theta = lib.theta(self.values)
        z = lib.sample("z", self.family.build(lib, *map(lib.array, self.family.prior)))
        with lib.plate("data", 3, subsample_size=self.subsample_size) as index:
            observe(lib, theta[-1] * self.family.feature(z), lib.array(self.x)[index])

    def guide(self, lib):
        theta = lib.theta(self.values)
        lib.sample("z", self.family.build(lib, *theta[:-1]))

    def bound(self, theta, particles):
        nodes, log_measure = self.family.grid()
        params = theta[:-1]
        log_q = self.family.log_q(params)
        log_prior = self.family.log_q(self.family.prior_params(params))
        loc = theta[-1] * self.family.feature(nodes)
        log_lik = oracles.log_normal(self.x[:, None], loc, NOISE).sum(axis=0)
        log_w = log_prior - log_q + log_lik
        return oracles.expected_bound(log_q + log_measure, log_w, particles)


@dataclass(frozen=True)
class Hierarchy(Shape):
    """A latent value per element of a plate of 2, whose first parameter moves with an upper value.

    theta: guide parameters of the upper site, by element if it is local; those of the lower site by
    element, for an upper value of 0; the shift per unit of the upper value; slope.

    Attributes:
        upper: family of the upper site.
        lower: family of the lower site.
        local: whether the upper site is in the plate too.
    """

    upper: Family
    lower: Family
    local: bool
    prior_shift = 0.5

    @property
    def upper_sizes(self):
        return (2,) if self.local else ()

    @property
    def values(self):
        upper, lower = self.upper.site_params(*self.upper_sizes), self.lower.site_params(2)
        return np.concatenate([upper.ravel(), lower.ravel(), [0.4, self.lower.slope]])

    @property
    def guide_params_of_each_site(self):
        count = len(self.upper.guide) * math.prod(self.upper_sizes)
        return slice(0, count), slice(count, -2)

    def upper_params(self, theta, xp):
        return xp.reshape(theta[self.guide_params_of_each_site[0]], (-1, *self.upper_sizes))

    def lower_params(self, theta, xp):
        return xp.reshape(theta[self.guide_params_of_each_site[1]], (-1, 2))

    @staticmethod
    def shifted(params, shift):
        first, *others = params
        return [first + shift, *(p + 0.0 * shift for p in others)]

    def model(self, lib):
        theta = lib.theta(self.values)
        upper_prior = self.upper.build(lib, *map(lib.array, self.upper.prior))
        z1 = None if self.local else lib.sample("z1", upper_prior)
        with lib.plate("data", 2):
            z1 = lib.sample("z1", upper_prior) if self.local else z1
            params = self.shifted(map(lib.array, self.lower.prior), self.prior_shift * z1)
            z2 = lib.sample("z2", self.lower.build(lib, *params))
            observe(lib, theta[-1] * z2 + 0.5 * z1, observations(2))

    def guide(self, lib):
        theta = lib.theta(self.values)
        upper = self.upper.build(lib, *self.upper_params(theta, lib.xp))
        z1 = None if self.local else lib.sample("z1", upper)
        with lib.plate("data", 2):
            z1 = lib.sample("z1", upper) if self.local else z1
            params = self.shifted(self.lower_params(theta, lib.xp), theta[-2] * z1)
            lib.sample("z2", self.lower.build(lib, *params))

    def bound(self, theta, particles):
        z1, measure1 = self.upper.grid(NUM_JOINT_NODES)
        z2, measure2 = self.lower.grid(NUM_JOINT_NODES)
        upper = self.upper_params(theta, np)
        log_q1 = self.upper.log_q(upper, NUM_JOINT_NODES)
        log_w1 = self.upper.log_q(self.upper.prior_params(upper), NUM_JOINT_NODES) - log_q1
        log_mass1 = log_q1 + measure1

        lower = self.lower_params(theta, np)[..., None]
        prior = self.lower.prior_params(lower)
        log_q2 = self.lower.log_q(np.stack(self.shifted(lower, theta[-2] * z1)), NUM_JOINT_NODES)
        prior = np.stack(self.shifted(prior, self.prior_shift * z1))
        loc = theta[-1] * z2 + 0.5 * z1[:, None]
        log_lik = oracles.log_normal(observations(2)[:, None, None], loc, NOISE)
        log_w2 = self.lower.log_q(prior, NUM_JOINT_NODES) - log_q2 + log_lik
        log_mass2 = log_q2 + measure2

        if self.local:
            joint = [
                above[..., None] + below
                for above, below in ((log_mass1, log_mass2), (log_w1, log_w2))
            ]
            joint = [table.reshape(2, -1) for table in joint]
        else:
            joint = [
                (above[:, None, None] + below[0, :, :, None] + below[1, :, None, :]).ravel()
                for above, below in ((log_mass1, log_mass2), (log_w1, log_w2))
            ]
        return oracles.expected_bound(*joint, particles).sum()
