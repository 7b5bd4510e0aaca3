"""NumPyro's distributions in the words that estimators use."""

from __future__ import annotations

import copy
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import gammaln
from numpyro.distributions import (
    BernoulliLogits,
    BinomialLogits,
    CategoricalLogits,
    CategoricalProbs,
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    LeftTruncatedDistribution,
    MaskedDistribution,
    MixtureSameFamily,
    Normal,
    RightTruncatedDistribution,
    TransformedDistribution,
    biject_to,
    constraints,
    kl_divergence,
)
from numpyro.distributions.transforms import Transform

from vi_kit.base.distributions import (
    DistributionView,
    Wrappers,
    has_array,
    with_arrays,
    with_leaf,
    without_validation,
)

TRUNCATED = (LeftTruncatedDistribution, RightTruncatedDistribution)


class NumPyroDistribution(DistributionView):
    """A view of a NumPyro distribution, with the key for its draws.

    Attributes:
        intermediates: what NumPyro keeps of a reparameterised draw so as not to invert its transforms.
    """

    wrappers = Wrappers(
        masked=MaskedDistribution,
        independent=Independent,
        transformed=TransformedDistribution,
        expanded=ExpandedDistribution,
        mixture=MixtureSameFamily,
    )

    def __init__(self, fn: Any, key: jax.Array | None = None):
        super().__init__(fn)
        self.key = key
        self.num_draws = 0
        self.intermediates: list[Any] = []

    def new_key(self) -> jax.Array | None:
        """The key itself for the first draw, others for those after it."""
        self.num_draws += 1
        if self.num_draws == 1 or self.key is None:
            return self.key
        return random.fold_in(self.key, self.num_draws)

    def sample(self) -> jax.Array:
        return self.sample_elements(self.fn)

    def rsample(self) -> jax.Array:
        value, self.intermediates = self.fn.sample_with_intermediates(self.new_key())
        return value

    def sample_elements(self, fn: Any) -> jax.Array:
        return lax.stop_gradient(fn.sample(self.new_key()))

    def as_drawn(self, fn: Any, value: jax.Array) -> jax.Array:
        return value.astype(jax.eval_shape(fn.sample, random.key(0)).dtype)

    def parts_of_mixture(self, fn: Any) -> tuple[jax.Array, Any]:
        return jax.nn.log_softmax(fn.mixing_distribution.logits), fn.component_distribution

    def is_by_probs(self, fn: Any) -> bool:
        return not type(fn).__name__.endswith("Logits")

    def is_discrete(self, fn: Any) -> bool:
        return self.support_of(fn) is not None and fn.is_discrete

    def as_array(self, value: Any) -> jax.Array:
        return jnp.asarray(value)

    def family(self, fn: Any) -> str:
        if isinstance(fn, TRUNCATED) and type(fn.base_dist) is Normal:
            return type(fn).__name__.replace("Distribution", "Normal")
        return super().family(fn)

    def _param(self, fn: Any, name: str) -> jax.Array:
        if isinstance(fn, TRUNCATED) and not hasattr(fn, name):
            fn = fn.base_dist
        return super()._param(fn, name)

    def entropy(self) -> jax.Array:
        return smooth(self.fn).entropy()

    def divergence_from(self, drawn: Any) -> jax.Array:
        return kl_divergence(with_leaf(drawn, _by_probs), with_leaf(self.fn, _by_probs))

    def arrays(self) -> list[jax.Array]:
        return jax.tree.leaves(self.fn)

    def covers(self, other: NumPyroDistribution, value: jax.Array) -> bool:
        """By the kinds of supports only: values are not known when a program is traced."""
        del value
        return other.name == "Delta" or not other.reaches_beyond(self)

    def is_real(self, support: Any) -> bool:
        return support is constraints.real

    def map_to(self, support: Any) -> Any:
        return biject_to(support)


def _by_probs(fn: Any) -> Any:
    """A Categorical as NumPyro's registry of divergences has it, with finite logits where a probability is 0."""
    if not isinstance(fn, CategoricalLogits):
        return fn
    by_probs = CategoricalProbs(fn.probs)
    by_probs.logits = jax.nn.log_softmax(fn.logits)
    return by_probs


