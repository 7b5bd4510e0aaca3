"""The mixture of Gaussians in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from models.gaussian_mixture import PRIOR_SCALE, WEIGHTS


def model(x: torch.Tensor) -> None:
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Normal(0.0, PRIOR_SCALE))
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_tensor(WEIGHTS)))
        # Not `means[z]`: there may be several draws of the means, in dims on the left.
        pyro.sample("x", dist.Normal(Vindex(means)[..., z], 1.0), obs=x)


def guide_of_means(x: torch.Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("components", 2):
        pyro.sample("means", dist.Normal(loc, scale))


def guide(x: torch.Tensor) -> None:
    guide_of_means(x)
    logits = pyro.param("logits", torch.zeros(len(x), 2))
    with pyro.plate("points", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))
