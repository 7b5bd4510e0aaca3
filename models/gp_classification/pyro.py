"""Gaussian-process classification in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from models.gp_classification import JITTER, NUM_INDUCING, inducing_points


def function(x: torch.Tensor, u: torch.Tensor) -> dist.Normal:
    """The Gaussian process at each of the points, given `u`."""
    variance = pyro.param("variance", x.new_tensor(1.0), constraint=constraints.positive)
    length = pyro.param("length", x.new_ones(2), constraint=constraints.positive)
    inducing = pyro.param("inducing", lambda: x.new_tensor(inducing_points()))

    def kernel(a: torch.Tensor) -> torch.Tensor:
        apart = (a[:, None] - inducing) / length
        return variance * torch.exp(-0.5 * apart.square().sum(-1))

    noise = JITTER * variance
    lower = torch.linalg.cholesky(kernel(inducing) + noise * torch.eye(NUM_INDUCING))
    weights = torch.linalg.solve_triangular(lower, kernel(x).T, upper=False).T
    rest = variance + noise - weights.square().sum(-1)
    return dist.Normal((weights * u).sum(-1), rest.sqrt())


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    u = pyro.sample("u", dist.Normal(x.new_zeros(NUM_INDUCING), 1.0).to_event(1))
    function_given_u = function(x, u)
    with pyro.plate("points", len(x)):
        f = pyro.sample("f", function_given_u)
        pyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def guide(x: torch.Tensor, y: torch.Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(NUM_INDUCING))
    scale = pyro.param("scale", torch.eye(NUM_INDUCING), constraint=constraints.lower_cholesky)
    u = pyro.sample("u", dist.MultivariateNormal(loc, scale_tril=scale))
    function_given_u = function(x, u)
    with pyro.plate("points", len(x)):
        pyro.sample("f", function_given_u)
