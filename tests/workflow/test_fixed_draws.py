"""Fits with their noise held: minima, linear response and Monte Carlo errors against closed forms and quadrature."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.workflow.lbfgs import minimum
from vi_kit.workflow.response import hessian

COVARIANCE = np.linalg.inv(np.array([[2.0, 1.2, 0.0], [1.2, 1.5, -0.4], [0.0, -0.4, 0.8]]))
MEAN = np.array([1.0, -1.0, 0.5])


@pytest.fixture
def fits(lib):
    """What a test of fits needs of a library."""
    guides = importlib.import_module(f"{lib.name}.infer.autoguide")
    own = importlib.import_module(f"vi_kit.{lib.name}")
    held = importlib.import_module(f"vi_kit.{lib.name}.held")
    param = importlib.import_module(lib.name).param
    constraints = lib.dist.constraints
    return SimpleNamespace(
        lib=lib,
        fit=own.fit,
        param=lambda name, value, **kw: param(name, lib.array(np.asarray(value)), **kw),
        positive=constraints.positive,
        unit=constraints.unit_interval,
        AutoNormal=guides.AutoNormal,
        held=held,
    )


def gaussian(lib):
    def model():
        mean, cov = lib.array(MEAN), lib.array(COVARIANCE)
        lib.sample("z", lib.dist.MultivariateNormal(mean, cov))

    return model


def test_a_gaussian_has_its_mean_and_all_of_its_covariance(fits):
    model = gaussian(fits.lib)
    fit = fits.fit(model, fits.AutoNormal(model), fixed_draws=20)
    found = fit.linear_response(num_draws=20)
    assert fit.stopped.startswith("it converged") and not fit.notes
    assert list(fit.seconds) == ["before", "first step", "steps"] and min(fit.seconds.values()) > 0
    assert found.names == ("z[0]", "z[1]", "z[2]")
    np.testing.assert_allclose(found.mean, MEAN, atol=1e-6)
    np.testing.assert_allclose(found.covariance, COVARIANCE, atol=1e-6)
    assert (found.monte_carlo_errors < 1e-6).all()
    # the mutant: what the guide itself says
    own = np.concatenate([np.ravel(v) for n, v in fit.params.items() if "scale" in n]) ** 2
    assert (own < 0.8 * np.diag(COVARIANCE)).any()
    assert np.abs(np.diag(own) - COVARIANCE).max() > 0.1
    functions = {"difference": lambda sites: sites["z"][..., 0] - sites["z"][..., 1]}
    by_function = fit.linear_response(functions, num_draws=2)
    c = COVARIANCE
    assert by_function.covariance[0, 0] == pytest.approx(c[0, 0] + c[1, 1] - 2 * c[0, 1], abs=1e-6)


def test_a_minimum_is_one_where_the_search_begins():
    """As where a cell of a notebook is run again: what is left of the gradient is rounding."""
    at = np.array([1.0, 2.0])

    def bowl(x):
        off = np.round(x - at, 8)
        return 5.0 + float(off @ off) / 2, off + 1e-10

    found = minimum(bowl, at, rounding=2.2e-16, most=500, ends=lambda: False)
    assert found.converged and found.gradient.any() and not found.losses


def test_a_guide_of_more_dims_than_draws_has_no_minimum(fits):
    guides = importlib.import_module(f"{fits.lib.name}.infer.autoguide")
    model = gaussian(fits.lib)
    enough = fits.fit(model, guides.AutoMultivariateNormal(model), fixed_draws=5)
    assert enough.stopped.startswith("it converged") and not enough.notes
    fit = fits.fit(model, guides.AutoMultivariateNormal(model), fixed_draws=2)
    assert fit.stopped.startswith("no lower value is to be found")
    assert "did not converge" in fit.notes[-1]


def test_sites_in_plates_have_what_they_share(fits):
    lib, x = fits.lib, np.array([1.2, 0.7, 1.9])

    def model(x):
        m = lib.sample("m", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(m, 1.0))
            lib.sample("x", lib.dist.Normal(z, 0.5), obs=x)

    fit = fits.fit(model, fits.AutoNormal(model), lib.array(x), fixed_draws=10)
    found = fit.linear_response(["m", "z"], num_draws=2)
    precision = np.diag([1.0 + 3, 5.0, 5.0, 5.0])
    precision[0, 1:] = precision[1:, 0] = -1.0
    exact = np.linalg.inv(precision)
    np.testing.assert_allclose(found.covariance, exact, atol=1e-5)
    np.testing.assert_allclose(found.mean, exact @ np.append(0.0, x / 0.25), atol=1e-5)
    np.testing.assert_allclose(fit.covariance("m"), exact[:1, :1], atol=1e-5)


def test_enumerated_sites_have_no_noise_and_exact_answers(fits):
    lib, x = fits.lib, np.array([0.3, 1.4, -0.6])

    def model(x):
        with lib.plate("data", 3):
            c = lib.sample("c", lib.dist.Bernoulli(probs=0.3 + 0.0 * x))
            lib.sample("x", lib.dist.Normal(2.0 * c, 1.0), obs=x)

    def guide(x):
        p = fits.param("p", np.full(3, 0.5), constraint=fits.unit)
        with lib.plate("data", 3):
            lib.sample("c", lib.dist.Bernoulli(probs=p))

    fit = fits.fit(model, guide, lib.array(x), fixed_draws=1)
    found = fit.linear_response(num_draws=4)
    odds = 0.3 / 0.7 * np.exp(-((x - 2) ** 2 - x**2) / 2)
    exact = odds / (1 + odds)
    np.testing.assert_allclose(found.mean, exact, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.diag(exact * (1 - exact)), atol=1e-6)
    assert (found.monte_carlo_errors < 1e-6).all()
    evidence = np.log(0.3 * _normal(x, 2.0) + 0.7 * _normal(x, 0.0)).sum()
    assert fit.objective == pytest.approx(evidence, abs=1e-8)


def test_the_errors_of_logistic_regression_are_those_of_its_draws(fits):
    lib = fits.lib
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 2))
    y = (rng.random(40) < 1 / (1 + np.exp(-x @ [1.5, -1.0]))).astype(float)

    def model(x, y):
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        with lib.plate("data", 40):
            logits = x[:, 0] * w[..., :1] + x[:, 1] * w[..., 1:]
            lib.sample("y", lib.dist.Bernoulli(logits=logits), obs=y)

    fit = fits.fit(
        model, fits.AutoNormal(model), lib.array(x), lib.array(y), fixed_draws=40, seed=2
    )
    found = fit.linear_response(num_draws=300)
    loc, scale = _logistic(x, y)
    z = (found.mean - loc) / found.monte_carlo_errors
    assert np.abs(z).max() < 5
    assert (found.monte_carlo_errors < 0.1 * scale).all() and (found.monte_carlo_errors > 0).all()
    assert (found.sd > scale).all()  # correlations add to it


def test_eight_schools_have_the_spread_of_the_posterior(fits):
    lib = fits.lib
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y, sigma):
        mu = lib.sample("mu", lib.dist.Normal(0.0, 5.0))
        tau = lib.sample("tau", lib.dist.LogNormal(1.0, 1.0))
        with lib.plate("schools", 8):
            theta = lib.sample("theta", lib.dist.Normal(0.0, 1.0))
            lib.sample("y", lib.dist.Normal(mu + tau * theta, sigma), obs=y)

    args = lib.array(y), lib.array(sigma)
    fit = fits.fit(model, fits.AutoNormal(model), *args, fixed_draws=30)
    assert fit.stopped.startswith("it converged")
    found = fit.linear_response("mu", num_draws=100)
    mean, sd = _eight_schools(y, sigma)
    own = next(float(v) for n, v in fit.params.items() if "scale" in n and "mu" in n)
    assert abs(found.mean[0] - mean) < 0.15 * sd
    assert abs(found.sd[0] - sd) < 0.1 * sd
    assert abs(found.sd[0] - sd) < abs(own - sd)


def test_the_hessian_is_that_of_the_value(fits):
    lib = fits.lib

    def model():
        a = lib.sample("a", lib.dist.Normal(0.0, 1.0))
        b = lib.sample("b", lib.dist.Normal(a, 1.0))
        c = lib.sample("c", lib.dist.Bernoulli(probs=lib.array(0.4)))
        q = lib.sample("q", lib.dist.Normal(0.3 * a, 1.0))
        lib.sample("x", lib.dist.Normal(a * c + b, 1.0), obs=lib.array(1.5))
        lib.sample("y", lib.dist.Normal(q * q + a, 1.0), obs=lib.array(0.7))

    def guide():
        t = fits.param("t", np.array([0.3, -0.2, 0.4, 0.1, 0.6, -0.5, 0.2]))
        a = lib.sample("a", lib.dist.Normal(t[0], lib.xp.exp(t[1])))
        lib.sample("b", lib.dist.Normal(t[2], lib.xp.exp(t[3] - 1.0)))
        lib.sample("c", lib.dist.Bernoulli(logits=t[4] + 0.5 * a))
        lib.sample("q", lib.dist.Normal(t[5], lib.xp.exp(t[6])))

    estimators = {"b": vi.Analytic(), "q": vi.Quadrature(), "a": vi.Reparam(), "c": vi.Enumerate()}
    fit = fits.fit(model, guide, fixed_draws=5, num_steps=3, estimators=estimators)
    assert (
        "largest number" in fit.stopped
        and fit.num_steps == 3
        and "more than 3 iterations" in fit.notes[-1]
    )
    held, step, times = fit.held, 1e-5, hessian(fit.held)
    for direction in np.random.default_rng(0).normal(size=(3, 7)):
        ends = [held.evaluate(held.at + s * step * direction) for s in (1, -1)]
        slope = (ends[0][0] - ends[1][0]) / (2 * step)
        second = (ends[0][1] - ends[1][1]) / (2 * step)
        assert held.evaluate(held.at)[1] @ direction == pytest.approx(slope, rel=1e-6, abs=1e-7)
        np.testing.assert_allclose(times(direction), second, rtol=1e-5, atol=1e-6)
        # the mutant: the second derivative of what has the right gradient
        assert np.abs(held.times_hessian(held.at, direction) - second).max() > 1e-3


def test_samplers_without_second_derivatives(fits):
    lib = fits.lib

    def model():
        z = lib.sample("z", lib.dist.Gamma(lib.array(2.0), 1.0))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Poisson(z), obs=lib.array(np.array([3.0, 1.0, 4.0])))

    def guide():
        a = fits.param("a", 4.0, constraint=fits.positive)
        b = fits.param("b", 2.0, constraint=fits.positive)
        lib.sample("z", lib.dist.Gamma(a, b))

    fit = fits.fit(model, guide, fixed_draws=100)
    found = fit.linear_response(num_draws=200)
    assert fit.held.times_hessian(fit.held.at, np.ones(2)) is None
    assert abs(found.mean[0] - 10 / 4) < 1e-3 and found.monte_carlo_errors[0] < 1e-6
    assert found.covariance[0, 0] == pytest.approx(10 / 16, rel=0.3)


def test_a_sampler_that_rejects_is_told(fits):
    lib = fits.lib

    def model():
        lib.sample("z", lib.dist.LogNormal(lib.array(np.full(3, 0.5)), 0.5).to_event(1))

    def guide():
        a = fits.param("a", np.full(3, 1.3), constraint=fits.positive)
        lib.sample("z", lib.dist.Gamma(a, 1.0).to_event(1))

    fit = fits.fit(model, guide, fixed_draws=20)
    assert fit.stopped.startswith("no lower value") and "samplers reject" in fit.notes[-1]


def test_fresh_noise_is_refused(fits, monkeypatch):
    """The mutant: noise that is new in each evaluation."""
    model, calls = gaussian(fits.lib), []
    if fits.lib.name == "pyro":
        noise = fits.held.PyroHeld.noise

        def fresh(self, seed=None):
            calls.append(0)
            return noise(self, len(calls))

        monkeypatch.setattr(fits.held.PyroHeld, "noise", fresh)
    else:
        import jax

        def fresh(self, flat):
            calls.append(0)
            model, key = self.trainer.model, jax.random.key(len(calls))
            value = self.value(jax.numpy.asarray(flat), model, self.loss, key, {})
            return float(value), flat

        monkeypatch.setattr(fits.held.NumPyroHeld, "evaluate", fresh)
    with pytest.raises(vi.ObjectiveError, match="the model is noisy"):
        fits.fit(model, fits.AutoNormal(model), fixed_draws=3)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"optimizer": 0.1}, "optimizer=0.1"),
        ({"stop": SimpleNamespace(every=10)}, "stop="),
        ({"num_restarts": 3, "batch_size": 2}, "batch_size=2, num_restarts=3"),
        ({"checkpoint": "somewhere"}, "checkpoint='somewhere'"),
        ({"fixed_draws": 0}, "fixed_draws must be a whole number"),
        ({"objective": vi.iwae(num_particles=2)}, "fixed_draws is for the ELBO"),
        ({"estimators": {"z": vi.Score()}}, r"z: Score"),
        ({"estimators": {"z": vi.Score(vi.MovingAverage())}}, r"z: Score\(.*MovingAverage"),
    ],
)
def test_what_cannot_be_held_is_refused(fits, settings, text):
    def model():
        fits.lib.sample("z", fits.lib.dist.Normal(0.0, 1.0))
        fits.lib.sample("y", fits.lib.dist.Normal(0.0, 1.0))

    def guide():
        t = fits.param("t", np.zeros(2))
        fits.lib.sample("z", fits.lib.dist.Normal(t[0], 1.0))
        fits.lib.sample("y", fits.lib.dist.Normal(t[1], 1.0))

    with pytest.raises(vi.ObjectiveError, match=text):
        fits.fit(model, guide, **{"fixed_draws": 3, **settings})


def test_noise_besides_sites_is_refused(fits):
    lib = fits.lib
    if lib.name == "numpyro":
        pytest.skip("a key of NumPyro's is held with those of the sites")

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(1.0))

    def guide():
        loc = fits.param("loc", 0.0)
        if lib.name == "pyro":
            import torch

            loc = torch.nn.functional.dropout(loc, 0.5)
        else:
            import jax
            import numpyro

            loc = loc * jax.random.bernoulli(numpyro.prng_key(), 0.5)
        lib.sample("z", lib.dist.Normal(loc, 1.0))

    with pytest.raises(vi.ObjectiveError, match="guide draws random numbers besides its sites"):
        fits.fit(model, guide, fixed_draws=3)


def test_linear_response_needs_held_draws_and_known_sites(fits):
    model = gaussian(fits.lib)
    fit = fits.fit(model, fits.AutoNormal(model), num_steps=1)
    with pytest.raises(vi.ObjectiveError, match="without fixed_draws"):
        fit.linear_response()
    fit = fits.fit(model, fits.AutoNormal(model), fixed_draws=3, num_steps=1)
    with pytest.raises(vi.ObjectiveError, match="no such latent site\n  got:      'w'"):
        fit.linear_response("w")


def test_a_minimum_is_found_where_steps_may_leave_the_domain():
    def bowl(x):
        if (x <= 0).any():
            return np.inf, np.zeros(2)
        return float((x - np.log(x) * [3.0, 500.0]).sum()), 1 - np.array([3.0, 500.0]) / x

    found = minimum(bowl, np.array([0.1, 0.1]), rounding=2.2e-16, most=500, ends=lambda: False)
    assert found.converged
    np.testing.assert_allclose(found.at, [3.0, 500.0], rtol=1e-5)


def _normal(x, loc):
    return np.exp(-((x - loc) ** 2) / 2) / np.sqrt(2 * np.pi)


def _logistic(x, y):
    """The best independent Normals, by quadrature: each logit is a Normal."""
    from scipy.optimize import minimize

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def loss(t):
        loc, scale = t[:2], np.exp(t[2:])
        m, s = x @ loc, np.sqrt(x**2 @ scale**2)
        softplus = np.logaddexp(0, m[:, None] + s[:, None] * nodes) @ weights
        return (softplus - y * m).sum() + (loc**2 + scale**2).sum() / 2 - t[2:].sum()

    found = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6})
    return found.x[:2], np.exp(found.x[2:])


def _eight_schools(y, sigma):
    """Mean and standard deviation of mu, by quadrature over log tau: given it, all is Gaussian."""
    logs = np.linspace(-5, 5, 2001)
    var = sigma**2 + np.exp(logs)[:, None] ** 2
    precision = (1 / var).sum(1) + 1 / 25
    mean = (y / var).sum(1) / precision
    log = (-0.5 * np.log(var) - 0.5 * y**2 / var).sum(1)
    log += 0.5 * mean**2 * precision - 0.5 * np.log(precision) - (logs - 1) ** 2 / 2
    w = np.exp(log - log.max())
    w /= w.sum()
    first = w @ mean
    return first, np.sqrt(w @ (mean**2 + 1 / precision) - first**2)
