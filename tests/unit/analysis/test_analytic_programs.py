"""Programs around the values of `Analytic`: layouts, state, and other programs than that of the plan."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import NumPyroWords

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


MASKS = {
    "equal": lambda z: z == 0,
    "less": lambda z: z < 1,
    "not_equal": lambda z: z != 1,
    "both": lambda z: (z != 1) & (z < 1),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("estimator", [None, vi.Analytic(fallback=vi.Score())], ids=repr)
def test_a_mask_made_of_a_value(estimator, mask, lib):
    """What `&` makes of two truth values has no closed form; nor has a mask in NumPyro, which hides the data too."""
    p, x, scale = np.array([0.4, 0.7]), np.array([0.3, -1.1]), 0.8
    is_closed = mask != "both" and lib.name == "pyro"
    estimator = estimator or (vi.Analytic() if is_closed else vi.Enumerate())

    def model():
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Bernoulli(0.5))
            with lib.handlers.mask(mask=MASKS[mask](z)):
                lib.sample("x", lib.dist.Normal(0.0, scale), obs=lib.array(x))

    def guide():
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Bernoulli(lib.theta(p)))

    fit = (1 - p) * oracles.log_normal(x, 0.0, scale)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    slope = oracles.log_normal(x, 0.0, scale) + np.log(p) - np.log(1 - p)
    loss, is_exact = lib.Loss(estimators=estimator), is_closed or estimator == vi.Enumerate()
    found = lib.estimates(loss, model, guide, p, 1 if is_exact else 400, 0)
    exact = np.array([-(fit + np.log(0.5) + entropy).sum(), *slope])
    if is_exact:
        np.testing.assert_allclose(found[0], exact, rtol=1e-10)
    else:
        oracles.check_unbiased(found, exact)


def test_an_ordered_value_has_the_moments_of_a_categorical(lib):
    values = np.array([0.3])

    def ordered(q):
        return lib.dist.OrderedLogistic(q, lib.array([-0.5, 0.6]))

    def model():
        with lib.plate("data", 2):
            z = lib.sample("z", ordered(lib.array(0.1)))
            lib.sample("x", lib.dist.Normal(1.0 * z, 0.8), obs=lib.array([0.7, 1.1]))

    def guide():
        with lib.plate("data", 2):
            lib.sample("z", ordered(lib.theta(values)[0]))

    def slope(estimator):
        return lib.gradients(lib.Loss(vi.elbo(), estimator), model, guide, values, 1, 3)

    exact = slope(vi.Enumerate())
    for estimator in (vi.Analytic(), vi.Analytic(fallback=vi.Score())):
        np.testing.assert_allclose(slope(estimator), exact, rtol=1e-9)


def test_a_mean_on_the_circle_is_none(lib):
    values = np.array([2.3])

    def model():
        z = lib.sample("z", lib.dist.VonMises(0.1, 1.0))
        lib.sample("x", lib.dist.Normal(z, 0.8), obs=lib.array(0.7))

    def guide():
        lib.sample("z", lib.dist.VonMises(lib.theta(values)[0], 1.5))

    def draws(estimator):
        return lib.gradients(lib.Loss(vi.elbo(), estimator), model, guide, values, 3, 3)

    fallback = vi.Analytic(fallback=vi.Score())
    np.testing.assert_allclose(draws(fallback), draws(vi.Score()))
    with pytest.raises(vi.EstimatorError, match="needs the mean and the variance of VonMises"):
        draws(vi.Analytic())


def test_a_count_that_stands_for_an_index():
    """In NumPyro it is a whole number, whatever its mean is."""
    import jax.numpy as jnp

    lib, values = NumPyroWords(), np.array([0.3])

    def model():
        z = lib.sample("z", lib.dist.Binomial(2, 0.5))
        lib.sample("x", lib.dist.Normal(jnp.array([0.4, -1.0, 2.0])[z], 0.8), obs=2.5)

    def guide():
        lib.sample("z", lib.dist.Binomial(2, logits=lib.theta(values)[0]))

    def draws(estimator, num):
        return lib.gradients(lib.Loss(vi.elbo(), estimator), model, guide, values, num, 3)

    found = draws(vi.Analytic(fallback=vi.Score()), 1200)
    oracles.check_unbiased(found, draws(vi.Enumerate(), 1)[0])
    with pytest.raises(
        vi.AnalyticError, match=r"vi.Analytic\(fallback=vi.Score\(\)\)}, or vi.Score"
    ):
        draws(vi.Analytic(), 1)


SAME = {
    "itself": lambda z: z,
    "moved": lambda z: z[..., None][..., 0],
    "added": lambda z: z + 0.0,
    "times": lambda z: 1.0 * z,
    "power": lambda z: z**1.0,
}


@pytest.mark.parametrize(
    ("family", "case"),
    [*(("bernoulli", case) for case in SAME), ("categorical", "times"), ("categorical", "added")],
)
def test_numbers_beside_a_value_are_not_rounded(family, case, lib):
    """As they are beside whole numbers in Pyro, whose Bernoulli has floating ones."""
    values = np.array([0.3, -0.4])

    def site(q):
        if family == "bernoulli":
            return lib.dist.Bernoulli(logits=q[0])
        return lib.dist.Categorical(logits=q)

    def model():
        z = lib.sample("z", site(lib.array(np.zeros(2))))
        lib.sample("x", lib.dist.Normal(SAME[case](z), 1.7), obs=lib.array(2.4))

    def guide():
        lib.sample("z", site(lib.theta(values)))

    def slope(estimator):
        return lib.gradients(lib.Loss(vi.elbo(), estimator), model, guide, values, 1, 0)

    np.testing.assert_allclose(slope(vi.Analytic()), slope(vi.Enumerate()), rtol=1e-6)
