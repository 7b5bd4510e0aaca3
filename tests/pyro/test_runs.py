"""How often model and guide run until there is a gradient, that of the gradient itself included."""

from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import vi_kit as vi
from vi_kit.pyro import Loss
from vi_kit.pyro.noise import Noise


def bernoulli(loc):
    return dist.Bernoulli(torch.sigmoid(loc))


def normal(loc):
    return dist.Normal(loc, 1.0)


CASES = {
    "reparameterised": (vi.elbo(), vi.Reparam(), normal, 2),
    "score": (vi.elbo(), vi.Score(), bernoulli, 2),  # steps, leaks and mixing are read in one run
    "score, replicates": (vi.iwae(num_particles=3), vi.Score(), bernoulli, 3),  # one by itself
    "enumerated": (vi.elbo(), vi.Enumerate(), bernoulli, 3),
    "moments": (vi.elbo(), vi.Analytic(), normal, 3),
    "degrees": (vi.elbo(), vi.Quadrature(3), normal, 4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_runs_before_a_gradient(case):
    objective, estimator, family, most = case
    runs = []

    def model():
        runs.append("model")
        weight = pyro.param("weight", torch.tensor(0.3))
        with pyro.plate("data", 3):
            z = pyro.sample("z", family(torch.zeros(3)))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=torch.ones(3))

    def guide():
        runs.append("guide")
        with pyro.plate("data", 3):
            pyro.sample("z", family(pyro.param("loc", torch.zeros(3))))

    Loss(objective, estimator).loss_and_grads(model, guide)
    assert sorted(runs) == ["guide"] * most + ["model"] * most


def test_a_guide_that_sets_itself_up_is_not_watched_for_noise():
    """An autoguide draws when it is called first, and never again besides its sites: dropout does."""

    def model(net):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(net(z).sum(), 1.0), obs=torch.tensor(1.0))

    for net, is_noisy in (torch.nn.Linear(3, 2), False), (torch.nn.Dropout(), True):
        pyro.clear_param_store()
        guide, loss = AutoNormal(model), Loss()
        loss.loss_and_grads(model, guide, net)
        with mock.patch.object(Noise, "start") as start:
            loss.loss_and_grads(model, guide, net)
        assert start.called == is_noisy
