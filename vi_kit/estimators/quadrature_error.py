"""How far the rules of `Quadrature` are from the truth, by a second rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vi_kit.estimators.base import Estimator
from vi_kit.estimators.quadrature import Quadrature


def quadrature_error(loss: Any, *args: Any, **kwargs: Any) -> float:
    """An estimate of the error that `Quadrature` makes in the value of a loss (nats): how far it is from the same loss
    with a second rule, of two more nodes for a scalar and with other axes for a vector.

    Where other sites are sampled, their noise is in it too; raise `num_samples` then.

    Args:
        loss: a `Loss` of either library.
        *args: as for `loss.loss`: model, guide and their arguments; in NumPyro a random key and parameters first.
        **kwargs: likewise.
    """
    settings = loss.settings
    second = type(loss)(
        settings.objective,
        settings.estimators,
        num_samples=settings.num_samples,
        max_plate_nesting=settings.max_plate_nesting,
        vectorize=settings.vectorize,
    )
    selection = replace(settings.selection, adapted=_second_rule)
    second.settings = replace(settings, selection=selection)
    return abs(float(loss.loss(*args, **kwargs)) - float(second.loss(*args, **kwargs)))


def _second_rule(estimator: Estimator) -> Estimator:
    return estimator.second_rule() if isinstance(estimator, Quadrature) else estimator
