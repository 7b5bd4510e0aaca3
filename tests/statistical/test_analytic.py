"""Analytic: gradients without noise, against algebra and quadrature; those of a fallback, by the statistical rule."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
from scipy import special

import vi_kit as vi
from tests import oracles
from tests.conformance.families import FAMILIES, log_sigmoid_slope, sigmoid, simplex, trapezoid
from tests.conformance.shapes import Independent, ObservedPlate, Subsampled
from tests.libraries import PyroWords
from tests.statistical.test_quadrature import (
    NORMAL,
    auto_loss,
    elbo_of_chain,
    kl_of_normals,
)
from tests.statistical_cases import ConjugateNormal, TwoNormals

NODES = {
    "normal": (NORMAL.nodes, 700),
    "log_normal": (trapezoid(-12, 12, np.exp, lambda u: u), 700),
    "exponential": (trapezoid(-40, 7, np.exp, lambda u: u), 700),
    "gamma": (trapezoid(-40, 6, np.exp, lambda u: u), 700),
    "gamma_rate": (trapezoid(-40, 6, np.exp, lambda u: u), 700),
    "beta": (trapezoid(-32, 32, sigmoid, log_sigmoid_slope), 700),
    "dirichlet": (lambda n: simplex(n, 26), 160),
}
"""With which gradients are exact to 1e-9."""
CLOSED = {
    name: dataclasses.replace(family, nodes=NODES[name][0], num_nodes=NODES[name][1])
    if name in NODES
    else family
    for name, family in FAMILIES.items()
}
OF_BOTH = ["bernoulli", "geometric", *NODES]
OF_PYRO = ["one_hot", "binomial", "geometric_probs", "laplace"]
"""Of which NumPyro has no divergences."""


def check(lib, model, guide, values, bound, estimators=None, rtol=1e-9, **settings):
    """The gradient is that of a bound, the same in every run."""
    loss = lib.Loss(vi.elbo(), estimators or vi.Analytic(), **settings)
    draws = lib.gradients(loss, model, guide, values, 2, 0)
    expected = -oracles.gradient(bound, values)
    np.testing.assert_allclose(draws, [expected] * 2, rtol=rtol, atol=rtol)


def expected_log_normal(x, mean, variance, scale):
    """Of a Normal likelihood whose loc has a mean and a variance."""
    return oracles.log_normal(x, mean, scale) - variance / (2 * scale**2)


# Shapes and families


SHAPES = {
    "scalar": Independent(NORMAL, sizes=()),
    "nested": Independent(NORMAL, sizes=(2, 3)),
    "masked": Independent(NORMAL, mask=(True, False, True)),
    "scaled": Independent(NORMAL, scales=(1.5, 0.6)),
    "observed": ObservedPlate(NORMAL),
    "observed_gamma": ObservedPlate(CLOSED["gamma"]),
    "observed_dirichlet": ObservedPlate(CLOSED["dirichlet"]),
    "observed_bernoulli": ObservedPlate(CLOSED["bernoulli"]),
    "masked_gamma": Independent(CLOSED["gamma"], mask=(True, False, True)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, lib):
    draws = SHAPES[shape].gradients(lib, lib.Loss(vi.elbo(), vi.Analytic()), 2, 0)
    np.testing.assert_allclose(draws, [SHAPES[shape].exact(1)] * 2, rtol=1e-8, atol=1e-8)


def check_family(family, lib):
    shape = Independent(CLOSED[family], sizes=(2,))
    draws = shape.gradients(lib, lib.Loss(vi.elbo(), vi.Analytic()), 2, 0)
    np.testing.assert_allclose(draws, [shape.exact(1)] * 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", OF_BOTH)
def test_families(family, lib):
    check_family(family, lib)


@pytest.mark.parametrize("family", OF_PYRO)
def test_families_of_pyro(family):
    check_family(family, PyroWords())


@pytest.mark.parametrize("settings", [{"num_samples": 3}, {"num_samples": 2, "vectorize": False}])
def test_samples(settings, lib):
    """There is nothing to average, but it must come out the same."""
    loss = lib.Loss(vi.elbo(), vi.Analytic(), **settings)
    draws = SHAPES["nested"].gradients(lib, loss, 2, 0)
    np.testing.assert_allclose(draws, [SHAPES["nested"].exact(1)] * 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "shape", [Subsampled(NORMAL), ObservedPlate(NORMAL, subsample_size=2)], ids=["local", "global"]
)
def test_minibatches(shape, lib, request):
    loss = lib.Loss(vi.elbo(), vi.Analytic())
    shape.check(lib, loss, 1, 400, oracles.seed_of(request.node.name))


# Expectations of one site


FACTORS = {
    "normal: cube": ("normal", lambda xp, z: 0.2 * z**3 - 0.1 * z**4),
    "normal: square of affine": ("normal", lambda xp, z: -xp.square(0.7 * z - 0.4) - z * z),
    "normal: exp": ("normal", lambda xp, z: z * xp.exp(0.6 * z) - xp.exp(z) * xp.exp(-0.3 * z)),
    "normal: waves": ("normal", lambda xp, z: xp.sin(1.3 * z + 0.4) - xp.cos(z) ** 2 * 0.5),
    "normal: products of waves": (
        "normal",
        lambda xp, z: z * xp.sin(z) + xp.exp(0.3 * z) * xp.cos(z) * 0.2 + xp.sin(z) * xp.cos(2 * z),
    ),
    "log_normal: powers": (
        "log_normal",
        lambda xp, z: z**1.5 - 0.1 * z**2 + 0.3 * xp.log(z**3) - 1 / xp.sqrt(z),
    ),
    "gamma: powers": ("gamma", lambda xp, z: z**0.5 - 0.3 * z**2 - 0.1 / z + xp.log(2.0 * z)),
    "gamma: products": ("gamma", lambda xp, z: xp.sqrt(z) * z - z * (0.2 * z) + xp.log(z**-2)),
    "beta: powers": ("beta", lambda xp, z: z**0.5 - 0.3 * z**2 + xp.log(2.0 * z)),
    "dirichlet: log": ("dirichlet", lambda xp, z: xp.log(z[..., 0]) - z[..., 1] ** 2),
    "dirichlet: products": (
        "dirichlet",
        lambda xp, z: -((z[..., 0] - 0.5 * z[..., 2]) ** 2) + z[..., 0] * z[..., 1],
    ),
}


@pytest.mark.parametrize("case", FACTORS)
def test_expectations(case, lib):
    name, fn = FACTORS[case]
    family = CLOSED[name]
    values = family.site_params(2).ravel()

    def params(theta, xp):
        return xp.reshape(theta, (-1, 2))

    def model():
        with lib.plate("data", 2):
            z = lib.sample("z", family.build(lib, *map(lib.array, family.prior)))
            lib.factor("f", fn(lib.xp, z))

    def guide():
        with lib.plate("data", 2):
            lib.sample("z", family.build(lib, *params(lib.theta(values), lib.xp)))

    def bound(theta):
        nodes, log_measure = family.grid()
        log_q = family.log_q(params(theta, np))
        log_prior = family.log_q(family.prior_params(params(theta, np)))
        log_w = log_prior - log_q + fn(np, nodes)
        return (np.exp(log_q + log_measure) * log_w).sum()

    check(lib, model, guide, values, bound)


# Chains of sites


def test_conjugate_normal(lib):
    case = ConjugateNormal(lib)
    check(lib, case.model, case.guide, case.values, ConjugateNormal.closed_form_elbo)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_chain_of_two(num_samples, lib):
    case = TwoNormals(lib)
    settings = {"num_samples": num_samples, "vectorize": num_samples == 1}
    check(lib, case.model, case.guide, case.values, elbo_of_chain, **settings)


@pytest.mark.parametrize(
    ("place", "other"),
    [("second", vi.Reparam()), ("second", vi.Score(vi.LeaveOneOut())), ("first", vi.Reparam())],
    ids=repr,
)
def test_with_another_estimator(place, other, lib, request):
    estimators = {"first": other, "second": other, place: vi.Analytic()}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=1000)
    draws = TwoNormals(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(elbo_of_chain, TwoNormals.values))


@pytest.mark.parametrize("of_coin", [vi.Enumerate(), vi.Analytic()], ids=repr)
def test_below_a_coin(of_coin, lib):
    values = np.array([0.3, 0.2, 0.6, -0.3])

    def guide():
        theta = lib.theta(values)
        b = lib.sample("b", lib.dist.Bernoulli(logits=theta[0]))
        lib.sample("z", lib.dist.Normal(theta[1] + theta[2] * b, lib.xp.exp(theta[3])))

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
        z = lib.sample("z", lib.dist.Normal(0.5 * b, 1.0))
        lib.sample("x", lib.dist.Normal(z + b, 0.8), obs=lib.array(1.4))

    def bound(theta):
        total = 0.0
        for b, prior in ((0.0, 0.6), (1.0, 0.4)):
            loc, log_b = theta[1] + theta[2] * b, oracles.log_bernoulli(theta[0], b)
            fit = expected_log_normal(1.4, loc + b, np.exp(2 * theta[3]), 0.8)
            kl = kl_of_normals(loc, theta[3], 0.5 * b, 1.0)
            total = total + np.exp(log_b) * (np.log(prior) - log_b + fit - kl)
        return total

    check(lib, model, guide, values, bound, {"b": of_coin, "z": vi.Analytic()})


# Objectives


@vi.objective
def held_elbo(model, guide):
    """Of which the guide's draws are constants."""
    z = vi.stop_gradient(vi.simulate(guide))
    return vi.log_density(model, z) - vi.log_density(guide, z)


