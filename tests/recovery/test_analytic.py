"""Without noise, the bound is a function like any other: its optimum is reached to many digits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

import vi_kit as vi
from tests.libraries import NumPyroWords, PyroWords

RNG = np.random.default_rng(4)
X = RNG.normal(size=(8, 3))
Y = X @ np.array([0.7, -1.1, 0.4]) + 0.5 * RNG.normal(size=8)
PRIOR, NOISE = 1.5, 0.6


def value_and_gradient(lib, model, guide, values):
    """The loss as a function of `theta`."""
    loss = lib.Loss(vi.elbo(), vi.Analytic())
    if lib.name == "pyro":
        import pyro

        lib.theta(values)
        leaf = pyro.get_param_store()._params["theta"]

        def of_pyro(theta):
            leaf.data, leaf.grad = lib.xp.as_tensor(theta.copy()), None
            value = loss.loss_and_grads(model, guide)
            return value, leaf.grad.numpy().copy()

        return of_pyro
    import jax

    @jax.jit
    def of_jax(theta):
        return jax.value_and_grad(
            lambda t: loss.loss(jax.random.key(0), {"theta": t}, model, guide)
        )(theta)

    def of_numpyro(theta):
        value, slope = of_jax(theta)
        return float(value), np.asarray(slope)

    return of_numpyro


def optimum(lib, model, guide, values):
    """The least loss, and where."""
    fn = value_and_gradient(lib, model, guide, values)
    found = optimize.minimize(
        fn, values, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500}
    )
    assert np.abs(found.jac).max() < 1e-5, found.message
    return found.fun, found.x


def tril(xp, raw):
    """A Cholesky factor, from a square of numbers."""
    return xp.tril(raw, -1) + xp.diag(xp.exp(xp.diag(raw)))


def weights(lib, theta):
    """A Gaussian vector of three. theta: mean; square of which the Cholesky factor is made."""
    factor = tril(lib.xp, theta[3:12].reshape((3, 3)))
    lib.sample("w", lib.dist.MultivariateNormal(theta[:3], scale_tril=factor))


def regression(lib, values):
    def model():
        prior = lib.dist.Normal(lib.array(np.zeros(3)), PRIOR).to_event(1)
        w = lib.sample("w", prior)
        with lib.plate("data", 8):
            lib.sample("y", lib.dist.Normal(lib.array(X) @ w, NOISE), obs=lib.array(Y))

    def guide():
        weights(lib, lib.theta(values))

    return model, guide


def posterior():
    """Mean and covariance of the weights, and the log evidence (nats)."""
    cov = np.linalg.inv(X.T @ X / NOISE**2 + np.eye(3) / PRIOR**2)
    total = PRIOR**2 * X @ X.T + NOISE**2 * np.eye(8)
    evidence = -0.5 * (Y @ np.linalg.solve(total, Y) + np.linalg.slogdet(2 * np.pi * total)[1])
    return cov @ X.T @ Y / NOISE**2, cov, evidence


def check_regression(theta):
    mean, cov, _ = posterior()
    factor = tril(np, theta[3:].reshape(3, 3))
    np.testing.assert_allclose(theta[:3], mean, atol=1e-6)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-6)


def test_linear_regression(lib):
    values = np.zeros(12)
    loss, theta = optimum(lib, *regression(lib, values), values)
    check_regression(theta)
    np.testing.assert_allclose(loss, -posterior()[2], rtol=1e-9)


def test_svi_in_pyro():
    import pyro

    lib, values = PyroWords(), np.zeros(12)
    model, guide = regression(lib, values)
    optim = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.986, "betas": (0.9, 0.98)})
    svi = pyro.infer.SVI(model, guide, optim, lib.Loss(vi.elbo(), vi.Analytic()))
    losses = [svi.step() for _ in range(550)]
    check_regression(pyro.param("theta").detach().numpy())
    np.testing.assert_allclose(losses[-1], -posterior()[2], rtol=1e-9)


def test_svi_in_numpyro():
    import jax
    import numpyro
    import optax

    lib, values = NumPyroWords(), np.zeros(12)
    optim = optax.adam(optax.exponential_decay(0.1, 1, 0.995))
    loss = lib.Loss(vi.elbo(), vi.Analytic())
    svi = numpyro.infer.SVI(*regression(lib, values), optim, loss)
    result = svi.run(jax.random.key(0), 2000, progress_bar=False)
    check_regression(np.asarray(result.params["theta"]))
    np.testing.assert_allclose(result.losses[-1], -posterior()[2], rtol=1e-9)


DATA = RNG.normal(size=(12, 4)) @ (np.diag([1.8, 1.2, 0.5, 0.4]) @ RNG.normal(size=(4, 4)))


@pytest.mark.parametrize("num_latent", [1, 2])
def test_probabilistic_principal_components(num_latent, lib):
    """Loadings, noise and bound are those of maximum likelihood (Tipping and Bishop 1999). theta: log noise, mean;
    loadings; encoder; square of which the guide's Cholesky factor is made."""
    n, k, d = len(DATA), num_latent, DATA.shape[1]
    sizes = np.cumsum([1, d, d * k, d * k])
    values = np.concatenate(
        [[0.0], np.zeros(d), 0.3 * np.arange(1, 2 * d * k + 1) % 1.1, np.zeros(k * k)]
    )

    def split(theta):
        pieces = [theta[a:b] for a, b in zip([0, *sizes], [*sizes, len(values)], strict=True)]
        return (*pieces[:2], *(p.reshape((d, k)) for p in pieces[2:4]), pieces[4].reshape((k, k)))

    def model():
        log_noise, mean, loadings, _, _ = split(lib.theta(values))
        with lib.plate("data", n):
            z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(k)), 1.0).to_event(1))
            dist = lib.dist.Normal(z @ loadings.T + mean, lib.xp.exp(log_noise)).to_event(1)
            lib.sample("x", dist, obs=lib.array(DATA))

    def guide():
        _, mean, _, encoder, raw = split(lib.theta(values))
        loc = (lib.array(DATA) - mean) @ encoder
        with lib.plate("data", n):
            lib.sample("z", lib.dist.MultivariateNormal(loc, scale_tril=tril(lib.xp, raw)))

    loss, theta = optimum(lib, model, guide, values)
    log_noise, mean, loadings, _, _ = split(theta)
    covariance = np.cov(DATA.T, bias=True)
    size, direction = np.linalg.eigh(covariance)
    noise = size[:-k].mean()
    low_rank = (direction[:, -k:] * (size[-k:] - noise)) @ direction[:, -k:].T
    total = low_rank + noise * np.eye(d)
    evidence = -0.5 * n * (d + np.linalg.slogdet(2 * np.pi * total)[1])
    np.testing.assert_allclose(loss, -evidence, rtol=1e-9)
    np.testing.assert_allclose(np.exp(2 * log_noise), noise, atol=1e-6)
    np.testing.assert_allclose(mean, DATA.mean(0), atol=1e-6)
    np.testing.assert_allclose(loadings @ loadings.T, low_rank, atol=1e-5)


