"""Effect handlers and annotations around models, mostly at a point guide, where the loss is exact."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from scipy import special, stats

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import POSITIVE, X, gradients, value
from vi_kit.numpyro import Loss

MASK = np.array([True, False, True, True])
LOSSES = [Loss(), Loss(num_samples=2), Loss(vi.iwae(num_particles=2))]
LOC, Z = 0.4, np.array([0.1, -0.2, 0.3, 0.6])


def normal(x, loc, scale):
    return stats.norm(loc, scale).logpdf(x)


def model(x=X):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def point(loc=LOC, z=Z):
    """A guide that puts all its mass on one value."""
    numpyro.sample("loc", dist.Delta(loc))
    if z is not None:
        with numpyro.plate("data", len(z)):
            numpyro.sample("z", dist.Delta(z))


def check_value(model, guide, log_joint, params=None):
    """The loss of every objective at a point guide is minus the log joint density."""
    for loss in LOSSES:
        assert value(loss, model, guide, params or {}) == pytest.approx(-log_joint, rel=1e-10)


def test_point_guide():
    check_value(model, point, normal(LOC, 0, 1) + normal(Z, LOC, 1).sum() + normal(X, Z, 0.5).sum())


def test_scale_and_mask():
    def scaled():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 4), handlers.scale(scale=0.3), handlers.mask(mask=MASK):
            numpyro.sample("x", dist.Normal(loc, 0.5), obs=X)
        numpyro.sample("y", dist.Normal(loc, 0.5).mask(False), obs=3.0)

    expected = normal(LOC, 0, 1) + 0.3 * normal(X, LOC, 0.5)[MASK].sum()
    check_value(scaled, lambda: point(z=None), expected)


def test_mask_hides_the_gradient_of_masked_elements():
    def masked(fn):
        def program():
            with numpyro.plate("data", 4), handlers.mask(mask=MASK):
                fn()

        return program

    @masked
    def masked_model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=X)

    @masked
    def masked_guide():
        numpyro.sample("z", dist.Normal(numpyro.param("c", np.zeros(4)), 0.5))

    c = np.array([0.9, 0.2, -0.3, 0.4])
    exact = np.where(MASK, c + (c - X) / 0.25, 0.0)
    draws = gradients(Loss(num_samples=10), masked_model, masked_guide, {"c": c}, 400)
    assert np.all(draws[:, 1] == 0)
    oracles.check_unbiased(draws, exact)


def test_block_substitute_and_condition():
    prior = normal(LOC, 0, 1)
    hidden = handlers.block(model, hide=["z", "x"])
    hidden = handlers.seed(hidden, 0)
    check_value(hidden, lambda: point(z=None), prior)
    expected = prior + normal(X + 0.1, LOC, 1).sum() + normal(X, X + 0.1, 0.5).sum()
    conditioned = handlers.condition(model, data={"z": X + 0.1})
    check_value(conditioned, lambda: point(z=None), expected)
    with_param = handlers.substitute(
        lambda: point(loc=numpyro.param("loc_param", 0.0)), data={"loc_param": LOC}
    )
    check_value(model, with_param, prior + normal(Z, LOC, 1).sum() + normal(X, Z, 0.5).sum())


def test_factors_and_deterministic_sites():
    def with_factors():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        rate = numpyro.deterministic("rate", jnp.exp(loc))
        numpyro.factor("prior", -rate)
        with numpyro.plate("data", 4):
            numpyro.factor("likelihood", -((rate + X - 1.0) ** 2))

    expected = normal(LOC, 0, 1) - np.exp(LOC) - ((np.exp(LOC) + X - 1) ** 2).sum()
    check_value(with_factors, lambda: point(z=None), expected)


def test_factor_in_the_guide():
    def factor_guide():
        point()
        numpyro.factor("correction", 0.7)

    expected = normal(LOC, 0, 1) + normal(Z, LOC, 1).sum() + normal(X, Z, 0.5).sum() - 0.7
    check_value(model, factor_guide, expected)


def test_loc_scale_reparam():
    reparam = handlers.reparam(model, config={"z": LocScaleReparam(0.0)})

    def decentered():
        point(z=None)
        with numpyro.plate("data", 4):
            numpyro.sample("z_decentered", dist.Delta(Z))

    expected = normal(LOC, 0, 1) + normal(Z, 0, 1).sum() + normal(X, LOC + Z, 0.5).sum()
    check_value(reparam, decentered, expected)


def test_transform_reparam():
    transform = dist.transforms.AffineTransform(1.0, 2.0)

    def affine():
        base = dist.TransformedDistribution(dist.Normal(0.0, 1.0), transform)
        loc = numpyro.sample("loc", base)
        numpyro.sample("x", dist.Normal(loc, 0.5), obs=0.2)

    reparam = handlers.reparam(affine, config={"loc": TransformReparam()})
    expected = normal(LOC, 0, 1) + normal(0.2, 1 + 2 * LOC, 0.5)
    check_value(reparam, lambda: numpyro.sample("loc_base", dist.Delta(LOC)), expected)


def test_observed_by_a_mask():
    def partly_observed():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 4):
            numpyro.sample("x", dist.Normal(loc, 0.5), obs=X, obs_mask=MASK)

    def imputing():
        point(z=None)
        with numpyro.plate("data", 4):
            numpyro.sample("x_unobserved", dist.Delta(Z))

    filled = np.where(MASK, X, Z)
    check_value(partly_observed, imputing, normal(LOC, 0, 1) + normal(filled, LOC, 0.5).sum())


def test_sample_shape():
    def repeated():
        numpyro.sample("loc", dist.Normal(0.0, 1.0), sample_shape=(3,))

    def repeated_guide():
        numpyro.sample("loc", dist.Normal(numpyro.param("m", 0.0), 1.0), sample_shape=(3,))

    draws = gradients(Loss(num_samples=10), repeated, repeated_guide, {"m": 0.8}, 500)
    oracles.check_unbiased(draws, np.array([3 * 0.8]))


def test_undeclared_batch_dims_are_summed():
    def undeclared():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(loc, 0.5), obs=X)
        with numpyro.plate("data", 4):
            numpyro.sample("y", dist.Normal(loc, 0.5), obs=np.stack([X, 2 * X, 3 * X]))

    rows = np.stack([X, X, 2 * X, 3 * X])
    check_value(undeclared, lambda: point(z=None), normal(LOC, 0, 1) + normal(rows, LOC, 0.5).sum())


def test_nested_plates():
    x = np.arange(6.0).reshape(3, 2) / 5

    def nested():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("outer", 2, dim=-1):
            a = numpyro.sample("a", dist.Normal(loc, 1.0))
            with numpyro.plate("inner", 3, dim=-2), handlers.scale(scale=2.0):
                numpyro.sample("x", dist.Normal(a, 0.5), obs=x)

    def nested_point():
        point(z=None)
        with numpyro.plate("outer", 2, dim=-1):
            numpyro.sample("a", dist.Delta(Z[:2]))

    expected = normal(LOC, 0, 1) + normal(Z[:2], LOC, 1).sum() + 2 * normal(x, Z[:2], 0.5).sum()
    check_value(nested, nested_point, expected)


def test_constrained_parameters():
    """A loss takes constrained values, as those of NumPyro do."""

    def dirichlet():
        weights = numpyro.param("w", np.ones(3) / 3, constraint=dist.constraints.simplex)
        rate = numpyro.param("r", 1.0, constraint=POSITIVE)
        loc = numpyro.sample("loc", dist.Gamma(rate, 1.0))
        numpyro.sample("x", dist.Categorical(weights), obs=1)
        numpyro.sample("y", dist.Normal(loc, 0.5), obs=0.0)

    params = {"w": np.array([0.2, 0.5, 0.3]), "r": 2.0}
    expected = stats.gamma(2.0).logpdf(LOC) + np.log(0.5) + normal(0, LOC, 0.5)
    check_value(dirichlet, lambda: point(z=None), expected, params)
    got = gradients(Loss(), dirichlet, lambda: point(z=None), params, 1)[0]
    by_rate = -(np.log(LOC) - special.digamma(2.0))
    np.testing.assert_allclose(got[0], by_rate, rtol=1e-9)
    np.testing.assert_allclose(got[2], -1 / 0.5, rtol=1e-9)
