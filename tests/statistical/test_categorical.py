"""Estimators of Categorical sites, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import (
    Mixture,
    ShiftedMixture,
    exact,
    expectation,
    log_mean_exp,
)

OF_CATEGORICAL = {
    "disarm": vi.DisARM(),
    "sum_and_sample": vi.SumAndSample(1),
    "without_replacement": vi.WithoutReplacement(2),
}
BOUNDS = {
    "elbo": (vi.elbo(), 1, lambda w: w[0]),
    "iwae": (vi.iwae(num_particles=2), 2, log_mean_exp),
    "miwae": (vi.miwae(num_outer=2, num_inner=2), 2, log_mean_exp),
    "renyi": (vi.renyi(alpha=0.5, num_particles=2), 2, lambda w: log_mean_exp(w / 2) * 2),
}


@pytest.mark.parametrize("estimator", OF_CATEGORICAL)
@pytest.mark.parametrize("bound", BOUNDS)
def test_sites_in_a_plate(bound, estimator, lib, request):
    objective, num_copies, fn = BOUNDS[bound]

    def value(theta):
        return sum(expectation(q, num_copies, fn, w) for q, w in Mixture.tables(theta))

    loss = lib.Loss(objective, OF_CATEGORICAL[estimator], num_samples=1000)
    draws = Mixture(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(value, Mixture.values))


@pytest.mark.parametrize("above", ["score", "measure"])
@pytest.mark.parametrize("estimator", OF_CATEGORICAL)
@pytest.mark.parametrize("num_particles", [1, 2])
def test_sites_drawn_given_another(num_particles, estimator, above, lib, request):
    """The plate below a global site, whose own alternatives give it other values."""
    first = {"score": vi.Score(vi.LeaveOneOut()), "measure": vi.MeasureValued()}[above]
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=2)
    loss = lib.Loss(objective, {"m": first, "z": OF_CATEGORICAL[estimator]}, num_samples=1000)
    draws = ShiftedMixture(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(ShiftedMixture, num_particles))


@pytest.mark.parametrize("estimator", [vi.WithoutReplacement(3), vi.SumAndSample(2)], ids=repr)
def test_exact_once_all_values_are_there(estimator, lib):
    draws = Mixture(lib).gradients(lib.Loss(vi.elbo(), estimator), 2, 0)
    np.testing.assert_allclose(draws, [exact(Mixture, 1)] * 2, rtol=0, atol=1e-10)


def chain(lib, theta):
    """Two Categorical sites of four values, the second given the first."""
    logits = theta.reshape((4, 5))

    def guide():
        first = lib.sample("first", lib.dist.Categorical(logits=logits[:, 0]))
        second = lib.dist.Categorical(logits=logits[:, 1:].T[first])
        lib.sample("second", second)

    def model():
        first = lib.sample("first", lib.dist.Categorical(logits=lib.array(np.zeros(4))))
        second = lib.sample("second", lib.dist.Categorical(logits=lib.array(np.zeros(4))))
        lib.sample("x", lib.dist.Normal(0.5 * first + second, 1.0), obs=lib.array(2.5))

    return model, guide


VALUES = np.random.default_rng(0).normal(size=20)


def bound_of_chain(num_particles):
    def value(theta):
        logits = theta.reshape((4, 5))
        log_q = logits - np.log(np.exp(logits).sum(axis=0))
        joint = (log_q[:, 0][:, None] + log_q[:, 1:].T).ravel()
        first, second = np.indices((4, 4))
        log_p = -2 * np.log(4) + oracles.log_normal(2.5, 0.5 * first + second, 1.0).ravel()
        return expectation(joint, num_particles, log_mean_exp, log_p - joint)

    return -oracles.gradient(value, VALUES)


@pytest.mark.parametrize(
    "estimator",
    [vi.DisARM(), vi.SumAndSample(2), vi.WithoutReplacement(2), vi.WithoutReplacement(3)],
    ids=repr,
)
@pytest.mark.parametrize("num_particles", [1, 2])
def test_a_chain(num_particles, estimator, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=2)
    model, guide = (lambda program=i: chain(lib, lib.theta(VALUES))[program]() for i in range(2))
    loss = lib.Loss(objective, estimator, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, model, guide, VALUES, 40, seed)
    oracles.check_unbiased(draws, bound_of_chain(num_particles))


@pytest.mark.parametrize(
    "estimator", [vi.DisARM(), vi.SumAndSample(2), vi.WithoutReplacement(3)], ids=repr
)
def test_peaked_probabilities_in_single_precision(estimator):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from vi_kit.numpyro import Loss

    def model():
        z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(8, jnp.float32)))
        numpyro.factor("f", z * jnp.float32(0.5))

    def guide():
        logits = numpyro.param("logits", jnp.zeros(8, jnp.float32))
        numpyro.sample("z", dist.Categorical(logits=logits))

    def gradients(estimator):
        def loss(logits, key):
            return Loss(vi.elbo(), estimator).loss(key, {"logits": logits}, model, guide)

        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))

    ours, exact = gradients(estimator), gradients(vi.Enumerate())
    keys = jax.random.split(jax.random.key(0), 50)
    for top in (17.0, 20.0, 40.0):
        logits = jnp.zeros(8, jnp.float32).at[0].set(top)
        draws = np.asarray(ours(logits, keys))
        assert np.isfinite(draws).all(), top
        expected = exact(logits, keys[:1])[0]
        np.testing.assert_allclose(draws.mean(axis=0), expected, atol=1e-4, err_msg=str(top))


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (vi.WithoutReplacement(4), "needs at least 4 values; Categorical has 3"),
        (vi.SumAndSample(3), "needs at least 4 values; Categorical has 3"),
        (vi.DisARM(arm=True), "needs Bernoulli elements; Categorical has none"),
    ],
)
def test_too_few_values(estimator, text, lib):
    with pytest.raises(vi.EstimatorError, match=text):
        Mixture(lib).gradients(lib.Loss(vi.elbo(), estimator), 1, 0)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: vi.WithoutReplacement(1),
            vi.ObjectiveError,
            "k must be a whole number of at least 2",
        ),
        (lambda: vi.WithoutReplacement(7), vi.EstimatorError, "k must be at most 6"),
        (lambda: vi.SumAndSample(0), vi.ObjectiveError, "num_summed must be a whole number"),
    ],
)
def test_counts_out_of_range(make, error, text):
    with pytest.raises(error, match=text):
        make()
