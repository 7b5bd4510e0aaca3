"""Antithetic pairs for Bernoulli and Categorical sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.layouts import Alternatives, Gradient, Layout
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.noise import uniform


@dataclass(frozen=True)
class DisARM(Estimator):
    r"""The difference of the cost at an antithetic pair, $\frac12 (f(b) - f(\tilde b)) \sum_d s_d$ with
    $s_d = \mathbb 1[b_d \ne \tilde b_d] (-1)^{\tilde b_d} \nabla p_d / \min(p_d, 1 - p_d)$.

    $b_d = \mathbb 1[1 - u_d < p_d]$ and $\tilde b_d = \mathbb 1[u_d < p_d]$ share their noise. All elements of an event
    change at once, so that an event of any size costs one further evaluation; `MeasureValued` changes them one by one.
    A Categorical is a sequence of binary choices, the likeliest value first, that stops at the first success; choices
    after both have stopped are left out, since theirs is zero in the mean. With `arm`, the same is averaged over less
    of the noise, with $u_d - \frac12$ in place of the indicator.

    Unbiased when: always; a probability of exactly zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: independent Bernoulli or Categorical elements.
    Cost: 2 evaluations of the model, whatever the size of the event.
    Variance: low for few elements; grows with the size of the event.
    Use for: large events of binary values; two evaluations whatever their size.

    Args:
        arm: the estimator of Yin and Zhou, of which DisARM is the conditional mean. For Bernoulli only.

    Example:
        >>> DisARM()
        DisARM(arm=False)

    References:
        Yin and Zhou 2019, ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks.
        Dong, Mnih and Tucker 2020, DisARM: An Antithetic Gradient Estimator for Binary Latent Variables.
        Dong, Mnih and Tucker 2021, Coupled Gradient Estimators for Discrete Latent Variables.
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    arm: bool = False

    def layout(self, dist: Distribution) -> Layout:
        del dist
        return Alternatives(1)

    def reason_against(self, dist: Distribution) -> str | None:
        elements = dist.elementary()
        families = ("Bernoulli",) if self.arm else ("Bernoulli", "Categorical")
        if elements is None or elements.family not in families:
            return f"needs {' or '.join(families)} elements; {dist.name} has none"
        return None

    def expand(self, dist: Distribution) -> Expansion:
        elements = dist.elementary()
        assert elements is not None
        if elements.family == "Bernoulli":
            value, other, weight = self._bernoulli(elements.params["probs"])
        else:
            value, other, weight = _categorical(elements.params["probs"])
        xp = array_namespace(weight)
        if elements.event_ndim:
            weight = xp.sum(weight, axis=tuple(range(-elements.event_ndim, 0)))
        return Expansion(
            elements.push(value),
            alternatives=elements.push(other[None]),
            coefficients=weight[None],
            has_path=elements.push_has_params,
        )

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_differences()

    def _bernoulli(self, p: Array) -> tuple[Array, Array, Array]:
        u = uniform(p.shape, like=p)
        if not self.arm:
            return _pair(u, p)
        held = current().backend.stop_gradient(p)
        value, other = 1.0 - u < held, u < held
        xp = array_namespace(p)
        slope = (p - held) / _positive(held * (1.0 - held))
        return value, other, xp.where(value == other, xp.zeros_like(p), (0.5 - u) * slope)


def _pair(u: Array, p: Array) -> tuple[Array, Array, Array]:
    """Two antithetic draws of Bernoulli elements, and the weight of the cost of the second less that of the first."""
    held = current().backend.stop_gradient(p)
    xp = array_namespace(p)
    value, other = 1.0 - u < held, u < held
    slope = 0.5 * (p - held) / _positive(xp.minimum(held, 1.0 - held))
    signed = xp.where(other, slope, -slope)
    return value, other, xp.where(value == other, xp.zeros_like(p), signed)


def _categorical(probs: Array) -> tuple[Array, Array, Array]:
    """The same of Categorical elements, by the sticks that are left of the mass at each value."""
    xp = array_namespace(probs)
    held, size = current().backend.stop_gradient(probs), probs.shape[-1]
    order = xp.argsort(held, axis=-1, descending=True)
    sorted_probs = xp.take_along_axis(probs, order, axis=-1)
    tail = xp.flip(xp.cumulative_sum(xp.flip(sorted_probs, axis=-1), axis=-1), axis=-1)
    # not 1 less what came before, which may round below zero
    left = xp.clip(tail, min=xp.finfo(probs.dtype).eps ** 2)
    sticks = xp.clip(sorted_probs / left, max=1.0)[..., : size - 1]
    first, second, weights = _pair(uniform(sticks.shape, like=sticks), sticks)

    def stop(successes: Array) -> Array:
        misses = xp.astype(xp.logical_not(successes), order.dtype)
        return xp.sum(xp.cumulative_prod(misses, axis=-1), axis=-1, keepdims=True)

    stops = stop(first), stop(second)
    both = xp.arange(size - 1, device=device(probs)) > xp.maximum(*stops)
    weight = xp.sum(xp.where(both, xp.zeros_like(weights), weights), axis=-1)
    value, other = (xp.take_along_axis(order, s, axis=-1)[..., 0] for s in stops)
    return value, other, weight


def _positive(x: Array) -> Array:
    """Bounded away from zero: what is divided by it happens with probability zero there."""
    xp = array_namespace(x)
    return xp.clip(x, min=xp.finfo(x.dtype).tiny)
