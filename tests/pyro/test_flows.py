"""Flows remember by identity what they were given; a value that is replayed, held or observed must not bring back
what other parameters made of it."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TransformModule, transforms
from pyro.infer import autoguide
from torch.distributions import constraints

import vi_kit as vi
from tests import oracles
from vi_kit.pyro import Loss

X = np.array([2.0, -1.0])


def model(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def set_posterior(flow):
    """Make an autoregressive flow the posterior Normal(x / 2, 1 / sqrt 2)."""
    last = flow.arn.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[:] = torch.tensor([*X / 2, *np.full(2, np.log(0.5) / 2)])
        flow.arn.skip_layer.weight.zero_() if flow.arn.skip_layer is not None else None


def flow_guide():
    flow = transforms.affine_autoregressive(2, hidden_dims=[4])

    def guide(x):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return flow, guide


def auto_iaf():
    guide = autoguide.AutoIAFNormal(model, hidden_dim=[4])
    guide(torch.tensor(X))
    return next(m for m in guide.modules() if isinstance(m, transforms.AffineAutoregressive)), guide


HELD = [
    (vi.elbo(), vi.DoublyReparam()),
    (vi.iwae(num_particles=3), vi.DoublyReparam()),
    (vi.tail_adaptive(num_particles=3), vi.Reparam()),
]


@pytest.mark.parametrize(("objective", "estimator"), HELD, ids=repr)
@pytest.mark.parametrize("make", [flow_guide, auto_iaf], ids=lambda make: make.__name__)
def test_no_noise_where_the_flow_is_the_posterior(make, objective, estimator):
    """The log weight does not change along the path, so the gradient with log q held is zero in every draw."""
    flow, guide = make()
    set_posterior(flow)
    loss = Loss(objective, estimator, num_samples=2)
    loss.loss_and_grads(model, guide, torch.tensor(X))
    for p in flow.parameters():
        assert p.grad is None or p.grad.abs().max() < 1e-12
    Loss(num_samples=2).loss_and_grads(model, guide, torch.tensor(X))
    assert max(p.grad.abs().max() for p in flow.parameters()) > 0.1


@pytest.mark.parametrize("estimator", [vi.DoublyReparam(), vi.Score()], ids=repr)
def test_unbiased_off_the_posterior(estimator, request):
    flow, guide = flow_guide()
    set_posterior(flow)
    loc, log_scale = np.array([0.4, 0.1]), np.array([-0.2, 0.3])
    bias = flow.arn.layers[-1].bias
    with torch.no_grad():
        bias[:] = torch.tensor([*loc, *log_scale])
    pyro.set_rng_seed(oracles.seed_of(request.node.name) % 2**31)
    loss, draws = Loss(estimators=estimator, num_samples=1000), []
    for _ in range(60):
        flow.zero_grad()
        loss.loss_and_grads(model, guide, torch.tensor(X))
        draws.append(bias.grad.numpy().copy())
    # minus the derivatives of E[log p] + entropy = -loc^2/2 - (x - loc)^2/2 - exp(2 log_scale) + log_scale
    exact = np.concatenate([2 * loc - X, 2 * np.exp(2 * log_scale) - 1])
    oracles.check_unbiased(np.array(draws), exact)


class Shift(TransformModule):
    """A flow of one parameter that remembers."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self):
        super().__init__(cache_size=1)
        self.by = torch.nn.Parameter(torch.tensor(0.0))

    def _call(self, x):
        return x + self.by

    def _inverse(self, y):
        return y - self.by

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


def observed(flow, z, x):
    pyro.sample("x", dist.TransformedDistribution(dist.Normal(z, 1.0), [flow]), obs=x)


def inverted_by_hand(flow, z, x):
    pyro.factor("x", dist.Normal(z, 1.0).log_prob(flow.inv(x)))


def likelihood_programs(likelihood):
    """z ~ Normal(0, 1), x ~ Normal(z + shift, 1), and the posterior for whatever the shift is."""
    flow = Shift()

    def model(x):
        pyro.module("flow", flow)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        likelihood(flow, z, x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    return flow, model, guide


def set_shift(flow, x, shift):
    with torch.no_grad():
        flow.by.copy_(torch.tensor(shift))
        pyro.param("loc", torch.tensor(0.0)).copy_((x - shift) / 2)


@pytest.mark.parametrize("likelihood", [observed, inverted_by_hand], ids=lambda f: f.__name__)
def test_data_are_inverted_anew_in_held_runs(likelihood, request):
    """At the posterior the gradient of any bound is that of the log evidence, log Normal(x; shift, sqrt 2)."""
    flow, model, guide = likelihood_programs(likelihood)
    x = torch.tensor(1.5)
    set_shift(flow, x, 0.3)
    pyro.set_rng_seed(oracles.seed_of(request.node.name) % 2**31)
    loss = Loss(vi.iwae(num_particles=3), vi.DoublyReparam(), num_samples=300)
    draws = []
    for _ in range(20):
        flow.zero_grad()
        loss.loss_and_grads(model, guide, x.clone())
        draws.append([flow.by.grad.item()])
    oracles.check_unbiased(np.array(draws), np.array([-(1.5 - 0.3) / 2]))


def test_data_are_inverted_anew_in_each_step():
    flow, model, guide = likelihood_programs(observed)
    x, loss = torch.tensor(1.5), Loss()
    for shift in (0.3, -0.8):
        set_shift(flow, x, shift)
        expected = -oracles.log_normal(1.5, shift, 2**0.5)
        assert loss.loss(model, guide, x) == pytest.approx(expected, abs=1e-12)
        assert loss.loss_and_grads(model, guide, x) == pytest.approx(expected, abs=1e-12)
