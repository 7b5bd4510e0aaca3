"""Double reparameterisation: no noise at the optimum, and what it refuses."""

import contextlib

import numpy as np
import pytest

import vi_kit as vi
from tests.cases import TwoLevelBernoulli
from tests.oracles import seed_of

X = 1.3
POSTERIOR = np.array([X / 2.0, np.log(0.5) / 2.0])
BOUNDS = [vi.elbo(), vi.iwae(num_particles=5), vi.renyi(alpha=0.5, num_particles=3)]


def conjugate(lib):
    """z ~ Normal(0, 1), x ~ Normal(z, 1); at `POSTERIOR` the guide is the posterior."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(X))

    def guide():
        theta = lib.theta(POSTERIOR)
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return model, guide


@pytest.mark.parametrize("objective", BOUNDS, ids=repr)
def test_no_noise_where_the_guide_is_the_posterior(objective, lib):
    model, guide = conjugate(lib)
    loss = lib.Loss(objective, vi.DoublyReparam(), num_samples=2)
    draws = lib.gradients(loss, model, guide, POSTERIOR, 5, 0)
    np.testing.assert_allclose(draws, 0.0, atol=1e-12)
    plain = lib.Loss(objective, vi.Reparam(), num_samples=2)
    assert lib.gradients(plain, model, guide, POSTERIOR, 5, 0).std(axis=0).max() > 1e-3


def two_normals(lib, wrap=None):
    wrapped = {
        None: contextlib.nullcontext,
        "scale": lambda: lib.handlers.scale(scale=0.5),
        "mask": lambda: lib.handlers.mask(mask=lib.array(True)),
    }[wrap]

    def model():
        a = lib.sample("a", lib.dist.Normal(lib.array(0.0), 1.0))
        b = lib.sample("b", lib.dist.Normal(a, 1.0))
        lib.sample("x", lib.dist.Normal(b, 1.0), obs=lib.array(X))

    def guide():
        theta = lib.theta(POSTERIOR)
        a = lib.sample("a", lib.dist.Normal(theta[0], 1.0))
        with wrapped():
            lib.sample("b", lib.dist.Normal(a + theta[1], 1.0))

    return model, guide


def test_no_noise_with_two_sites(lib):
    """The guide is the posterior: both means shift with x, b is drawn given a."""
    model, _ = two_normals(lib)
    values = np.array([X / 3, np.log(2 / 3) / 2, 0.5, X / 2, np.log(1 / 2) / 2])

    def guide():
        theta = lib.theta(values)
        a = lib.sample("a", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))
        lib.sample("b", lib.dist.Normal(theta[2] * a + theta[3], lib.xp.exp(theta[4])))

    for objective in BOUNDS:
        loss = lib.Loss(objective, vi.DoublyReparam(), num_samples=2)
        np.testing.assert_allclose(lib.gradients(loss, model, guide, values, 3, 0), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("estimators", "wrap", "text"),
    [
        (
            {"a": vi.DoublyReparam(), "b": vi.Reparam()},
            None,
            r"site 'a': DoublyReparam\(\) with Reparam\(\) at \['b'\] in a nonlinear function",
        ),
        (vi.DoublyReparam(), "scale", r"site 'a, b': .* with unequal scales or with masks"),
        (vi.DoublyReparam(), "mask", r"site 'a, b': .* with unequal scales or with masks"),
    ],
)
def test_what_a_nonlinear_function_cannot_vary(estimators, wrap, text, lib):
    model, guide = two_normals(lib, wrap)
    loss = lib.Loss(vi.iwae(num_particles=2), estimators)
    with pytest.raises(vi.EstimatorError, match=text):
        lib.gradients(loss, model, guide, POSTERIOR, 1, 0)
    lib.gradients(lib.Loss(vi.elbo(), estimators), model, guide, POSTERIOR, 1, 0)


def test_draws_of_two_simulations(lib):
    @vi.objective
    def product(model, guide):
        return vi.elbo()(model, guide) * vi.elbo()(model, guide)

    with pytest.raises(vi.EstimatorError, match="draws of another simulation meet"):
        lib.gradients(lib.Loss(product(), vi.DoublyReparam()), *conjugate(lib), POSTERIOR, 1, 0)


def test_an_enumerated_site_drawn_given_it(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        d = lib.sample("d", lib.dist.Bernoulli(lib.array(0.5)))
        lib.sample("x", lib.dist.Normal(z + d, 1.0), obs=lib.array(X))

    def guide():
        z = lib.sample("z", lib.dist.Normal(lib.theta(POSTERIOR)[0], 1.0))
        lib.sample("d", lib.dist.Bernoulli(logits=z))

    estimators = {"z": vi.DoublyReparam()}
    lib.gradients(lib.Loss(vi.elbo(), estimators), model, guide, POSTERIOR, 1, 0)
    loss = lib.Loss(vi.iwae(num_particles=2), estimators)
    with pytest.raises(vi.EstimatorError, match=r"with Enumerate\(\) at site 'd'"):
        lib.gradients(loss, model, guide, POSTERIOR, 1, 0)


def test_a_delta_keeps_the_gradient_of_its_own_parameter(lib, request):
    """In a nonlinear function its value in the alternatives has the parameters held."""
    model, _ = two_normals(lib)

    def guide():
        theta = lib.theta(POSTERIOR)
        a = lib.sample("a", lib.dist.Normal(theta[0], 1.0))
        lib.sample("b", lib.dist.Delta(theta[1] + 0.7 * a))

    draws = [
        lib.gradients(
            lib.Loss(vi.iwae(num_particles=2), estimator, num_samples=2000),
            model,
            guide,
            POSTERIOR,
            40,
            seed_of(request.node.name),
        )
        for estimator in (vi.Reparam(), {"a": vi.DoublyReparam()})
    ]
    error = np.hypot(*(d.std(axis=0) / np.sqrt(len(d)) for d in draws))
    difference = draws[0].mean(axis=0) - draws[1].mean(axis=0)
    assert (np.abs(difference) <= 5 * error).all()
    assert (np.abs(draws[0].mean(axis=0)) >= 20 * error).any()


def test_a_score_site_drawn_given_it(lib):
    loss = lib.Loss(vi.elbo(), {"a": vi.DoublyReparam(), "b": vi.Score()})
    with pytest.raises(vi.EstimatorError, match=r"DoublyReparam\(\) with Score\(\) at site 'b'"):
        lib.gradients(loss, *two_normals(lib), POSTERIOR, 1, 0)


def test_no_sampler(lib):
    with pytest.raises(vi.EstimatorError, match="needs a reparameterised sampler"):
        TwoLevelBernoulli(lib).gradients(lib.Loss(vi.elbo(), vi.DoublyReparam()), 1, 0)