def test_held_draws_have_no_closed_form(lib, request):
    """The divergence of the two sites is known, but its gradient is that of the draw."""
    case, exact = ConjugateNormal(lib), np.array([0.0, 0.0, -(0.2 + 0.5) / 1.3**2])
    estimators = vi.Analytic(fallback=vi.Reparam())
    loss = lib.Loss(held_elbo(), estimators, num_samples=1000)
    draws = case.gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact)
    assert oracles.largest_z(draws, -oracles.gradient(case.closed_form_elbo, case.values)) >= 8
    with pytest.raises(vi.AnalyticError, match="a random value whose gradient is stopped"):
        case.gradients(lib.Loss(held_elbo(), vi.Analytic()), 1, 0)


@vi.objective
def mean_reward(model, guide):
    z = vi.simulate(guide)
    return vi.evaluate(lambda values: values["z"] ** 2 - 0.3 * values["z"], z) - z.log_density


def test_rewards(lib):
    case, values = ConjugateNormal(lib), ConjugateNormal.values
    draws = case.gradients(lib.Loss(mean_reward(), vi.Analytic()), 2, 0)
    expected = [0.3 - 2 * values[0], -2 * np.exp(2 * values[1]) - 1, 0.0]
    np.testing.assert_allclose(draws, [expected] * 2, rtol=1e-12)


