"""Guides that run the model: what the model observes there is no part of the guide's density."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide

import vi_kit as vi
from tests.oracles import log_normal
from tests.pyro.same_draw import check_same_in_all_ways
from vi_kit.pyro import Loss

X = np.array([2.0, 2.5, 1.2])
FACTOR = 0.7

MEAN, SCALE = X.sum() / (len(X) + 1), (len(X) + 1) ** -0.5
"""Of the posterior."""

LOG_EVIDENCE = float(
    log_normal(MEAN, 0.0, 1.0)
    + log_normal(X, MEAN, 1.0).sum()
    + FACTOR
    - log_normal(MEAN, MEAN, SCALE)
)

GUIDES = [
    autoguide.AutoNormalMessenger,
    autoguide.AutoHierarchicalNormalMessenger,
    autoguide.AutoRegressiveMessenger,
]


def model(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.factor("f", torch.tensor(FACTOR))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def called_by_a_function(make):
    guide = make(model)
    return guide, lambda x: guide(x)


def as_it_is(make):
    guide = make(model)
    return guide, guide


@pytest.mark.parametrize("way", [as_it_is, called_by_a_function], ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", GUIDES, ids=lambda make: make.__name__)
def test_the_posterior_has_the_log_evidence(make, way):
    x = torch.tensor(X)
    messenger, guide = way(make)
    guide(x)
    with torch.no_grad():
        messenger.locs.m = torch.tensor(MEAN)
        messenger.scales.m = torch.tensor(SCALE)
    for objective in (vi.elbo(), vi.iwae(num_particles=3)):
        for estimator in (None, vi.DoublyReparam()):
            value = Loss(objective, estimator, num_samples=2).loss_and_grads(model, guide, x)
            assert value == pytest.approx(-LOG_EVIDENCE, abs=1e-10)


def nested(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc[..., 0], 1.0))
        pyro.sample("x", dist.Normal(z + loc[..., 1], 0.5), obs=x)


@pytest.mark.parametrize("make", GUIDES, ids=lambda make: make.__name__)
def test_the_gradients_of_pyro(make):
    check_same_in_all_ways(nested, make(nested), torch.tensor(X), max_plate_nesting=1)
