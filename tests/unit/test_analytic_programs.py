"""Programs around the values of `Analytic`: layouts, state, and other programs than that of the plan."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

FAMILIES = {
    "gamma": (
        lambda d: d.Gamma,
        ([2.0, 3.0], [1.5, 2.5]),
        lambda a, b: (a / b, a * (a + 1) / b**2),
    ),
    "beta": (
        lambda d: d.Beta,
        ([2.0, 3.0], [1.5, 2.5]),
        lambda a, b: (a / (a + b), a * (a + 1) / ((a + b) * (a + b + 1))),
    ),
    "normal": (lambda d: d.Normal, ([0.4, -0.7], [0.8, 1.1]), lambda m, s: (m, m**2 + s**2)),
    "lognormal": (
        lambda d: d.LogNormal,
        ([0.4, -0.7], [0.5, 0.3]),
        lambda m, s: (np.exp(m + s**2 / 2), np.exp(2 * m + 2 * s**2)),
    ),
    "bernoulli": (lambda d: d.Bernoulli, ([0.3, 0.6],), lambda p: (p, p)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["reshaped", "summed"])
def test_one_site_in_two_layouts(family, case, lib):
    make, params, moments = FAMILIES[family]
    params = [np.array(p) for p in params]
    first, second = moments(*params)

    def wide(z, *shape):
        return z.expand(*shape) if lib.name == "pyro" else lib.xp.broadcast_to(z, shape)

    def f(z):
        z = z * 1.0
        z = z[:, None]
        if case == "summed":
            return (wide(z, 2, 3) * wide(z, 4, 2, 1)).sum()
        return (wide(z, 2, 2).reshape(4) * wide(z, 2, 2, 1).reshape(4)).sum()

    exact = 12 * second.sum() if case == "summed" else second.sum() + 2 * first.prod()

    def guide():
        lib.sample("z", make(lib.dist)(*map(lib.array, params)).to_event(1))

    def model():
        z = lib.sample("z", make(lib.dist)(*map(lib.array, params)).to_event(1))
        lib.factor("f", f(z))

    value = lib.value(lib.Loss(vi.elbo(), vi.Analytic(), max_plate_nesting=0), model, guide, 0)
    np.testing.assert_allclose(value, -exact, rtol=1e-9)


def test_state_that_depends_on_a_value():
    """Of a closed form its expectation; else what it is for the values that the fallback draws."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.primitives import mutable

    from vi_kit.numpyro import Loss

    numpyro.enable_x64()
    start = {"mean": jnp.zeros(()), "steps": jnp.zeros((), int)}

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))

    def model(fn):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        state = mutable("running", dict(start))
        state["mean"], state["steps"] = 0.9 * state["mean"] + 0.1 * fn(z), state["steps"] + 1
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=1.0)

    def state_after(estimator, fn):
        def step(params):
            return Loss(vi.elbo(), estimator).loss_with_mutable_state(
                jax.random.key(0), params, lambda: model(fn), guide
            )["mutable_state"]["running"]

        return jax.jit(step)({"m": jnp.array(0.3), "running": dict(start)})

    after = state_after(vi.Analytic(), lambda z: z)
    np.testing.assert_allclose(after["mean"], 0.03)
    assert after["steps"] == 1
    fallback = vi.Analytic(fallback=vi.Reparam())
    np.testing.assert_allclose(
        state_after(fallback, jnp.tanh)["mean"], state_after(vi.Reparam(), jnp.tanh)["mean"]
    )
    with pytest.raises(
        vi.AnalyticError, match=r"no closed form for tanh[\s\S]*mutable site 'running'"
    ):
        state_after(vi.Analytic(), jnp.tanh)


def test_a_link_that_changes_behind_the_arguments():
    """A term that had a closed form when the plan was made."""
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    link = {"fn": lambda z: 2.0 * z}

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(link["fn"](z), 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    loss = Loss(vi.elbo(), vi.Analytic(fallback=vi.Reparam()))
    at = oracles.log_normal(1.0, 0.0, 1.0)
    np.testing.assert_allclose(loss.loss(model, guide), 2.0 - at)
    link["fn"] = torch.tanh
    z, w = np.polynomial.hermite_e.hermegauss(60)
    exact = -(w / w.sum() * oracles.log_normal(1.0, np.tanh(z), 1.0)).sum()
    draws = np.array([[loss.loss(model, guide)] for _ in range(1000)])
    oracles.check_unbiased(draws, np.array([exact]))


def test_a_bernoulli_value_beside_a_number(lib):
    """The number is made one of the kind of the value, which is no whole one."""
    p, x, scale = 0.4, 0.3, 0.8

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(0.5))
        lib.sample("x", lib.dist.Normal(z, scale), obs=lib.array(x))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(lib.array(p)))

    fit = sum(q * oracles.log_normal(x, z, scale) for z, q in ((1.0, p), (0.0, 1 - p)))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    found = lib.value(lib.Loss(estimators=vi.Analytic()), model, guide, 0)
    np.testing.assert_allclose(found, -(fit + np.log(0.5) + entropy), rtol=1e-10)
