"""Independent copies of a computation, and how they are reduced to one cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.base.named import Array, Axis, exclusive_scan
from vi_kit.costs.cost import Cost, apply
from vi_kit.costs.nonlinear import Reduction
from vi_kit.language.programs import session


def iid(fn: Callable[[], Any], num_replicates: int, *, chunk: int | None = None) -> Replicates:
    """Independent copies of a computation.

    Args:
        fn: returns a cost, or a tuple of costs for `Replicates.reduce`.
        num_replicates: number of copies, at least 1.
        chunk: how many of them are in memory at a time; a divisor of `num_replicates`. Those before are made again, by
            the same random numbers, for the gradient, which takes the time of one more evaluation. What is kept of each
            copy is its costs: a number for each term and each element of its plates. In Pyro a bound of 16,000 draws of
            400 numbers takes 8 MB by 200 at a time, 564 MB at once; one of 10^6 single numbers 73 MB and 136 MB.

    Returns:
        The copies, to be reduced by one of the methods. They nest.

    Raises:
        ObjectiveError: fewer than one copy, chunks that do not divide them, or `fn` returns something else.
    """
    num_replicates = whole_number("iid", "num_replicates", num_replicates)
    if chunk is not None:
        chunk = whole_number("iid", "chunk", chunk)
        if num_replicates % chunk:
            raise ObjectiveError(
                message(
                    "iid: chunk does not divide the number of copies",
                    got=f"num_replicates={num_replicates}, chunk={chunk}",
                    expected="chunks of one size",
                    fix=f"num_replicates={num_replicates + -num_replicates % chunk}, or another chunk",
                )
            )
        chunk = None if chunk == num_replicates else chunk
    run = session()
    axis = run.new_replicate_axis(num_replicates, chunk)
    return Replicates(run.replicate(fn, axis, chunk=chunk), axis)


class Replicates:
    """What `iid` returns: costs along a replicate axis, to be reduced to one cost.

    A nonlinear reduction is taken per element of the plates that *all* terms share (a bound per
    datapoint), and summed over them; the other plates are summed inside. `plates` overrides this with
    an explicit list of names, `[]` for one bound over everything.
    """

    def __init__(self, costs: tuple[Cost, ...], axis: Axis):
        self.costs = costs
        self.axis = axis

    def sum(self) -> Cost:
        """Sum over replicates."""
        return self._linear(per_copy=1.0, constant=float(self.axis.size))

    def mean(self) -> Cost:
        """Mean over replicates."""
        return self._linear(per_copy=1.0 / self.axis.size, constant=1.0)

    def _linear(self, per_copy: float, constant: float) -> Cost:
        (cost,) = self._single("mean and sum take")
        return Cost(
            replace(t, weight=t.weight * (per_copy if self.axis in t.base.axes else constant))
            for t in cost.terms
        )

    def log_mean_exp(self, plates: Sequence[str] | None = None) -> Cost:
        """Log of the mean of exponentials over replicates."""
        return apply(
            LogMeanExp(), *self._single("log_mean_exp takes"), over=self.axis, plates=plates
        )

    def variance(self, plates: Sequence[str] | None = None) -> Cost:
        """Unbiased sample variance over replicates (divisor n - 1).

        Raises:
            ObjectiveError: fewer than two replicates.
        """
        whole_number("variance", "num_replicates", self.axis.size, least=2)
        costs = self._single("variance takes")
        return apply(Reduction(_variance), *costs, over=self.axis, plates=plates)

    def reduce(self, fn: Callable[..., Array], plates: Sequence[str] | None = None) -> Cost:
        """Any function along the replicate axis.

        Args:
            fn: takes one array of shape `(num_replicates, *rest)` per cost that the function given to
                `iid` returned, and returns one of shape `(*rest,)`. It must be permutation-free in
                `rest` and differentiable.
            plates: as for the class.
        """
        return apply(Reduction(fn), *self.costs, over=self.axis, plates=plates)

    def _single(self, what: str) -> tuple[Cost]:
        if len(self.costs) != 1:
            raise ObjectiveError(
                message(
                    f"{what} one cost",
                    got=f"{len(self.costs)} costs from the function given to iid",
                    expected="one",
                    fix="use .reduce(fn), which gets one array per cost",
                )
            )
        return (self.costs[0],)


class LogMeanExp(Reduction):
    """Log-mean-exp along dim 0; swapping one entry costs the same order as one evaluation."""

    def __init__(self) -> None:
        super().__init__(log_mean_exp)

    def swap_one(self, base: Sequence[Array], other: Sequence[Array]) -> Array:
        (x,), (y,), backend = base, other, current().backend
        xp = array_namespace(x)
        rest = exclusive_scan(
            x, lambda v: backend.cumulative_logsumexp(v, 0), xp.logaddexp, -float("inf")
        )
        top = backend.stop_gradient(xp.maximum(rest, y))
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
        both = xp.exp(rest - top) + xp.exp(
            y - top
        )  # unlike logaddexp, also fit to differentiate twice
        return xp.log(both) + top - xp.log(xp.zeros_like(y) + x.shape[0])


def log_mean_exp(x: Array) -> Array:
    """`log(mean(exp(x)))` along dim 0, shape `(*rest,)`."""
    xp = array_namespace(x)
    count = x.shape[0]
    if count == 1:
        return x[0]
    lse = current().backend.logsumexp(x, 0)
    return lse - xp.log(xp.zeros_like(lse) + count)


def _variance(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.var(x, axis=0, correction=1.0)
