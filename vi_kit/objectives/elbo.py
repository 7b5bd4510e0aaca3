"""The evidence lower bound."""

from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.words import log_density, objective, simulate


@objective
def elbo(model: Program, guide: Program) -> Cost:
    r"""$E_q[\log p(x, z) - \log q(z)] \le \log p(x)$, in nats; maximised.

    Example:
        >>> elbo()
        elbo()

    References:
        Jordan et al. 1999, An Introduction to Variational Methods for Graphical Models.
    """
    z = simulate(guide)
    return log_density(model, z) - z.log_density
