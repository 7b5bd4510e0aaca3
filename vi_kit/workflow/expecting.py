"""Posterior means of functions, and draws in proportion to importance weights."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, ObjectiveError, message, whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws, Kind, Site
from vi_kit.workflow.psis import MAX_K
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.smoothed import Smoothed, is_constant, smoothed
from vi_kit.workflow.weights import drawn_by_row, refuse_without_weights

Arrays = Mapping[str, np.ndarray]
Moment = tuple[np.ndarray, np.ndarray]
"""A mean and its standard error."""


@dataclass(frozen=True)
class Expectation:
    """What `vi.expectation` found.

    Attributes:
        mean: of each value by name, shape `(*batch, *event)`.
        error: their standard errors.
        pareto_k: of the weights, of rows the greatest; `None` without.
        num_samples: how many draws.
    """

    mean: Arrays
    error: Arrays = field(repr=False)
    pareto_k: float | None
    num_samples: int


def expectation(
    fit: Any,
    *args: Any,
    function: Callable[[Arrays], Any] | None = None,
    psis: bool = False,
    num_samples: int = 1000,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> Expectation:
    r"""Posterior means of all sites, or of a function of them.

    Plain they are those of the guide, $\frac1n \sum_i f(z_i)$. With `psis=True` they are corrected by Pareto-smoothed
    importance weights, $\sum_i \tilde w_i f(z_i)$ with $\sum_i \tilde w_i = 1$; the standard error is that of the delta
    method, $\sqrt{\sum_i \tilde w_i^2 (f(z_i) - \bar f)^2}$, and not to be relied on where `pareto_k` is over 0.7.

    Where every site stands in one plate, rows are independent, and the values of each are corrected by its own weights.
    A function of several rows is taken of rows that are resampled each by its own weights; its standard error is then
    an upper one. Deterministic values outside the plate are corrected by the joint weights, and count in `pareto_k`.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        function: from a dict of one draw's values by name, NumPy arrays, to a number, an array, or a dict of these.
            Left out: the values themselves.
        psis: whether to correct.
        num_samples: how many draws.
        seed: of them.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        Means and standard errors by name (`"value"` if the function returns no dict).

    Raises:
        BackendError: with `psis`: there are no weights, or no ArviZ.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.2, 1.1))
        >>> found = vi.expectation(Loss(), model, guide, function=lambda z: z["z"] ** 2, psis=True)
        >>> bool(abs(found.mean["value"] - 1.0) < 5 * found.error["value"])
        True
    """
    if function is not None and not callable(function):
        raise ObjectiveError(
            message(
                "expectation: the function cannot be called",
                got=repr(function),
                expected="a function of a dict of values by name",
                fix='function=lambda z: z["z"] ** 2',
            )
        )
    num_samples = whole_number("expectation", "num_samples", num_samples, least=2)
    who = asked("expectation", fit, args, kwargs, params)
    if not psis:
        draws = drawn(who, num_samples, seed, densities=False)
        means = _means(_values(values_of(draws), function, num_samples))
        error = {n: e for n, (_, e) in means.items()}
        return Expectation({n: m for n, (m, _) in means.items()}, error, None, num_samples)
    draws, weights = _weighted(who, num_samples, seed)
    joint = smoothed(draws.log_weights, None)
    k = weights.worst_k
    if weights.plate is None:
        values = _values(values_of(draws), function, num_samples)
        means = {n: _corrected(v, _against(joint.weights, v)) for n, v in values.items()}
    elif function is None:
        means = {n: _of_rows(s, weights, joint) for n, s in _shown(draws).items()}
        k = max(k, joint.worst_k) if _of_no_row(draws, weights) else k
    else:  # of rows that are chosen by themselves: any function of them is of independent rows
        indices = weights.chosen(num_samples, seed)
        taken = {n: weights.taken(s, indices) for n, s in _shown(draws).items()}
        known = {n: v for n, v in taken.items() if v is not None}
        values = _values(known, function, num_samples, tuple(taken.keys() - known.keys()))
        more = (
            1 + num_samples / weights.least_ess
        ) ** 0.5  # the draws that they are chosen from vary too
        means = {n: (m, e * more) for n, (m, e) in _means(values).items()}
    error = {n: e for n, (_, e) in means.items()}
    return Expectation({n: m for n, (m, _) in means.items()}, error, k, num_samples)


def resample(
    fit: Any,
    *args: Any,
    num_samples: int = 1000,
    num_proposals: int | None = None,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """Draws of the posterior: draws of the guide, resampled in proportion to Pareto-smoothed importance weights.

    Where every site stands in one plate, rows are independent, and each is resampled by its own weights.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        num_samples: how many draws.
        num_proposals: how many draws of the guide they are taken from, with replacement; 10 times as many if left out.
        seed: of both.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        As `vi.sample`.

    Raises:
        BackendError: there are no weights, or no ArviZ; or rows are independent, and a deterministic site depends on
            several, whose joint weights are of no use.
    """
    num_samples = whole_number("resample", "num_samples", num_samples)
    num = 10 * num_samples if num_proposals is None else num_proposals
    num = whole_number("resample", "num_proposals", num, least=2)
    who = asked("resample", fit, args, kwargs, params)
    draws, weights = _weighted(who, num, seed)
    lost = _of_no_row(draws, weights)
    if lost:
        weights = smoothed(draws.log_weights, None)
        if weights.worst_k > MAX_K:
            raise BackendError(_belong_to_no_row("resample", lost))
    indices = weights.chosen(num_samples, seed)
    taken = {n: weights.taken(s, indices) for n, s in _shown(draws).items()}
    return {n: v for n, v in taken.items() if v is not None}


def values_of(draws: Draws) -> dict[str, np.ndarray]:
    """All values but those that are summed out."""
    return {n: s.value for n, s in _shown(draws).items()}


def _shown(draws: Draws) -> dict[str, Site]:
    return {n: s for n, s in draws.sites.items() if s.kind is not Kind.SUMMED}


def _weighted(who: Asked, num: int, seed: int) -> tuple[Draws, Smoothed]:
    """Draws and their weights: those of each row where rows are independent."""
    first = drawn(who, 1, seed)
    refuse_without_weights(who, first)
    _, draws, rows = drawn_by_row(who, num, seed, first)
    return draws, smoothed(draws.log_weights, rows)


def _of_no_row(draws: Draws, weights: Smoothed) -> tuple[str, ...]:
    """The sites whose values vary, and have no axis of the rows."""
    if weights.plate is None:
        return ()
    sites = _shown(draws).items()
    return tuple(n for n, s in sites if weights.against(s) is None and not is_constant(s))


def _belong_to_no_row(where: str, names: tuple[str, ...]) -> str:
    return message(
        f"{where}: rows are weighed one by one, and values that depend on several of them have no weights",
        got=", ".join(repr(n) for n in names),
        expected="values of each row, in its plate",
        fix="vi.expectation(..., psis=True, function=...), which computes them from the values of the rows",
    )


class _Known(dict[str, np.ndarray]):
    """The values of a draw; what is asked for in vain may be a value of no row."""

    lost: tuple[str, ...] = ()

    def __missing__(self, name: str) -> np.ndarray:
        if name in self.lost:
            raise BackendError(_belong_to_no_row("expectation", (name,)))
        raise KeyError(name)


def _values(
    values: Arrays,
    function: Callable[[Arrays], Any] | None,
    num: int,
    lost: tuple[str, ...] = (),
) -> Arrays:
    """Values, or a function of them at each draw."""
    if function is None:
        return values
    rows = []
    for i in range(num):
        own = _Known({n: v[i] for n, v in values.items()})
        own.lost = lost
        rows.append(function(own))
    if isinstance(rows[0], Mapping):
        if all(isinstance(r, Mapping) and r.keys() == rows[0].keys() for r in rows):
            return {n: _stacked([r[n] for r in rows]) for n in rows[0]}
        raise ObjectiveError(_no_numbers(rows[-1]))
    return {"value": _stacked(rows)}


def _stacked(rows: list[Any]) -> np.ndarray:
    """Numbers of one shape, of all draws."""
    arrays = [np.asarray(r) for r in rows]
    for row, array in zip(rows, arrays, strict=True):
        if array.dtype.kind not in "fiub" or array.shape != arrays[0].shape:
            raise ObjectiveError(_no_numbers(row))
    return np.stack(arrays)


def _no_numbers(got: Any) -> str:
    return message(
        "expectation: the function returns what has no mean",
        got=reprlib.repr(got),
        expected="a number, an array of one shape at each draw, or a dict of such, the same names at each",
        fix="function=lambda z: z['w'] ** 2, say, of which z are the values of one draw by name",
    )


def _means(values: Arrays) -> dict[str, Moment]:
    """Means and standard errors of draws that count the same."""
    return {
        n: (np.mean(v, axis=0, dtype=float), np.std(v, axis=0, ddof=1, dtype=float) / len(v) ** 0.5)
        for n, v in values.items()
    }


def _of_rows(site: Site, weights: Smoothed, joint: Smoothed) -> Moment:
    """The mean of a site and its standard error: of each row by its own weights, jointly where it has no rows."""
    against = weights.against(site)
    own = _against(joint.weights, site.value) if against is None else against
    return _corrected(site.value, own)


def _against(weights: np.ndarray, value: np.ndarray) -> np.ndarray:
    return weights.reshape(-1, *[1] * (np.ndim(value) - 1))


def _corrected(value: np.ndarray, weights: np.ndarray) -> Moment:
    """A mean by weights that sum to one over the draws, and its standard error."""
    value = np.asarray(value, float)
    mean = (weights * value).sum(axis=0)
    return mean, np.sqrt((weights**2 * (value - mean) ** 2).sum(axis=0))