# Linear functions of a Gaussian vector

W = np.array([[0.6, -0.4, 0.3, 0.1], [0.2, 0.8, -0.5, 0.4], [-0.3, 0.5, 0.7, -0.2]])
MASK = np.array([[True, False, True], [False, True, True]])
OPERATIONS = {
    "slices": lambda xp, z, c: z[:, 1:] - 0.5 * z[..., :2],
    "steps": lambda xp, z, c: z[1, ::2],
    "stack": lambda xp, z, c: xp.stack([z[0], 2.0 * z[1], c(W[0, :3])], -1),
    "concatenate": lambda xp, z, c: xp.concatenate([z, z[:, :1], c(np.ones((2, 2)))], 1),
    "where": lambda xp, z, c: xp.where(c(MASK), z, c(np.full((2, 3), 0.3))),
    "where of two": lambda xp, z, c: xp.where(c(MASK), z, 1.5 * z[:1]),
    "reshape": lambda xp, z, c: z.reshape((3, 2)).T @ c(W),
    "transpose": lambda xp, z, c: c(W[:2].T) @ z + xp.swapaxes(z, 0, 1)[:1, :1],
    "einsum": lambda xp, z, c: xp.einsum("ij,jk->ki", z, c(W)),
    "einsum of a sum": lambda xp, z, c: xp.einsum("ij,kj->k", z, c(W.T)),
    "index": lambda xp, z, c: z[:, c(np.array([2, 0, 0]))] + z[c(np.array([1, 0]))],
    "mean": lambda xp, z, c: z.mean(-1) - z.sum(),
    "new dims": lambda xp, z, c: (z[:, None] * c(W.T)).sum(-1) - z[0, 1],
    "cumsum": lambda xp, z, c: xp.cumsum(z, 1) - xp.flip(z, (0,)),
    "tril": lambda xp, z, c: xp.tril(z) + xp.roll(z, 1, 1),
    "vector": lambda xp, z, c: (z @ c(W)) @ c(W[0]) + c(W[1, :2]) @ z[:, 1:] * 0.3,
    "outer": lambda xp, z, c: xp.outer(z[0], c(W[0])) + xp.tile(z[:1, :1], (3, 4)),
    "kron": lambda xp, z, c: xp.kron(z, c(W[:1, :2])),
    "broadcast": lambda xp, z, c: xp.broadcast_to(xp.squeeze(z[:1], 0), (2, 3)) / 2.0 - (-z),
}
PRIOR = (0.3, 1.2)
NOISE = 0.8


