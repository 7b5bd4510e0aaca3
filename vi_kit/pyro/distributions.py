"""Pyro's distributions in the words that estimators use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.provenance import get_provenance
from torch.distributions import (
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    biject_to,
    constraints,
    transform_to,
)
from torch.distributions.utils import clamp_probs

from vi_kit.base.distributions import DistributionView, Wrappers, without_validation
from vi_kit.base.supports import is_a

ROUNDED = (
    dist.RelaxedBernoulliStraightThrough,
    dist.RelaxedOneHotCategoricalStraightThrough,
)
"""Round what they draw. Their log density is that of what was rounded, which they note at the value."""

STRAIGHT_THROUGH = (*ROUNDED, dist.OneHotCategoricalStraightThrough)

MADE_OF_ARRAYS = (torch.distributions.Distribution, torch.distributions.Transform)

WHOLE = dist.Distribution.score_parts
"""The score of a draw by a distribution that has no `score_parts` of its own: all of it, or none."""


class PyroDistribution(DistributionView):
    """A view of a Pyro distribution.

    One that rounds draws what is to be rounded, on the real line, where it has a density to the last digit.

    Attributes:
        unrounded: the distribution of that, if so.
    """

    wrappers = Wrappers(
        masked=dist.MaskedDistribution,
        independent=Independent,
        transformed=TransformedDistribution,
        expanded=dist.ExpandedDistribution,
        mixture=MixtureSameFamily,
    )

    def __init__(self, fn: Any):
        super().__init__(fn)
        self.unrounded = _unrounded(self.fn) if self.is_straight_through else None

    def sample(self) -> torch.Tensor:
        return self.sample_elements(self.unrounded or self.fn)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self.unrounded is None:
            return self.fn.log_prob(value)
        return self.unrounded.log_prob(getattr(value, "_vi_kit_drawn", value))

    def rounds(self, fn: Any) -> bool:
        return is_a(type(fn), STRAIGHT_THROUGH)

    def shown(self, value: torch.Tensor) -> Any:
        if self.unrounded is None:
            return value
        leaf, soft = self.fn, value
        while not isinstance(leaf, ROUNDED):
            leaf = leaf.base_dist
        for transform in leaf.transforms:
            soft = transform(soft)
        soft = clamp_probs(soft)
        rounded: Any = soft.round()
        if leaf.event_shape:
            hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1])
            rounded = hard.to(soft.dtype)
        rounded._unquantize, rounded._vi_kit_drawn = soft, value
        return rounded

    def family(self, fn: Any) -> str:
        return super().family(fn).replace("CategoricalStraightThrough", "Categorical")

    def rsample(self) -> torch.Tensor:
        return self.fn.rsample()

    def is_partial(self, fn: Any) -> bool:
        while is_a(type(fn), TransformedDistribution):
            fn = fn.base_dist
        parts = getattr(type(fn), "score_parts", WHOLE)
        return bool(fn.has_rsample) and parts is not WHOLE

    def partial_rsample(self) -> tuple[torch.Tensor, torch.Tensor]:
        fn, event_ndim, transforms = self._elements()
        fn = fn.expand(self.batch_shape + self.event_shape[:event_ndim])
        value = fn.rsample()
        log_noise = fn.score_parts(value).score_function
        if event_ndim:
            log_noise = log_noise.sum(tuple(range(-event_ndim, 0)))
        for transform in transforms:
            value = transform(value)
        return value, log_noise

    def sample_elements(self, fn: Any) -> torch.Tensor:
        with torch.no_grad():
            return fn.sample().detach()

    def as_drawn(self, fn: Any, value: torch.Tensor) -> torch.Tensor:
        if isinstance(fn, dist.Categorical):
            return value.long()
        return value if value.is_floating_point() else value.to(fn._param.dtype)

    def parts_of_mixture(self, fn: Any) -> tuple[torch.Tensor, Any]:
        return fn.mixture_distribution.logits, fn.component_distribution

    def is_by_probs(self, fn: Any) -> bool:
        known = vars(getattr(fn, "_categorical", fn))
        given = known.get("_param", known.get("logits", known.get("probs")))
        return given is known.get("probs")

    def is_discrete(self, fn: Any) -> bool:
        support = self.support_of(fn)
        return support is not None and support.is_discrete

    def as_array(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def divergence_from(self, drawn: Any) -> torch.Tensor:
        return torch.distributions.kl_divergence(drawn, self.fn)

    def _values(self, fn: Any) -> torch.Tensor | None:
        ends = vars(fn.support).values() if isinstance(fn.support, constraints.Constraint) else ()
        if any(get_provenance(end) for end in ends):  # they are others at other draws
            return None
        return super()._values(fn)

    def arrays(self) -> list[torch.Tensor]:
        found, pending, seen = [], [self.fn], set()
        while pending:
            x = pending.pop()
            if isinstance(x, torch.Tensor):
                found.append(x)
            elif isinstance(x, tuple | list):
                pending += x
            elif id(x) not in seen and isinstance(x, MADE_OF_ARRAYS):
                seen.add(id(x))
                pending += vars(x).values()
        return found

    def covers(self, other: PyroDistribution, value: torch.Tensor) -> bool:
        if other.name != "Delta" and other.reaches_beyond(self):
            return False
        support = self.support_of(self.fn)
        return support is None or bool(support.check(value).all())

    def is_real(self, support: Any) -> bool:
        return support is constraints.real

    def map_to(self, support: Any) -> Any:
        return biject_to(support)


def _unrounded(fn: Any) -> Any:
    """A copy of a distribution that rounds, of what it rounds; `None` of one that does not."""
    if isinstance(fn, ROUNDED):
        return fn.base_dist
    base = _unrounded(fn.base_dist) if isinstance(fn, Independent) else None
    if base is None:
        return None
    fn = copy.copy(fn)
    fn.base_dist = base
    return fn


class LinearOneHotCategorical(dist.OneHotCategorical):
    """A one-hot distribution whose log density is continued linearly between its values."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return (value * self.logits).sum(-1)


