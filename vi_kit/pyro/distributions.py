"""Pyro's distributions in the words that estimators use."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import Independent, TransformedDistribution

from vi_kit.backend import Elementary

PARAMS = {
    "Bernoulli": ("probs",),
    "Categorical": ("probs",),
    "OneHotCategorical": ("probs",),
    "Normal": ("loc", "scale"),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Poisson": ("rate",),
}


class PyroDistribution:
    """A view of a Pyro distribution; implements `vi_kit.backend.Distribution`."""

    def __init__(self, fn: Any):
        while isinstance(fn, dist.MaskedDistribution):  # a mask changes the density, not the draw
            fn = fn.base_dist
        self.fn = fn
        base = fn
        while isinstance(base, Independent | dist.ExpandedDistribution):
            base = base.base_dist
        self.name = type(base).__name__
        self.event_shape: tuple[int, ...] = tuple(fn.event_shape)
        self.has_rsample = bool(fn.has_rsample)

    def sample(self) -> torch.Tensor:
        with torch.no_grad():
            return self.fn.sample().detach()

    def rsample(self) -> torch.Tensor:
        return self.fn.rsample()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.fn.log_prob(value)

    def _elements(self) -> tuple[Any, int, tuple[Any, ...]]:
        """What lies below `Independent` and elementwise transforms, and how many dims they reinterpret."""
        fn, event_ndim, transforms = self.fn, 0, ()
        while True:
            if isinstance(fn, Independent):
                event_ndim += fn.reinterpreted_batch_ndims
            elif isinstance(fn, TransformedDistribution):
                if any(t.domain.event_dim or t.codomain.event_dim for t in fn.transforms):
                    break
                event_ndim += len(fn.event_shape) - len(fn.base_dist.event_shape)
                transforms = (*fn.transforms, *transforms)
            else:
                break
            fn = fn.base_dist
        return fn, event_ndim, transforms

    def support_size(self) -> int | None:
        fn, event_ndim, transforms = self._elements()
        if transforms or not fn.has_enumerate_support:
            return None
        if isinstance(fn, torch.distributions.Bernoulli):
            size = 2
        elif isinstance(
            fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical
        ):
            size = fn.param_shape[-1]
        else:
            try:
                size = fn.enumerate_support(expand=False).shape[0]
            except NotImplementedError:
                return None
        return size ** math.prod(self.event_shape[:event_ndim])

    def support(self) -> torch.Tensor:
        fn, event_ndim, _ = self._elements()
        values = fn.enumerate_support(expand=False)
        values = values.reshape(values.shape[0], *fn.event_shape)
        shape = self.event_shape[:event_ndim]
        count, size = math.prod(shape), values.shape[0]
        if event_ndim == 0:
            return values
        powers = size ** torch.arange(count, device=values.device)
        digits = torch.arange(size**count, device=values.device)[:, None] // powers % size
        return values[digits].reshape(size**count, *shape, *fn.event_shape)

    def elementary(self) -> Elementary | None:
        fn, event_ndim, transforms = self._elements()
        family = type(fn).__name__
        if family not in PARAMS:
            return None
        params = {name: getattr(fn, name) for name in PARAMS[family]}
        one_hot = family == "OneHotCategorical"

        def sample() -> torch.Tensor:
            with torch.no_grad():
                value = fn.sample().detach()
            return value.argmax(-1) if one_hot else value

        def push(value: torch.Tensor) -> torch.Tensor:
            if one_hot:
                size = params["probs"].shape[-1]
                return torch.nn.functional.one_hot(value, size).to(params["probs"].dtype)
            for transform in transforms:
                value = transform(value)
            return value

        return Elementary("Categorical" if one_hot else family, params, event_ndim, sample, push)
