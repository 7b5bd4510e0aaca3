"""Effect handlers and annotations around models: `scale`, `mask`, `condition`, `reparam` and others."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam

import vi_kit as vi
from tests import oracles
from tests.pyro.same_draw import (
    check_same_as_trace_elbo,
    check_same_in_all_ways,
    value_and_gradients,
)
from vi_kit.pyro import Loss

X = torch.tensor([0.3, 1.2, -0.4, 0.9], dtype=torch.float64)
MASK = torch.tensor([True, False, True, True])


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    a = pyro.param("a", torch.tensor(0.4))
    loc = pyro.sample("loc", dist.Normal(a, 0.7))
    c = pyro.param("c", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(c + loc, 0.5))


def global_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(loc, 0.5), obs=x.mean())


def global_guide(x):
    a = pyro.param("a", torch.tensor(0.4))
    pyro.sample("loc", dist.Normal(a, 0.7))


def test_scale():
    check_same_in_all_ways(
        poutine.scale(model, 0.3), poutine.scale(guide, 0.3), X, max_plate_nesting=1
    )


def test_mask():
    def masked(fn):
        def program(x):
            with pyro.plate("data", len(x)), poutine.mask(mask=MASK):
                fn(x)

        return program

    @masked
    def masked_model(x):
        z = pyro.sample("z", dist.Normal(pyro.param("b", torch.tensor(0.1)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    @masked
    def masked_guide(x):
        pyro.sample("z", dist.Normal(pyro.param("c", torch.zeros(len(x))), 0.5))

    check_same_in_all_ways(masked_model, masked_guide, X, max_plate_nesting=1)
    _, gradients = value_and_gradients(Loss(), masked_model, masked_guide, X)
    assert gradients["c"][1] == 0.0


def test_masked_distribution():
    def masked_model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5).mask(MASK), obs=x)

    check_same_in_all_ways(masked_model, global_guide, X, max_plate_nesting=1)


def test_block():
    hidden = poutine.block(model, hide=["z"])
    check_same_as_trace_elbo(hidden, global_guide, X)


def test_condition():
    conditioned = poutine.condition(model, data={"z": X + 0.1})
    check_same_in_all_ways(conditioned, global_guide, X, max_plate_nesting=1)


def test_observed_by_a_mask():
    def partly_observed(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x, obs_mask=MASK)

    def imputing_guide(x):
        global_guide(x)
        with pyro.plate("data", len(x)), poutine.mask(mask=~MASK):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("c", torch.zeros(len(x))), 0.5))

    check_same_in_all_ways(partly_observed, imputing_guide, X, max_plate_nesting=1)


def test_reparameterised_sites():
    reparam = poutine.reparam(model, {"z": LocScaleReparam(0.0)})

    def decentered_guide(x):
        global_guide(x)
        c = pyro.param("c", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal(c, 0.5))

    check_same_in_all_ways(reparam, decentered_guide, X, max_plate_nesting=1)
    check_same_as_trace_elbo(reparam, AutoNormal(reparam), X)


def test_learned_centering():
    reparam = poutine.reparam(model, {"z": LocScaleReparam()})
    check_same_as_trace_elbo(reparam, AutoNormal(reparam), X)


def test_factors_and_deterministic_sites():
    def with_factor(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        rate = pyro.deterministic("rate", loc.exp())
        pyro.factor("prior", -rate)
        with pyro.plate("data", len(x)):
            z = pyro.deterministic("z", rate + x)
            pyro.factor("likelihood", -((z - 1.0) ** 2))

    check_same_in_all_ways(with_factor, global_guide, X, max_plate_nesting=1)


def test_factor_in_the_guide():
    def factor_guide(x):
        global_guide(x)
        pyro.factor("correction", pyro.param("a").sin(), has_rsample=True)

    check_same_as_trace_elbo(global_model, factor_guide, X)


def test_site_observed_in_the_guide():
    def observing_guide(x):
        global_guide(x)
        seen = dist.Normal(pyro.param("a"), 1.0)
        pyro.sample("seen", seen, obs=torch.tensor(0.2), infer={"is_auxiliary": True})

    check_same_as_trace_elbo(global_model, observing_guide, X)


def test_auxiliary_site():
    def auxiliary_guide(x):
        a = pyro.param("a", torch.tensor(0.4))
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("loc", dist.Delta(a + 0.7 * eps, log_density=-torch.tensor(0.7).log()))

    check_same_as_trace_elbo(global_model, auxiliary_guide, X)


def test_auxiliary_bernoulli_site_is_enumerated():
    """A mixture of two Normals as a guide, whose coin the model guesses: its exact gradient."""
    theta = np.array([0.4, -0.3, 0.6])

    def coin_model():
        pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Bernoulli(0.3))

    def coin_guide():
        t = pyro.param("theta", torch.tensor(theta))
        infer = {"is_auxiliary": True, "estimator": vi.Enumerate()}
        b = pyro.sample("b", dist.Bernoulli(logits=t[0]), infer=infer)
        pyro.sample("loc", dist.Normal(t[1] + t[2] * b, 0.5))

    def bound(t):
        one = 1 / (1 + np.exp(-t[0]))
        value = 0.0
        for b, q in ((0, 1 - one), (1, one)):
            mean = t[1] + t[2] * b
            log_p = -0.5 * (mean**2 + 0.25) - 0.5 * np.log(2 * np.pi)
            log_p = log_p + np.log(0.3 if b else 0.7)
            entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
            value = value + q * (log_p + entropy - oracles.log_bernoulli(t[0], b))
        return value

    draws = []
    for seed in range(20):
        coin_guide()
        _, got = value_and_gradients(Loss(num_samples=500), coin_model, coin_guide, seed=seed)
        draws.append(got["theta"].numpy())
    oracles.check_unbiased(np.array(draws), -oracles.gradient(bound, theta))


def test_estimator_in_the_annotation():
    def annotated(x):
        a = pyro.param("a", torch.tensor(0.9))
        infer = {"estimator": vi.Score(vi.LeaveOneOut())}
        pyro.sample("loc", dist.Normal(a, 0.7), infer=infer)

    mean = X.mean().item()
    exact = 0.9 + (0.9 - mean) / 0.25
    annotated(X)
    loss = Loss(num_samples=500)
    draws = [
        value_and_gradients(loss, global_model, annotated, X, seed=s)[1]["a"].item()
        for s in range(20)
    ]
    oracles.check_unbiased(np.array(draws)[:, None], np.array([exact]))
    assert "infer" in loss.explain(global_model, annotated, X)


@pytest.mark.parametrize("estimator", [vi.Score(), vi.DisARM()], ids=repr)
def test_a_default_device_makes_no_site_depend_on_another(estimator):
    """Where one is set, torch puts a frame of its own between a distribution's checks and what they read."""

    def program():
        with pyro.plate("data", 3):
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("l", torch.zeros(3))))
        pyro.sample("w", dist.Bernoulli(logits=pyro.param("p", torch.tensor(0.3))))

    torch.set_default_device("cpu")
    try:
        with pyro.validation_enabled():
            loss = Loss(vi.elbo(), {"b": vi.Enumerate(), "w": estimator})
            assert loss.loss_and_grads(program, program) == pytest.approx(0.0, abs=1e-12)
    finally:
        torch.set_default_device(None)
