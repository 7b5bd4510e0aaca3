"""What the libraries ship to judge a guide (`psis_diagnostic` of both, NumPyro's `vsbc_diagnostic`), against ours."""

import importlib
from typing import Any

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import NOISE, normals, posterior_of_normals, rows
from vi_kit.workflow.psis import pareto_smoothed

MEAN, SCALE = posterior_of_normals()


def test_k_is_that_of_numpyro():
    """By NumPyro's own weights the same number; of our draws one that varies as little."""
    jax = importlib.import_module("jax")
    importance = importlib.import_module("numpyro.infer.importance")
    lib = importlib.import_module("tests.libraries").NumPyroWords()
    # k of a Normal that is too narrow is 1 - (0.8)^2 = 0.36; mutant: one that is wide has none
    model, guide, args = normals(lib, loc=MEAN, scale=0.8 * SCALE)
    params = {"theta": lib.array(np.array([MEAN]))}
    key, num = jax.random.key(0), 4000
    theirs = importance.psis_diagnostic(key, params, model, guide, *args, num_particles=num)

    def weight(key):
        return importance._compute_log_weights(key, params, model, guide, args, {})

    weights = np.asarray(jax.vmap(weight)(jax.random.split(key, num)), float)
    assert pareto_smoothed(weights)[1] == pytest.approx(theirs, abs=1e-3)
    ours = vi.diagnose(lib.Loss(), model, guide, *args, num_samples=num, num_gradients=0)
    assert abs(ours.pareto_k - theirs) < 0.2 and abs(theirs - 0.36) < 0.2
    assert abs(ours.elbo - weights.mean()) < 5 * 2**0.5 * ours.elbo_error


def test_k_is_that_of_pyro():
    """It draws by itself, and does not weigh k with a half, as the two others do by ten numbers of the tail."""
    pyro = importlib.import_module("pyro")
    diagnostic = importlib.import_module("pyro.infer.importance").psis_diagnostic
    lib = importlib.import_module("tests.libraries").PyroWords()
    model, guide, args = normals(lib, loc=MEAN, scale=0.8 * SCALE)
    pyro.set_rng_seed(0)
    num, own = 4000, {"max_plate_nesting": 1}
    theirs = np.mean(
        [float(diagnostic(model, guide, *args, num_particles=num, **own)) for _ in range(5)]
    )
    settings: dict[str, Any] = {"num_samples": num, "num_gradients": 0}
    ours = np.mean(
        [
            vi.diagnose(lib.Loss(), model, guide, *args, seed=i, **settings).pareto_k
            for i in range(5)
        ]
    )
    tail = 3 * num**0.5
    assert abs((theirs * tail + 5) / (tail + 10) - ours) < 0.15


def vsbc(lib, guide, num_simulations):
    """By NumPyro, of a guide that is amortised and stays as it is."""
    jax, numpyro = importlib.import_module("jax"), importlib.import_module("numpyro")
    calibration = importlib.import_module("numpyro.infer.calibration")

    def model(x=None):
        with lib.plate("data", 4):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    return calibration.vsbc_diagnostic(
        jax.random.PRNGKey(0),  # a key of the newer kind fails there
        model,
        lambda x=None: guide(lib.array(np.zeros(4)) if x is None else x),
        numpyro.optim.SGD(1e-12),
        numpyro.infer.Trace_ELBO(),
        observed_sites=["x"],
        num_simulations=num_simulations,
        num_svi_steps=1,
        num_samples=100,
    )


@pytest.mark.parametrize("scale", [None, 0.1], ids=["exact", "narrow"])
def test_calibration_is_that_of_numpyro(scale):
    """The same probabilities. Theirs are compared with their mirror image, ours with what is uniform."""
    lib = importlib.import_module("tests.libraries").NumPyroWords()
    model, guide, args = rows(lib, scale=scale)
    settings: dict[str, Any] = {"num_simulations": 30, "num_samples": 100}
    ours = vi.calibrate(lib.Loss(), model, guide, *args, **settings)
    theirs = vsbc(lib, guide, 60)
    a, b = ours.ranks["z"].ravel(), np.asarray(theirs.probabilities["z"]).ravel()
    for moment in (lambda p: p, lambda p: (p - 0.5) ** 2):
        x, y = moment(a), moment(b)
        error = np.hypot(x.std() / len(x) ** 0.5, y.std() / len(y) ** 0.5)
        assert abs(x.mean() - y.mean()) < 5 * error
    assert ours.passed is (scale is None)
    # what a mirror image shows: nothing of how narrow the guide is
    assert abs(b.mean() - 0.5) < 5 * b.std() / len(b) ** 0.5
