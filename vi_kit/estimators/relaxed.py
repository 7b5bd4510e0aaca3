"""Continuous stand-ins for discrete values. Biased, and only for who says so."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import EstimatorError, message, whole_number
from vi_kit.base.layouts import Gradient, Layout, Single
from vi_kit.base.named import Array, softmax
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.memory import Memory, Step
from vi_kit.estimators.noise import exponential, gumbel
from vi_kit.estimators.relaxation import (
    as_value,
    check_temperature,
    given_the_largest,
    hard,
    lacks_relaxation,
    probabilities,
    safe_log,
)


@dataclass(frozen=True)
class Biased(Estimator):
    """What the relaxations have in common: Bernoulli or one-hot elements, and a value with a gradient."""

    gradient: ClassVar[Gradient] = Gradient.PATH
    biased: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.biased is not True:
            raise EstimatorError(
                message(
                    f"{type(self).__name__}: the gradient is biased",
                    got=f"biased={self.biased!r}",
                    expected="biased=True, or an unbiased estimator: Enumerate(), DisARM(), Rebar(), MeasureValued() or"
                    " Score()",
                    fix=f"vi.{type(self).__name__}(..., biased=True)",
                )
            )

    def layout(self, dist: Distribution) -> Layout:
        del dist
        return Single(leaves_support=True)

    def reason_against(self, dist: Distribution) -> str | None:
        return lacks_relaxation(dist)

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(as_value(dist, self.value(probabilities(dist))))

    @abstractmethod
    def value(self, probs: Array) -> Array:
        """A one-hot value, or a stand-in for one, with a gradient; categories along the last dim."""

    def contract(self, downstream: Downstream) -> list[Term]:
        return list(downstream.terms)


@dataclass(frozen=True)
class Relaxed(Biased):
    r"""Gumbel-Softmax (of Bernoulli: binary Concrete), $\mathrm{softmax}((\log p + g) / \tau)$ with Gumbel noise g.

    With `straight_through` the program sees the hard one-hot value, and the gradient is that of the relaxed one,
    averaged over `num_rao` relaxed values with the same hard one (Gumbel-Rao). Without, the program must make
    sense between the discrete values; log densities are continued linearly.

    Unbiased when: never; the bias falls with the temperature.
    Needs: Bernoulli or OneHotCategorical elements; NumPyro has no OneHotCategorical.
    Cost: one evaluation of the model.
    Variance: low; grows as the temperature falls.
    Use for: large discrete latent variables where some bias will do.

    Args:
        temperature: positive, or a function of the number of steps so far, for annealing (in NumPyro give `SVI`
            `loss.with_state(guide)`).
        straight_through: whether the program sees the hard value.
        num_rao: relaxed values that are averaged, for `straight_through`.
        biased: must be `True`.

    Raises:
        EstimatorError: `biased` is not `True`.
        ObjectiveError: a temperature that is not positive, or fewer than one value.

    Example:
        >>> Relaxed(0.5, straight_through=True, biased=True)
        Relaxed(biased=True, temperature=0.5, straight_through=True, num_rao=1)

    References:
        Jang, Gu and Poole 2017, Categorical Reparameterization with Gumbel-Softmax.
        Maddison, Mnih and Teh 2017, The Concrete Distribution.
        Paulus, Maddison and Krause 2021, Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator.
    """

    temperature: float | Callable[[Array], Array] = 0.5
    straight_through: bool = False
    num_rao: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("Relaxed", "num_rao", self.num_rao)
        if not callable(self.temperature):
            check_temperature(
                "Relaxed", self.temperature, "temperature > 0, or a function of the step"
            )

    @property
    def memory(self) -> Memory:
        return {"step": Step()} if callable(self.temperature) else {}

    def value(self, probs: Array) -> Array:
        backend = current().backend
        logits = safe_log(probs)
        noisy = logits + gumbel(logits.shape, like=logits)
        if not self.straight_through:
            return self._softened(noisy)
        value = hard(backend.stop_gradient(noisy))
        if self.num_rao > 1:
            # other noise with the same hard value; the path is still that of the logits
            others = self._others(backend.stop_gradient(probs), value)
            noisy = others + logits - backend.stop_gradient(logits)
        soft = self._softened(noisy)
        soft = array_namespace(soft).mean(soft, axis=0) if self.num_rao > 1 else soft
        return value + soft - backend.stop_gradient(soft)

    def _others(self, probs: Array, value: Array) -> Array:
        """Perturbed log probabilities of which that of `value` is the largest; copies along dim 0."""
        noise = exponential((self.num_rao, *probs.shape), like=probs)
        top = array_namespace(probs).sum(value * noise, axis=-1, keepdims=True)
        return given_the_largest(probs, value, noise, top)

    def _softened(self, noisy: Array) -> Array:
        temperature = self.temperature
        if callable(temperature):
            temperature = temperature(current().step(like=noisy))
        return softmax(noisy / temperature, axis=-1)


@dataclass(frozen=True)
class StraightThrough(Biased):
    r"""The hard value, with the gradient of the probabilities in its place; with `second_order`, ReinMax.

    ReinMax follows Heun's rule in place of Euler's: exact for costs that are quadratic in the one-hot value.

    Unbiased when: never; for a cost that is linear in the value (`second_order`: quadratic).
    Needs: Bernoulli or OneHotCategorical elements; NumPyro has no OneHotCategorical.
    Cost: one evaluation of the model.
    Variance: low.
    Use for: large discrete latent variables where some bias will do, without a temperature to tune.

    Args:
        second_order: whether ReinMax.
        biased: must be `True`.

    Raises:
        EstimatorError: `biased` is not `True`.

    Example:
        >>> StraightThrough(second_order=True, biased=True)
        StraightThrough(biased=True, second_order=True)

    References:
        Bengio, Léonard and Courville 2013, Estimating or Propagating Gradients Through Stochastic Neurons.
        Liu, Dong, Liu, Yu and Gao 2023, Bridging Discrete and Backpropagation: Straight-Through and Beyond.
    """

    second_order: bool = False

    def value(self, probs: Array) -> Array:
        backend = current().backend
        held = backend.stop_gradient(safe_log(probs))
        value = hard(held + gumbel(held.shape, like=held))
        soft = probs
        if self.second_order:
            logits = safe_log(probs)
            middle = safe_log((value + backend.stop_gradient(probs)) / 2)
            shifted = softmax(middle - backend.stop_gradient(logits) + logits, axis=-1)
            soft = 2 * shifted - probs / 2
        return value + soft - backend.stop_gradient(soft)
