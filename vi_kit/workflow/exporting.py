"""A fit as ArviZ has posteriors."""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from vi_kit.base.errors import whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws, Kind, NoSamplerError, Site
from vi_kit.workflow.points import point_masses
from vi_kit.workflow.predicting import HALVES, at_arguments, its_own
from vi_kit.workflow.psis import arviz_of, effective_sample_size, has_old_arviz, pareto_smoothed
from vi_kit.workflow.sampling import drawn

Variable = tuple[tuple[str, ...], np.ndarray]
"""Names of dims, and values."""


def to_arviz(
    fit: Any,
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> Any:
    """Draws, predictions and log likelihoods as ArviZ's `InferenceData` (`DataTree` from ArviZ 1.0 on).

    Groups: `posterior` (see `vi.sample`; the indices of a subsampled plate as `<plate>_rows`), `posterior_predictive`,
    `prior`, `prior_predictive`, `log_likelihood`, `sample_stats` (`log_weight`: log density of the model less that of
    the guide, and `lp`, that of the model; attributes `pareto_k` and `ess`), `observed_data`, `constant_data` (the
    arrays among the arguments). Dims have the names of the plates, event dims are `<site>_dim_0`. There is one chain,
    of independent draws.

    Log likelihoods are per element of an observed site, not multiplied by minibatches' or other scales. Elements that a
    mask hides are left out: what is left has the one dim `<site>_entry` with their flat indices (if the mask differs
    from draw to draw they are `nan`). They are `nan` in `observed_data`, where its type has it. What `obs_mask` splits
    has the name of the whole.

    Where the prior cannot be drawn from (`ImproperUniform`) its groups are left out, with a warning. Without log
    weights: a guide with point masses, and `vi.marginal`. Without log weights and likelihoods: a model
    with sites that the loss sums out. An attribute says so. A model that draws its own minibatch (a plate with
    `subsample_size`) has other rows in each draw: there are no log weights, and nothing of the data in such plates, of
    which a warning tells too. `posterior` then has the local sites of the rows that `<plate>_rows` names.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        num_samples: how many draws, of each group.
        seed: of them.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree`.

    Raises:
        BackendError: ArviZ is not installed; or there are no draws (see `vi.sample`).

    References:
        Kumar et al. 2019, ArviZ, a unified library for exploratory analysis of Bayesian models in Python.
    """
    num_samples = whole_number("to_arviz", "num_samples", num_samples)
    who = asked("to_arviz", fit, args, kwargs, params)
    is_old = has_old_arviz()
    first = at_arguments(who)
    draws = drawn(who, num_samples, seed)
    predictions = drawn(who, num_samples, seed, predictive=True)
    prior = _prior(who, num_samples, seed + 1)
    of_guide = {n for n, s in first.guide.items() if s.kind is Kind.LATENT}
    why_not = why_no_weights(who, draws)
    chosen = {p.name for p in draws.minibatches}
    if chosen:
        warnings.warn(
            f"to_arviz: {why_not}: there are no log weights, and no data, predictions and log likelihoods of these"
            " plates; they are there for a model whose plates have no subsample_size",
            stacklevel=2,
        )
    stats, attrs = ({}, {}) if why_not else _stats(draws)
    ours = {n: s for n, s in draws.sites.items() if s.kind is not Kind.SUMMED}
    from_prior = {n: s for n, s in prior.model.items() if n in ours}
    observed = _of_fixed_rows(draws.observed, chosen)
    groups: dict[str, Mapping[str, Variable]] = {
        "posterior": _variables(ours, draws.model),
        "posterior_predictive": _variables(_of_fixed_rows(its_own(predictions), chosen)),
        "prior": _variables(from_prior),
        "prior_predictive": _variables(_of_fixed_rows(its_own(prior, of_guide), chosen)),
        "sample_stats": stats,
        "observed_data": _data(observed, draws),
        "constant_data": _constants(who),
    }
    coords: dict[str, np.ndarray] = {}
    if not draws.has_summed:
        groups["log_likelihood"] = _likelihoods(observed, draws, coords)
    common = _attributes(who, num_samples, seed) | ({"no_log_weights": why_not} if why_not else {})
    datasets = {
        group: _dataset(own, coords, common | (attrs if group == "sample_stats" else {}))
        for group, own in groups.items()
        if own
    }
    if is_old:
        return arviz_of("to_arviz", "arviz").InferenceData(**datasets)
    tree = importlib.import_module("xarray").DataTree.from_dict(datasets)
    tree.attrs = common
    return tree


def _prior(who: Asked, num_samples: int, seed: int) -> Draws:
    """Draws of the model alone; none, and a warning, if it has an improper prior."""
    try:
        return who.plain[0].runs.prior(num_samples, seed)
    except NoSamplerError as error:
        warnings.warn(
            f"to_arviz: there are no prior groups: {str(error).splitlines()[0]}", stacklevel=3
        )
        return Draws({}, {})


def _stats(draws: Draws) -> tuple[dict[str, Variable], dict[str, Any]]:
    """Log weights, and what there is to say of them."""
    weights = draws.log_weights
    lp = sum((s.total for sign, s in draws.terms if sign > 0), np.zeros(len(draws)))
    dims = ("chain", "draw")
    attrs: dict[str, Any] = {"ess": float(effective_sample_size(weights))}
    if len(weights) >= 25:
        attrs["pareto_k"] = float(pareto_smoothed(weights)[1])
    return {"log_weight": (dims, weights[None]), "lp": (dims, lp[None])}, attrs


def why_no_weights(who: Asked, draws: Draws) -> str | None:
    """Why the draws have no importance weights; `None` if they have."""
    if draws.minibatches:
        parts = "; ".join(map(str, draws.minibatches))
        return f"the model draws its minibatch itself, other rows in each draw ({parts})"
    summed = [n for n, s in draws.model.items() if s.kind is Kind.SUMMED]
    if summed:
        return f"the loss sums out {', '.join(map(repr, summed))}, of whose density plain runs know nothing"
    if who.plain[2] or who.plain[1] > 1:
        return "the density of a guide that is made of others is estimated"
    points = point_masses(draws)
    if points:
        return f"the guide has no density at {', '.join(map(repr, points))}: point masses"
    return None


def _of_fixed_rows(sites: Mapping[str, Site], chosen: set[str]) -> dict[str, Site]:
    """The sites in none of the plates whose rows are chosen anew in each draw: their columns would be of no row."""
    return {n: s for n, s in sites.items() if not chosen & {p.name for p in s.plates}}


def _variables(
    sites: Mapping[str, Site], model: Mapping[str, Site] | None = None
) -> dict[str, Variable]:
    """Sites as variables with a chain of draws; those that the model has too stand in its plates, as a guide may draw
    all of them jointly, in none."""
    found: dict[str, Variable] = {}
    for name, site in sites.items():
        shown = f"{name}_rows" if site.kind is Kind.ROWS else name
        shape = site.value.shape[1:]
        dims = dims_of((model or {}).get(name, site), shown, shape)
        found[shown] = ("chain", "draw", *dims), site.value[None]
    return found


def dims_of(
    site: Site, name: str, shape: tuple[int, ...], event_dim: int | None = None
) -> tuple[str, ...]:
    """The names of the dims of a site's values, or of its log densities (`event_dim=0`).

    Args:
        site: the site.
        name: that the others are named after.
        shape: of one draw.
        event_dim: how many are no batch dims, if not as many as the site says.
    """
    event = (site.event_dim or 0) if event_dim is None else event_dim
    named: dict[int, str] = {}
    for plate in site.plates:
        axis = len(shape) + plate.dim - event
        if 0 <= axis < len(shape) and shape[axis] == plate.size:
            named[axis] = plate.name
    others = iter(range(len(shape)))
    return tuple(named.get(axis) or f"{name}_dim_{next(others)}" for axis in range(len(shape)))


def _whole(name: str, draws: Draws) -> str:
    """The name of an observed site, without what `obs_mask` has added."""
    whole = name.removesuffix(HALVES[0])
    return whole if whole != name and whole in draws.model else name


def _likelihoods(
    sites: Mapping[str, Site], draws: Draws, coords: dict[str, np.ndarray]
) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    for own, site in sites.items():
        name, log_prob = _whole(own, draws), np.asarray(site.log_prob, float)
        dims = dims_of(site, name, log_prob.shape[1:], event_dim=0)
        if site.mask is not None:
            mask = np.broadcast_to(site.mask, log_prob.shape)
            if (mask == mask[0]).all():
                kept = np.flatnonzero(mask[0])
                log_prob = log_prob.reshape(len(log_prob), -1)[:, kept]
                dims, coords[f"{name}_entry"] = (f"{name}_entry",), kept
            else:
                log_prob = np.where(mask, log_prob, np.nan)
        found[name] = ("chain", "draw", *dims), log_prob[None]
    return found


def _data(sites: Mapping[str, Site], draws: Draws) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    for own, site in sites.items():
        name, value = _whole(own, draws), np.array(site.value[0])
        if site.mask is not None and np.issubdtype(value.dtype, np.floating):
            event = value.ndim - site.mask.ndim + 1
            hidden = ~site.mask[0].reshape(*site.mask.shape[1:], *[1] * event)
            value = np.where(hidden, np.nan, value)
        found[name] = dims_of(site, name, value.shape), value
    return found


def _constants(who: Asked) -> dict[str, Variable]:
    """The arrays among the arguments of the model."""
    try:
        given = inspect.signature(who.model).bind(*who.args, **who.kwargs).arguments
    except (TypeError, ValueError):
        given = {f"argument_{i}": a for i, a in enumerate(who.args)} | dict(who.kwargs)
    flat: dict[str, Any] = {}
    for name, value in given.items():
        several = isinstance(value, tuple | list) and not all(np.isscalar(v) for v in value)
        inside = value if isinstance(value, dict) else None
        inside = {f"{name}_{i}": v for i, v in enumerate(value)} if several else inside
        flat |= {name: value} if inside is None else inside
    found: dict[str, Variable] = {}
    for name, value in flat.items():
        if not hasattr(value, "shape") and not np.isscalar(value):
            continue
        on_device: Any = value
        array = np.asarray(on_device.detach().cpu() if hasattr(value, "detach") else value)
        if array.dtype.kind in "biuf":
            found[str(name)] = tuple(f"{name}_dim_{i}" for i in range(array.ndim)), array
    return found


def _attributes(who: Asked, num_samples: int, seed: int) -> dict[str, Any]:
    """Of every group."""
    found: dict[str, Any] = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "vi_kit",
        "inference_library": who.loss.library.lower(),
        "objective": repr(who.loss.settings.objective),
        "num_samples": num_samples,
        "seed": seed,
    }
    for package in ("vi-kit", {"Pyro": "pyro-ppl", "NumPyro": "numpyro"}[who.loss.library]):
        try:
            found[f"{package}_version"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _dataset(
    variables: Mapping[str, Variable], coords: Mapping[str, np.ndarray], attrs: dict[str, Any]
) -> Any:
    """An xarray dataset with an index for every dim."""
    sizes: dict[str, int] = {}
    for dims, values in variables.values():
        sizes |= dict(zip(dims, values.shape, strict=True))
    index = {
        n: coords[n] if len(coords.get(n, ())) == size else np.arange(size)
        for n, size in sizes.items()
    }
    return importlib.import_module("xarray").Dataset(dict(variables), index, attrs)
