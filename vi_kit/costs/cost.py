"""The cost algebra: sums of terms, and functions of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vi_kit.base.context import current
from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import Array, Axis
from vi_kit.costs.nonlinear import Reduction, applied
from vi_kit.costs.terms import Term


class Cost:
    """A random number that an objective program computes: a sum of terms, in nats.

    Adding, subtracting and scaling keep the terms apart. Other operators (`*` of two costs, `**`, `abs`) act on the
    whole number, whatever plates its terms have; `apply` takes a function of the number, or element by element.
    """

    def __init__(self, terms: Iterable[Term]):
        self.terms = tuple(terms)

    def __add__(self, other: Cost | float) -> Cost:
        if not isinstance(other, Cost):
            if isinstance(other, int | float) and other == 0:
                return self  # so that the built-in sum() works
            raise ObjectiveError(
                message(
                    "only costs can be added to a cost",
                    got=f"{type(other).__name__}",
                    expected="a Cost, from log_density, Draw.log_density or a reduction of iid",
                    fix="multiply a cost by the number, or leave the constant out",
                )
            )
        return Cost(self.terms + other.terms)

    __radd__ = __add__

    def __neg__(self) -> Cost:
        return self * -1.0

    def __sub__(self, other: Cost) -> Cost:
        return self + (-other)

    def __mul__(self, factor: Any) -> Cost:
        if isinstance(factor, Cost):
            return apply(lambda x, y: x * y, self, factor, plates=[])
        if getattr(factor, "ndim", 0) != 0:
            raise ObjectiveError(
                message(
                    "a cost can be scaled by a number, not by an array",
                    got=f"an array of shape {tuple(factor.shape)}",
                    expected="a float or an array without dims",
                    fix="scale sites by their plates with the scale handler of your library",
                )
            )
        if hasattr(factor, "ndim"):
            run = current()
            if run.depends_on_draws(factor):
                raise ObjectiveError(
                    message(
                        "a cost can be scaled by a number, not by drawn values",
                        got="an array that depends on a draw",
                        expected="a float or an array that no draw has entered",
                        fix="vi.evaluate(fn, draw) makes a cost of drawn values; costs can be multiplied",
                    )
                )
        return Cost(t.changed(weight=t.weight * factor) for t in self.terms)

    __rmul__ = __mul__

    def __pow__(self, power: float) -> Cost:
        return apply(lambda x: x**power, self, plates=[])

    def __abs__(self) -> Cost:
        return apply(abs, self, plates=[])

    def __truediv__(self, divisor: Any) -> Cost:
        return self * (1.0 / divisor)


def apply(
    fn: Callable[..., Array] | Reduction,
    *costs: Cost,
    over: Axis | None = None,
    plates: Sequence[str] | None = None,
) -> Cost:
    """A nonlinear function of costs, taken per element of the plates that all terms share.

    Args:
        fn: elementwise on arrays, or a `Reduction` if `over` is given.
        costs: its arguments; the terms of each are summed first.
        over: replicate axis to reduce.
        plates: names of plates to keep instead of all shared ones; `[]` sums over every plate.
    """
    return Cost(applied(fn, [c.terms for c in costs], over, plates))
