"""A nonlinear function that sees one draw both held and live has no one gradient, and is refused."""

import numpy as np
import pytest

import vi_kit as vi

VALUES = np.array([0.7])


def bernoulli(lib):
    def model():
        z = lib.sample("z", lib.dist.Bernoulli(0.5))
        lib.sample("x", lib.dist.Normal(z * 1.0, 0.8), obs=lib.array(1.4))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(VALUES)[0]))

    return model, guide


def normal(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 0.8), obs=lib.array(1.4))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    return model, guide


@vi.objective
def bound(model, guide):
    def log_weight():
        z = vi.simulate(guide)
        return vi.log_density(model, z) - vi.stop_gradient(z.log_density)

    return vi.iid(log_weight, 2).log_mean_exp()


@vi.objective
def product(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) * vi.log_density(guide, vi.stop_gradient(z))


@pytest.mark.parametrize("objective", [bound, product], ids=lambda o: o.__name__)
@pytest.mark.parametrize("estimator", [vi.Score(), vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_refused(objective, estimator, lib):
    with pytest.raises(vi.EstimatorError, match="both with stop_gradient and without"):
        lib.gradients(lib.Loss(objective(), estimator), *bernoulli(lib), VALUES, 1, 0)


@pytest.mark.parametrize("objective", [bound, product], ids=lambda o: o.__name__)
def test_a_path_has_both_parts(objective, lib):
    loss = lib.Loss(objective(), vi.Reparam())
    assert np.isfinite(lib.gradients(loss, *normal(lib), VALUES, 1, 0)).all()


@vi.objective
def own_density(model, guide):
    z = vi.stop_gradient(vi.simulate(guide))
    return vi.log_density(model, z) - z.log_density


@vi.objective
def evaluated_anew(model, guide):
    z = vi.stop_gradient(vi.simulate(guide))
    return vi.log_density(model, z) - vi.log_density(guide, z)


def test_the_density_of_a_held_draw_has_no_path(lib):
    gradients = [
        lib.gradients(lib.Loss(objective(), vi.Reparam()), *normal(lib), VALUES, 3, 0)
        for objective in (own_density, evaluated_anew)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-12)
    assert np.abs(gradients[0]).min() > 0