class Linear:
    """Observations of a linear function of a vector of six. theta: mean; log scales or a Cholesky factor.

    Args:
        lib: library.
        fn: the function in the library, of a matrix with two rows.
        in_numpy: the same.
        is_full: whether the guide has correlations.
    """

    def __init__(self, lib, fn, in_numpy, is_full=True):
        self.lib, self.fn, self.is_full = lib, fn, is_full
        more = 0.1 * np.eye(6)[np.tril_indices(6)] * 4 + 0.15 if is_full else 0.1 * np.arange(6) - 1
        self.values = np.concatenate([0.1 * np.arange(1, 7), more])
        self.shift = in_numpy(np.zeros((2, 3))).ravel()
        columns = [in_numpy(e.reshape(2, 3)).ravel() - self.shift for e in np.eye(6)]
        self.matrix, self.shape = np.stack(columns, -1), in_numpy(np.zeros((2, 3))).shape
        self.x = np.linspace(1.2, -0.4, len(self.shift))

    def tril(self, xp, theta, array):
        if not self.is_full:
            return None
        rows = np.zeros((6, 6), int)
        rows[np.tril_indices(6)] = np.arange(21)
        return theta[6:][array(rows)] * array(np.tril(np.ones((6, 6))))

    def model(self):
        lib = self.lib
        z = lib.sample("z", lib.dist.Normal(lib.array(np.full(6, PRIOR[0])), PRIOR[1]).to_event(1))
        loc = self.fn(z.reshape((2, 3)))
        x = lib.array(self.x.reshape(self.shape))
        lib.sample("x", lib.dist.Normal(loc, NOISE).to_event(len(self.shape)), obs=x)

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        if self.is_full:
            tril = self.tril(lib.xp, theta, lib.array)
            lib.sample("z", lib.dist.MultivariateNormal(theta[:6], scale_tril=tril))
        else:
            lib.sample("z", lib.dist.Normal(theta[:6], lib.xp.exp(theta[6:])).to_event(1))

    def moments(self, theta):
        if self.is_full:
            tril = self.tril(np, theta, np.asarray)
            return theta[:6], tril @ tril.T, np.log(np.diag(tril)).sum()
        return theta[:6], np.diag(np.exp(2 * theta[6:])), theta[6:].sum()

    def bound(self, theta):
        mean, cov, entropy = self.moments(theta)
        prior = expected_log_normal(mean, PRIOR[0], np.diag(cov), PRIOR[1]).sum()
        loc = self.matrix @ mean + self.shift
        variance = np.einsum("ij,jk,ik->i", self.matrix, cov, self.matrix)
        return prior + entropy + expected_log_normal(self.x, loc, variance, NOISE).sum()

    def check(self):
        check(self.lib, self.model, self.guide, self.values, self.bound)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_linear_operations(operation, lib):
    fn = OPERATIONS[operation]
    Linear(
        lib,
        lambda z: fn(lib.xp, z, lib.array),
        lambda z: fn(np, z, np.asarray),
        is_full=operation != "where",
    ).check()


KERNEL = np.array([[[0.5, -0.3], [0.2, 0.7]]])  # one channel of two, of width two
IMAGE = np.array([[[[0.5, -0.3], [0.2, 0.7]]], [[[0.4, 0.1], [-0.6, 0.2]]]])


def conv1d(z):
    return np.stack([(z[:, i : i + 2] * KERNEL[0]).sum() for i in range(2)])[None] + 0.3


def conv2d(z):
    return np.stack([[[(z[:, i : i + 2] * k[0]).sum() for i in range(2)]] for k in IMAGE])


@pytest.mark.parametrize("num_dims", [1, 2])
def test_convolutions(num_dims, lib):
    def convolved(z):
        shape, kernel = ((1, 2, 3), KERNEL) if num_dims == 1 else ((1, 1, 2, 3), IMAGE)
        z, kernel = z.reshape(shape), lib.array(kernel)
        if lib.name == "pyro":
            functional = lib.xp.nn.functional
            if num_dims == 1:
                return functional.conv1d(z, kernel, lib.array(np.array([0.3])))[0]
            return functional.conv2d(z, kernel)[0]
        import jax

        found = jax.lax.conv_general_dilated(z, kernel, (1,) * num_dims, "VALID")
        return found[0] + (0.3 if num_dims == 1 else 0.0)

    Linear(lib, convolved, conv1d if num_dims == 1 else conv2d).check()


def test_layers():
    """Of torch: a linear layer, a chunk of it and a transposed convolution."""
    lib = PyroWords()
    layer = lib.xp.nn.Linear(3, 4)
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))

    def in_torch(z):
        y = layer(z).chunk(2, -1)[1]
        return lib.xp.nn.functional.conv_transpose1d(y[None], lib.array(KERNEL.transpose(1, 0, 2)))

    def in_numpy(z):
        y = (z @ weight.T + bias)[:, 2:]
        return np.stack(
            [
                sum(y[:, j] @ KERNEL[0, :, i - j] for j in (0, 1) if i - j in (0, 1))
                for i in range(3)
            ]
        )[None, None]

    Linear(lib, in_torch, in_numpy).check()


QUADRATICS = {
    "twice": lambda xp, z, m: z @ m @ z,
    "outer": lambda xp, z, m: (xp.einsum("i,j->ij", z, z) * m).sum(),
    "dims": lambda xp, z, m: (z[:, None] * z * m).sum(),
    "cross": lambda xp, z, m: xp.einsum("i,i->", z, m @ z),
    "parts": lambda xp, z, m: (z[:3] @ m[:3]) @ z + (z[3:] * (m[3:] @ z)).sum(),
}


