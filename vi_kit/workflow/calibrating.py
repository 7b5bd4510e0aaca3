"""Simulation-based calibration: are posteriors of simulated data as wide as they should be?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, ObjectiveError, message, whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws
from vi_kit.workflow.error_bounds import latent_sites
from vi_kit.workflow.sampling import drawn, sample


@dataclass(frozen=True)
class Calibration:
    """What `vi.calibrate` found.

    Attributes:
        ranks: by latent site: how many draws of the guide lie below the value that the data were simulated with, as a
            part of all, shape `(num_simulations, *batch, *event)`; uniform if posteriors are right.
        p_values: by site, of Kolmogorov's test that the ranks are uniform, for each element.
        num_simulations: how many.
    """

    ranks: Mapping[str, np.ndarray] = field(repr=False, compare=False)
    p_values: Mapping[str, np.ndarray] = field(compare=False)
    num_simulations: int

    @property
    def passed(self) -> bool:
        """Whether no element is off: the least p-value times their number is over 0.01."""
        all_values = [np.ravel(p) for p in self.p_values.values()]
        joint = np.concatenate(all_values) if all_values else np.ones(1)
        return bool(joint.min() * len(joint) > 0.01)


def calibrate(
    fit: Any,
    *args: Any,
    refit: Callable[..., Any] | None = None,
    num_simulations: int = 100,
    num_samples: int = 200,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration: latent values and data are simulated from the model, and it is noted where the
    values lie among draws of the posterior given the data.

    An amortised guide is run at the simulated data. Any other has to be fitted to them: `refit(*args, **kwargs)`,
    called with the arguments with simulated data in the place of the data, returns a `Fit`. Data are found among the
    arguments by being what the model observes.

    NumPyro's `vsbc_diagnostic` finds the same probabilities, for continuous sites, an optimiser and a loss of NumPyro's
    alone. It is not called, as it compares them with their mirror image, of which a posterior that is too narrow has
    the same. Call it where all fits shall be in one compiled loop.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        refit: fits anew.
        num_simulations: how many simulations, and fits.
        num_samples: draws of each posterior.
        seed: of all.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        Ranks and p-values. The ranks of a posterior that is too narrow are near zero and one.

    Raises:
        BackendError: data of the model are no arguments.

    References:
        Talts et al. 2018, Validating Bayesian Inference Algorithms with Simulation-Based Calibration. Yao et al. 2018,
        Yes, but Did It Work? Evaluating Variational Inference.
    """
    if refit is not None and not callable(refit):
        raise ObjectiveError(
            message(
                "calibrate: refit cannot be called",
                got=repr(refit),
                expected="a function of the arguments that returns a Fit",
                fix="refit=lambda *args: vi_kit.pyro.fit(model, guide, *args)",
            )
        )
    num_simulations = whole_number("calibrate", "num_simulations", num_simulations, least=5)
    num_samples = whole_number("calibrate", "num_samples", num_samples, least=5)
    who = asked("calibrate", fit, args, kwargs, params)
    first = drawn(who, 1, seed, densities=False)
    places = _places(who, first)
    latent = [n for n in latent_sites(dict(first.guide)) if n in first.model]
    simulated = who.plain[0].runs.prior(num_simulations, seed)
    ranks: dict[str, list[np.ndarray]] = {n: [] for n in latent}
    for i in range(num_simulations):
        at = _at(who, places, simulated, i)
        if refit is None:
            draws = drawn(at, num_samples, seed + 1 + i, densities=False)
            values = {n: draws.guide[n].value for n in latent}
        else:
            fitted = refit(*at.args, **at.kwargs)
            values = sample(fitted, num_samples=num_samples, seed=seed + 1 + i)
        for name in latent:
            below = values[name] < simulated.model[name].value[i]
            ranks[name].append(below.mean(axis=0))
    stacked = {n: np.stack(r) for n, r in ranks.items()}
    return Calibration(stacked, {n: _uniform(r) for n, r in stacked.items()}, num_simulations)


Place = tuple[Any, ...]
"""Of an array: which argument, and keys and indices of the containers within."""


def _places(who: Asked, first: Draws) -> dict[str, Place]:
    """Where in the arguments each observed site has its data from."""
    found: dict[str, Place] = {}
    arrays = list(_arrays({**dict(enumerate(who.args)), **who.kwargs}, ()))
    for name, site in first.observed.items():
        for place, value in arrays:
            if (
                tuple(value.shape) == site.value.shape[1:]
                and np.array_equal(np.asarray(value), site.value[0])
                and place not in found.values()
            ):
                found[name] = place
                break
    missing = [n for n in first.observed if n not in found]
    if missing:
        raise BackendError(
            message(
                f"{who.where}: data of the model are no arguments",
                got=", ".join(repr(n) for n in missing),
                expected="programs that take what they observe, as an argument or in a dict, list or tuple",
                fix="def model(x): ... obs=x",
            )
        )
    return found


def _arrays(tree: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """All of those in containers, and where they are."""
    if isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _arrays(value, (*place, key))
    elif hasattr(tree, "shape"):
        yield place, tree


def _put(tree: Any, place: Place, value: Any) -> Any:
    """A copy of containers with another array in a place."""
    if not place:
        return value
    key, *rest = place
    inner = _put(tree[key], tuple(rest), value)
    if not isinstance(tree, tuple):
        own = copy.copy(tree)
        own[key] = inner
        return own
    items = [*tree[:key], inner, *tree[key + 1 :]]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def _at(who: Asked, places: Mapping[str, Place], simulated: Draws, i: int) -> Asked:
    """The programs at simulated data."""
    args, kwargs = who.args, dict(who.kwargs)
    for name, place in places.items():
        value = who.loss.array(simulated.model[name].value[i])
        if isinstance(place[0], int):
            args = _put(args, place, value)
        else:
            kwargs = _put(kwargs, place, value)
    return replace(who, args=args, kwargs=kwargs)


def _uniform(ranks: np.ndarray) -> np.ndarray:
    """P-values of Kolmogorov's test, for each element, by its asymptotic series."""
    num = len(ranks)
    ordered, steps = np.sort(ranks, axis=0), np.arange(num + 1) / num
    shape = (-1, *[1] * (ranks.ndim - 1))
    above = (steps[1:].reshape(shape) - ordered).max(axis=0)
    below = (ordered - steps[:-1].reshape(shape)).max(axis=0)
    x = np.maximum(above, below) * (math.sqrt(num) + 0.12 + 0.11 / math.sqrt(num))
    terms = [2 * (-1) ** (j - 1) * np.exp(-2 * (j * x) ** 2) for j in range(1, 101)]
    return np.where(x < 0.2, 1.0, np.clip(sum(terms), 0.0, 1.0))