class _SmoothBernoulli:
    """What replaces NumPyro's."""

    logits: Any

    def log_prob(self, value: jax.Array) -> jax.Array:
        return _log_of_successes(value, 1.0, self.logits)

    def entropy(self) -> jax.Array:
        logits = jnp.asarray(self.logits)
        return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


class _SmoothBinomial:
    """What replaces NumPyro's."""

    logits: Any
    total_count: Any

    def log_prob(self, value: jax.Array) -> jax.Array:
        n = jnp.asarray(self.total_count, jnp.result_type(float))
        orders = gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0)
        return orders + _log_of_successes(value, n, self.logits)


def _log_of_successes(value: jax.Array, n: jax.Array | float, logits: Any) -> jax.Array:
    """The log probability of so many successes in n trials, in one order of them: linear in the value and without a
    jump in the logits, also at infinite ones, where what is certain has zero and the rest a very low one."""
    value, logits = jnp.asarray(value, jnp.result_type(float)), jnp.asarray(logits)
    largest = jnp.finfo(value.dtype).max / 2**20
    logits = jnp.clip(logits, -largest, largest)
    return value * logits - n * jax.nn.softplus(logits)


SMOOTH = {BernoulliLogits: _SmoothBernoulli, BinomialLogits: _SmoothBinomial}
"""NumPyro's families whose log density has a wrong gradient at a logit of exactly zero, since that of `clip` and `abs`
is neither side's there."""


@functools.cache
def _smoothed(kind: type) -> type:
    """A class of distributions, with a smooth log density where that is of one of these families."""
    for family, instead in SMOOTH.items():
        if getattr(kind, "log_prob", None) is family.log_prob:
            return type(f"Smooth{kind.__name__}", (instead, kind), {})
    return kind


def at_value(fn: Any, value: Any) -> Delta:
    """A Delta at a value of a distribution."""
    event, value = tuple(fn.event_shape), jnp.asarray(value)
    batch = jnp.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - len(event)])
    return Delta(jnp.broadcast_to(value, (*batch, *event)), event_dim=len(event))


class UncheckedDelta(Delta):
    """A log density that does not look at the value: what it is where that is right."""

    def log_prob(self, value: jax.Array) -> jax.Array:
        batch = jnp.shape(value)[: jnp.ndim(value) - self.event_dim]
        density = jnp.asarray(self.log_density)
        return jnp.broadcast_to(density, jnp.broadcast_shapes(self.batch_shape, batch))


def unchecked(fn: Any) -> Any:
    """A copy of a distribution whose log density does not ask where its value lies."""

    def leaf(fn: Any) -> Any:
        if type(fn) is Delta:
            fn.__class__ = UncheckedDelta
        return fn

    return without_validation(fn, leaf)


HALF = (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))
MADE_OF_ARRAYS = (Distribution, Transform)


def widened(fn: Any) -> Any:
    """A distribution with float32 in the place of half precision; itself, if it has none."""
    if not has_array(fn, MADE_OF_ARRAYS, HALF):
        return fn
    return with_arrays(fn, MADE_OF_ARRAYS, wide)


def wide(x: Any) -> Any:
    """Half precision as float32, and all else as it is."""
    return x.astype(jnp.float32) if getattr(x, "dtype", None) in HALF else x


def smooth(fn: Any) -> Any:
    """The distribution; a copy where some of it, its components and what it is made from included, is of a family
    in `SMOOTH`: with a log density whose gradient is right everywhere.

    What a program computes by itself cannot be mended: `numpyro.factor("x", dist.Bernoulli(logits=w).log_prob(1.))` has
    NumPyro's gradient at w = 0, and so have `jnp.clip`, `jnp.abs` and `jnp.maximum` at their kinks. A sample statement
    with `obs` instead of the factor is right.
    """
    if isinstance(fn, list | tuple):
        parts = [smooth(part) for part in fn]
        return fn if all(map(operator.is_, parts, fn)) else type(fn)(parts)
    if not isinstance(fn, Distribution):
        return fn
    kind, changed = _smoothed(type(fn)), {}
    for name, part in vars(fn).items():
        made = smooth(part)
        if made is not part:
            changed[name] = made
    if kind is type(fn) and not changed:
        return fn
    fn = copy.copy(fn)
    vars(fn).update(changed)
    fn.__class__ = kind
    return fn