@pytest.mark.parametrize("form", QUADRATICS)
def test_quadratic_forms(form, lib):
    matrix = np.random.default_rng(0).normal(size=(6, 6)) / 5
    case = Linear(lib, lambda z: z, lambda z: z)

    def value(z):
        return QUADRATICS[form](np, z, matrix)

    eye = np.eye(6)
    curvature = np.array([[value(a + b) - value(a) - value(b) for a in eye] for b in eye])

    def model():
        prior = lib.dist.Normal(lib.array(np.full(6, PRIOR[0])), PRIOR[1]).to_event(1)
        z = lib.sample("z", prior)
        lib.factor("f", QUADRATICS[form](lib.xp, z, lib.array(matrix)))

    def bound(theta):
        mean, cov, entropy = case.moments(theta)
        prior = expected_log_normal(mean, PRIOR[0], np.diag(cov), PRIOR[1]).sum()
        return prior + entropy + value(mean) + (curvature * cov).sum() / 2

    check(lib, model, case.guide, case.values, bound)


def test_a_gram_matrix(lib):
    """Of a matrix with itself: elements of one row are those of one column."""
    values = np.concatenate([0.3 * np.arange(6) - 0.5, -0.1 * np.arange(6) - 0.4])
    weight = np.array([[-0.4, 0.3], [0.1, -0.2]])

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros((2, 3))), 1.0).to_event(2))
        lib.factor("f", (z @ z.T * lib.array(weight)).sum())

    def guide():
        loc, log_scale = lib.theta(values).reshape((2, 2, 3))
        lib.sample("z", lib.dist.Normal(loc, lib.xp.exp(log_scale)).to_event(2))

    def bound(theta):
        loc, log_scale = theta.reshape(2, 2, 3)
        gram = loc @ loc.T + np.diag(np.exp(2 * log_scale).sum(-1))
        return (gram * weight).sum() - kl_of_normals(loc, log_scale, 0.0, 1.0).sum()

    check(lib, model, guide, values, bound)


# Models


X = np.array([[1.0, 0.4], [0.3, -0.8], [-0.5, 1.2], [0.9, 0.1]])
Y = np.array([1.3, -0.2, 0.8, 2.1])


def elements(theta, start):
    """Means and variances of a mean-field vector of two."""
    return theta[start : start + 2], np.exp(2 * theta[start + 2 : start + 4])


def negative_kl(theta, start, prior_scale=1.0):
    return -kl_of_normals(
        theta[start : start + 2], theta[start + 2 : start + 4], 0.0, prior_scale
    ).sum()


def weights(lib, theta, name="w"):
    guide = lib.dist.Normal(theta[:2], lib.xp.exp(theta[2:4])).to_event(1)
    return lib.sample(name, guide)


LIKELIHOODS = {
    "poisson": (
        lambda lib, loc: lib.dist.Poisson(lib.xp.exp(loc)),
        np.array([2.0, 0.0, 1.0, 4.0]),
        lambda x, mean, var: x * mean - np.exp(mean + var / 2),
    ),
    "log_normal": (
        lambda lib, loc: lib.dist.LogNormal(loc, 0.7),
        np.exp(Y),
        lambda x, mean, var: expected_log_normal(np.log(x), mean, var, 0.7),
    ),
    "multivariate": (
        lambda lib, loc: lib.dist.MultivariateNormal(loc, scale_tril=lib.array(FACTOR)),
        Y,
        None,
    ),
    "precision": (
        lambda lib, loc: lib.dist.MultivariateNormal(
            loc, precision_matrix=lib.array(np.linalg.inv(FACTOR @ FACTOR.T))
        ),
        Y,
        None,
    ),
    "normal of event": (
        lambda lib, loc: lib.dist.Normal(loc, lib.array(np.array([0.5, 0.6, 0.7, 0.8]))).to_event(
            1
        ),
        Y,
        lambda x, mean, var: expected_log_normal(x, mean, var, np.array([0.5, 0.6, 0.7, 0.8])),
    ),
    "gamma rate": (
        lambda lib, loc: lib.dist.Gamma(2.3, lib.xp.exp(loc)),
        np.exp(Y),
        lambda x, mean, var: 2.3 * mean - x * np.exp(mean + var / 2),
    ),
}
FACTOR = np.array([[0.8, 0, 0, 0], [0.2, 0.9, 0, 0], [-0.1, 0.3, 0.7, 0], [0.2, 0.1, -0.2, 0.6]])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_regressions(likelihood, lib):
    make, y, expected = LIKELIHOODS[likelihood]
    values = np.array([0.3, -0.5, -0.7, -0.9])

    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.3).to_event(1))
        dist = make(lib, lib.array(X) @ w)
        if dist.event_shape:
            lib.sample("y", dist, obs=lib.array(y))
        else:
            with lib.plate("data", 4):
                lib.sample("y", dist, obs=lib.array(y))

    def guide():
        weights(lib, lib.theta(values))

    def bound(theta):
        mean, var = elements(theta, 0)
        loc, cov = X @ mean, (X * var) @ X.T
        if expected is None:
            inverse = np.linalg.inv(FACTOR @ FACTOR.T)
            fit = -0.5 * ((y - loc) @ inverse @ (y - loc) + (inverse * cov).sum())
        else:
            fit = expected(y, loc, np.diag(cov)).sum()
        return fit + negative_kl(theta, 0, 1.3)

    check(lib, model, guide, values, bound)


