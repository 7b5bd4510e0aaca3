"""Pyro's distributions in the words that estimators use."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import Independent, TransformedDistribution, constraints

from vi_kit.distributions import DistributionView, Wrappers


class PyroDistribution(DistributionView):
    """A view of a Pyro distribution."""

    wrappers = Wrappers(
        masked=dist.MaskedDistribution,
        independent=Independent,
        transformed=TransformedDistribution,
        expanded=dist.ExpandedDistribution,
    )

    def sample(self) -> torch.Tensor:
        return self.sample_elements(self.fn)

    def rsample(self) -> torch.Tensor:
        return self.fn.rsample()

    def sample_elements(self, fn: Any) -> torch.Tensor:
        with torch.no_grad():
            return fn.sample().detach()

    def as_array(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def covers(self, other: PyroDistribution, value: torch.Tensor) -> bool:
        plain = [getattr(d.fn.support, "base_constraint", d.fn.support) for d in (self, other)]
        if plain[1] is constraints.real and plain[0] is not constraints.real:
            if other.name != "Delta":
                return False
        return bool(self.fn.support.check(value).all())
