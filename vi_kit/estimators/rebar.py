"""Score functions with control variates whose gradient is known by reparameterisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.demands import ContinuousBetween, Demand
from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.layouts import Alternatives, Gradient, Layout, Single
from vi_kit.base.named import Array, Named, softmax, total
from vi_kit.base.protocols import Distribution
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Site, Term, stopped
from vi_kit.estimators.base import Estimator, Expansion, estimator_context
from vi_kit.estimators.memory import Learned, Memory, Network
from vi_kit.estimators.noise import exponential
from vi_kit.estimators.relaxation import (
    as_value,
    check_temperature,
    given_the_largest,
    hard,
    lacks_relaxation,
    probabilities,
    safe_log,
)


@dataclass(frozen=True, kw_only=True)
class Rebar(Estimator):
    r"""The score function with the relaxed cost as its control variate,
    $(f(b) - \eta f(\tilde s)) \nabla \log q(b) + \eta \nabla f(s) - \eta \nabla f(\tilde s)$.

    $s = \mathrm{softmax}(z / \tau)$ relaxes the value b, the largest of z; $\tilde s$ does so given b. Both are made of
    the same noise and are the same number, so that gradients of other parameters cancel. Scale $\eta$ and temperature
    $\tau$ are parameters of the site; the optimiser of the step moves them against the gradient of the squared norm of
    the guide's gradient, an unbiased estimate of that of its variance. In NumPyro they need a place: give `SVI`
    `loss.with_state(guide)`. Inside a nonlinear function of replicates each of them in turn is relaxed.

    Unbiased when: the cost has no jumps between the discrete values; what jumps is refused. A probability of exactly
        zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: Bernoulli or OneHotCategorical elements (NumPyro has no OneHotCategorical); at sites drawn given this one
        `Reparam`, or in linear objectives `Enumerate`.
    Cost: 3 evaluations of the model; to learn, second derivatives too.
    Variance: low where the relaxed cost is close to the discrete one.
    Use for: binary codes under smooth networks, without replicates.

    Args:
        temperature: at first.
        scale: at first.
        learn: whether to learn them.

    Raises:
        ObjectiveError: a temperature that is not positive, or no scale.

    Example:
        >>> Rebar()
        Rebar(temperature=0.5, scale=1.0, learn=True)

    References:
        Tucker et al. 2017, REBAR: Low-variance, Unbiased Gradient Estimates for Discrete Latent Variable Models.
    """

    gradient: ClassVar[Gradient] = Gradient.NONE
    relaxes: ClassVar[bool] = True
    temperature: float = 0.5
    scale: float | None = 1.0
    learn: bool = True

    def __post_init__(self) -> None:
        check_temperature(type(self).__name__, self.temperature)
        if self.scale is None and self.relaxes:
            raise ObjectiveError(
                message(
                    f"{type(self).__name__}: it needs a scale",
                    got="scale=None",
                    expected="the scale of the relaxed cost, a float",
                    fix="scale=1.0, or vi.Relax(network, scale=None)",
                )
            )

    @property
    def memory(self) -> Memory:
        return {k: Learned(v) for k, v in self._numbers.items()} if self.learn else {}

    @property
    def _numbers(self) -> dict[str, float]:
        if self.scale is None:
            return {}
        return {"log_temperature": math.log(self.temperature), "scale": self.scale}

    def layout(self, dist: Distribution) -> Layout:
        if not self.relaxes or lacks_relaxation(dist):
            return Single()
        return Alternatives(2, are_live=True, leaves_support=True)

    def demand(self, dist: Distribution) -> Demand | None:
        del dist
        return ContinuousBetween(_between) if self.relaxes else None

    def reason_against(self, dist: Distribution) -> str | None:
        return lacks_relaxation(dist)

    def expand(self, dist: Distribution) -> Expansion:
        value, z = _perturbed(probabilities(dist))
        control = self.control(dist, z)
        xp = array_namespace(z)
        if not self.relaxes:
            elements = dist.elementary()
            assert elements is not None
            return Expansion(elements.push(xp.argmax(value, axis=-1)), control=control)
        temperature = xp.exp(self._number(estimator_context().opened, "log_temperature", z))
        soft = as_value(dist, softmax(z / temperature, axis=-1))
        return Expansion(as_value(dist, value), alternatives=soft, control=control)

    def control(self, dist: Distribution, z: Array) -> Array | None:
        """A control variate besides the relaxed cost.

        Args:
            dist: of the site.
            z: perturbed log probabilities, and the same given the value; shape `(2, *batch, *event, K)`.

        Returns:
            Of both, shape `(2, *batch)` (nats).
        """
        del dist, z
        return None

    def contract(self, downstream: Downstream) -> list[Term]:
        site, done, worth = downstream.site, list(downstream.terms), downstream.worth()
        assert site.log_q is not None
        control = self._control(downstream)
        if control is not None:
            assert site.slots is not None
            of_draw, given_value = (control.index(site.slots, i) for i in range(2))
            done.append(downstream.weighted(of_draw - given_value))
            # its own gradient is multiplied by zero, but counts in the derivative of the square
            worth = worth - (given_value if estimator_context().learning else stopped(given_value))
        return [*done, downstream.weighted(site.log_q, worth)]

    def _control(self, downstream: Downstream) -> Named | None:
        """The control variate at the relaxed value, and at that given what was drawn: along the site's slots."""
        parts, site, swapped = [], downstream.site, downstream.swapped()
        if swapped.terms:
            relaxed = swapped.alternatives()
            scale = self._number(site, "scale", relaxed.array)
            parts.append(Named(scale * relaxed.array, relaxed.axes))
        if site.control is not None:
            parts.append(downstream.given(site.control).scaled(downstream.unit))
        return total(parts) if parts else None

    def _number(self, site: Site, name: str, like: Array) -> Array:
        if self.learn:
            return estimator_context().parameter(site, name, like)
        xp = array_namespace(like)
        return xp.full((), self._numbers[name], dtype=like.dtype, device=device(like))