SCALES = {
    "power": lambda lib, tau: tau**-0.5,
    "sqrt": lambda lib, tau: 1.0 / lib.xp.sqrt(tau),
    "rsqrt": lambda lib, tau: rsqrt(lib, tau),
}


def rsqrt(lib, tau):
    if lib.name == "pyro":
        return tau.rsqrt()
    import jax

    return jax.lax.rsqrt(tau)


@pytest.mark.parametrize(
    ("precision", "scale"),
    [*(("Gamma", scale) for scale in SCALES), ("LogNormal", "sqrt")],
)
def test_random_precision(precision, scale, lib):
    """theta: means and log scales of two weights; two parameters of the precision. The weights' prior has it too."""
    values = np.array([0.3, -0.5, -0.7, -0.9, 0.8, 0.3])

    def distribution(a, b):
        if precision == "Gamma":
            return lib.dist.Gamma(lib.xp.exp(a), lib.xp.exp(b))
        return lib.dist.LogNormal(a, lib.xp.exp(b))

    def model():
        prior = (lib.array(0.5), lib.array(0.2))
        tau = lib.sample("tau", distribution(*prior))
        noise = SCALES[scale](lib, tau)
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.3 * noise).to_event(1))
        with lib.plate("data", 4):
            lib.sample("y", lib.dist.Normal(lib.array(X) @ w, noise), obs=lib.array(Y))

    def guide():
        theta = lib.theta(values)
        weights(lib, theta)
        lib.sample("tau", distribution(theta[4], theta[5]))

    def bound(theta):
        a, b = theta[4:]
        if precision == "Gamma":
            shape, rate, log_gamma = np.exp(a), np.exp(b), special.loggamma
            mean, mean_log = shape / rate, special.digamma(shape) - b
            entropy = shape - b + log_gamma(shape) + (1 - shape) * special.digamma(shape)
            own = (np.exp(0.5) - 1) * mean_log - np.exp(0.2) * mean + entropy
        else:
            mean, mean_log = np.exp(a + np.exp(2 * b) / 2), a
            own = -kl_of_normals(a, b, 0.5, np.exp(0.2))
        loc, var = elements(theta, 0)
        fit = ((Y - X @ loc) ** 2 + X**2 @ var).sum()
        prior = (loc**2 + var).sum() / 1.3**2
        return own + 3 * mean_log - mean * (fit + prior) / 2 + theta[2:4].sum()

    check(lib, model, guide, values, bound, rtol=1e-8)


