"""Importance weights of draws, over everything and row by row where rows factorise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vi_kit.base.errors import BackendError, message
from vi_kit.workflow.asking import Asked
from vi_kit.workflow.draws import Draws, Site
from vi_kit.workflow.exporting import why_no_weights


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
        BackendError: they have none.
    """
    why = why_no_weights(who, draws)
    if why is not None:
        raise BackendError(
            message(
                f"{who.where}: the draws have no importance weights",
                got=why,
                expected="a guide with a density of its own, of all latent sites of the model",
                fix="another guide, such as AutoNormal; or vi.sample, which needs no weights",
            )
        )


@dataclass(frozen=True)
class Rows:
    """Log weights of the elements of a plate in which everything stands.

    Attributes:
        plate: its name.
        log_weights: shape `(num, size)`, with handlers' scales but without that of minibatches.
    """

    plate: str
    log_weights: np.ndarray


def rows_of(draws: Draws) -> Rows | None:
    """The log weights row by row.

    There are such if every latent, observed or factor site of both programs stands in one plate, and no minibatch is
    drawn anew with each draw. Rows are then independent given the parameters, as the plate says.
    """
    sites = [s for _, s in draws.terms]
    shared = set.intersection(*({p.name for p in s.plates} for s in sites)) if sites else set()
    if not shared or any(_axis(s, n) is None for s in sites for n in shared):
        return None
    name = max(shared, key=lambda n: max(p.size for s in sites for p in s.plates if p.name == n))
    if f"{name}" in draws.sites and draws.sites[name].kind.name == "ROWS":
        return None
    total: np.ndarray | None = None
    for sign, site in draws.terms:
        axis = _axis(site, name)
        assert axis is not None
        plate = next(p for p in site.plates if p.name == name)
        elements = np.moveaxis(np.asarray(site.elements), axis, 1)
        elements = elements.reshape(*elements.shape[:2], -1).sum(axis=2)
        own = sign * elements * (plate.size / plate.full_size)
        total = own if total is None else total + own
    return None if total is None else Rows(name, total)


def _axis(site: Site, plate: str) -> int | None:
    """The axis of a site's log densities that is a plate; `None` if there is no such."""
    if site.log_prob is None:
        return None
    for own in site.plates:
        axis = site.log_prob.ndim + own.dim
        if own.name == plate and axis >= 1 and site.log_prob.shape[axis] == own.size:
            return axis
    return None
