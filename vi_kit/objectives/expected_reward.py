r"""Expected reward less a KL divergence from a reference."""

from collections.abc import Callable
from typing import Annotated, Any

from array_api_compat import array_namespace

from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.refusals import refuse_data
from vi_kit.language.words import (
    SettingRange,
    SettingRule,
    apply,
    evaluate,
    iid,
    log_density,
    objective,
    simulate,
    stop_gradient,
)

KINDS = ("reverse", "forward")


@objective
def expected_reward(
    model: Program,
    guide: Program,
    *,
    reward: Annotated[Callable[..., Any], SettingRule(callable, "be a function", "reward")],
    kl: Annotated[
        str, SettingRule(KINDS.__contains__, f"be one of {KINDS}", repr(KINDS[0]))
    ] = KINDS[0],
    normalized: bool = True,
    beta: Annotated[float, SettingRange(0.0, 1e6)] = 1.0,
    num_particles: int = 1,
) -> Cost:
    r"""$E_q[R(z)] - \beta\,\mathrm{KL}$, in units of the reward; maximised. The guide is the policy $q$, the model the
    reference $p$: a program with the guide's sites and no data, whose parameters are held fixed.

    | `kl` | `normalized=True` | `normalized=False` |
    |---|---|---|
    | `"reverse"` | $E_q[\log q - \log p]$ | $E_q[\log q - \log p + p / q - 1]$ |
    | `"forward"` | $E_p[\log p - \log q]$ | $E_p[\log p - \log q + q / p - 1]$ |

    The right column is the divergence of unnormalised densities. Between normalised ones it has the same expected
    value and gradient, since $E_q[p / q] = 1$ where $q$ covers $p$; its estimate of the divergence is never
    negative. It is taken per element of the plates that all terms share. Reparameterised sites make of this the
    differentiable surrogate, for a reward that can be differentiated; `Score` sites the policy gradient, for any.

    Args:
        reward: `reward(values, *args)` with the drawn values by name and the arguments of the step, for instance
            contexts; returns an array as for `vi.evaluate`.
        kl: which divergence.
        normalized: which form of it.
        beta: its weight.
        num_particles: draws that are averaged.

    Raises:
        ObjectiveError: the model has data or a factor.

    Example:
        >>> expected_reward(reward=len, beta=0.1)
        expected_reward(reward=<built-in function len>, kl='reverse', normalized=True, beta=0.1, num_particles=1)

    References:
        Zhang et al. 2025, On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning.
    """
    reference = stop_gradient(model)

    def value() -> Cost:
        z = simulate(guide)
        worth, log_p = evaluate(reward, z), log_density(reference, z)
        refuse_data(log_p, z)
        if kl == "reverse":
            return worth - beta * excess(z.log_density, log_p, normalized)
        y = stop_gradient(simulate(reference))
        return worth - beta * excess(log_density(reference, y), log_density(guide, y), normalized)

    return iid(value, num_particles).mean()


def excess(log_own: Cost, log_other: Cost, normalized: bool) -> Cost:
    """How far the log density of what was drawn lies above another, whose mean is the KL divergence."""
    difference = log_own - log_other
    return difference if normalized else difference + apply(expm1, log_other - log_own)


def expm1(x: Array) -> Array:
    return array_namespace(x).expm1(x)
