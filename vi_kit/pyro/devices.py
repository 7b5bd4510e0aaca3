"""Where tensors are: one device for the arguments and the parameters of a step, or one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from vi_kit.base.errors import BackendError, message
from vi_kit.pyro.minibatch import mapped

SEVERAL = "same device"
"""In what torch says of tensors on several devices."""


@contextmanager
def one_device(args: Any, kwargs: Any) -> Iterator[None]:
    """What torch says of tensors on several devices is said by the names of what is where."""
    try:
        yield
    except RuntimeError as error:
        if SEVERAL not in str(error):
            raise
        raise _refused(args, kwargs) from error


def _refused(args: Any, kwargs: Any) -> BackendError:
    given: dict[str, None] = {}

    def note(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            given[str(x.device)] = None
        return x

    mapped(note, [list(args), dict(kwargs)])
    params: dict[str, list[str]] = {}
    for name, leaf in pyro.get_param_store()._params.items():
        params.setdefault(str(leaf.device), []).append(name)
    found = [f"arguments on {' and '.join(given)}"] * bool(given)
    found += [f"parameters {', '.join(names[:4])} on {on}" for on, names in params.items()]
    return BackendError(
        message(
            "model and guide meet tensors on several devices",
            got="; ".join(found) or "tensors that the programs make themselves",
            expected="arguments, parameters, and what the programs make, on one device",
            fix="data.to(device), module.to(device), and torch.set_default_device(device) before parameters are made",
        )
    )