class FactorAnalysis:
    """Three observed and two latent dims, of four data. theta: means and log scales of the latent
    vectors; then those of the loadings, or the loadings; a common shift."""

    x = np.linspace(-1.0, 1.4, 12).reshape(4, 3)

    def __init__(self, lib, is_random):
        self.lib, self.is_random = lib, is_random
        local = [*(0.2 * np.arange(8) - 0.5), *(-0.4 - 0.1 * np.arange(8))]
        loadings = [0.6, -0.4, 0.3, 0.2, 0.8, -0.5]
        more = [-1.0, -0.9, -0.8, -0.7, -0.6, -0.5] if is_random else []
        self.values = np.array([*local, *loadings, *more, 0.2])

    @staticmethod
    def split(theta):
        return theta[:8].reshape((4, 2)), theta[8:16].reshape((4, 2)), theta[16:22].reshape((2, 3))

    def model(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        loadings = self.split(theta)[2]
        if self.is_random:
            prior = lib.dist.Normal(lib.array(np.zeros((2, 3))), 1.0).to_event(2)
            loadings = lib.sample("W", prior)
        with lib.plate("data", 4):
            z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
            loc = (z[..., None, :] @ loadings)[..., 0, :] + theta[-1]
            lib.sample("x", lib.dist.Normal(loc, 0.7).to_event(1), obs=lib.array(self.x))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        loc, log_scale, loadings = self.split(theta)
        if self.is_random:
            scale = lib.xp.exp(theta[22:28].reshape((2, 3)))
            lib.sample("W", lib.dist.Normal(loadings, scale).to_event(2))
        with lib.plate("data", 4):
            lib.sample("z", lib.dist.Normal(loc, lib.xp.exp(log_scale)).to_event(1))

    def bound(self, theta):
        loc, log_scale, loadings = self.split(theta)
        var, spread, total = np.exp(2 * log_scale), np.zeros((2, 3)), 0.0
        if self.is_random:
            log_spread = theta[22:28].reshape((2, 3))
            spread = np.exp(2 * log_spread)
            total = -kl_of_normals(loadings, log_spread, 0.0, 1.0).sum()
        variance = loc**2 @ spread + var @ loadings**2 + var @ spread
        mean = loc @ loadings + theta[-1]
        total = total - kl_of_normals(loc, log_scale, 0.0, 1.0).sum()
        return total + expected_log_normal(self.x, mean, variance, 0.7).sum()


@pytest.mark.parametrize("is_random", [False, True], ids=["loadings", "random_loadings"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_factor_analysis(num_samples, is_random, lib):
    case = FactorAnalysis(lib, is_random)
    args = (lib, case.model, case.guide, case.values, case.bound)
    check(*args, num_samples=num_samples)


@pytest.mark.parametrize("guide_name", ["AutoNormal", "AutoMultivariateNormal"])
def test_autoguides(guide_name, lib):
    """One site is positive: in the guide of all of them, the exponential of a part of a Gaussian vector."""
    x, counts = np.array([0.9, 1.6, 0.3]), np.array([1.0, 3.0, 2.0])

    def model():
        a = lib.sample("a", lib.dist.LogNormal(lib.array(0.0), 1.2))
        b = lib.sample("b", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(0.7 * lib.xp.log(a) + b.sum(-1), 0.8), obs=lib.array(x))
            lib.sample("n", lib.dist.Poisson(a * lib.xp.exp(b[0])), obs=lib.array(counts))
        waves = lib.xp.sin(b[0]) * lib.xp.cos(b[1] + lib.xp.log(a)) - lib.xp.cos(b[1]) ** 2
        lib.factor("waves", waves)

    def bound(loc, scale_tril):
        cov = scale_tril @ scale_tril.T

        def wave(fn, *weights):
            return fn(np.array(weights) @ loc) * np.exp(-np.array(weights) @ cov @ weights / 2)

        waves = (wave(np.sin, 1, 1, 1) + wave(np.sin, -1, 1, -1) - 1 - wave(np.cos, 0, 0, 2)) / 2
        total = np.log(np.diag(scale_tril)).sum() + 1.5 - math.log(1.2)
        total = total - (loc[0] ** 2 + cov[0, 0]) / (2 * 1.44)
        total = total - (loc[1:] ** 2).sum() / 2 - np.trace(cov[1:, 1:]) / 2
        slope, rate = np.array([0.7, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])
        total = total + expected_log_normal(x, slope @ loc, slope @ cov @ slope, 0.8).sum()
        total = total + (counts * (rate @ loc) - special.gammaln(counts + 1)).sum()
        return waves + total - 3 * np.exp(rate @ loc + rate @ cov @ rate / 2)

    loss = lib.Loss(vi.elbo(), vi.Analytic())
    value, loc, scale_tril = auto_loss(lib, loss, model, guide_name)
    np.testing.assert_allclose(value, -bound(loc, scale_tril), rtol=1e-9)


class LinearAutoencoder:
    """A linear encoder and decoder. theta: encoder (2, 3), log scales (2), decoder (3, 2)."""

    x = np.array([[0.9, -0.4, 0.3], [0.2, 1.1, -0.7], [-0.8, 0.5, 0.6]])
    values = np.array([0.5, -0.2, 0.1, 0.3, 0.6, -0.4, -0.6, -0.9, 0.7, -0.3, 0.2, 0.9, -0.5, 0.4])

    @staticmethod
    def split(theta):
        return theta[:6].reshape((2, 3)), theta[6:8], theta[8:].reshape((3, 2))

    @classmethod
    def model(cls, lib):
        decoder = cls.split(lib.theta(cls.values))[2]
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
            loc = z @ decoder.T
            lib.sample("x", lib.dist.Normal(loc, 0.7).to_event(1), obs=lib.array(cls.x))

    @classmethod
    def guide(cls, lib):
        encoder, log_scale, _ = cls.split(lib.theta(cls.values))
        loc = lib.array(cls.x) @ encoder.T
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Normal(loc, lib.xp.exp(log_scale)).to_event(1))

    @classmethod
    def reparameterised(cls, noise):
        """Gradients of the loss at noises, shape `(draws, 3, 2)`."""
        encoder, log_scale, decoder = cls.split(cls.values)
        step = np.exp(log_scale) * noise
        z = cls.x @ encoder.T + step
        error = (cls.x - z @ decoder.T) / 0.49
        slope = error @ decoder - z
        return -np.concatenate(
            [
                np.einsum("nik,id->nkd", slope, cls.x).reshape(-1, 6),
                (slope * step).sum(1) + 3.0,
                np.einsum("nid,nik->ndk", error, z).reshape(-1, 6),
            ],
            axis=1,
        )

    @classmethod
    @functools.cache
    def million(cls):
        rng = np.random.default_rng(oracles.seed_of("autoencoder"))
        chunks = [cls.reparameterised(rng.normal(size=(50_000, 3, 2))) for _ in range(20)]
        return np.concatenate(chunks)


def test_linear_autoencoder(lib):
    """Equal to the mean of reparameterised gradients, which the gradient at the mean is not."""
    case = LinearAutoencoder
    model, guide = functools.partial(case.model, lib), functools.partial(case.guide, lib)
    loss = lib.Loss(vi.elbo(), vi.Analytic())
    first, second = lib.gradients(loss, model, guide, case.values, 2, 0)
    np.testing.assert_array_equal(first, second)
    oracles.check_unbiased(case.million(), first)
    without_variance = case.reparameterised(np.zeros((1, 3, 2)))[0]
    assert oracles.largest_z(case.million(), without_variance) >= 8


# Fallbacks


class TwoLikelihoods:
    """A linear likelihood and one through tanh. theta: means and log scales of two values."""

    values = np.array([0.4, -0.3, -0.5, -0.2])

    def __init__(self, lib):
        self.lib = lib

    def model(self):
        lib = self.lib
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(2)), 1.3))
            lib.sample("x", lib.dist.Normal(0.9 * z, 0.4), obs=lib.array(np.array([1.3, 0.4])))
            lib.sample(
                "y", lib.dist.Normal(lib.xp.tanh(z), 0.5), obs=lib.array(np.array([0.9, 0.2]))
            )

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Normal(theta[:2], lib.xp.exp(theta[2:])))

    @staticmethod
    def bound(theta):
        total = 0.0
        for i in range(2):
            z, _, mass = ConjugateNormal.nodes(theta[i], np.exp(theta[2 + i]))
            log_w = oracles.log_normal((1.3, 0.4)[i], 0.9 * z, 0.4)
            log_w = log_w + oracles.log_normal((0.9, 0.2)[i], np.tanh(z), 0.5)
            total = total + (np.exp(mass) * log_w).sum()
            total = total - kl_of_normals(theta[i], theta[2 + i], 0.0, 1.3)
        return total