def test_gamma_precision(lib):
    """The fixed point of coordinate ascent. theta: as for the weights; logs of concentration and rate."""
    values, a0, b0 = np.zeros(14), 2.0, 1.5

    def model():
        tau = lib.sample("tau", lib.dist.Gamma(lib.array(a0), lib.array(b0)))
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(3)), PRIOR).to_event(1))
        with lib.plate("data", 8):
            lib.sample("y", lib.dist.Normal(lib.array(X) @ w, tau**-0.5), obs=lib.array(Y))

    def guide():
        theta = lib.theta(values)
        weights(lib, theta)
        lib.sample("tau", lib.dist.Gamma(lib.xp.exp(theta[12]), lib.xp.exp(theta[13])))

    _, theta = optimum(lib, model, guide, values)
    a, b = a0 + len(Y) / 2, b0
    for _ in range(200):
        cov = np.linalg.inv(a / b * X.T @ X + np.eye(3) / PRIOR**2)
        mean = a / b * cov @ X.T @ Y
        b = b0 + 0.5 * (((Y - X @ mean) ** 2).sum() + np.trace(X @ cov @ X.T))
    factor = tril(np, theta[3:12].reshape(3, 3))
    np.testing.assert_allclose(theta[:3], mean, atol=1e-6)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-6)
    np.testing.assert_allclose(np.exp(theta[12:]), [a, b], rtol=1e-5)
