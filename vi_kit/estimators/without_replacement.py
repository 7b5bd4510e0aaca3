"""Several different values of a Categorical at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import EstimatorError, message, whole_number
from vi_kit.base.layouts import Gradient, Layout, Worlds
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion, reason_against_categorical
from vi_kit.estimators.noise import gumbel

MOST = 6
"""More values would need more orders in which they can be drawn than is worth it (6! = 720)."""


@dataclass(frozen=True)
class WithoutReplacement(Estimator):
    r"""The unordered set estimator, $\sum_{s \in S} q(s) R(S, s) f(s)$, at a set S of k different values. Its gradient,
    $\sum_{s} \nabla q(s) R(S, s) (f(s) - \sum_{s'} q(s') R^{\setminus s}(S, s') f(s'))$, has a baseline built in.

    S is drawn by the k largest of Gumbel-perturbed log probabilities; $R(S, s) = p(S \mid s \text{ first}) / p(S)$,
    and $R^{\setminus s}$ is the same with s taken out of the domain. Inside a nonlinear function of replicates the
    first value stands for the draw, and each replicate in turn is compared at all values of its set.

    Unbiased when: always; a probability of exactly zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: a Categorical (or OneHotCategorical) with at least k values, outside of events.
    Cost: k evaluations of the model.
    Variance: below that of k draws with replacement and their leave-one-out baseline; zero once k is the support.
    Use for: a Categorical of many values, with k evaluations to spend.

    Args:
        k: number of values, from 2 to 6.

    Raises:
        ObjectiveError: k out of range.

    Example:
        >>> WithoutReplacement(4)
        WithoutReplacement(k=4)

    References:
        Kool, van Hoof and Welling 2020, Estimating Gradients for Discrete Random Variables by Sampling without
        Replacement.
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    k: int

    def __post_init__(self) -> None:
        whole_number("WithoutReplacement", "k", self.k, least=2)
        if self.k > MOST:
            raise EstimatorError(
                message(
                    f"WithoutReplacement: k must be at most {MOST}",
                    got=f"k={self.k}",
                    expected=f"k <= {MOST}: the cost of the weights grows with its factorial",
                    fix=f"vi.WithoutReplacement({MOST}), or vi.SumAndSample({self.k})",
                )
            )

    def layout(self, dist: Distribution) -> Layout:
        del dist
        return Worlds(self.k)

    def reason_against(self, dist: Distribution) -> str | None:
        return reason_against_categorical(dist, self.k)

    def expand(self, dist: Distribution) -> Expansion:
        elements, backend = dist.elementary(), current().backend
        assert elements is not None
        probs = elements.params["probs"]
        xp = array_namespace(probs)
        held = backend.stop_gradient(probs)
        perturbed = xp.log(held) + gumbel(held.shape, like=held)
        values = xp.argsort(perturbed, axis=-1, descending=True)[..., : self.k]
        at = xp.take_along_axis(probs, values, axis=-1)
        weights = _weights(at, backend.stop_gradient(at))
        return Expansion(
            elements.push(xp.moveaxis(values, -1, 0)),
            is_worlds=True,
            weights=xp.moveaxis(weights, -1, 0),
            first_is_drawn=True,
            has_path=elements.push_has_params,
        )

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_worlds()


def _weights(probs: Array, held: Array) -> Array:
    """What the values of a set are weighted with, and the gradient of that with the baseline in it; both
    arguments have the values along the last dim, the second without gradient."""
    xp, k = array_namespace(held), held.shape[-1]
    whole = _probability(held, ())
    one_out = [_probability(held, (s,)) for s in range(k)]
    # where not all of them can be drawn, they hold every value that can, and the sum is exact
    ratio = xp.stack([_ratio(p, whole) for p in one_out], axis=-1)
    change = (probs - held) * ratio
    weights = held * ratio + change
    columns = []
    for other in range(k):
        worth = [
            xp.ones_like(whole)
            if s == other
            else _ratio(_probability(held, (s, other)), one_out[s])
            for s in range(k)
        ]
        columns.append(held[..., other] * xp.sum(change * xp.stack(worth, axis=-1), axis=-1))
    return weights - xp.stack(columns, axis=-1)


def _ratio(above: Array, below: Array) -> Array:
    """Of two probabilities; one where the latter is zero."""
    xp = array_namespace(below)
    return xp.where(below > 0, above / xp.where(below > 0, below, xp.ones_like(below)), 1.0)


def _probability(probs: Array, out: tuple[int, ...]) -> Array:
    """The probability that the values of a set, but for those that are taken out of the domain, come first."""
    xp, k = array_namespace(probs), probs.shape[-1]
    taken: Array = sum((probs[..., s] for s in out), xp.zeros_like(probs[..., 0]))
    others = [s for s in range(k) if s not in out]
    orders = list(itertools.permutations(others))
    if not others:
        return xp.ones_like(taken)
    index = current().backend.constants(np.array(orders), probs)
    drawn = probs[..., index]
    before = xp.cumulative_sum(drawn, axis=-1) - drawn + taken[..., None, None]
    left = xp.clip(1.0 - before, min=xp.finfo(probs.dtype).eps)
    return xp.sum(xp.prod(drawn / left, axis=-1), axis=-1)
