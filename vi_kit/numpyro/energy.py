"""A site of which only an unnormalised log density is known, in NumPyro."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist
from numpyro import primitives
from numpyro.distributions import constraints

from vi_kit.language.energy import LogDensity


def is_running() -> bool:
    """Whether NumPyro's handlers are active."""
    return bool(primitives._PYRO_STACK)


def sample_improper(density: LogDensity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of the site, and a factor for its density."""
    support = constraints.real if density.support is None else density.support
    z = numpyro.sample(density.name, dist.ImproperUniform(support, (), density.event_shape))
    numpyro.factor(f"log_density_of_{density.name}", density.fn(z, *args, **kwargs))
    return z
