"""A site of which only an unnormalised log density is known, in Pyro."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.runtime import _PYRO_STACK

from vi_kit.language.energy import LogDensity


def is_running() -> bool:
    """Whether Pyro's handlers are active."""
    return bool(_PYRO_STACK)


class ImproperUniform(dist.ImproperUniform):
    """Pyro's, with its zeros where the values are: on their device, with their dtype."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        ndim = value.dim() - self.event_dim
        shape = torch.broadcast_shapes(value.shape[:ndim], self.batch_shape)
        return value.new_zeros(shape)


def sample_improper(density: LogDensity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of the site, and a factor for its density."""
    support = constraints.real if density.support is None else density.support
    support = constraints.independent(support, len(density.event_shape) - support.event_dim)
    z: Any = pyro.sample(density.name, ImproperUniform(support, (), density.event_shape))
    pyro.factor(f"log_density_of_{density.name}", density.fn(z, *args, **kwargs))
    return z
