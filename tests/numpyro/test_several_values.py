"""Programs that look at one value of a site that has several: what they see, and what is computed for it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import gradients
from vi_kit.numpyro import Loss

THETA = np.array([0.3, -0.4, 0.9])
VALUES = np.array(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij")).reshape(3, -1).T


def exact(log_likelihood):
    """The gradient of minus the ELBO of three bits with a fair prior, by enumeration."""

    def minus_bound(theta):
        log_q = (VALUES * theta - np.log1p(np.exp(theta))).sum(-1)
        log_p = 3 * np.log(0.5) + np.array([log_likelihood(z) for z in VALUES])
        return -(np.exp(log_q) * (log_p - log_q)).sum()

    return oracles.gradient(minus_bound, THETA)


def guide():
    theta = numpyro.param("theta", jnp.asarray(THETA))
    numpyro.sample("z", dist.Bernoulli(logits=theta).to_event(1))


def of(log_likelihood):
    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1))
        numpyro.factor("x", log_likelihood(z))

    return model


def test_an_operation_that_cannot_be_mapped():
    def outside(z):
        like = jax.ShapeDtypeStruct((), jnp.result_type(float))
        return jax.pure_callback(lambda v: np.sin(v.sum()) + v[0] * v[1], like, z * 1.0)

    draws = gradients(Loss(), of(outside), guide, {"theta": THETA}, 1)
    np.testing.assert_allclose(draws[0], exact(lambda z: np.sin(z.sum()) + z[0] * z[1]), atol=1e-8)


@pytest.mark.parametrize("estimator", [None, vi.MeasureValued(), vi.DisARM()], ids=repr)
def test_control_flow_over_the_value(estimator):
    def looped(z):
        def step(carry, bit):
            return jax.lax.cond(bit > 0.5, lambda c: 2 * c + 1, lambda c: c - 1, carry), carry

        last, path = jax.lax.scan(step, 0.0, z)
        return jax.vmap(lambda c: c**2)(path).sum() * -0.1 + 0.3 * last

    def by_hand(z):
        carry, path = 0.0, []
        for bit in z:
            path.append(carry)
            carry = 2 * carry + 1 if bit > 0.5 else carry - 1
        return -0.1 * np.square(path).sum() + 0.3 * carry

    loss = Loss(estimators=estimator, num_samples=10)
    num_draws = 1 if estimator is None else 2000
    draws = gradients(loss, of(looped), guide, {"theta": THETA}, num_draws)
    if estimator is None:
        np.testing.assert_allclose(draws[0], exact(by_hand), atol=1e-8)
    else:
        oracles.check_unbiased(draws, exact(by_hand))


def test_the_program_sees_its_own_shape():
    shapes = []

    def model():
        with numpyro.plate("data", 5):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
        shapes.append(z.shape)

    def local():
        with numpyro.plate("data", 5):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("w", jnp.zeros(5))))

    for estimator in (vi.Enumerate(), vi.MeasureValued()):
        loss = Loss(vi.iwae(num_particles=2), estimator, num_samples=3)
        loss.loss(jax.random.key(0), {"w": jnp.zeros(5)}, model, local)
    assert set(shapes) == {(5,)}


def num_operations(jaxpr: Jaxpr, name: str) -> int:
    """How often an operation stands in a jaxpr and in what it calls."""
    bodies = [v for e in jaxpr.eqns for v in e.params.values() if isinstance(v, ClosedJaxpr)]
    own = sum(e.primitive.name == name for e in jaxpr.eqns)
    return own + sum(num_operations(body.jaxpr, name) for body in bodies)


def test_alternatives_are_compared_and_not_differentiated():
    """The matrix product for the drawn value has a derivative; that for the alternatives has none."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1))
        weights = numpyro.param("weights", jnp.ones((3, 7)))
        numpyro.sample("x", dist.Normal((z @ weights).sum(), 1.0), obs=0.3)

    def products(estimator):
        loss = Loss(estimators=estimator)

        def value(params):
            return loss.loss(jax.random.key(0), params, model, guide)

        params = {"theta": jnp.asarray(THETA), "weights": jnp.ones((3, 7))}
        return num_operations(jax.make_jaxpr(jax.grad(value))(params).jaxpr, "dot_general")

    assert products(vi.MeasureValued()) - products(vi.Score()) == 1
