"""Bounds from several importance weights."""

from vi_kit.cost import Cost
from vi_kit.language import Program, iid, log_density, objective, simulate


def log_weight(model: Program, guide: Program) -> Cost:
    """Log importance weight of one draw from the guide (nats)."""
    z = simulate(guide)
    return log_density(model, z) - z.log_density


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
    return iid(lambda: log_weight(model, guide), num_particles).log_mean_exp()


@objective
def miwae(model: Program, guide: Program, *, num_outer: int, num_inner: int) -> Cost:
    r"""The mean of `num_outer` IWAE bounds of `num_inner` particles each, in nats; maximised.

    Example:
        >>> miwae(num_outer=4, num_inner=8)
        miwae(num_outer=4, num_inner=8)

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """

    def bound() -> Cost:
        return iid(lambda: log_weight(model, guide), num_inner).log_mean_exp()

    return iid(bound, num_outer).mean()
