"""Posterior means of functions, and draws in proportion to importance weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws, Kind
from vi_kit.workflow.psis import pareto_smoothed
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.weights import refuse_without_weights

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Expectation:
    """What `vi.expectation` found.

    Attributes:
        mean: of each value by name, shape `(*batch, *event)`.
        error: their standard errors.
        pareto_k: of the weights; `None` without.
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
    draws, weights, k = _weighted(who, num_samples, seed, psis)
    values = values_of(draws)
    if function is not None:
        values = _of_function(function, values, num_samples)
    mean, error = {}, {}
    for name, value in values.items():
        value = np.asarray(value, float)
        mean[name] = np.einsum("n,n...->...", weights, value)
        variance = np.einsum("n,n...->...", weights**2, (value - mean[name]) ** 2)
        error[name] = np.sqrt(variance * (1.0 if psis else num_samples / (num_samples - 1)))
    return Expectation(mean, error, k, num_samples)


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
        BackendError: there are no weights, or no ArviZ.
    """
    num_samples = whole_number("resample", "num_samples", num_samples)
    num = 10 * num_samples if num_proposals is None else num_proposals
    num = whole_number("resample", "num_proposals", num, least=2)
    who = asked("resample", fit, args, kwargs, params)
    draws, weights, _ = _weighted(who, num, seed, True)
    steps = (np.arange(num_samples) + np.random.default_rng(seed).uniform()) / num_samples
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), steps), num - 1)
    return values_of(draws.take(np.random.default_rng(seed + 1).permutation(chosen)))


def values_of(draws: Draws) -> dict[str, np.ndarray]:
    """All values but those that are summed out."""
    return {n: s.value for n, s in draws.sites.items() if s.kind is not Kind.SUMMED}


def _weighted(
    who: Asked, num: int, seed: int, psis: bool
) -> tuple[Draws, np.ndarray, float | None]:
    """Draws, their weights, which sum to one, and Pareto's k of these."""
    if not psis:
        return drawn(who, num, seed, densities=False), np.full(num, 1 / num), None
    refuse_without_weights(who, drawn(who, 1, seed))
    draws = drawn(who, num, seed)
    smoothed, k = pareto_smoothed(draws.log_weights)
    return draws, np.exp(smoothed), float(k)


def _of_function(
    function: Callable[[Arrays], Any], values: Arrays, num: int
) -> dict[str, np.ndarray]:
    rows = [function({n: v[i] for n, v in values.items()}) for i in range(num)]
    if isinstance(rows[0], Mapping):
        return {n: np.stack([np.asarray(r[n]) for r in rows]) for n in rows[0]}
    return {"value": np.stack([np.asarray(r) for r in rows])}
