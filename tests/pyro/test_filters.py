"""Particle filters with what Pyro's users give them as proposals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import vi_kit as vi
from tests.exact.test_marginal import density
from vi_kit.pyro import Loss

DATA = torch.tensor([0.6, 1.1, 0.4])


def model():
    z = torch.tensor(0.0)
    for t, x in enumerate(DATA):
        z = pyro.sample(f"z{t}", dist.Normal(0.9 * z, 1.0))
        pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x)


def log_evidence():
    mean, variance, total = torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0)
    for x in DATA:
        mean, variance = 0.9 * mean, 0.81 * variance + 1.0
        total = total + dist.Normal(mean, (variance + 0.25).sqrt()).log_prob(x)
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (x - mean), variance * (1 - gain)
    return total.item()


def test_an_autoguide_is_a_proposal():
    pyro.set_rng_seed(0)
    guide = AutoNormal(model, init_scale=0.7)
    posterior = vi.normalize(model, vi.SMC(guide, 8))
    estimate = -Loss(vi.iwae(num_particles=400)).loss(model, posterior)
    assert abs(estimate - log_evidence()) < 0.1
    with pytest.raises(vi.ObjectiveError, match="proposal's density of sites"):
        Loss(density()).loss(model, posterior)
