"""Quadrature: exact gradients where the degree of the terms is proved, those of the discrete rule elsewhere."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Hierarchy, Independent, ObservedPlate, Subsampled, VectorEvent
from tests.statistical_cases import (
    Case,
    ConjugateNormal,
    TwoNormals,
    expectation,
    log_mean_exp,
)

QUADRATURE = [vi.Quadrature(2), vi.Quadrature()]
WIDE = np.linspace(-12, 12, 700)
NORMAL = dataclasses.replace(  # with nodes so far out that the gradients are exact to 1e-9
    FAMILIES["normal"], nodes=lambda num_nodes: (WIDE, np.full(700, np.log(WIDE[1] - WIDE[0])))
)
SHAPES = {
    "scalar": Independent(NORMAL, sizes=()),
    "plate": Independent(NORMAL),
    "nested": Independent(NORMAL, sizes=(2, 3)),
    "masked": Independent(NORMAL, mask=(True, False, True)),
    "scaled": Independent(NORMAL, scales=(1.5, 0.6)),
    "observed": ObservedPlate(NORMAL),
}


def check(lib, model, guide, values, estimators, bound, objective=None, rtol=1e-9):
    """The gradient is that of a bound, without noise."""
    loss = lib.Loss(objective or vi.elbo(), estimators)
    draws = lib.gradients(loss, model, guide, values, 2, 0)
    expected = -oracles.gradient(bound, values)
    assert (np.abs(expected) > 1e-3).all()
    np.testing.assert_allclose(draws, [expected] * 2, rtol=rtol, atol=rtol)


def kl_of_normals(loc, log_scale, prior_loc, prior_scale):
    ratio = (np.exp(2 * log_scale) + (loc - prior_loc) ** 2) / prior_scale**2
    return 0.5 * (ratio - 1) + np.log(prior_scale) - log_scale


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, lib):
    draws = SHAPES[shape].gradients(lib, lib.Loss(vi.elbo(), vi.Quadrature(2)), 2, 0)
    np.testing.assert_allclose(draws, [SHAPES[shape].exact(1)] * 2, rtol=1e-8, atol=1e-8)


def test_minibatches(lib, request):
    shape = Subsampled(NORMAL)
    loss = lib.Loss(vi.elbo(), vi.Quadrature(2), num_samples=1)
    shape.check(lib, loss, 1, 1500, oracles.seed_of(request.node.name))


def test_a_hierarchy(lib):
    """Its costs are polynomials, but not as they are written: by zero times the exponential of the upper value."""
    shape = Hierarchy(FAMILIES["normal"], FAMILIES["normal"], local=True)
    with pytest.raises(vi.EstimatorError, match="not a polynomial, because of exp"):
        shape.gradients(lib, lib.Loss(vi.elbo(), vi.Quadrature(2)), 1, 0)
    draws = shape.gradients(lib, lib.Loss(vi.elbo(), vi.Quadrature(2, biased=True)), 2, 0)
    np.testing.assert_allclose(draws, [shape.exact(1)] * 2, rtol=1e-4, atol=1e-4)


def test_conjugate_normal(lib):
    case = ConjugateNormal(lib)
    check(
        lib,
        case.model,
        case.guide,
        case.values,
        vi.Quadrature(2),
        ConjugateNormal.closed_form_elbo,
    )


def elbo_of_chain(theta):
    """Of `TwoNormals`, by algebra."""
    loc, var, slope, shift, noise = (
        theta[0],
        np.exp(2 * theta[1]),
        *theta[2:4],
        np.exp(2 * theta[4]),
    )
    below = ((slope - 1) * loc + shift) ** 2 + (slope - 1) ** 2 * var + noise
    fit = (TwoNormals.x - slope * loc - shift) ** 2 + slope**2 * var + noise
    return theta[4] - below / 2 - fit / (2 * 0.64) - kl_of_normals(loc, theta[1], 0.0, 1.0)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_chain_of_two(num_samples, lib):
    """Both sites meet in one term: their worlds multiply."""
    loss = lib.Loss(vi.elbo(), vi.Quadrature(2), num_samples=num_samples)
    draws = TwoNormals(lib).gradients(loss, 2, 0)
    expected = -oracles.gradient(elbo_of_chain, TwoNormals.values)
    np.testing.assert_allclose(draws, [expected] * 2, rtol=1e-9)


@pytest.mark.parametrize(
    "other",
    [vi.Reparam(), vi.Score(vi.LeaveOneOut()), vi.MeasureValued(), vi.DoublyReparam()],
    ids=repr,
)
@pytest.mark.parametrize("place", ["first", "second"])
def test_with_another_estimator(place, other, lib, request):
    estimators = {"first": other, "second": other, place: vi.Quadrature(2)}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=1000)
    draws = TwoNormals(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(elbo_of_chain, TwoNormals.values))


@pytest.mark.parametrize("place", ["a", "b"])
def test_beside_a_site_with_moments(place, lib):
    values, x, var = np.array([0.3, -0.2]), 1.2, 0.25

    def model():
        a, b = (lib.sample(name, lib.dist.Normal(lib.array(np.zeros(())), 1.0)) for name in "ab")
        lib.sample("x", lib.dist.Normal(a + 2.0 * b, var**0.5), obs=lib.array(np.array(x)))

    def guide():
        theta = lib.theta(values)
        lib.sample("a", lib.dist.Normal(theta[0], 0.7))
        lib.sample("b", lib.dist.Normal(theta[1], 0.6))

    estimators = {"a": vi.Analytic(), "b": vi.Analytic(), place: vi.Quadrature(3)}
    draws = lib.gradients(lib.Loss(vi.elbo(), estimators), model, guide, values, 2, 0)
    misfit = (x - values[0] - 2.0 * values[1]) / var
    exact = values - misfit * np.array([1.0, 2.0])
    np.testing.assert_allclose(draws, [exact] * 2, rtol=1e-9)


def test_log_normal(lib):
    """Polynomials in log z."""
    values = np.array([0.3, -0.4, 0.7])

    def model():
        z = lib.sample("z", lib.dist.LogNormal(lib.theta(values)[2], 1.1))
        lib.sample("x", lib.dist.Normal(0.8 * lib.xp.log(z), 0.9), obs=lib.array(1.4))
        lib.sample("y", lib.dist.Normal(lib.xp.log(2.0 * z**0.5), 0.9), obs=lib.array(1.4))

    def guide():
        theta = lib.theta(values)
        lib.sample("z", lib.dist.LogNormal(theta[0], lib.xp.exp(theta[1])))

    def bound(theta):
        loc, var = theta[0], np.exp(2 * theta[1])
        fit = oracles.log_normal(1.4, 0.8 * loc, 0.9) - 0.64 * var / (2 * 0.81)
        fit = fit + oracles.log_normal(1.4, np.log(2) + loc / 2, 0.9) - 0.25 * var / (2 * 0.81)
        return fit - kl_of_normals(loc, theta[1], theta[2], 1.1)

    check(lib, model, guide, values, vi.Quadrature(2), bound)


def test_exponential(lib):
    values = np.array([0.4, -0.3])

    def model():
        z = lib.sample("z", lib.dist.Exponential(lib.xp.exp(lib.theta(values)[1])))
        lib.sample("x", lib.dist.Normal(0.7 * z, 0.8), obs=lib.array(1.2))

    def guide():
        lib.sample("z", lib.dist.Exponential(lib.xp.exp(lib.theta(values)[0])))

    def bound(theta):
        mean, rate = np.exp(-theta[0]), np.exp(theta[1])
        square = 1.44 - 2 * 1.2 * 0.7 * mean + 0.49 * 2 * mean**2
        return -square / (2 * 0.64) + theta[1] - rate * mean - theta[0] + 1

    check(lib, model, guide, values, vi.Quadrature(2), bound)


def test_uniform(lib):
    values = np.array([0.2, -0.3])

    def model():
        z = lib.sample("z", lib.dist.Uniform(lib.array(-5.0), lib.array(5.0)))
        lib.sample("x", lib.dist.Normal(0.7 * z, 0.8), obs=lib.array(1.2))

    def guide():
        theta = lib.theta(values)
        lib.sample("z", lib.dist.Uniform(theta[0], theta[0] + lib.xp.exp(theta[1])))

    def bound(theta):
        low, width = theta[0], np.exp(theta[1])
        mean, square = low + width / 2, low**2 + low * width + width**2 / 3
        return -(1.44 - 1.68 * mean + 0.49 * square) / (2 * 0.64) + theta[1]

    check(lib, model, guide, values, vi.Quadrature(2), bound)


def moments(kind, theta):
    """E[z] to E[z^5], for each of two elements."""
    a, b = np.exp(theta[:2]), np.exp(theta[2:])
    found = [np.ones(2)]
    for k in range(5):
        step = (a + k) / b if kind == "gamma" else (a + k) / (a + b + k)
        found.append(found[-1] * step)
    return found


@pytest.mark.parametrize("kind", ["gamma", "beta"])
def test_gradients_of_concentrations(kind, lib):
    """The rule is exact for a polynomial reward at every concentration, so its gradient is too."""
    values = np.array([0.6, -0.4, 0.3, 0.5])

    def make(theta):
        family = lib.dist.Gamma if kind == "gamma" else lib.dist.Beta
        return family(lib.xp.exp(theta[:2]), lib.xp.exp(theta[2:]))

    def program():
        with lib.plate("data", 2):
            lib.sample("z", make(lib.theta(values)))

    def worth(values):
        z = values["z"]
        return 0.3 * z**5 - z**2 + 2.0 * z

    def bound(theta):
        found = moments(kind, theta)
        return (0.3 * found[5] - found[2] + 2.0 * found[1]).sum()

    @vi.objective
    def mean_reward(model, guide):
        return vi.evaluate(worth, vi.simulate(guide))

    check(lib, program, program, values, vi.Quadrature(3), bound, mean_reward())
    with pytest.raises(vi.EstimatorError, match=r"function 'worth', of degree 5"):
        check(lib, program, program, values, vi.Quadrature(2), bound, mean_reward())


@pytest.mark.parametrize(
    ("family", "num_nodes"),
    [("gamma", 120), ("beta", 60), ("gamma_rate", 2), ("logit_normal", 40), ("exponential", 2)],
)
def test_costs_that_are_no_polynomials(family, num_nodes, lib):
    """The log of a Gamma variable is one of its nodes less the log rate: its gradient by the rate is exact."""
    shape = Independent(FAMILIES[family], sizes=(2,))
    loss = lib.Loss(vi.elbo(), vi.Quadrature(num_nodes, biased=True))
    draws = shape.gradients(lib, loss, 2, 0)
    rtol = 1e-2 if family in ("gamma", "beta") else 1e-6
    np.testing.assert_allclose(draws, [shape.exact(1)] * 2, rtol=rtol, atol=rtol)
    if family != "exponential":
        with pytest.raises(vi.EstimatorError, match="not a polynomial, because of"):
            shape.gradients(lib, lib.Loss(vi.elbo(), vi.Quadrature(num_nodes)), 1, 0)


TRIANGLE = np.tril_indices(3)


class Vector(Case):
    """A vector of three in a plate of two, with a linear likelihood. theta: means; log scales or factors."""

    x = np.array([[0.4, -0.9], [1.1, 0.6]])
    slopes = np.array([[0.9, -0.4, 0.3], [0.2, 1.1, -0.6]])

    def __init__(self, lib, is_full):
        super().__init__(lib)
        self.is_full = is_full
        spread = 0.1 * np.arange(1, 7)
        more = np.tile([0.8, 0.3, 1.1, -0.2, 0.4, 0.7], 2) if is_full else spread - 0.6
        self.values = np.concatenate([spread, more])

    def factors(self, xp, theta):
        if not self.is_full:
            return xp.exp(theta[6:].reshape((2, 3)))[..., None] * self.eye(xp)
        lower = theta[6:].reshape((2, 6))
        rows = [[0, -1, -1], [1, 2, -1], [3, 4, 5]]
        zero = lower[:, :1] * 0.0
        padded = xp.concatenate([lower, zero], 1)
        return xp.stack([xp.stack([padded[:, i] for i in row], -1) for row in rows], -2)

    def eye(self, xp):
        return np.eye(3) if xp is np else self.lib.array(np.eye(3))

    def model(self):
        lib = self.lib
        with lib.plate("data", 2):
            prior = lib.dist.Normal(lib.array(np.full(3, 0.3)), 1.2).to_event(1)
            z = lib.sample("z", prior)
            loc = (lib.array(self.slopes) @ z[..., None])[..., 0]
            lib.sample("x", lib.dist.Normal(loc, 0.8).to_event(1), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        loc = theta[:6].reshape((2, 3))
        with lib.plate("data", 2):
            if self.is_full:
                factor = self.factors(lib.xp, theta)
                lib.sample("z", lib.dist.MultivariateNormal(loc, scale_tril=factor))
            else:
                scale = lib.xp.exp(theta[6:].reshape((2, 3)))
                lib.sample("z", lib.dist.Normal(loc, scale).to_event(1))

    def bound(self, theta):
        loc, factor = theta[:6].reshape((2, 3)), self.factors(np, theta)
        cov = factor @ np.swapaxes(factor, -1, -2)
        total = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum()
        total = total - ((loc - 0.3) ** 2).sum() / (2 * 1.44)
        total = total - np.trace(cov, axis1=-2, axis2=-1).sum() / (2 * 1.44)
        residual = self.x - loc @ self.slopes.T
        spread = np.einsum("di,nij,dj->", self.slopes, cov, self.slopes)
        return total - ((residual**2).sum() + spread) / (2 * 0.64)


@pytest.mark.parametrize("is_full", [False, True], ids=["diagonal", "full"])
def test_vectors(is_full, lib):
    case = Vector(lib, is_full)
    check(lib, case.model, case.guide, case.values, vi.Quadrature(), case.bound)
    second = vi.Quadrature().second_rule()
    check(lib, case.model, case.guide, case.values, second, case.bound)


@pytest.mark.parametrize("estimator", QUADRATURE, ids=repr)
def test_a_vector_of_one(estimator, lib):
    values = np.array([0.4, -0.3])

    def program(theta):
        lib.sample("z", lib.dist.Normal(theta[:1], lib.xp.exp(theta[1:])).to_event(1))

    def bound(theta):
        return -kl_of_normals(theta[0], theta[1], 0.0, 1.0)

    model, guide = (
        lambda: program(lib.array(np.zeros(2))),
        lambda: program(lib.theta(values)),
    )
    check(lib, model, guide, values, estimator, bound)


def test_a_likelihood_of_degree_four_of_a_vector(lib):
    shape = VectorEvent(NORMAL)
    text = "at most 3 in 'z'\n  got:      model site 'x', of degree 4\n"
    with pytest.raises(vi.EstimatorError, match=text):
        shape.gradients(lib, lib.Loss(vi.elbo(), vi.Quadrature()), 1, 0)


@pytest.mark.parametrize("guide_name", ["AutoNormal", "AutoMultivariateNormal"])
def test_autoguides(guide_name, lib):
    """Latent variables of a model are joined to one vector, or not; one is positive."""
    x = np.array([0.9, 1.6, 0.3])

    def model():
        a = lib.sample("a", lib.dist.LogNormal(lib.array(0.0), 1.2))
        b = lib.sample("b", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(0.7 * lib.xp.log(a) + b.sum(-1), 0.8), obs=lib.array(x))

    def bound(loc, scale_tril):
        cov = scale_tril @ scale_tril.T
        total = np.log(np.diag(scale_tril)).sum()
        total = total - (loc[0] ** 2 + cov[0, 0]) / (2 * 1.44)
        total = total - (loc[1:] ** 2).sum() / 2 - np.trace(cov[1:, 1:]) / 2
        slope = np.array([0.7, 1.0, 1.0])
        fit = ((x - slope @ loc) ** 2).sum() + 3 * slope @ cov @ slope
        constant = 1.5 * (1 - math.log(2 * math.pi)) - math.log(1.2) - 3 * math.log(0.8)
        return total - fit / (2 * 0.64) + constant

    loss = lib.Loss(vi.elbo(), vi.Quadrature())
    value, loc, scale_tril = auto_loss(lib, loss, model, guide_name)
    np.testing.assert_allclose(value, -bound(loc, scale_tril), rtol=1e-9)


def auto_loss(lib, loss, model, guide_name):
    """The loss with an autoguide, and the mean and Cholesky factor of that."""
    if lib.name == "pyro":
        from pyro.infer import autoguide

        guide = getattr(autoguide, guide_name)(model, init_scale=0.3)
        value = loss.loss(model, guide)
        if guide_name == "AutoNormal":
            parts = [
                [p.detach().numpy().ravel() for p in (tree.a, tree.b)]
                for tree in (guide.locs, guide.scales)
            ]
            loc, scale = map(np.concatenate, parts)
            return value, loc, np.diag(scale)
        tril = guide.scale[..., None] * guide.scale_tril
        return value, guide.loc.detach().numpy(), tril.detach().numpy()
    import jax
    from numpyro import handlers
    from numpyro.infer import autoguide

    guide = getattr(autoguide, guide_name)(model, init_scale=0.3)
    with handlers.trace() as trace, handlers.seed(rng_seed=0):
        guide()
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    value = float(jax.jit(lambda p: loss.loss(jax.random.key(0), p, model, guide))(params))
    params = {name: np.asarray(p) for name, p in params.items()}
    if guide_name == "AutoNormal":
        loc = np.append(params["a_auto_loc"], params["b_auto_loc"])
        return value, loc, np.diag(np.append(params["a_auto_scale"], params["b_auto_scale"]))
    return value, params["auto_loc"], params["auto_scale_tril"]


def between_coins(lib, values):
    """A coin, a Normal value given it, and a coin given that."""

    def guide():
        theta = lib.theta(values)
        b = lib.sample("b", lib.dist.Bernoulli(logits=theta[0]))
        z = lib.sample("z", lib.dist.Normal(theta[1] + theta[2] * b, lib.xp.exp(theta[3])))
        lib.sample("c", lib.dist.Bernoulli(logits=theta[4] + 0.8 * z))

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
        z = lib.sample("z", lib.dist.Normal(0.5 * b, 1.0))
        c = lib.sample("c", lib.dist.Bernoulli(lib.array(0.3)))
        lib.sample("x", lib.dist.Normal(z + b + 0.7 * c, 0.8), obs=lib.array(1.4))

    def tables(theta):
        b, _, c = np.indices((2, 4, 2))
        z = theta[1] + theta[2] * b + np.exp(theta[3]) * NODES[None, :, None]
        log_b = oracles.log_bernoulli(theta[0], b)
        log_c = oracles.log_bernoulli(theta[4] + 0.8 * z, c)
        log_mass = log_b + log_c + np.log(MASSES)[None, :, None]
        log_q = log_b + log_c
        log_q = log_q + oracles.log_normal(z, theta[1] + theta[2] * b, np.exp(theta[3]))
        log_p = np.log(np.where(b == 1, 0.4, 0.6)) + np.log(np.where(c == 1, 0.3, 0.7))
        log_p = log_p + oracles.log_normal(z, 0.5 * b, 1.0)
        log_p = log_p + oracles.log_normal(1.4, z + b + 0.7 * c, 0.8)
        return log_mass.ravel(), (log_p - log_q).ravel()

    return model, guide, tables


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("max_worlds", [4, 1024])
def test_between_enumerated_sites(max_worlds, num_particles, lib, request):
    values = np.array([0.3, 0.2, 0.6, -0.3, -0.4])
    model, guide, tables = between_coins(lib, values)

    def value(theta):
        log_mass, log_w = tables(theta)
        return expectation(log_mass, num_particles, log_mean_exp, log_w)

    expected = -oracles.gradient(value, values)
    estimators = {
        "z": vi.Quadrature(4, biased=True, max_worlds=max_worlds),
        "*": vi.Enumerate(),
    }
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=2)
    if num_particles == 1 or max_worlds > 256:
        loss = lib.Loss(objective, estimators)
        draws = lib.gradients(loss, model, guide, values, 2, 0)
        np.testing.assert_allclose(draws, [expected] * 2, rtol=1e-9)
    else:
        loss = lib.Loss(objective, estimators, num_samples=1000)
        seed = oracles.seed_of(request.node.name)
        oracles.check_unbiased(lib.gradients(loss, model, guide, values, 40, seed), expected)


@pytest.mark.parametrize("family", ["Normal", "Gamma", "Uniform"])
def test_parameters_that_are_whole_numbers(family, lib):
    values = np.array([0.4])

    def guide():
        scale = lib.xp.exp(lib.theta(values)[0])
        if lib.name == "pyro":
            lib.sample("z", getattr(lib.dist, family)(1, scale))
        else:
            lib.sample("z", getattr(lib.dist, family)(lib.xp.asarray(1), scale))

    @vi.objective
    def mean_square(model, guide):
        return vi.evaluate(lambda values: values["z"] ** 2, vi.simulate(guide))

    def bound(theta):
        s = np.exp(theta[0])
        return {"Normal": 1 + s**2, "Gamma": 2 / s**2, "Uniform": (1 + s + s**2) / 3}[family]

    check(lib, guide, guide, values, vi.Quadrature(2), bound, mean_square())


# Inside nonlinear functions, against the discrete rule

NODES, MASSES = np.polynomial.hermite_e.hermegauss(4)
MASSES = MASSES / MASSES.sum()
TRAPEZOID = np.arange(-5.5, 5.6, 0.55)
BOUNDS = {
    "iwae": (vi.iwae(num_particles=2), 2, log_mean_exp),
    "iwae_three": (vi.iwae(num_particles=3), 3, log_mean_exp),
    "miwae": (vi.miwae(num_outer=2, num_inner=2), 2, log_mean_exp),
    "renyi": (vi.renyi(alpha=0.5, num_particles=2), 2, lambda w: log_mean_exp(w / 2) * 2),
}
UNFOLDED = vi.Quadrature(4, biased=True)
DRAWN = vi.Quadrature(4, biased=True, max_worlds=4)


def of_rule(theta):
    """Log masses and log weights of a conjugate Normal site at the nodes of the rule."""
    z = theta[0] + np.exp(theta[1]) * NODES
    log_p = oracles.log_normal(z, theta[2], 1.3)
    log_p = log_p + oracles.log_normal(ConjugateNormal.x, z[:, None], 0.9).sum(axis=1)
    return np.log(MASSES), log_p - oracles.log_normal(z, theta[0], np.exp(theta[1]))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("estimator", [UNFOLDED, DRAWN], ids=["unfolded", "drawn"])
def test_bounds(estimator, bound, lib, request):
    objective, num_copies, fn = BOUNDS[bound]
    values = ConjugateNormal.values

    def value(theta):
        return expectation(of_rule(theta)[0], num_copies, fn, of_rule(theta)[1])

    expected = -oracles.gradient(value, values)
    if estimator is UNFOLDED:
        draws = ConjugateNormal(lib).gradients(lib.Loss(objective, estimator), 2, 0)
        np.testing.assert_allclose(draws, [expected] * 2, rtol=1e-9)
    else:
        loss = lib.Loss(objective, estimator, num_samples=1000)
        draws = ConjugateNormal(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
        oracles.check_unbiased(draws, expected)


@pytest.mark.parametrize("estimator", [UNFOLDED, DRAWN], ids=["unfolded", "drawn"])
def test_weights_that_move(estimator, lib, request):
    """A Gamma site with a concentration: nodes and weights have gradients."""
    values = np.array([0.5, 0.8])

    def program(theta):
        return lib.sample("z", lib.dist.Gamma(lib.xp.exp(theta[0]), lib.xp.exp(theta[1])))

    def guide():
        program(lib.theta(values))

    def model():
        z = program(lib.array(np.array([0.3, 0.2])))
        lib.sample("x", lib.dist.Normal(z, 0.9), obs=lib.array(1.5))

    def value(theta):
        a, rate = np.exp(theta[0]), np.exp(theta[1])
        nodes, mass = laguerre(a)
        z = nodes / rate
        log_ratio = log_gamma(z, np.exp(0.3), np.exp(0.2)) - log_gamma(z, a, rate)
        log_w = log_ratio + oracles.log_normal(1.5, z, 0.9)
        return expectation(np.log(mass), 2, log_mean_exp, log_w)

    step = 1e-5
    expected = [
        (value(values + step * e) - value(values - step * e)) / (2 * step) for e in np.eye(2)
    ]
    expected = -np.array(expected)
    loss = lib.Loss(vi.iwae(num_particles=2), estimator)
    if estimator is UNFOLDED:
        draws = lib.gradients(loss, model, guide, values, 2, 0)
        np.testing.assert_allclose(draws, [expected] * 2, rtol=1e-7)
    else:
        loss = lib.Loss(vi.iwae(num_particles=2), estimator, num_samples=1000)
        seed = oracles.seed_of(request.node.name)
        draws = lib.gradients(loss, model, guide, values, 40, seed)
        oracles.check_unbiased(draws, expected)


def laguerre(a, num_nodes=4):
    from scipy.special import roots_genlaguerre

    nodes, mass = roots_genlaguerre(num_nodes, a - 1)
    return nodes, mass / mass.sum()


def log_gamma(z, a, rate):
    return a * np.log(rate) - math.lgamma(a) + (a - 1) * np.log(z) - rate * z


def joint(theta, discrete):
    """Log masses and log weights of `TwoNormals`, with the rule at the sites `discrete`."""
    rules = [
        (NODES, np.log(MASSES))
        if site in discrete
        else (TRAPEZOID, oracles.log_normal(TRAPEZOID, 0.0, 1.0) + np.log(0.55))
        for site in ("first", "second")
    ]
    scales = np.exp(theta[1]), np.exp(theta[4])
    if "first" in discrete:
        first = theta[0] + scales[0] * rules[0][0][:, None]
        mass1 = rules[0][1][:, None]
    else:
        first = TwoNormals.values[0] + np.exp(TwoNormals.values[1]) * rules[0][0][:, None]
        mass1 = oracles.log_normal(first, theta[0], scales[0])
        mass1 = mass1 + np.log(0.55) + TwoNormals.values[1]
    loc = theta[2] * first + theta[3]
    second = loc + scales[1] * rules[1][0]
    mass2 = rules[1][1] + 0.0 * second
    log_q = oracles.log_normal(first, theta[0], scales[0])
    log_q = log_q + oracles.log_normal(second, loc, scales[1])
    log_p = oracles.log_normal(first, 0.0, 1.0) + oracles.log_normal(second, first, 1.0)
    log_p = log_p + oracles.log_normal(TwoNormals.x, second, 0.8)
    return (mass1 + mass2).ravel(), (log_p - log_q).ravel()


OTHERS = {
    "reparam": vi.Reparam(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "measure": vi.MeasureValued(),
    "quadrature": UNFOLDED,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("place", ["first", "second"])
def test_bounds_of_two_sites(place, other, lib, request):
    discrete = ("first", "second") if other == "quadrature" else (place,)

    def value(theta):
        log_mass, log_w = joint(theta, discrete)
        return expectation(log_mass, 2, log_mean_exp, log_w)

    estimators = {"first": OTHERS[other], "second": OTHERS[other], place: DRAWN}
    loss = lib.Loss(vi.iwae(num_particles=2), estimators, num_samples=1000)
    draws = TwoNormals(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(value, TwoNormals.values))


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("first", r"with Reparam\(\) at \['first'\] in a nonlinear function"),
        ("second", r"site 'second', which is drawn given it"),
    ],
)
def test_doubly_reparameterised_sites_beside_it_are_refused(place, text, lib):
    estimators = {place: UNFOLDED, "*": vi.DoublyReparam()}
    with pytest.raises(vi.EstimatorError, match=text):
        TwoNormals(lib).gradients(lib.Loss(vi.iwae(num_particles=2), estimators), 1, 0)


# The estimate of the error


@pytest.mark.parametrize("num_nodes", [2, 4])
def test_error_of_a_scalar(num_nodes, lib):
    """It is of the size of the true error."""
    model, guide, values = sinus(lib)
    estimators = {"z": vi.Quadrature(num_nodes, biased=True)}
    error, true = errors(lib, model, guide, values, estimators, 60)
    assert 0.5 * true < error < 2 * true
    assert true > 1e-6


def sinus(lib, size=1):
    values = np.array([0.4, -0.2])

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(size)), 1.0).to_event(1))
        lib.factor("f", 3.0 * lib.xp.cos(z.sum(-1)))

    def guide():
        theta = lib.theta(values)
        ones = lib.array(np.ones(size))
        lib.sample("z", lib.dist.Normal(theta[0] * ones, lib.xp.exp(theta[1]) * ones).to_event(1))

    return model, guide, values


def errors(lib, model, guide, values, estimators, num_nodes):
    loss = lib.Loss(vi.elbo(), estimators)
    args = (model, guide)
    if lib.name == "numpyro":
        import jax

        args = (jax.random.key(0), {"theta": lib.array(values)}, *args)
    estimate = vi.quadrature_error(loss, *args)
    loc, scale = values[0], np.exp(values[1])
    size = 1 if num_nodes else 4
    truth = 3 * np.exp(-size * scale**2 / 2) * np.cos(size * loc)
    truth = truth - size * kl_of_normals(loc, values[1], 0.0, 1.0)
    return estimate, abs(-float(loss.loss(*args)) - truth)


def test_error_of_a_vector(lib):
    model, guide, values = sinus(lib, 4)
    error, true = errors(lib, model, guide, values, vi.Quadrature(biased=True), None)
    assert 0.2 * true < error < 5 * true


def test_no_error_of_a_polynomial(lib):
    case = ConjugateNormal(lib)
    loss = lib.Loss(vi.elbo(), vi.Quadrature(2))
    args = (case.model, case.guide)
    if lib.name == "numpyro":
        import jax

        args = (jax.random.key(0), {"theta": lib.array(case.values)}, *args)
    assert vi.quadrature_error(loss, *args) < 1e-12
