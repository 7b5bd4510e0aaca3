"""An acceptance-rejection sampler of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import Refusal
from vi_kit.base.named import Array
from vi_kit.base.protocols import Elementary
from vi_kit.estimators.noise import Noise

Params = dict[str, Array]

TOLERANCE = 1e-5
"""By how much rounding may bring a log acceptance probability above zero."""

NUM_PROBES = 256
"""Proposals for each element of a site, made to look for a probability above one or none above zero."""


@dataclass(frozen=True)
class Rejector:
    r"""How to draw the elements of a site: propose noise, accept some of it, transform what was accepted.

    What is accepted and transformed must have the site's own distribution, which is not checked. The three
    functions work elementwise, on arrays of any shape and of the library that runs. The distribution needs a `sample`
    all the same, for dry runs.

    Args:
        proposal: from the parameters and a source of noise (`noise.uniform()`, `.normal()`, `.exponential()`,
            `.gumbel()`) to proposed noise of the same shape. Its density need not be known.
        log_accept: from proposed noise and the parameters to the log probability that it is accepted, at most 0.
            One above makes the value not a number, or an error where that can be seen before.
        transform: from accepted noise and the parameters to the value: differentiable, strictly monotone.
        params: names of the site's parameters, for a distribution that vi_kit does not know.

    Example:
        >>> from vi_kit import array_namespace
        >>> half = Rejector(
        ...     proposal=lambda params, noise: noise.exponential(),
        ...     log_accept=lambda eps, params: -0.5 * (eps - 1.0) ** 2,
        ...     transform=lambda eps, params: params["scale"] * eps,
        ...     params=("scale",),  # the absolute value of a normal variable
        ... )
        >>> half.params
        ('scale',)
    """

    proposal: Callable[[Params, Noise], Array]
    log_accept: Callable[[Array, Params], Array]
    transform: Callable[[Array, Params], Array]
    params: tuple[str, ...] = ()

    def problem(self, elements: Elementary) -> str | None:
        """What is wrong with the acceptance of some proposals, as far as that is known by now."""
        backend = current().backend
        held = {k: backend.untracked(backend.stop_gradient(v)) for k, v in elements.params.items()}
        like = next(iter(held.values()))
        shape = (NUM_PROBES, *like.shape)
        proposed = self.proposal(held, Noise(shape, like))
        if tuple(proposed.shape) != shape:
            got = tuple(proposed.shape)
            return _wrong(f"has a proposal of shape {got} where the noise has shape {shape}")
        log_accept = self.log_accept(proposed, held)
        if tuple(log_accept.shape) != shape:
            return _wrong(f"has a log_accept of shape {tuple(log_accept.shape)}, not {shape}")
        xp = array_namespace(log_accept)
        if not backend.may_hold(log_accept <= TOLERANCE):
            return _wrong("has a log_accept above 0, or one that is not a number: no probability")
        if not backend.may_hold(xp.any(log_accept > -xp.inf, axis=0)):
            return _wrong(f"accepts none of {NUM_PROBES} proposals")
        return None

    def draw(self, elements: Elementary) -> tuple[Array, Array]:
        """Values with a gradient, and the log densities of the accepted noise, which is held."""
        backend, params = current().backend, elements.params
        held = {k: backend.stop_gradient(v) for k, v in params.items()}
        like = next(iter(held.values()))
        noise = Noise(tuple(like.shape), like)

        def propose() -> tuple[Array, Array]:
            proposed = self.proposal(held, noise)
            log_accept = self.log_accept(proposed, held)
            xp = array_namespace(proposed)
            possible = log_accept <= TOLERANCE
            accepted = -noise.exponential() <= log_accept
            nowhere = xp.full_like(proposed, xp.nan)
            return xp.where(possible, proposed, nowhere), xp.logical_or(~possible, accepted)

        eps = backend.stop_gradient(backend.until_accepted(propose))
        xp = array_namespace(eps)
        value, slope = backend.jvp(lambda e: self.transform(e, params), [eps], [xp.ones_like(eps)])
        return value, elements.log_prob(value) + xp.log(xp.abs(slope))


def _wrong(reason: str) -> Refusal:
    fix = "a Rejector whose log_accept is the log of a probability, or another estimator"
    return Refusal(reason, fix=fix)
