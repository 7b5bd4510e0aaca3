"""The deep exponential family of digits: its density, exact gradients where it has one unit a layer, and a fit."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from scipy import special, stats

import vi_kit as vi
from models.gamma_def import LEAST_MEAN, LEAST_SHAPE, SPARSITY, TOP_RATE, WEIGHT_RATE, load_data
from tests import oracles
from vi_kit.estimators.score import ScoredNoise

X = np.array([[2.0, 0.0, 5.0], [1.0, 3.0, 0.0]])
ONE_UNIT_A_LAYER = (1, 1)
SIZES = {"w_0": (1, 3), "z_1": (2, 1), "w_1": (1, 1), "z_2": (2, 1)}
STARTS = {"w_0": 0.8, "z_1": 1.1, "w_1": 5.0, "z_2": 6.0}
"""Raw shapes. High ones above the lowest layer, since E[1 / z] has to exist, and the variance of 1 / z."""


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    raw = {}
    for name, size in SIZES.items():
        raw[f"{name}_shape"] = STARTS[name] + 0.2 * rng.standard_normal(size)
        raw[f"{name}_mean"] = 0.5 + 0.2 * rng.standard_normal(size)
    return raw


def unpacked(flat):
    raw, begin = {}, 0
    for name, value in start().items():
        raw[name] = flat[begin : begin + value.size].reshape(value.shape)
        begin += value.size
    return raw


def exact_elbo(flat):
    """With one unit a layer no sum is inside a logarithm, and all expectations are those of z, log z and 1 / z."""
    raw, mean, log, inverse, elbo = unpacked(flat), {}, {}, {}, 0.0
    for name in SIZES:
        shape = LEAST_SHAPE + np.log1p(np.exp(raw[f"{name}_shape"]))
        mean[name] = LEAST_MEAN + np.log1p(np.exp(raw[f"{name}_mean"]))
        rate = shape / mean[name]
        log[name] = special.digamma(shape) - np.log(rate)
        inverse[name] = rate / (shape - 1)
        entropy = shape - np.log(rate) + special.loggamma(shape)
        elbo = elbo + (entropy + (1 - shape) * special.digamma(shape)).sum()

    def log_gamma_density(name, log_rate, rate):
        constant = SPARSITY * log_rate - special.loggamma(SPARSITY)
        return (constant + (SPARSITY - 1) * log[name] - rate * mean[name]).sum()

    for name, rate in (("z_2", TOP_RATE), ("w_1", WEIGHT_RATE), ("w_0", WEIGHT_RATE)):
        elbo = elbo + log_gamma_density(name, np.log(rate), rate)
    log_rate = np.log(SPARSITY) - log["z_2"] - log["w_1"]
    elbo = elbo + log_gamma_density("z_1", log_rate, SPARSITY * inverse["z_2"] * inverse["w_1"])
    log_mean = log["z_1"] + log["w_0"]
    return elbo + (X * log_mean - mean["z_1"] * mean["w_0"] - special.loggamma(X + 1)).sum()


def exact_gradient():
    flat = np.concatenate([value.ravel() for value in start().values()])
    return -oracles.gradient(exact_elbo, flat)


def gradients(lib, estimator, num_draws, seed):
    """Estimates of the gradient of the loss, each a mean of 100, `(num_draws, num_params)`."""
    programs = importlib.import_module(f"models.gamma_def.{lib.name}")
    loss, raw, x = lib.Loss(vi.elbo(), estimator, num_samples=100), start(), lib.array(X)
    args = programs.model, programs.guide, x, ONE_UNIT_A_LAYER
    draws = []
    if lib.name == "numpyro":
        import jax

        gradient = jax.jit(jax.grad(lambda params, key: loss.loss(key, params, *args)))
        for key in jax.random.split(jax.random.key(seed), num_draws):
            found = gradient(raw, key)
            draws.append(np.concatenate([np.asarray(found[name]).ravel() for name in raw]))
        return np.array(draws)
    import pyro

    pyro.set_rng_seed(seed % 2**31)
    for name, value in raw.items():
        pyro.param(name, lib.array(value))
    leaves = [pyro.get_param_store()._params[name] for name in raw]
    for _ in range(num_draws):
        for leaf in leaves:
            leaf.grad = lib.xp.zeros_like(leaf)
        loss.loss_and_grads(*args)
        draws.append(np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves]))
    return np.array(draws)


ESTIMATOR = vi.RejectionReparam(0)


def test_gradients(lib, request):
    draws = gradients(lib, ESTIMATOR, 100, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact_gradient())


def test_without_the_score_of_the_noise(lib, request, monkeypatch):
    monkeypatch.setattr(ScoredNoise, "contract", lambda self, downstream: downstream.terms)
    draws = gradients(lib, ESTIMATOR, 100, oracles.seed_of(request.node.name))
    assert oracles.largest_z(draws, exact_gradient()) >= 8


def test_density_with_several_units_a_layer(lib):
    """Of model and data at given values, against SciPy."""
    programs = importlib.import_module(f"models.gamma_def.{lib.name}")
    rng, layers = np.random.default_rng(0), (4, 2)
    sizes = {"w_0": (4, 3), "z_1": (2, 4), "w_1": (2, 4), "z_2": (2, 2)}
    values = {name: rng.gamma(1.0, 1.0, size) for name, size in sizes.items()}
    mean = values["z_2"] @ values["w_1"]
    exact = stats.poisson(values["z_1"] @ values["w_0"]).logpmf(X).sum()
    exact += stats.gamma(SPARSITY, scale=mean / SPARSITY).logpdf(values["z_1"]).sum()
    exact += stats.gamma(SPARSITY, scale=1 / TOP_RATE).logpdf(values["z_2"]).sum()
    for name in ("w_0", "w_1"):
        exact += stats.gamma(SPARSITY, scale=1 / WEIGHT_RATE).logpdf(values[name]).sum()
    given = {name: lib.array(value) for name, value in values.items()}
    if lib.name == "numpyro":
        from numpyro.infer.util import log_density

        found, _ = log_density(programs.model, (lib.array(X), layers), {}, given)
    else:
        from pyro import poutine

        trace = poutine.trace(poutine.condition(programs.model, given))
        found = trace.get_trace(lib.array(X), layers).log_prob_sum()
    assert float(found) == pytest.approx(exact, rel=1e-10)


def test_the_bound_rises(lib):
    """By 100 nats per image, in 50 steps from about -450; it rises by 166 and 190."""
    programs = importlib.import_module(f"models.gamma_def.{lib.name}")
    elbos = programs.fit(load_data(20), vi.RejectionReparam(4), 50, layers=(5,))
    assert elbos[-5:].mean() - elbos[:5].mean() > 100
