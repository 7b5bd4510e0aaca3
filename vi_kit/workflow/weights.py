"""Importance weights of draws, over everything and row by row where rows factorise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, message
from vi_kit.workflow.asking import Asked
from vi_kit.workflow.draws import Draws, Kind, Site
from vi_kit.workflow.exporting import why_no_weights
from vi_kit.workflow.points import point_masses
from vi_kit.workflow.sampling import drawn


def log_mean_exp(log_weights: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    return np.logaddexp.reduce(log_weights, axis=-1) - np.log(log_weights.shape[-1])


def log_mean_error(log_weights: np.ndarray) -> np.ndarray:
    r"""The standard error of `log_mean_exp` by the delta method, $\mathrm{sd}(w) / (\bar w \sqrt n)$."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    num = weights.shape[-1]
    if num < 2:
        return np.full(weights.shape[:-1], np.nan)
    return weights.std(axis=-1, ddof=1) / weights.mean(axis=-1) / num**0.5


def refuse_without_weights(who: Asked, draws: Draws) -> None:
    """Refuse draws that have no importance weights.

    Raises:
        BackendError: they have none, or they are those of a minibatch that the programs draw themselves: of what is
            multiplied to stand for all rows, the mean of the exponential is no density of the data.
    """
    parts = draws.minibatches
    if parts:
        raise BackendError(
            message(
                f"{who.where}: the model draws its minibatch itself, so that weights are not those of the data",
                got="; ".join(map(str, parts)),
                expected="all rows: the likelihood of some, raised to a power, has another mean",
                fix="the plate without subsample_size, or with as many as it has",
            )
        )
    why = why_no_weights(who, draws)
    if why is not None:
        raise BackendError(
            message(
                f"{who.where}: the draws have no importance weights",
                got=why,
                expected="a guide with a density of its own, of all latent sites of the model",
                fix=_fix(who, draws),
            )
        )


def _fix(who: Asked, draws: Draws) -> str:
    """What can be done about weights that are not there."""
    summed = [n for n, s in draws.model.items() if s.kind is Kind.SUMMED]
    if summed:
        return (
            "in the model: a mixture in closed form (MixtureSameFamily) in the place of the site; or a guide that draws"
            f" it, with estimators={{{summed[0]!r}: vi.Enumerate()}} (in a scan vi.Score()); or vi.sample, which needs"
            " no weights"
        )
    if "AutoLaplaceApproximation" in {c.__name__ for c in type(who.unscaled.guide).__mro__}:
        return {
            "Pyro": "guide.laplace_approximation(*args), the Normal around the mode, as the guide",
            "NumPyro": "guide.get_posterior(params) is the Normal around the mode: AutoMultivariateNormal(model) as the"
            ' guide, with params={"auto_loc": its loc, "auto_scale_tril": its scale_tril}',
        }[who.loss.library]
    points = point_masses(draws)
    if points:
        those = ", ".join(map(repr, points))
        param, condition = {
            "Pyro": ("pyro.param", "pyro.condition"),
            "NumPyro": ("numpyro.param", "numpyro.handlers.condition"),
        }[who.loss.library]
        return (
            f"a density for {those}, such as AutoNormal has; where they are meant as fixed, {param} in the model in"
            f" their place, or {condition}(model, {{{points[0]!r}: value}}); or vi.sample, which needs no weights"
        )
    return "another guide, such as AutoNormal; or vi.sample, which needs no weights"


@dataclass(frozen=True)
class Rows:
    """Log weights of the elements of a plate in which everything stands.

    Attributes:
        plate: its name.
        log_weights: shape `(num, size)`, with handlers' scales but without that of minibatches.
    """

    plate: str
    log_weights: np.ndarray


def drawn_by_row(who: Asked, num: int, seed: int, first: Draws) -> tuple[Asked, Draws, Rows | None]:
    """Draws with their log weights row by row, if rows are independent.

    Args:
        who: asks for them. Where rows are independent those of a minibatch count for themselves, and not for all rows.
        num: of draws.
        seed: of them.
        first: a draw, which tells whether rows are.

    Returns:
        Who asks for these, the draws, and the weights; `None` if rows are not independent.

    Raises:
        BackendError: the guide is found to have put a site at a point, which one draw does not always tell.
    """
    if rows_of(first) is not None:
        who = who.unscaled
    draws = drawn(who, num, seed)
    refuse_without_weights(who, draws)
    return who, draws, rows_of(draws)


def rows_of(draws: Draws) -> Rows | None:
    """The log weights row by row.

    There are such if every site of both programs that is random stands in one plate, those that the model draws itself
    among them, and no minibatch is drawn anew with each draw. Rows are then independent given the parameters, as the
    plate says.
    """
    own = [s for s in draws.model.values() if s.kind is Kind.PRIOR]
    sites = [s for _, s in draws.terms]
    shared = (
        set.intersection(*({p.name for p in s.plates} for s in (*sites, *own))) if sites else set()
    )
    if not shared or any(_axis(s, n) is None for s in sites for n in shared):
        return None
    name = max(shared, key=lambda n: max(p.size for s in sites for p in s.plates if p.name == n))
    if name in draws.sites and draws.sites[name].kind is Kind.ROWS:
        return None
    return Rows(name, _summed(draws.terms, name))


def likelihoods_by_row(draws: Draws, plate: str) -> np.ndarray:
    """The log likelihoods of rows, shape `(num, size)`; `(num, 1)` of zeros if there are no data."""
    data = [s for s in draws.model.values() if s.kind in (Kind.OBSERVED, Kind.FACTOR)]
    return _summed([(1.0, s) for s in data], plate) if data else np.zeros((len(draws), 1))


def _summed(terms: list[tuple[float, Site]], name: str) -> np.ndarray:
    """Log densities with their signs, for each element of a plate that all of them are in."""
    total: Any = 0.0
    for sign, site in terms:
        axis = _axis(site, name)
        assert axis is not None
        plate = next(p for p in site.plates if p.name == name)
        elements = np.moveaxis(np.asarray(site.elements), axis, 1)
        elements = elements.reshape(*elements.shape[:2], -1).sum(axis=2)
        total = total + sign * elements * (plate.size / plate.full_size)
    return total


def _axis(site: Site, plate: str) -> int | None:
    """The axis of a site's log densities that is a plate; `None` if there is no such."""
    if site.log_prob is None:
        return None
    for own in site.plates:
        axis = site.log_prob.ndim + own.dim
        if own.name == plate and axis >= 1 and site.log_prob.shape[axis] == own.size:
            return axis
    return None
