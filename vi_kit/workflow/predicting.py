"""Prior and posterior predictive draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, message, whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws, Kind, Site
from vi_kit.workflow.sampling import drawn

HALVES = ("_observed", "_unobserved")
"""What `obs_mask` makes of one site."""


def predictive(
    fit: Any,
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    prior: bool = False,
    params: Any = None,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """Draws of the data, given draws of the guide or of the prior.

    What the guide draws is given to the model, and the model draws all else: its data (whether it is given them or
    `None`), and sites that the guide lacks. At new arguments the guide is run with these: local sites are anew where it
    is amortised. A site that `obs_mask` splits is whole again, all of it drawn. Where the model conditions on data by
    other ways (a series that is fed back), they stay in place: predictions are one step ahead.

    A site that the loss sums out is drawn anew, from the model. Of a site inside a plate that is the predictive
    distribution of a new row; one outside all plates is refused, as data would have to say which value it has.

    Parameters of the guide that are one per row belong to the rows of the fit. New rows that are as many cannot be told
    from them: have the guide compute them from its arguments.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: new arguments; or those of the programs.
        num_samples: how many draws.
        seed: of them.
        prior: whether latent sites are drawn from the model.
        params: as for `vi.sample`.
        **kwargs: as `args`.

    Returns:
        Arrays by name, shape `(num_samples, *batch, *event)`: of what the model draws itself; with `prior` these are
        its latent and deterministic sites too.

    Raises:
        BackendError: the guide cannot be run at these arguments, a global site is summed out, or the model has to draw
            from what has no sampler (`ImproperUniform`).

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(3.0, 0.1))
        >>> vi.predictive(Loss(), model, guide, torch.zeros(2), num_samples=5)["x"].shape
        (5, 2)
    """
    who = asked("predictive", fit, args, kwargs, params)
    return {n: s.value for n, s in predicted(who, num_samples, seed, prior).items()}


def predicted(who: Asked, num_samples: int, seed: int, prior: bool) -> dict[str, Site]:
    """What the model draws itself."""
    num_samples = whole_number(who.where, "num_samples", num_samples)
    at_arguments(who)
    if not prior:
        return its_own(drawn(who, num_samples, seed, predictive=True))
    draws = who.plain[0].runs.prior(num_samples, seed)
    data = its_own(draws, set())
    return {n: s for n, s in draws.model.items() if n in data or s.kind is Kind.DETERMINISTIC}


def its_own(draws: Draws, of_guide: set[str] | None = None) -> dict[str, Site]:
    """What a model has drawn itself; of a run of it alone, but for the sites of the guide.

    Args:
        draws: predictive ones.
        of_guide: names of the guide's sites, if the model was run alone.
    """
    sites = draws.model
    whole = {n for n in sites if any(n + half in sites for half in HALVES)}
    halves = {n + half for n in whole for half in HALVES}
    kinds = {Kind.OBSERVED, Kind.PRIOR} | (set() if of_guide is None else {Kind.LATENT})
    return {
        n: s
        for n, s in sites.items()
        if n in whole or (s.kind in kinds and n not in halves and n not in (of_guide or ()))
    }


def at_arguments(who: Asked) -> Draws:
    """One draw at the arguments.

    Raises:
        BackendError: there is none, or the guide's draws do not fit the plates of the model.
    """
    try:
        draws = drawn(who, 1, 0, densities=False)
    except BackendError:
        raise
    except Exception as error:
        if not who.is_new:
            raise
        text = str(error).strip()
        raise _do_not_fit(who, text.splitlines()[0] if text else repr(error)) from error
    wrong = [
        f"{name}: shape {own.value.shape[1:]} in the guide, plate {p.name!r} of {p.size}"
        for name, site in draws.model.items()
        if site.kind is Kind.LATENT and (own := draws.guide.get(name)) is not None
        for p in site.plates
        if _size(own, p.dim) not in (p.size, None)
    ]
    if wrong:
        raise _do_not_fit(who, "; ".join(wrong))
    _refuse_global(who, draws)
    return draws


def _size(site: Site, dim: int) -> int | None:
    """The size of a batch dim; `None` if there is no such."""
    axis = np.ndim(site.value) + dim - (site.event_dim or 0)
    return None if axis < 1 else np.shape(site.value)[axis]


def _refuse_global(who: Asked, draws: Draws) -> None:
    summed = [n for n, s in draws.model.items() if s.kind is Kind.SUMMED and not s.plates]
    if summed:
        raise BackendError(
            message(
                f"{who.where}: sites that are summed out stand outside all plates",
                got=", ".join(repr(n) for n in summed),
                expected="sites that the guide draws, or that are anew in each row",
                fix="a guide that draws them too: vi.Enumerate() sums over their values (in a scan vi.Score())",
            )
        )


def _do_not_fit(who: Asked, what: str) -> BackendError:
    params = who.params or {}
    shapes = ", ".join(
        f"{n} {tuple(np.shape(v))}" for n, v in list(params.items())[:8] if np.ndim(v)
    )
    return BackendError(
        message(
            f"{who.where}: the guide does not fit these arguments",
            got=what + (f" (parameters: {shapes})" if shapes else ""),
            expected="a guide whose local sites follow from its arguments",
            fix="an amortised guide, or the rows of the fit: parameters that are one per row belong to its rows",
        )
    )
