"""How often model and guide run until there is a gradient, that of the gradient itself included."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.pyro import Loss


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
