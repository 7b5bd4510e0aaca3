"""Draws of two programs as NumPy arrays, whichever library runs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import BackendError, message
from vi_kit.engine.variance import Measured


class NoSamplerError(BackendError):
    """A program has to draw from what has no sampler."""

    def __init__(self, site: str, distribution: str):
        super().__init__(
            message(
                f"site {site!r}: one cannot draw from {distribution}",
                got=f"{distribution}, which has no sampler",
                expected="a distribution that can be simulated, or a site that the guide draws",
                fix="a proper prior, such as a wide Normal; or what needs draws of the guide alone",
            )
        )


class Kind(Enum):
    """What a site is."""

    LATENT = "latent"
    """Drawn by the guide, or by a run of the model alone."""
    PRIOR = "prior"
    """A latent site of the model that the guide lacks: drawn by the model."""
    SUMMED = "summed"
    """One that the loss sums out."""
    OBSERVED = "observed"
    """Data, or in predictive runs what is drawn in its place."""
    DETERMINISTIC = "deterministic"
    FACTOR = "factor"
    ROWS = "rows"
    """The indices that a subsampled plate has drawn."""


@dataclass(frozen=True)
class Plate:
    """A plate that a site is in.

    Attributes:
        name: of it.
        dim: its place among the batch dims, negative.
        size: of what is drawn of it.
        full_size: of all of it.
    """

    name: str
    dim: int
    size: int
    full_size: int

    def __str__(self) -> str:
        return f"plate {self.name!r}: {self.size} of {self.full_size} elements"


@dataclass(frozen=True)
class Site:
    """A site at all draws.

    Attributes:
        name: of it.
        kind: what it is.
        value: shape `(num, *batch, *event)`, constrained.
        event_dim: how many dims are event dims; `None` where the library does not say (deterministic sites).
        plates: that it is in, those that are vectorised.
        log_prob: of its elements, neither scaled nor masked (nats), shape `(num, *batch)`, if it has one.
        mask: which elements count, of the shape of `log_prob`; `None` if all do.
        scale: what its density is multiplied by, such that it broadcasts against `log_prob`.
        is_fixed: whether its value is no draw (a Delta).
        is_discrete: whether its values are.
    """

    name: str
    kind: Kind
    value: np.ndarray
    event_dim: int | None
    plates: tuple[Plate, ...]
    log_prob: np.ndarray | None = None
    mask: np.ndarray | None = None
    scale: Any = 1.0
    is_fixed: bool = False
    is_discrete: bool = False

    def take(self, indices: np.ndarray) -> Site:
        """The site at some of the draws."""
        parts = {
            name: None if own is None else own[indices]
            for name, own in (
                ("value", self.value),
                ("log_prob", self.log_prob),
                ("mask", self.mask),
            )
        }
        scale = self.scale if np.ndim(self.scale) == 0 else np.asarray(self.scale)[indices]
        return replace(self, **parts, scale=scale)  # pyright: ignore[reportArgumentType]

    @property
    def elements(self) -> np.ndarray:
        """The log density of its elements, zero where they are masked, scaled; shape `(num, *batch)`."""
        if self.log_prob is None:
            return np.zeros(len(self.value))
        shown = self.log_prob if self.mask is None else np.where(self.mask, self.log_prob, 0.0)
        return self.scale * shown

    @property
    def total(self) -> np.ndarray:
        """Its log density, shape `(num,)`."""
        elements = self.elements
        return elements.reshape(len(elements), -1).sum(axis=1)


@dataclass(frozen=True)
class Draws:
    """Runs of a guide, and of the model at what it has drawn.

    Attributes:
        guide: its sites by name, in the order of the program.
        model: those of the model, likewise.
        one_by_one: why they were not made many at once; empty if they were, or are few.
    """

    guide: Mapping[str, Site]
    model: Mapping[str, Site]
    one_by_one: str = ""

    def __len__(self) -> int:
        for site in (*self.guide.values(), *self.model.values()):
            return len(site.value)
        return 0

    def take(self, indices: np.ndarray) -> Draws:
        """Some of the draws."""
        guide = {n: s.take(indices) for n, s in self.guide.items()}
        return replace(self, guide=guide, model={n: s.take(indices) for n, s in self.model.items()})

    @property
    def sites(self) -> dict[str, Site]:
        """All that is no data: of the guide, then what the model adds."""
        added = (Kind.DETERMINISTIC, Kind.PRIOR, Kind.ROWS, Kind.LATENT)
        kept = {n: s for n, s in self.guide.items() if s.kind not in (Kind.OBSERVED, Kind.FACTOR)}
        return kept | {n: s for n, s in self.model.items() if s.kind in added and n not in kept}

    @property
    def observed(self) -> dict[str, Site]:
        """The data, or what was drawn in their place."""
        return {n: s for n, s in self.model.items() if s.kind is Kind.OBSERVED}

    @property
    def has_summed(self) -> bool:
        """Whether the loss sums sites of the model out."""
        return any(s.kind is Kind.SUMMED for s in self.model.values())

    @property
    def minibatches(self) -> list[Plate]:
        """The plates of which the programs draw some elements themselves."""
        chosen = {
            n for own in (self.guide, self.model) for n, s in own.items() if s.kind is Kind.ROWS
        }
        plates = {p.name: p for _, s in self.terms for p in s.plates if p.name in chosen}
        return [p for p in plates.values() if p.size != p.full_size]

    @property
    def terms(self) -> list[tuple[float, Site]]:
        """The sites that the log weight is made of, each with its sign. What the model draws itself cancels."""
        ours = (Kind.LATENT, Kind.OBSERVED, Kind.FACTOR)
        terms = [(1.0, s) for s in self.model.values() if s.kind in ours]
        return terms + [(-1.0, s) for s in self.guide.values() if s.kind in ours]

    @property
    def log_weights(self) -> np.ndarray:
        """Log density of the model less that of the guide (nats), shape `(num,)`."""
        return sum((sign * s.total for sign, s in self.terms), np.zeros(len(self)))

    @property
    def log_likelihoods(self) -> np.ndarray:
        """Of data and factors, shape `(num,)`."""
        data = [s for s in self.model.values() if s.kind in (Kind.OBSERVED, Kind.FACTOR)]
        return sum((s.total for s in data), np.zeros(len(self)))


class Runs(Protocol):
    """A pair of programs that a library runs with its own handlers; parameters and state stay as they are."""

    def posterior(
        self, num: int, seed: int, *, predictive: bool = False, densities: bool = True
    ) -> Draws:
        """Independent draws of the guide, and the model at each.

        Args:
            num: how many.
            seed: of all random numbers.
            predictive: whether the model draws its data too.
            densities: whether log densities are wanted.

        Raises:
            NoSamplerError: the model has to draw from what has no sampler.
        """
        ...

    def prior(self, num: int, seed: int, *, conditioned: bool = False) -> Draws:
        """Independent runs of the model alone.

        Args:
            num: how many.
            seed: of all random numbers.
            conditioned: whether its data stay in place, with their log densities; else it draws them too.

        Raises:
            NoSamplerError: there is nothing to draw from, as of an improper prior.
        """
        ...

    def replay(self, loss: Any, seed: int) -> AbstractContextManager[Measured]:
        """The same programs at the same parameters, whose gradients are drawn."""
        ...


def kind_of(
    name: str,
    infer: Mapping[str, Any],
    *,
    is_data: bool,
    is_given: bool,
    is_guide: bool,
    summed: Iterable[str],
) -> Kind:
    """What a sample statement is that is no factor.

    Args:
        name: of it.
        infer: its annotations.
        is_data: whether it is observed, or was before the model drew its data.
        is_given: whether the guide has drawn it.
        is_guide: whether the program is the guide, or a model that is run alone.
        summed: patterns of sites that the loss sums out.
    """
    if is_data:
        return Kind.OBSERVED
    if is_guide or is_given:
        return Kind.LATENT
    is_summed = infer.get("enumerate") == "parallel" or any(fnmatchcase(name, p) for p in summed)
    return Kind.SUMMED if is_summed else Kind.PRIOR


def concatenated(pieces: list[Site]) -> Site:
    """Successive draws of a site as one."""
    if len(pieces) == 1:
        return pieces[0]
    first, mask = pieces[0], None
    log_prob = None
    if first.log_prob is not None:
        log_probs = [np.asarray(p.log_prob) for p in pieces]
        log_prob = np.concatenate(log_probs)
        if any(p.mask is not None for p in pieces):
            masks = [p.mask for p in pieces]
            mask = np.concatenate(
                [
                    np.ones(x.shape, bool) if m is None else m
                    for m, x in zip(masks, log_probs, strict=True)
                ]
            )
    scale = first.scale
    if not all(np.ndim(p.scale) == 0 and p.scale == scale for p in pieces):
        shape = (-1, *[1] * (0 if log_prob is None else log_prob.ndim - 1))
        scale = np.concatenate(
            [
                np.broadcast_to(
                    np.reshape(p.scale, shape) if np.ndim(p.scale) == 0 else p.scale,
                    (len(p.value), *(() if log_prob is None else log_prob.shape[1:])),
                )
                for p in pieces
            ]
        )
    value = np.concatenate([p.value for p in pieces])
    return replace(first, value=value, log_prob=log_prob, mask=mask, scale=scale)
