"""The likeliest values of a Categorical summed, one of the others sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import whole_number
from vi_kit.base.layouts import Gradient, Layout, Worlds
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion, reason_against_categorical
from vi_kit.estimators.noise import uniform


@dataclass(frozen=True)
class SumAndSample(Estimator):
    r"""$\sum_{z \in C} q(z) f(z) + q(\bar C) f(r)$ and its gradient, with C the `num_summed` likeliest values and
    r drawn from the rest; the score function serves r.

    Rao-Blackwellised: the gradient of what is summed has no noise. Inside a nonlinear function of replicates one of the
    values is drawn for each replicate, and each replicate in turn is compared at all of them.

    Unbiased when: always; a probability of exactly zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: a Categorical (or OneHotCategorical) with more values than are summed, outside of events.
    Cost: `num_summed + 1` evaluations of the model.
    Variance: that of the score function times the mass of the rest, squared.
    Use for: a Categorical of many values, of which few have most of the mass.

    Args:
        num_summed: number of values that are summed.

    Raises:
        ObjectiveError: fewer than one.

    Example:
        >>> SumAndSample(4)
        SumAndSample(num_summed=4)

    References:
        Liu et al. 2019, Rao-Blackwellized Stochastic Gradients for Discrete Distributions.
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    num_summed: int

    def __post_init__(self) -> None:
        whole_number("SumAndSample", "num_summed", self.num_summed)

    def layout(self, dist: Distribution) -> Layout:
        del dist
        return Worlds(self.num_summed + 1)

    def reason_against(self, dist: Distribution) -> str | None:
        return reason_against_categorical(dist, self.num_summed + 1)

    def expand(self, dist: Distribution) -> Expansion:
        elements, backend = dist.elementary(), current().backend
        assert elements is not None
        probs = elements.params["probs"]
        xp, k = array_namespace(probs), self.num_summed
        held = backend.stop_gradient(probs)
        order = xp.argsort(held, axis=-1, descending=True)
        tail = xp.take_along_axis(held, order, axis=-1)[..., k:]
        cdf = xp.cumulative_sum(tail, axis=-1)
        rest = cdf[..., -1:]
        u = uniform(rest.shape, like=rest)
        index = xp.clip(xp.sum(cdf <= u * rest, axis=-1, keepdims=True), max=tail.shape[-1] - 1)
        drawn = xp.take_along_axis(order[..., k:], index, axis=-1)
        values = xp.concat([order[..., :k], drawn], axis=-1)
        at = xp.take_along_axis(probs, values, axis=-1)
        own, fixed = at[..., k:], backend.stop_gradient(at[..., k:])
        unlikely = 1.0 if tail.shape[-1] == 1 else 0.0
        safe = xp.where(fixed > 0, fixed, xp.ones_like(rest))
        ratio = xp.where(fixed > 0, rest / safe, unlikely)
        weights = xp.concat([at[..., :k], rest + ratio * (own - fixed)], axis=-1)
        values = elements.push(xp.moveaxis(values, -1, 0))
        weights = xp.moveaxis(weights, -1, 0)
        return Expansion(values, is_worlds=True, weights=weights, has_path=elements.push_has_params)

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_worlds()
