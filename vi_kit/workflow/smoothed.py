"""Pareto-smoothed weights of draws: each row by its own where rows are independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vi_kit.workflow.draws import Site
from vi_kit.workflow.psis import pareto_smoothed
from vi_kit.workflow.weights import Rows


@dataclass(frozen=True)
class Smoothed:
    """Smoothed weights.

    Attributes:
        weights: shape `(num,)`, or `(num, size)` of rows; they sum to one over the draws.
        pareto_k: of them, shape `()` or `(size,)`.
        plate: the name of the rows' plate; `None` if rows are not independent.
    """

    weights: np.ndarray
    pareto_k: np.ndarray
    plate: str | None = None

    @property
    def worst_k(self) -> float:
        """The greatest Pareto's k."""
        return float(np.max(self.pareto_k))

    @property
    def least_ess(self) -> float:
        """The least effective number of draws."""
        return float(1 / (self.weights**2).sum(axis=0).max())

    def axis(self, site: Site) -> int | None:
        """The axis of a site's values that is the rows'; `None` if there is no such, or rows are not independent."""
        return None if self.plate is None else row_axis(site, self.plate)

    def against(self, site: Site) -> np.ndarray | None:
        """The weights in a shape that broadcasts against a site's values; `None` if these belong to no row."""
        if self.plate is None:
            return self.weights.reshape(-1, *[1] * (site.value.ndim - 1))
        axis = self.axis(site)
        return None if axis is None else along(self.weights, site, axis)

    def chosen(self, num: int, seed: int) -> np.ndarray:
        """Indices of draws in proportion to the weights, shape `(num,)` or `(num, size)`: of each row by themselves."""
        start, order = np.random.default_rng(seed), np.random.default_rng(seed + 1)
        columns = self.weights.reshape(len(self.weights), -1)
        steps = (np.arange(num)[:, None] + start.uniform(size=columns.shape[1])) / num
        sums = np.cumsum(columns, axis=0)
        found = [np.searchsorted(sums[:, i], steps[:, i]) for i in range(columns.shape[1])]
        indices = np.minimum(np.stack(found, axis=1), len(columns) - 1)
        return order.permuted(indices, axis=0).reshape(num, *self.weights.shape[1:])

    def taken(self, site: Site, indices: np.ndarray) -> np.ndarray | None:
        """A site's values at chosen draws, of each row at its own; `None` if they belong to no row."""
        if self.plate is None:
            return site.value[indices]
        if is_constant(site):
            return np.repeat(site.value[:1], len(indices), axis=0)
        axis = self.axis(site)
        if axis is None:
            return None
        return np.take_along_axis(site.value, along(indices, site, axis), axis=0)


def smoothed(log_weights: np.ndarray, rows: Rows | None) -> Smoothed:
    """Weights that are smoothed: those of rows if there are such, else the joint ones."""
    if rows is None:
        weights, k = pareto_smoothed(log_weights)
        return Smoothed(np.exp(weights), k)
    weights, k = pareto_smoothed(rows.log_weights.T)
    return Smoothed(np.exp(weights).T, k, rows.plate)


def is_constant(site: Site) -> bool:
    """Whether a site's values are the same at all draws."""
    return bool((site.value == site.value[:1]).all())


def along(rows: np.ndarray, site: Site, axis: int) -> np.ndarray:
    """Numbers of each draw and row, shape `(num, size)`, in a shape that broadcasts against a site's values."""
    shape = [1] * site.value.ndim
    shape[0], shape[axis] = rows.shape
    return rows.reshape(shape)


def row_axis(site: Site, plate: str) -> int | None:
    """The axis of a site's values that is a plate; `None` if there is no such, or it cannot be told.

    Of a deterministic site the library does not say how many dims are event dims: where all its plates fit its shape
    in one way only, it is this one.
    """
    sizes = {p.dim: p.size for p in site.plates}
    own = next((p for p in site.plates if p.name == plate), None)
    if own is None:
        return None
    depth = max(-dim for dim in sizes)
    events = range(site.value.ndim) if site.event_dim is None else [site.event_dim]
    fitting = [
        e
        for e in events
        if site.value.ndim - e > depth
        and all(site.value.shape[site.value.ndim - e + dim] == size for dim, size in sizes.items())
    ]
    return site.value.ndim - fitting[0] + own.dim if len(fitting) == 1 else None
