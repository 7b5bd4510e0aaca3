"""Implicit reparameterisation of mixtures, against quadrature."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import Case, expectation, log_mean_exp
from vi_kit.base.protocols import Mixture


def log_mixture(z, logits, locs, scales):
    """Of components along the last dim."""
    weights = logits - oracles.log_add_exp(logits[0], logits[1])
    parts = oracles.log_normal(z[..., None], locs, scales) + weights
    return oracles.log_add_exp(parts[..., 0], parts[..., 1])


class TwoModes(Case):
    """A mixture for each of two elements of a plate. theta: logit of the second component; locations; log scales."""

    values = np.array([0.4, -0.9, 0.8, -0.5, -0.2])
    x = np.array([0.7, -0.3])

    def model(self):
        lib = self.lib
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(lib.array(0.1), 1.1))
            lib.sample("x", lib.dist.Normal(z**2 - 0.5, 0.9), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        logits = lib.xp.stack([0.0 * theta[0], theta[0]])
        weights = lib.dist.Categorical(logits=logits)
        shifts = lib.array(np.array([[0.0], [0.3]]))
        components = lib.dist.Normal(theta[1:3] + shifts, lib.xp.exp(theta[3:5]) + 0 * shifts)
        if lib.name == "pyro":
            weights = lib.dist.Categorical(logits=logits.expand(2, 2))
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.MixtureSameFamily(weights, components))

    @classmethod
    def tables(cls, theta):
        z, tables = np.arange(-8.0, 8.0, 0.16), []
        for shift, x in zip((0.0, 0.3), cls.x, strict=True):
            logits = np.array([0.0, 1.0]) * theta[0]
            log_q = log_mixture(z, logits, theta[1:3] + shift, np.exp(theta[3:5]))
            log_p = oracles.log_normal(z, 0.1, 1.1) + oracles.log_normal(x, z**2 - 0.5, 0.9)
            tables.append((log_q + np.log(0.16), log_p - log_q))
        return tables


class Plane(Case):
    """A mixture of two diagonal Normals in the plane. theta: logit; locations (2, 2); log scale of the second."""

    values = np.array([0.3, -0.8, 0.5, 0.9, -0.4, -0.3])

    def model(self):
        lib = self.lib
        zeros = lib.array(np.zeros(2))
        z = lib.sample("z", lib.dist.Normal(zeros, 1.0).to_event(1))
        lib.sample("x", lib.dist.Normal(z[..., 0] * z[..., 1], 0.8), obs=lib.array(0.6))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        logits = lib.xp.stack([0.0 * theta[0], theta[0]])
        scales = lib.xp.stack([0.0 * theta[5] + 0.7, lib.xp.exp(theta[5])])[:, None]
        components = lib.dist.Normal(theta[1:5].reshape((2, 2)), scales + 0.0 * theta[1:3])
        q = lib.dist.MixtureSameFamily(lib.dist.Categorical(logits=logits), components.to_event(1))
        lib.sample("z", q)

    @classmethod
    def tables(cls, theta):
        axis = np.arange(-6.0, 6.0, 0.25)
        z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        scales = np.stack([0.0 * theta[5] + 0.7, np.exp(theta[5])])
        parts = [
            oracles.log_normal(z, theta[1 + 2 * k : 3 + 2 * k], scales[k]).sum(-1) for k in (0, 1)
        ]
        log_weight = -oracles.log_add_exp(0.0, theta[0])
        log_q = oracles.log_add_exp(parts[0] + log_weight, parts[1] + log_weight + theta[0])
        log_p = oracles.log_normal(z, 0.0, 1.0).sum(-1)
        log_p = log_p + oracles.log_normal(0.6, z[:, 0] * z[:, 1], 0.8)
        return [(log_q + 2 * np.log(0.25), log_p - log_q)]


def exact(case, num_copies):
    def value(theta):
        fn = log_mean_exp if num_copies > 1 else lambda w: w[0]
        return sum(expectation(q, num_copies, fn, w) for q, w in case.tables(theta))

    return -oracles.gradient(value, case.values)


@pytest.mark.parametrize(("case", "num_particles"), [(TwoModes, 1), (TwoModes, 2), (Plane, 1)])
def test_unbiased(case, num_particles, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=num_particles)
    loss = lib.Loss(objective, vi.MixtureReparam(), num_samples=1000)
    draws = case(lib).gradients(loss, 60, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(case, num_particles))


def test_fixed_weights_are_rejected(lib, monkeypatch):
    """Components alone do not tell how the value moves with their weights."""
    init = Mixture.__init__

    def held(self, log_weights, *rest):
        init(self, lib.detach(log_weights), *rest)

    monkeypatch.setattr(Mixture, "__init__", held)
    loss = lib.Loss(vi.elbo(), vi.MixtureReparam(), num_samples=1000)
    draws = TwoModes(lib).gradients(loss, 60, 1)
    assert oracles.largest_z(draws, exact(TwoModes, 1)) >= 8


def test_by_default_a_mixture_is_scored(lib):
    case = TwoModes(lib)
    text = lib.Loss(vi.elbo()).explain(case.model, case.guide)
    assert "Score(" in text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda d, two, q: d.Normal(two, 1.0).to_event(1),
            "needs a MixtureSameFamily; Normal is none",
        ),
        (
            lambda d, two, q: d.MixtureSameFamily(q, d.Poisson(two + 1.0)),
            "needs continuous components; Poisson is discrete",
        ),
        (
            lambda d, two, q: d.MixtureSameFamily(q, d.VonMises(two, two + 1.0)),
            "needs the distribution function of VonMises",
        ),
    ],
)
def test_refusals(make, text, lib):
    two = lib.array(np.zeros(2))
    q = make(lib.dist, two, lib.dist.Categorical(logits=two))

    def program():
        lib.theta(np.zeros(1))
        lib.sample("z", q)

    with pytest.raises(vi.EstimatorError, match=text):
        lib.gradients(lib.Loss(vi.elbo(), vi.MixtureReparam()), program, program, np.zeros(1), 1, 0)
