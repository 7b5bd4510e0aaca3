"""Draws of a fitted guide."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from vi_kit.base.errors import whole_number
from vi_kit.workflow.asking import Asked, asked
from vi_kit.workflow.draws import Draws, Kind


def sample(
    fit: Any,
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    params: Any = None,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """Independent draws of all sites of a guide.

    Latent sites come from the guide, deterministic ones from guide and model. What the model has besides (sites that
    the guide lacks) is drawn by the model given the draw of the guide; sites that the loss sums out are left out, as
    neither program says what they are given the data. Of a subsampled plate the indices are there under its name.
    A guide `vi.normalize(model, vi.SIR(...))` is drawn from by resampling, of `vi.marginal` the kept sites are there.

    Nothing is changed: parameters, buffers, and the state of random number generators stay as they were.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide.
        *args: other arguments than those of the fit; or those of the programs.
        num_samples: how many draws.
        seed: of them.
        params: by name, if not those of the fit; of a loss and programs those that are there now (Pyro), or that the
            programs start with (NumPyro).
        **kwargs: as `args`.

    Returns:
        Arrays by name, shape `(num_samples, *batch, *event)`, constrained.

    Raises:
        BackendError: programs of `vi.normalize` by `vi.SMC` or `vi.AIS`, or whose sites differ from draw to draw.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("double", 2 * z)
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(3.0, 0.1))
        >>> drawn = vi.sample(Loss(), model, guide, num_samples=5)
        >>> {name: values.shape for name, values in drawn.items()}
        {'z': (5,), 'double': (5,)}
    """
    draws = drawn(asked("sample", fit, args, kwargs, params), num_samples, seed, densities=False)
    return {n: s.value for n, s in draws.sites.items() if s.kind is not Kind.SUMMED}


def drawn(
    who: Asked, num_samples: int, seed: int, *, predictive: bool = False, densities: bool = True
) -> Draws:
    """Draws of the guide, and the model at each; see `vi_kit.workflow.draws.Runs.posterior`.

    Of a guide by resampling they are what it chooses, and log densities those of its proposal.
    """
    num_samples = whole_number(who.where, "num_samples", num_samples)
    plain, of, keep = who.plain
    runs = plain.runs
    if of == 1:
        draws = runs.posterior(num_samples, seed, predictive=predictive, densities=densities)
        return _kept(draws, keep) if keep else draws
    draws = runs.posterior(of * num_samples, seed)
    weights = draws.log_weights.reshape(num_samples, of)
    noise = np.random.default_rng(seed).gumbel(size=weights.shape)
    chosen = (weights + noise).argmax(axis=1) + of * np.arange(num_samples)
    if predictive:  # the same draws of the guide, whose noise does not know what the model does
        draws = runs.posterior(of * num_samples, seed, predictive=True)
    return draws.take(chosen)


def _kept(draws: Draws, keep: tuple[str, ...]) -> Draws:
    """The draws without sites that are integrated out."""
    out = {
        n
        for n, s in draws.guide.items()
        if s.kind is Kind.LATENT and not any(fnmatchcase(n, p) for p in keep)
    }
    guide = {n: s for n, s in draws.guide.items() if n not in out}
    return replace(draws, guide=guide)