@dataclass(frozen=True)
class Relax(Rebar):
    r"""`Rebar` with a network in the control variate, $c(z) = \eta f(\mathrm{softmax}(z / \tau)) + r_\phi(z)$; or the
    network alone.

    The network is trained like scale and temperature: against the gradient of the squared norm of the guide's
    gradient. Without a scale the model is never evaluated between the discrete values (LAX).

    Unbiased when: the cost has no jumps between the discrete values (refused); with `scale=None` always. A probability
        of exactly zero that has a gradient by `probs` is never drawn, nor seen.
    Needs: a network with second derivatives, and what `Rebar` needs; with `scale=None` Bernoulli or Categorical
        elements and nothing else.
    Cost: 3 evaluations of the model, with `scale=None` 1; second derivatives too.
    Variance: at first that of `Rebar` (with `scale=None` of `Score`) and what the network adds; falls as it learns.
    Use for: long training; with `scale=None` also costs that cannot be relaxed.

    Args:
        network: a torch, flax (linen or nnx) or equinox module of inputs of shape `(*batch, D)` and outputs of shape
            `(*batch)` or `(*batch, 1)` (nats). D is the size of the event: log odds plus logistic noise of each
            Bernoulli, log probabilities plus Gumbel noise of each category.
        temperature: at first.
        scale: at first; `None` for the network alone.
        learn: whether to learn scale and temperature; the network is learned always.

    Raises:
        ObjectiveError: a temperature that is not positive.

    Example:
        >>> import torch
        >>> Relax(torch.nn.Linear(3, 1)).network
        Linear(in_features=3, out_features=1, bias=True)

    References:
        Grathwohl et al. 2018, Backpropagation through the Void: Optimizing Control Variates for Black-Box Gradient
        Estimation.
    """

    network: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is None:
            raise ObjectiveError(
                message(
                    "Relax: it needs a network",
                    got="network=None",
                    expected="a torch, flax or equinox module of the relaxed values of an element",
                    fix="vi.Relax(network), or without one vi.Rebar()",
                )
            )

    @property
    def relaxes(self) -> bool:  # type: ignore[override]
        return self.scale is not None

    @property
    def memory(self) -> Memory:
        inputs = Network(self.network, lambda dist, args, kwargs: _flat(dist, probabilities(dist)))
        return {**super().memory, "network": inputs}

    def reason_against(self, dist: Distribution) -> str | None:
        if self.relaxes:
            reason = lacks_relaxation(dist)
            return reason and f"{reason} (with scale=None it does without values in between)"
        elements = dist.elementary()
        if elements is None or elements.family not in ("Bernoulli", "Categorical"):
            return f"needs Bernoulli or Categorical elements; {dist.name} has none"
        return None

    def control(self, dist: Distribution, z: Array) -> Array | None:
        run = estimator_context()
        values = run.predict(run.opened, self.network, _flat(dist, z))
        if values is not None and values.ndim > 1 + len(dist.batch_shape):
            values = values[..., 0]
        return values


def _between(dist: Distribution, zero: Array) -> Array:
    return as_value(dist, probabilities(dist)) + zero


def _perturbed(probs: Array) -> tuple[Array, Array]:
    """A one-hot draw; and the Gumbel-perturbed log probabilities of which it is the largest, once as a function of
    the noise and once of what is left of the noise given the draw: two arrays in one, of the same value."""
    backend, xp = current().backend, array_namespace(probs)
    noise = exponential(probs.shape, like=probs)
    z = safe_log(probs) - xp.log(noise)
    held, fixed = backend.stop_gradient(z), backend.stop_gradient(probs)
    value = hard(held)
    top = xp.exp(-xp.max(held, axis=-1, keepdims=True))
    rest = xp.clip(noise - fixed * top, min=xp.finfo(probs.dtype).tiny)
    return value, xp.stack([z, given_the_largest(probs, value, rest, top)])


def _flat(dist: Distribution, z: Array) -> Array:
    """Perturbed log probabilities as the input of a network, with one dim for the event."""
    elements = dist.elementary()
    assert elements is not None
    if elements.family == "Bernoulli":
        z = z[..., 1] - z[..., 0]
    dims = elements.event_ndim + (elements.family == "Categorical")
    shape = tuple(z.shape)[: z.ndim - dims]
    return array_namespace(z).reshape(z, (*shape, -1))