class UncheckedUniform(dist.Uniform):
    """A log density that does not look at the value: what it is inside the support."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        density = -(self.high - self.low).log()
        return density.expand(torch.broadcast_shapes(density.shape, value.shape))


def where_seen(fn: Any, value: torch.Tensor, mask: Any, kind: type) -> torch.Tensor:
    """An observed value with one of the support in the place of what masks leave out: the derivative of a log density
    at what is no datum may be none, and zero times it too. Masks of a kind are left alone."""
    for hidden, ndim in [(mask, len(fn.event_shape)), *_masks_of(fn)]:
        seen = hidden
        if hidden is False:
            seen = torch.zeros((), dtype=torch.bool, device=value.device)
        if isinstance(seen, torch.Tensor) and not isinstance(seen, kind):
            seen = seen[(..., *(None,) * ndim)]
            value = torch.where(seen, value, _of_support(fn, value))
    return value


def _masks_of(fn: Any) -> Iterator[tuple[Any, int]]:
    """The masks of a distribution, also of parts of its events, and how many dims what they mask has."""
    while isinstance(fn, torch.distributions.Independent | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            yield fn._mask, len(fn.event_shape)
        fn = fn.base_dist


def _of_support(fn: Any, value: torch.Tensor) -> torch.Tensor:
    """Some value that a distribution can have; the one given, where its support does not say."""
    try:
        support = fn.support
        if support.is_discrete:
            return torch.zeros_like(value)
        transform = transform_to(support)
    except NotImplementedError:
        return value
    return transform(value.new_zeros(transform.inverse_shape(value.shape))).detach()


def at_value(fn: Any, value: Any) -> dist.Delta:
    """A Delta at a value of a distribution."""
    event = tuple(fn.event_shape)
    value = torch.as_tensor(value)
    batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - len(event)])
    return dist.Delta(value.expand((*batch, *event)), event_dim=len(event))


class UncheckedDelta(dist.Delta):
    """A log density that does not look at the value: what it is where that is right."""

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[: x.dim() - self.event_dim]
        density = torch.as_tensor(self.log_density)
        return density.expand(torch.broadcast_shapes(self.batch_shape, batch))


def unchecked(fn: Any) -> Any:
    """A copy of a distribution whose log density does not ask where its value lies."""

    def leaf(fn: Any) -> Any:
        if isinstance(fn, dist.Uniform):
            return UncheckedUniform(fn.low, fn.high, validate_args=False)
        if isinstance(fn, dist.Delta):
            density: Any = fn.log_density
            return UncheckedDelta(fn.v, density, fn.event_dim, validate_args=False)
        return fn

    return without_validation(fn, leaf)


def relaxed(fn: Any) -> Any:
    """A copy of a distribution that has a density, with a gradient, between its values too."""

    def leaf(fn: Any) -> Any:
        if isinstance(fn, dist.OneHotCategorical):
            return LinearOneHotCategorical(logits=fn.logits, validate_args=False)
        return fn

    return without_validation(fn, leaf)
