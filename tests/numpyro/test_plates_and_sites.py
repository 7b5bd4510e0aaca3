"""Minibatches, annotations of sites, auxiliary sites and enumeration, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.autoguide import AutoNormal
from scipy import stats

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import X, gradients, value
from vi_kit.numpyro import Loss

COINS = np.array([0.3, -0.5, 0.8, 0.1])


def minibatch_model():
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 4, subsample_size=2) as batch:
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=jnp.asarray(X)[batch])


def minibatch_guide():
    a = numpyro.param("a", 0.4)
    c = numpyro.param("c", jnp.zeros(4))
    loc = numpyro.sample("loc", dist.Normal(a, 0.7))
    with numpyro.plate("data", 4, subsample_size=2) as batch:
        numpyro.sample("z", dist.Normal(c[batch] + loc, 0.5))


def test_gradient_of_minibatches_is_that_of_all_the_data():
    def minus_bound(theta):
        a, c = theta[0], theta[1:]
        return 0.5 * a**2 + 0.5 * (c**2).sum() + 2 * ((a + c - X) ** 2).sum()

    theta = np.array([0.4, 0.5, -0.2, 0.1, 0.3])
    params = {"a": theta[0], "c": theta[1:]}
    draws = gradients(Loss(num_samples=20), minibatch_model, minibatch_guide, params, 2000)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, theta))


@pytest.mark.parametrize("vectorize", [True, False])
def test_model_guide_and_replicates_share_the_minibatch(vectorize):
    """A point guide per datum: only the same elements give the same value in every replicate."""

    def model():
        with numpyro.plate("data", 4, subsample_size=2) as batch:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z - jnp.arange(4.0)[batch], 0.01), obs=jnp.zeros(2))

    def guide():
        with numpyro.plate("data", 4, subsample_size=2) as batch:
            numpyro.sample("z", dist.Delta(jnp.arange(4.0)[batch]))

    loss = Loss(vi.iwae(num_particles=3), num_samples=2, vectorize=vectorize)
    losses = jax.jit(jax.vmap(lambda key: loss.loss(key, {}, model, guide)))
    values = {round(float(v), 9) for v in losses(jax.random.split(jax.random.key(0), 25))}
    likelihood = stats.norm(0, 0.01).logpdf(0.0)
    possible = {
        round(-2 * (stats.norm.logpdf([i, j]).sum() + 2 * likelihood), 9)
        for i in range(4)
        for j in range(i)
    }
    assert values <= possible
    assert len(values) >= 3


def coins_model():
    with numpyro.plate("data", 4):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=X)


def coins_guide():
    logits = numpyro.param("logits", COINS)
    with numpyro.plate("data", 4):
        numpyro.sample("z", dist.Bernoulli(logits=logits))


def minus_coins_bound(logits):
    total = 0.0
    for z in (0.0, 1.0):
        log_q = oracles.log_bernoulli(logits, z)
        log_p = z * np.log(0.3) + (1 - z) * np.log(0.7) + oracles.log_normal(X, 1.5 * z, 1.0)
        total = total - (np.exp(log_q) * (log_p - log_q)).sum()
    return total


@pytest.mark.parametrize("num_samples", [1, 2])
def test_enumeration_is_exact(num_samples):
    loss = Loss(num_samples=num_samples)
    expected = minus_coins_bound(COINS)
    assert value(loss, coins_model, coins_guide, {"logits": COINS}) == pytest.approx(expected)
    got = gradients(loss, coins_model, coins_guide, {"logits": COINS}, 1)[0]
    np.testing.assert_allclose(got, oracles.gradient(minus_coins_bound, COINS), atol=1e-12)


@pytest.mark.parametrize(
    "estimator", [vi.Score(), vi.Score(vi.LeaveOneOut()), vi.MeasureValued()], ids=repr
)
def test_annotated_estimators(estimator):
    def annotated():
        logits = numpyro.param("logits", COINS)
        with numpyro.plate("data", 4):
            numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"estimator": estimator})

    loss = Loss(num_samples=8)
    table = loss.explain(coins_model, annotated)
    assert repr(estimator) in table and "infer" in table
    draws = gradients(loss, coins_model, annotated, {"logits": COINS}, 2000)
    oracles.check_unbiased(draws, oracles.gradient(minus_coins_bound, COINS))


def test_auxiliary_bernoulli_site_is_enumerated():
    """A mixture of two Normals as a guide, whose coin the model guesses: the bound in closed form."""
    theta = np.array([0.4, -0.3, 0.6])

    def model():
        numpyro.sample("loc", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Bernoulli(0.3))

    def guide():
        t = numpyro.param("theta", theta)
        b = numpyro.sample("b", dist.Bernoulli(logits=t[0]), infer={"is_auxiliary": True})
        numpyro.sample("loc", dist.Normal(t[1] + t[2] * b, 0.5))

    def minus_bound(t):
        total = 0.0
        for b in (0, 1):
            log_q = oracles.log_bernoulli(t[0], b)
            log_p = -0.5 * ((t[1] + t[2] * b) ** 2 + 0.25) + 0.5 + np.log(0.5)
            log_p = log_p + np.log(0.3 if b else 0.7)
            total = total - np.exp(log_q) * (log_p - log_q)
        return total

    draws = gradients(Loss(num_samples=20), model, guide, {"theta": theta}, 1000)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, theta))


def test_site_observed_in_the_guide():
    def model():
        numpyro.sample("loc", dist.Normal(0.0, 1.0))

    def guide():
        numpyro.sample("loc", dist.Delta(0.4))
        numpyro.sample("seen", dist.Normal(0.4, 1.0), obs=0.2, infer={"is_auxiliary": True})

    expected = stats.norm.logpdf(0.4) - stats.norm(0.4, 1).logpdf(0.2)
    assert value(Loss(), model, guide, {}) == pytest.approx(-expected)


def test_explain_lists_every_site():
    table = Loss().explain(minibatch_model, minibatch_guide)
    assert "loc" in table and "data" in table and "Reparam()" in table
    assert "Enumerate(max_worlds=64)" in Loss().explain(coins_model, coins_guide)


def test_chain_of_enumerated_sites():
    """Three coins, each depending on the one before; every term and gradient by full enumeration."""
    theta = np.array([0.3, -0.4, 0.7])

    def chain(logits, carry):
        previous = 0.0
        for i, logit in enumerate(logits):
            previous = numpyro.sample(f"z{i}", dist.Bernoulli(logits=logit + carry * previous))
        return previous

    def model():
        last = chain(jnp.zeros(3), 1.0)
        numpyro.sample("x", dist.Normal(last, 1.0), obs=1.5)

    def guide():
        chain(numpyro.param("theta", theta), 0.5)

    def minus_bound(t):
        total = 0.0
        for z in np.ndindex(2, 2, 2):
            log_q, log_p, previous = 0.0, 0.0, 0.0
            for logit, bit in zip(t, z, strict=True):
                log_q = log_q + oracles.log_bernoulli(logit + 0.5 * previous, bit)
                log_p = log_p + oracles.log_bernoulli(1.0 * previous, bit)
                previous = bit
            log_p = log_p + oracles.log_normal(1.5, previous, 1.0)
            total = total - np.exp(log_q) * (log_p - log_q)
        return total

    got = gradients(Loss(), model, guide, {"theta": theta}, 1)[0]
    np.testing.assert_allclose(got, oracles.gradient(minus_bound, theta), atol=1e-12)


def rows_model():
    with numpyro.plate("data", 4, subsample_size=2) as batch:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=jnp.asarray(X)[batch])


def test_a_minibatch_that_only_the_model_is_given():
    rows = {"data": jnp.array([3, 1])}
    model = numpyro.handlers.substitute(rows_model, rows)
    guide = AutoNormal(rows_model)
    with numpyro.handlers.seed(rng_seed=0):
        guide()
    with pytest.raises(vi.ObjectiveError, match="'data': model and guide are on different mini"):
        value(Loss(), model, guide, {})
    assert np.isfinite(value(Loss(), model, numpyro.handlers.substitute(guide, rows), {}))


@pytest.mark.parametrize("inside", [0, 1, 2])
def test_minibatches_inside_control_flow(inside):
    """Model and guide are on the same elements: a point guide gives one value per pair of elements."""
    data = jnp.arange(4.0)

    def steps(step):
        if inside == 0:
            step()
        elif inside == 1:
            scan(lambda carry, x: (carry, step()), 0.0, jnp.arange(3))
        else:
            cond(jnp.array(True), lambda _: step(), lambda _: step(), None)

    def model():
        def step():
            with numpyro.plate("data", 4, subsample_size=2) as batch:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z - data[batch], 0.01), obs=jnp.zeros(2))

        steps(step)

    def guide():
        def step():
            with numpyro.plate("data", 4, subsample_size=2) as batch:
                numpyro.sample("z", dist.Delta(data[batch]))

        steps(step)

    losses = jax.jit(jax.vmap(lambda key: Loss().loss(key, {}, model, guide)))
    values = {round(float(v), 6) for v in losses(jax.random.split(jax.random.key(0), 25))}
    likelihood = 2 * stats.norm(0, 0.01).logpdf(0.0)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    steps_of = 3 if inside == 1 else 1
    possible = {round(-steps_of * 2 * (stats.norm.logpdf(p).sum() + likelihood), 6) for p in pairs}
    assert values <= possible
    assert len(values) >= 3


def test_a_parameter_of_a_function_of_the_draw():
    """SVI trains what model and guide declare; one that only the objective knows would stay as it is."""

    def program():
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.3), 1.0))

    @vi.objective
    def weighted(model, guide):
        return vi.evaluate(lambda v: numpyro.param("w", 2.0) * v["z"], vi.simulate(guide))

    with pytest.raises(vi.ObjectiveError, match="parameter 'w' of the objective is not among"):
        gradients(Loss(weighted()), program, program, {"a": 0.3}, 1)
    draws = gradients(Loss(weighted()), program, program, {"a": 0.3, "w": 2.0}, 4)
    np.testing.assert_allclose(draws[:, 0], -2.0)
    assert abs(draws[:, 1]).min() > 0
    assert "Reparam" in Loss(weighted()).explain(program, program)


def test_a_discrete_site_with_a_batch_dim_in_no_plate():
    """NumPyro sums it, so it cannot be enumerated element by element; the default samples it."""
    logits = np.array([0.3, -0.6, 0.8])

    def program(logits):
        return numpyro.sample("z", dist.Bernoulli(logits=logits))

    def model():
        program(jnp.zeros(3))

    def guide():
        program(numpyro.param("theta", jnp.asarray(logits)))

    loss = Loss(num_samples=20)
    assert "a batch dim is in no plate" in loss.explain(model, guide)
    q = 1 / (1 + np.exp(-logits))
    grad = jax.jit(jax.grad(lambda p, k: loss.loss(k, p, model, guide)))
    keys = jax.random.split(jax.random.key(7), 200)
    draws = np.array([grad({"theta": jnp.asarray(logits)}, k)["theta"] for k in keys])
    oracles.check_unbiased(draws, q * (1 - q) * logits)
