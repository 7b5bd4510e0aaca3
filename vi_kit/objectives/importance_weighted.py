"""Bounds from several importance weights."""

from typing import Annotated

from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.refusals import refuse_data
from vi_kit.language.words import (
    Replicates,
    SettingRange,
    iid,
    log_density,
    objective,
    simulate,
    split_gradients,
)


def log_weight(model: Program, guide: Program, normalized: bool = False) -> Cost:
    """Log importance weight of one draw from the guide (nats).

    Args:
        model: its log density is the numerator.
        guide: is drawn from.
        normalized: whether it is an error that the model has data or factors.
    """
    z = simulate(guide)
    log_p = log_density(model, z)
    if normalized:
        refuse_data(log_p, z)
    return log_p - z.log_density


def log_weights(model: Program, guide: Program, num_particles: int) -> Replicates:
    """Log importance weights of independent draws."""
    return iid(lambda: log_weight(model, guide), num_particles)


@objective
def iwae(model: Program, guide: Program, *, num_particles: int) -> Cost:
    r"""$E[\log \frac{1}{K} \sum_k w_k] \le \log p(x)$, in nats; maximised.

    One bound per element of the plates that all terms share, then summed.

    Example:
        >>> iwae(num_particles=5)
        iwae(num_particles=5)

    References:
        Burda, Grosse and Salakhutdinov 2016, Importance Weighted Autoencoders.
    """
    return log_weights(model, guide, num_particles).log_mean_exp()


@objective
def miwae(model: Program, guide: Program, *, num_outer: int, num_inner: int) -> Cost:
    r"""The mean of `num_outer` IWAE bounds of `num_inner` particles each, in nats; maximised.

    Example:
        >>> miwae(num_outer=4, num_inner=8)
        miwae(num_outer=4, num_inner=8)

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    return iid(
        lambda: log_weights(model, guide, num_inner).log_mean_exp(),
        num_outer,
    ).mean()


@objective
def piwae(model: Program, guide: Program, *, num_outer: int, num_inner: int) -> Cost:
    r"""Two bounds on one set of draws, in nats; maximised: the model's parameters ascend IWAE with
    `num_outer * num_inner` particles, the guide's ascend MIWAE. The value is the former.

    Unbiased for each group of parameters; no parameter may belong to both.

    Example:
        >>> piwae(num_outer=4, num_inner=8)
        piwae(num_outer=4, num_inner=8)

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    bounds = iid(lambda: log_weights(model, guide, num_inner).log_mean_exp(), num_outer)
    return split_gradients(model=bounds.log_mean_exp(), guide=bounds.mean())


@objective
def ciwae(
    model: Program,
    guide: Program,
    *,
    num_particles: int,
    beta: Annotated[float, SettingRange(0.0, 1.0)],
) -> Cost:
    r"""$\beta\,\mathrm{ELBO} + (1 - \beta)\,\mathrm{IWAE}$ on one set of draws, in nats; maximised.

    Valid for `beta` in [0, 1].

    Raises:
        ObjectiveError: `beta` out of range.

    Example:
        >>> ciwae(num_particles=8, beta=0.5)
        ciwae(num_particles=8, beta=0.5)

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    weights = log_weights(model, guide, num_particles)
    return beta * weights.mean() + (1.0 - beta) * weights.log_mean_exp()
