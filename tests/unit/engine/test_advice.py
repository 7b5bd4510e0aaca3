"""What the texts of errors advise works, and what Python or a library below would say is said in words."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import vi_kit as vi

VALUES = np.array([0.3, 0.1])
ZERO, ONE = np.zeros(()), np.ones(())


def text_of(error, make):
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


def step(lib, loss, model, guide, values=VALUES):
    return lib.gradients(loss, model, guide, values, 1, 0)


def prior(lib, name="z"):
    return lib.sample(name, lib.dist.Normal(lib.array(ZERO), lib.array(ONE)))


def observed(lib, loc, x=1.0):
    lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(np.array(x)))


FACTORIES = (
    "ciwae cubo eubo f_divergence iwae log_variance miwae multi_trace piwae renyi sub_trajectory_balance"
    " tail_adaptive thermodynamic wake_sleep".split()
)


@pytest.mark.parametrize("name", FACTORIES)
def test_settings_that_are_missing(name):
    text = text_of(vi.ObjectiveError, getattr(vi, name))
    assert f"{name}: missing a required argument" in text
    fix = text.split("fix:")[1].strip()
    assert isinstance(eval(fix, {"vi": vi}), vi.Objective)


def test_a_variance_of_one():
    text = text_of(vi.ObjectiveError, lambda: vi.log_variance(1))
    assert "log_variance: num_particles is out of range" in text
    assert "fix:      num_particles=2" in text
    vi.log_variance(num_particles=2)


def test_a_number_in_the_place_of_a_baseline():
    for make in (lambda: vi.LeaveOneOut() + 1, lambda: 1 + vi.LeaveOneOut()):
        assert "fix:      vi.Constant(1)" in text_of(vi.EstimatorError, make)
    vi.Score(vi.LeaveOneOut() + vi.Constant(1))


def test_a_network_that_is_missing():
    assert "Relax: it needs a network" in text_of(vi.ObjectiveError, vi.Relax)


def test_tail_adaptive_with_a_site_that_is_not_reparameterised(lib):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.4))))
        observed(lib, prior(lib) + b)

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))

    text = text_of(
        vi.EstimatorError, lambda: step(lib, lib.Loss(vi.tail_adaptive(3)), model, guide)
    )
    assert text.endswith("fix:      another objective, such as vi.elbo()")


def test_an_auxiliary_site(lib):
    def guide(infer):
        theta = lib.theta(VALUES)
        u = lib.sample("u", lib.dist.Normal(theta[1], 1.0), infer=infer)
        lib.sample("z", lib.dist.Normal(theta[0] + u, 1.0))

    def model(has_u=False):
        z = prior(lib)
        if has_u:
            lib.sample("u", lib.dist.Normal(z, 1.0))
        observed(lib, z)

    loss = lib.Loss()
    text = text_of(vi.ObjectiveError, lambda: step(lib, loss, model, lambda: guide({})))
    assert "sample('u', ...) in the model too, given its other sites" in text
    marked = {"is_auxiliary": True}
    text = text_of(vi.ObjectiveError, lambda: step(lib, loss, model, lambda: guide(marked)))
    assert "in the model sample('u', ...) given its other sites" in text
    assert np.isfinite(step(lib, loss, lambda: model(has_u=True), lambda: guide(marked))).all()


def test_a_pattern_for_a_site_that_not_every_call_has(lib):
    """A branch by an argument: what was seen in any call is known."""
    has_w = True

    def model():
        observed(lib, prior(lib) + (prior(lib, "w") if has_w else 0.0))

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        if has_w:
            lib.sample("w", lib.dist.Normal(theta[1], 1.0))

    loss = lib.Loss(vi.elbo(), {"w": vi.Score()})
    step(lib, loss, model, guide)
    has_w = False
    other = lib.Loss(vi.elbo(), {"w": vi.Score()})
    text = text_of(vi.EstimatorError, lambda: step(lib, other, lambda: model(), lambda: guide()))
    assert "a pattern for one of ['z'], the sites of this call or one before" in text
    assert np.isfinite(step(lib, loss, lambda: model(), lambda: guide())).all()


def test_parameters_of_other_rows(lib):
    def model(x):
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(lib.array(ZERO), 1.0))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = lib.theta(np.zeros(len(x)))
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(loc[: len(x)], 1.0))

    def loss_of(size):
        kept, x = lib.array(np.zeros(3)), lib.array(np.zeros(size))
        if lib.name == "pyro":
            lib.theta(np.zeros(3))
            return lib.Loss().loss(model, guide, x)
        return lib.Loss().loss(key(), {"theta": kept}, model, guide, x)

    assert np.isfinite(float(loss_of(3)))
    text = text_of(vi.ObjectiveError, lambda: loss_of(2))
    assert "parameter 'theta'" in text
    assert "shape (3,) kept, shape (2,) given" in text


def key():
    import jax

    return jax.random.key(0)


def test_subsampled_parameters(lib):
    """The start of a parameter is that of all rows, also in a plate that takes some of them."""
    if lib.name == "pyro":
        import pyro

        param = pyro.param
    else:
        import numpyro

        param = numpyro.param
    plate = functools.partial(lib.plate, "data", 6, subsample_size=2)

    def model():
        with plate():
            lib.sample("z", lib.dist.Normal(lib.array(ZERO), 1.0))

    def guide():
        with plate():
            loc = param("loc", lib.array(np.zeros(6)), event_dim=0)
            scale = param("scale", lib.array(ONE))
            lib.sample("z", lib.dist.Normal(loc, scale))

    if lib.name == "pyro":
        values = [lib.Loss().loss(model, guide) for _ in range(2)]
    else:
        kept = {"loc": lib.array(np.zeros(6)), "scale": lib.array(np.ones(1))}
        values = [float(lib.Loss().loss(key(), kept, model, guide))]
    assert np.isfinite(values).all()


def test_missing_data():
    """Pyro validates what is observed; with numbers under a mask it is left out."""
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    x = torch.tensor([1.0, float("nan")])

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(is_masked=False):
        with pyro.plate("data", 2):
            z, data, mask = pyro.sample("z", dist.Normal(0.0, 1.0)), x, torch.tensor(True)
            if is_masked:
                data, mask = torch.nan_to_num(x), ~x.isnan()
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    text = text_of(vi.ObjectiveError, lambda: Loss().loss(model, guide))
    assert "model site 'x': what it observes is not in the support of Normal" in text
    assert np.isfinite(Loss().loss(lambda: model(is_masked=True), guide))


def test_dims_in_front_that_meet_an_event():
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    x, y = torch.ones(4, 3), torch.zeros(4)

    def guide():
        pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def model(keeps_front):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 4):
            loc = (x * w).sum(-1) if keeps_front else w @ x.T
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    many = Loss(vi.iwae(num_particles=3), vectorize=True)
    text = text_of(vi.BackendError, lambda: many.loss(lambda: model(False), guide))
    assert "replicates, or values of a site, are not where they were in its log density" in text
    assert text.count("\n") == 3
    assert np.isfinite(many.loss(lambda: model(True), guide))
    by_default = Loss(vi.iwae(num_particles=3))
    plain = functools.partial(model, False)
    by_default.loss(plain, guide)
    (line,) = [s for s in by_default.explain(plain, guide).splitlines() if "after the other" in s]
    assert "ObjectiveError" not in line


def test_statements_at_some_values_only():
    import pyro
    import pyro.distributions as dist

    from vi_kit.pyro import Loss

    def guide():
        if pyro.sample("b", dist.Bernoulli(0.4)) > 0:
            pyro.sample("c", dist.Normal(0.0, 1.0))

    loss = Loss()
    loss.loss(guide, guide)
    found = loss.explain(guide, guide)
    assert "cannot be run apart: site 'c' is met at some values only" in found
    assert "Uneven" not in found


def test_internal_sites_of_an_autoguide():
    import pyro
    import pyro.distributions as dist
    from pyro import poutine
    from pyro.infer.autoguide import AutoNormal

    from vi_kit.pyro import Loss

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    guide = AutoNormal(poutine.block(model, hide=["w"]))
    text = text_of(vi.ObjectiveError, lambda: Loss().loss(model, guide))
    assert "latent sites of the draw: ['z']" in text
    assert np.isfinite(
        Loss().loss(poutine.condition(model, {"w": pyro.sample("w", dist.Normal(0.0, 1.0))}), guide)
    )


def test_supports_are_asked_for_under_jit():
    """In NumPyro, of values that are known while the step is traced."""
    import jax
    import numpyro
    import numpyro.distributions as dist

    from vi_kit.numpyro import Loss

    def program():
        numpyro.sample("z", dist.Poisson(2.0))

    def loss(estimator):
        return jax.jit(lambda k: Loss(vi.elbo(), estimator).loss(k, {}, program, program))(key())

    assert "outside the support of Poisson" in text_of(vi.EstimatorError, lambda: loss(Fixed(-1.0)))
    assert np.isfinite(loss(Fixed(1.0)))


class Fixed(vi.Estimator):
    """A constant value."""

    def __init__(self, value):
        self.value = value

    def reason_against(self, dist):
        return None

    def expand(self, dist):
        return vi.Expansion(np.asarray(self.value))

    def contract(self, downstream):
        return downstream.terms