@pytest.mark.parametrize("fallback", [vi.Reparam(), vi.Score(vi.LeaveOneOut())], ids=repr)
def test_fallback(fallback, lib, request):
    """Unbiased; the noise is that of the one term that has no closed form, so it is less than without."""
    case, seed = TwoLikelihoods(lib), oracles.seed_of(request.node.name)
    spread = []
    for estimator in (vi.Analytic(fallback=fallback), fallback):
        loss = lib.Loss(vi.elbo(), estimator, num_samples=200)
        draws = lib.gradients(loss, case.model, case.guide, case.values, 200, seed)
        spread.append(draws.var(axis=0, ddof=1))
        if estimator is not fallback:
            expected = -oracles.gradient(case.bound, case.values)
            oracles.check_unbiased(draws, expected)
            mutant = gradient_without_tanh(case)
            assert oracles.largest_z(draws, mutant) >= 8
    assert (spread[0] < 0.7 * spread[1]).all()


def gradient_without_tanh(case):
    def bound(theta):
        total = 0.0
        for i in range(2):
            variance = 0.81 * np.exp(2 * theta[2 + i])
            total = total + expected_log_normal((1.3, 0.4)[i], 0.9 * theta[i], variance, 0.4)
            total = total - kl_of_normals(theta[i], theta[2 + i], 0.0, 1.3)
        return total

    return -oracles.gradient(bound, case.values)


def test_fallback_of_unknown_moments(lib, request):
    shape = Independent(FAMILIES["logit_normal"], sizes=(2,))
    loss = lib.Loss(vi.elbo(), vi.Analytic(fallback=vi.Reparam()), num_samples=500)
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


def test_divergences_stay_closed(lib):
    """Mean and variance of a category mean nothing; its divergence is known."""
    values, prior = np.array([0.5, -0.2, 0.4]), np.array([0.1, 0.3, -0.4])

    def program(logits):
        weights = lib.xp.exp(logits)
        lib.sample("z", lib.dist.Categorical(weights / weights.sum()))

    def model():
        program(lib.array(prior))

    def guide():
        program(lib.theta(values))

    def bound(theta):
        log_q, log_p = (x - np.log(np.exp(x).sum()) for x in (theta, prior))
        return (np.exp(log_q) * (log_p - log_q)).sum()

    check(lib, model, guide, values, bound, vi.Analytic(fallback=vi.Score()))
