"""Losses whose gradient goes through log densities only; the draws may come from anywhere."""

from collections.abc import Callable
from typing import Any

from vi_kit.cost import Cost
from vi_kit.language import (
    Replicates,
    divergence,
    iid,
    log_density,
    simulate,
    stop_gradient,
)
from vi_kit.programs import Program

Reference = str | Callable[..., Any]


def log_ratios(
    model: Program, guide: Program, reference: Reference, num_particles: int
) -> Replicates:
    """`log p(x, z) - log q(z)` at draws from the reference, which are held fixed (nats)."""
    source = guide if reference == "guide" else guide.running(reference)  # type: ignore[arg-type]

    def log_ratio() -> Cost:
        z = stop_gradient(simulate(stop_gradient(source)))
        return log_density(model, z) - log_density(guide, z)

    return iid(log_ratio, num_particles)


@divergence
def log_variance(
    model: Program, guide: Program, *, num_particles: int, reference: Reference = "guide"
) -> Cost:
    r"""$\frac12 \mathrm{Var}_r[\log p(x, z) - \log q(z)]$, in nats squared; minimised.

    Zero where the guide is the posterior, whatever the reference $r$. With the guide as reference its
    expected gradient by the guide's parameters is that of $\mathrm{KL}(q \| p)$, and has lower variance than
    the score function's. The sample variance is unbiased (divisor K - 1).

    Args:
        num_particles: draws, at least 2.
        reference: `"guide"`, or a program with the guide's sites and arguments to draw from.

    Example:
        >>> log_variance(num_particles=4)
        log_variance(num_particles=4, reference='guide')

    References:
        Richter et al. 2020, VarGrad: A Low-Variance Gradient Estimator for Variational Inference.
        Richter and Berner 2024, Improved Sampling via Learned Diffusions.
    """
    return 0.5 * log_ratios(model, guide, reference, num_particles).variance()


@divergence
def trajectory_balance(
    model: Program, guide: Program, *, num_particles: int = 1, reference: Reference = "guide"
) -> Cost:
    r"""$\frac12 E_r[(\log p(x, z) - \log q(z) - \log Z)^2]$, in nats squared; minimised.

    The second-moment loss. The learned log normaliser $\log Z$ is a factor of the guide: write
    `factor("log_normaliser", log_z)` there, with `log_z` a parameter; without it the squared log ratio
    itself is minimised. One square per element of the plates that all terms share.

    Args:
        num_particles: draws that are averaged.
        reference: `"guide"`, or a program with the guide's sites and arguments to draw from.

    Example:
        >>> trajectory_balance(num_particles=8)
        trajectory_balance(num_particles=8, reference='guide')

    References:
        Malkin et al. 2022, Trajectory Balance: Improved Credit Assignment in GFlowNets.
        Richter and Berner 2024, Improved Sampling via Learned Diffusions.
    """
    return 0.5 * log_ratios(model, guide, reference, num_particles).reduce(mean_square)


def mean_square(x: Any) -> Any:
    return (x * x).mean(0)
