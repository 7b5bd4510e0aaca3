"""Methods of the literature that `marginal` and `normalize` spell, against quadrature, algebra or other spellings."""

import functools

import numpy as np
import pytest

import vi_kit as vi
import vi_kit.language.marginal as module
from tests import oracles
from tests.exact.test_normalize import coins

X, NOISE = 1.7, 0.8


class SemiImplicit:
    """A Normal about a small network of a Normal variable, which covers both modes of z^2.

    theta: slopes, offsets and weights of two hidden units; log scale; slope and log scale of the reverse program.
    """

    values = np.array([1.6, -0.7, 0.3, 0.5, 1.4, -0.6, -0.5, 0.7, -0.3])

    def __init__(self, lib):
        self.lib = lib

    @staticmethod
    def network(xp, theta, u):
        hidden = [xp.tanh(theta[i] * u + theta[2 + i]) for i in (0, 1)]
        return theta[4] * hidden[0] + theta[5] * hidden[1], xp.exp(theta[6])

    @staticmethod
    def reverse(xp, theta, z):
        return theta[7] * z, xp.exp(theta[8])

    def model(self):
        z = self.lib.sample("z", self.lib.dist.Normal(self.lib.array(0.0), 1.5))
        self.lib.sample("x", self.lib.dist.Normal(z**2, NOISE), obs=self.lib.array(X))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        u = lib.sample("u", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("z", lib.dist.Normal(*self.network(lib.xp, theta, u)))

    def guess(self, kept):
        lib, theta = self.lib, self.lib.theta(self.values)
        lib.sample("u", lib.dist.Normal(*self.reverse(lib.xp, theta, kept["z"])))

    @classmethod
    def bound(cls, theta, size, guessed, step=0.3):
        """By a trapezoidal rule in the noise of each draw."""
        nodes = np.arange(-5.6, 5.7, step)
        weights = np.exp(-0.5 * nodes**2)
        noise = np.stack(np.meshgrid(*[nodes] * (1 + size), indexing="ij"))
        mass = functools.reduce(np.multiply.outer, [weights / weights.sum()] * (1 + size))
        loc, scale = cls.network(np, theta, noise[0])
        z = loc + scale * noise[1]
        at, spread = cls.reverse(np, theta, z) if guessed else (0.0, 1.0)
        parts = []
        for u in (noise[0], *(at + spread * e for e in noise[2:])):
            joint = oracles.log_normal(u, 0.0, 1.0) + oracles.log_normal(
                z, *cls.network(np, theta, u)
            )
            parts.append(joint - oracles.log_normal(u, at, spread))
        log_q = functools.reduce(oracles.log_add_exp, parts) - np.log(size)
        log_p = oracles.log_normal(z, 0.0, 1.5) + oracles.log_normal(X, z**2, NOISE)
        return (mass * (log_p - log_q)).sum()


SPELLED = {
    "semi-implicit": (2, False, None),
    "importance-weighted hierarchical": (2, True, None),
    "by scores": (2, True, vi.Score(vi.LeaveOneOut())),
    "by weak derivatives": (2, True, vi.MeasureValued()),
}


@pytest.mark.parametrize("name", SPELLED)
def test_semi_implicit_guides(name, lib):
    """The bounds of SIVI and IWHVI, which differ in where the particles come from."""
    size, guessed, estimator = SPELLED[name]
    case = SemiImplicit(lib)
    algorithm = vi.ImportanceSampling(size, case.guess if guessed else None)
    guide = vi.marginal(case.guide, ["z"], algorithm)

    def bound(theta):
        return case.bound(theta, size, guessed)

    exact = -np.array([bound(case.values), *oracles.gradient(bound, case.values)])
    loss = lib.Loss(estimators=estimator, num_samples=1000)
    seed = oracles.seed_of(name)
    draws = lib.estimates(loss, case.model, guide, case.values, 20, seed)
    oracles.check_unbiased(draws[:, 1:], exact[1:])
    oracles.check_unbiased(draws, exact)


def test_more_nodes_change_no_exact_bound():
    for size, guessed, _ in SPELLED.values():
        coarse, fine = (
            SemiImplicit.bound(SemiImplicit.values, size, guessed, h) for h in (0.4, 0.25)
        )
        assert abs(coarse - fine) < 1e-3


def test_a_semi_implicit_bound_rejects_a_mistake(lib, monkeypatch):
    """The particle that the guide drew is left out of the mean."""
    case = SemiImplicit(lib)
    guide = vi.marginal(case.guide, ["z"], vi.ImportanceSampling(2))
    monkeypatch.setattr(module, "with_others", lambda n: lambda own, others: others + 0.0 * own)
    loss = lib.Loss(num_samples=1000)
    draws = lib.estimates(loss, case.model, guide, case.values, 20, 0)
    exact = -np.array([case.bound(case.values, 2, False)])
    assert oracles.largest_z(draws[:, :1], exact) >= 8


@pytest.mark.parametrize("estimator", [None, vi.Score()])
def test_auxiliary_deep_generative_models(estimator, lib):
    """A learned reverse program is one more factor of the model: draw by draw."""
    case = SemiImplicit(lib)

    def extended():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.5))
        case.guess({"z": z})
        lib.sample("x", lib.dist.Normal(z**2, NOISE), obs=lib.array(X))

    marginal = vi.marginal(case.guide, ["z"], vi.ImportanceSampling(1, case.guess))
    found = [
        lib.estimates(lib.Loss(estimators=estimator), model, guide, case.values, 3, 1)
        for model, guide in ((case.model, marginal), (extended, case.guide))
    ]
    assert np.abs(found[0][:, -2:]).min() > 1e-3
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_sandwich(lib):
    """The ELBO and the EUBO of one posterior on either side of a log evidence that is known."""
    model, guide, _ = coins(lib)
    start = np.array([0.4, -0.3, 0.2])
    joint = np.array([0.7 * 0.8, 0.7 * 0.2, 0.3 * 0.3, 0.3 * 0.7])
    heads = np.array([0, 1, 1, 2])
    evidence = np.log(joint @ np.exp(oracles.log_normal(1.3, heads, 1.0)))
    posterior = vi.normalize(model, vi.SIR(guide, num_particles=8))
    bounds = []
    for objective, sign, num in ((vi.elbo(), -1.0, 2_000), (vi.eubo(num_particles=20), 1.0, 200)):
        loss = lib.Loss(objective, vi.Score(), num_samples=num)
        values = sign * lib.estimates(loss, model, posterior, start, 8, 2)[:, 0]
        bounds.append((values.mean(), values.std(ddof=1) / np.sqrt(8)))
    (lower, below), (upper, above) = bounds
    assert lower + 5 * below < evidence < upper - 5 * above, (bounds, evidence)
    assert upper - lower < 0.05
