"""Parameters of algorithms that draw from posteriors, in Pyro."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.runtime import _PYRO_STACK

from vi_kit.language.programs import Start


def is_running() -> bool:
    """Whether Pyro's handlers are active."""
    return bool(_PYRO_STACK)


def declared(name: str, start: Start, like: torch.Tensor | None = None) -> torch.Tensor:
    """A parameter.

    Args:
        name: of the parameter.
        start: what it is at first.
        like: an array of the dtype and on the device that it has.
    """
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    constraint = getattr(constraints, start.constraint)
    return pyro.param(name, lambda: torch.tensor(start.value, **kind), constraint=constraint)
