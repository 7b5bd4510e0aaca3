"""What is found where a step of a fit has failed: the statement, its elements, and what helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.workflow.given import Given

NUM_DRAWS = 30
"""That are looked at for one that fails, where the failing one cannot be made again."""
EXTREME = 1e8
"""Of arguments and parameters that have run away."""

DATA = "data without nan and inf: leave those rows out, or mask them (handlers.mask) and put a number in their place"
RANGE = (
    "constraint=... at the parameter (constraints.positive, unit_interval), or a function such as softplus of it;"
    " a smaller step size"
)
AWAY = "parameters ran away: clip_norm=10.0, or a smaller step size (optimizer=0.001)"
START = (
    "arguments in their range: constants, what is computed from data, and where parameters start (constraint=...,"
    " init_params=...)"
)
MASK = (
    "keep arguments off the edge of their range before any where: log(where(x > 0, x, 1)), not where(x > 0, log(x), 0),"
    " of which the gradient is 0 * inf"
)
SCALE = (
    "a guide whose scale starts, and stays, near that of the model:"
    " softplus in place of exp, or a start nearer to it"
)
SUPPORT = (
    "values inside the support: a guide whose distribution, or transform (exp, sigmoid), keeps them there, and"
    " data that are in it"
)


@dataclass(frozen=True)
class Seen:
    """A sample statement in one run of the programs.

    Attributes:
        what: its role and name, as `model site 'x'`.
        observed: whether its value is data.
        family: its distribution.
        arguments: of that, by name.
        invalid: those that are out of their range.
        value: `None` if none could be drawn.
        log_density: by element (nats), with masks; `None` if there is none.
        through: parameters whose gradient is not finite through its log density.
        plates: around it, by dim from the right.
    """

    what: str
    observed: bool
    family: str
    arguments: Mapping[str, np.ndarray]
    invalid: tuple[str, ...] = ()
    value: np.ndarray | None = None
    log_density: np.ndarray | None = None
    through: tuple[str, ...] = field(default=())
    plates: dict[int, str] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether its value or its log density is not finite, or its distribution none."""
        log_density = self.log_density
        return bool(self.invalid) or log_density is None or not np.isfinite(log_density).all()

    @property
    def has_spoilt(self) -> bool:
        """Whether its arguments, or its value, have numbers that are none."""
        arrays = [*self.arguments.values(), *([] if self.value is None else [self.value])]
        return any(_largest(x) == math.inf for x in arrays)

    def elements(self, given: Given) -> str:
        """Which are not finite."""
        shown = self.log_density
        if shown is None or shown.ndim == 0 or np.isfinite(shown).all():
            return ""
        at = np.argwhere(~np.isfinite(shown))
        found = [given.index(tuple(map(int, index)), self.plates) for index in at]
        own = given.rows is not None and not given.plates.isdisjoint(self.plates.values())
        shown = ", ".join(map(str, found[:3])) + f" and {len(at) - 3} more" * (len(at) > 3)
        return f" at {shown}" + ", by rows of all data" * own

    def text(self, given: Given) -> str:
        """In one line."""
        arguments = [
            f"{k}: {summary(v)}" + ", out of its range" * (k in self.invalid)
            for k, v in self.arguments.items()
        ]
        value = "no value" if self.value is None else f"value: {summary(self.value)}"
        return f"{self.what}{self.elements(given)}: {self.family}({'; '.join(arguments)}), {value}"


def layers_of(fn: Any) -> list[Any]:
    """A library's distribution, after all that it wraps."""
    base = getattr(fn, "base_dist", None)
    return [*([] if base is None else layers_of(base)), fn]


def all_within(within: np.ndarray, layers: Sequence[Any], masks: Sequence[Any]) -> bool:
    """Whether an argument is in its range wherever masks leave anything.

    Args:
        within: whether it is, by element.
        layers: the distribution that has the argument, and what wraps it, each around the one before.
        masks: of each layer, and at last of the statement.
    """
    own = len(layers[0].event_shape)
    for layer, mask in zip([*layers, layers[-1]], masks, strict=True):
        if mask is not None:
            mask = np.asarray(mask)
            num_inner = max(0, len(layer.event_shape) - own)
            within = within | ~mask.reshape(*mask.shape, *[1] * num_inner)
    return bool(within.all())


def summary(array: np.ndarray) -> str:
    """The shape, the range, and how many elements are no numbers."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        return f"shape {array.shape}"
    numbers = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    nan, inf = (int(f(array).sum()) for f in (np.isnan, np.isinf))
    parts = [f"shape {array.shape}"] * (array.ndim > 0)
    if numbers.size:
        least, most = numbers.min(), numbers.max()
        parts.append(f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}")
    parts += [f"{nan} nan"] * (nan > 0) + [f"{inf} inf"] * (inf > 0)
    return ", ".join(parts)


def culprit(look: Callable[[int], Sequence[Seen]], *, by_gradient: bool) -> Seen | None:
    """The first statement that is wrong, in the first draw that has one; else one that is about to be.

    Args:
        look: from the number of a draw to its statements, in order; the first draw is that which failed, if it can be
            made again.
        by_gradient: whether it is the gradient that is not finite.
    """
    extreme: list[Seen] = []
    for i in range(NUM_DRAWS):
        try:
            seen = look(i)
        except Exception:  # programs that only run under their objective
            return None
        for one in seen:
            if one.is_wrong or (by_gradient and one.through):
                return one
        extreme += [one for one in seen if _is_extreme(one)] * (i == 0)
    return extreme[0] if extreme else None


def advice(
    one: Seen | None,
    params: Mapping[str, np.ndarray],
    given: Given,
    *,
    by_gradient: bool,
    has_begun: bool = True,
) -> str:
    """What helps, in one line.

    Args:
        one: the statement that is wrong, if one was found.
        params: unconstrained, where the step failed.
        given: the arguments of the step.
        by_gradient: see `culprit`.
        has_begun: whether a step was taken.
    """
    if given.spoilt and (one is None or one.has_spoilt):
        return DATA
    away = any(_largest(p) > EXTREME for p in params.values())
    if one is not None and one.observed and one.value is not None and _largest(one.value) == np.inf:
        return DATA
    if away:
        return AWAY
    if one is None:
        return MASK if by_gradient else AWAY if has_begun else START
    if one.invalid and all(np.isfinite(one.arguments[k]).all() for k in one.invalid):
        return SCALE if all((one.arguments[k] >= 0).all() for k in one.invalid) else RANGE
    if by_gradient and one.through and not one.is_wrong:
        return MASK
    if _is_extreme(one):
        return SCALE
    refused = one.log_density is None and one.value is not None
    if refused or (one.log_density is not None and np.isneginf(one.log_density).any()):
        return SUPPORT
    return AWAY


def _is_extreme(one: Seen) -> bool:
    arrays = [*one.arguments.values(), *([] if one.value is None else [one.value])]
    return any(_largest(x) > EXTREME for x in arrays if x.dtype.kind == "f")


def _largest(array: np.ndarray) -> float:
    """The largest absolute value; infinite where one is no number."""
    array = np.asarray(array)
    if not array.size or array.dtype.kind not in "fiu":
        return 0.0
    largest = float(np.abs(array).max())
    return math.inf if math.isnan(largest) else largest
