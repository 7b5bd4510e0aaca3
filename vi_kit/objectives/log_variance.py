"""Losses whose gradient goes through log densities only; the draws may come from anywhere."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.errors import message
from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.words import (
    Replicates,
    SettingRange,
    SettingRule,
    divergence,
    held_draw,
    iid,
    log_density,
    partial_log_densities,
)

Reference = Annotated[
    str | Callable[..., Any],
    SettingRule(lambda v: v == "guide" or callable(v), 'be "guide" or a program', '"guide"'),
]


def source(guide: Program, reference: Reference) -> Program:
    """What is drawn from."""
    return guide if reference == "guide" else guide.running(reference)  # type: ignore[arg-type]


def log_ratios(
    model: Program, guide: Program, reference: Reference, num_particles: int
) -> Replicates:
    """`log p(x, z) - log q(z)` at draws from the reference, which are held fixed (nats)."""

    def log_ratio() -> Cost:
        z = held_draw(source(guide, reference))
        return log_density(model, z) - log_density(guide, z)

    return iid(log_ratio, num_particles)


@divergence
def log_variance(
    model: Program,
    guide: Program,
    *,
    num_particles: Annotated[int, SettingRule(lambda n: n >= 2, "be at least 2", "2")],
    reference: Reference = "guide",
) -> Cost:
    r"""$\frac12 \mathrm{Var}_r[\log p(x, z) - \log q(z)]$, in nats squared; minimised.

    Zero where the guide is the posterior, whatever the reference $r$. With the guide as reference its
    expected gradient by the guide's parameters is that of $\mathrm{KL}(q \| p)$. It has lower variance than the
    score function's; than that with `LeaveOneOut` only near the optimum, where the explicit derivative of
    $\log q$, of mean zero, counts. The sample variance is unbiased (divisor K - 1).

    Of a guide whose density is estimated (`marginal` by `ImportanceSampling`, `normalize` by `SIR` or `SMC`) the
    estimate is made anew at the held draw, and its noise is part of the variance: the gradient is not that of the
    divergence, and zero is not reached. `elbo` has no such bias.

    Args:
        num_particles: draws, at least 2.
        reference: `"guide"`, or a program with the guide's sites and arguments to draw from, for instance a replay
            buffer: a site for the row that is drawn, `infer={"is_auxiliary": True}`, and a Delta at its values.

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
    `factor("log_normaliser", log_z)` there, with `log_z` a parameter (in Pyro with `has_rsample=True`, which
    says that it hides no draw); without it the squared log ratio itself is minimised. One square per element of
    the plates that all terms share. Of a guide whose density is estimated the noise of the estimate counts, as in
    `log_variance`.

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


@divergence
def sub_trajectory_balance(
    model: Program,
    guide: Program,
    *,
    lambda_: Annotated[float, SettingRange(0.0, 100.0, above=True)],
    num_particles: int = 1,
    reference: Reference = "guide",
) -> Cost:
    r"""$\frac12 E_r\left[\sum_{i<j} \lambda^{j-i} (c_j - c_i)^2 / \sum_{i<j} \lambda^{j-i}\right]$, in nats
    squared; minimised.

    The states are those after 0, 1, ..., T sites of the guide, and $c_t = \log p_{\le t} - \log q(z_{\le t}) + \psi_t$
    with all terms of the model that need no later site, wherever its statements stand. Learned log flows $\psi_t$
    are factors of the guide between its sites (in Pyro with `has_rsample=True`), relative to $p_{\le t}$; the first,
    before all sites, is $\log Z$, and the last is zero.
    Where the guide is the posterior and the flows are right all $c_t$ are $\log Z$. Large `lambda_` gives
    `trajectory_balance`, small ones detailed balance of successive sites.

    Args:
        lambda_: weight of a sub-trajectory per site, positive.
        num_particles: draws that are averaged.
        reference: `"guide"`, or a program with the guide's sites and arguments to draw from.

    Raises:
        ObjectiveError: `lambda_` out of range, a factor after the last site of the guide, or a site in a scan.

    Example:
        >>> sub_trajectory_balance(lambda_=0.9)
        sub_trajectory_balance(lambda_=0.9, num_particles=1, reference='guide')

    References:
        Madan et al. 2023, Learning GFlowNets from Partial Episodes for Improved Convergence and Stability.
        Pan et al. 2023, Better Training of GFlowNets with Local Credit and Incomplete Trajectories.
    """

    def states() -> tuple[Cost, ...]:
        sums, flows = partial_log_densities(model, guide, held_draw(source(guide, reference)))
        refuse_last_flow(flows, num_sites=len(sums) - 1)
        sums[0] = 0.0 * sums[-1]  # the flow of the first state is the normaliser alone
        return tuple(c + flows.get(t, 0.0) for t, c in enumerate(sums))

    return 0.5 * iid(states, num_particles).reduce(pairwise_mean_square(lambda_))


def mean_square(x: Array) -> Array:
    return array_namespace(x).mean(x * x, axis=0)


def pairwise_mean_square(lambda_: float) -> Callable[..., Array]:
    """The weighted mean of squared differences of states, as a function of the values of each."""

    def mean_square(*states: Array) -> Array:
        xp = array_namespace(*states)
        c = xp.stack(xp.broadcast_arrays(*states))
        steps = range(len(states))
        table = [[lambda_ ** abs(i - j) * (i != j) for i in steps] for j in steps]
        weights = xp.asarray(table, dtype=c.dtype, device=device(c)) / sum(map(sum, table))
        weights = xp.reshape(weights, (*weights.shape, *(1,) * (c.ndim - 1)))
        square = (c[:, None] - c[None]) ** 2
        return xp.mean(xp.sum(weights * square, axis=(0, 1)), axis=0)

    return mean_square


def refuse_last_flow(flows: Mapping[int, Cost], num_sites: int) -> None:
    """Refuse a factor after the last site: the flow of the last state is the model's density."""
    for term in flows[num_sites].terms if num_sites in flows else ():
        current().refuse(
            message(
                f"sub_trajectory_balance: guide factor {term.statement!r} is after the last site",
                got=f"a flow of state {num_sites} of {num_sites}",
                expected="factors before the guide's sites and between them; the last flow is zero",
                fix="leave the factor out",
            ),
            of_estimator=False,
        )
