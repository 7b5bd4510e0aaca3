"""Models that are given as an unnormalised log density."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_kit.base.errors import BackendError, ObjectiveError, message

LIBRARIES = ("pyro", "numpyro")


@dataclass(frozen=True)
class LogDensity:
    """What `from_log_density` returns: a model of the library in which it is called.

    Attributes:
        fn: the unnormalised log density.
        event_shape: shape of its argument.
        name: of its one site.
        support: a constraint of the library, `None` for all reals.
    """

    fn: Callable[..., Any]
    event_shape: tuple[int, ...]
    name: str
    support: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _running_library().sample_improper(self, args, kwargs)


def from_log_density(
    fn: Callable[..., Any],
    event_shape: tuple[int, ...] = (),
    *,
    name: str = "z",
    support: Any = None,
) -> LogDensity:
    """An energy target: a model with one latent site, of which only an unnormalised log density is known.

    Use it like any model, in Pyro or NumPyro, also for their autoguides and samplers (Pyro's autoguides need
    `init_loc_fn=init_to_value(values={"z": ...})`, since there is no prior to start from). Its guide has one site of
    that name and event shape. Objectives that draw from the model (`forward_kl`, `multi_trace`) refuse it.

    Args:
        fn: `fn(z, *args, **kwargs)` with the arguments of the step returns log densities (nats). `z` has shape
            `(*batch, *event_shape)`, the result `(*batch,)`; `batch` is `()` but for replicates and enumerated
            values.
        event_shape: of `z`, `()` for a scalar.
        name: of the site.
        support: where the density is positive, a constraint of Pyro's or NumPyro's `distributions`; all reals if
            left out.

    Raises:
        ObjectiveError: `fn` cannot be called or `event_shape` is not a shape.

    Example:
        >>> def double_well(z):
        ...     return -((z**2 - 1) ** 2).sum(-1)
        >>> model = from_log_density(double_well, event_shape=(2,))
    """
    shape = tuple(event_shape) if isinstance(event_shape, tuple | list) else None
    if not callable(fn) or shape is None or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ObjectiveError(
            message(
                "from_log_density takes a function and the shape of its argument",
                got=f"{fn!r}, event_shape={event_shape!r}",
                expected="a callable and a tuple of positive whole numbers",
                fix="from_log_density(fn, event_shape=(2,)), or () for a scalar",
            )
        )
    return LogDensity(fn, shape, name, support)


def _running_library() -> Any:
    """The module of the library whose handlers are active, or of the only one that is imported."""
    modules = [
        importlib.import_module(f"vi_kit.{name}.energy")
        for name in LIBRARIES
        if name in sys.modules
    ]
    if len(modules) > 1:
        modules = [m for m in modules if m.is_running()]
    if len(modules) != 1:
        raise BackendError(
            message(
                "a model from from_log_density was called where it is not clear in which library",
                got=f"{len(modules)} libraries with active handlers",
                expected="a call inside Pyro or NumPyro, such as from SVI or under a trace handler",
                fix="pyro.poutine.trace(model).get_trace(...), or the same of NumPyro",
            )
        )
    return modules[0]
