"""Powers of importance weights: Renyi bounds, the chi upper bound, the thermodynamic objective."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from array_api_compat import array_namespace

from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.words import SettingRange, SettingRule, divergence, iid, objective, softmax
from vi_kit.objectives.importance_weighted import log_weight, log_weights


def tempered(model: Program, guide: Program, power: float, num_particles: int) -> Cost:
    """`log(mean(w ** power)) / power` (nats)."""
    weights = iid(lambda: power * log_weight(model, guide), num_particles)
    return weights.log_mean_exp() / power


@objective
def renyi(
    model: Program,
    guide: Program,
    *,
    alpha: Annotated[float, SettingRange(-math.inf, math.inf)],
    num_particles: int,
) -> Cost:
    r"""$\frac{1}{1-\alpha} E[\log \frac{1}{K} \sum_k w_k^{1-\alpha}]$, in nats; maximised.

    `alpha = 1` is the ELBO, `alpha = 0` is IWAE, `alpha = -inf` is VR-max (the largest weight). Without
    Monte Carlo error it is a lower bound on $\log p(x)$ for `alpha` of at least 0, and an upper bound below;
    with K draws it lies lower than without such error for `alpha` below 1, and higher above.

    Example:
        >>> renyi(alpha=0.5, num_particles=10)
        renyi(alpha=0.5, num_particles=10)

    References:
        Li and Turner 2016, Renyi Divergence Variational Inference.
    """
    if alpha == 1.0:
        return log_weights(model, guide, num_particles).mean()
    if math.isinf(alpha):
        return log_weights(model, guide, num_particles).reduce(largest if alpha < 0 else smallest)
    return tempered(model, guide, 1.0 - alpha, num_particles)


@divergence
def cubo(
    model: Program,
    guide: Program,
    *,
    order: Annotated[float, SettingRange(1.0, math.inf)],
    num_particles: int,
) -> Cost:
    r"""$\frac{1}{n} E[\log \frac{1}{K} \sum_k w_k^n]$, in nats; minimised.

    The chi upper bound on $\log p(x)$ of order n; with K draws its estimate lies lower than the bound, so that
    it is an upper bound only as K grows.

    Example:
        >>> cubo(order=2.0, num_particles=100)
        cubo(order=2.0, num_particles=100)

    References:
        Dieng et al. 2017, Variational Inference via chi Upper Bound Minimization.
    """
    return tempered(model, guide, order, num_particles)


def _is_partition(value: Any) -> bool:
    if not isinstance(value, Sequence) or not all(isinstance(x, int | float) for x in value):
        return False
    steps = zip(value, (*value[1:], 1.0), strict=True)
    return len(value) > 0 and value[0] == 0 and all(x < y for x, y in steps)


@objective
def thermodynamic(
    model: Program,
    guide: Program,
    *,
    num_particles: int,
    partition: Annotated[
        Sequence[float], SettingRule(_is_partition, "increase from 0 to below 1", "(0.0, 0.1, 0.5)")
    ] = (0.0, 0.02, 0.1, 0.3, 0.6),
) -> Cost:
    r"""The left Riemann sum $\sum_j (\beta_{j+1} - \beta_j) E_{\pi_{\beta_j}}[\log w]$ of the integral over
    $\beta$ from 0 to 1 that equals $\log p(x)$, with $\pi_\beta \propto q w^\beta$; in nats; maximised.

    The expectations are self-normalised over the draws, so the sum itself is only consistent as
    `num_particles` grows; its gradient is unbiased for the expected value of that estimate.

    Args:
        num_particles: draws that all points of the partition share.
        partition: increasing, from 0 to below 1.

    Example:
        >>> thermodynamic(num_particles=10, partition=(0.0, 0.5))
        thermodynamic(num_particles=10, partition=(0.0, 0.5))

    References:
        Masrani, Le and Wood 2019, The Thermodynamic Variational Objective.
    """
    steps = zip(partition, (*partition[1:], 1.0), strict=True)
    fn = riemann_sum([(b, c - b) for b, c in steps])
    return log_weights(model, guide, num_particles).reduce(fn)


def riemann_sum(points: Sequence[tuple[float, float]]) -> Callable[[Array], Array]:
    """The sum over points and their widths, as a function of log weights."""

    def weighted_sum(log_w: Array) -> Array:
        xp = array_namespace(log_w)
        return sum(width * xp.sum(softmax(beta * log_w) * log_w, axis=0) for beta, width in points)

    return weighted_sum


def largest(x: Array) -> Array:
    return array_namespace(x).max(x, axis=0)


def smallest(x: Array) -> Array:
    return array_namespace(x).min(x, axis=0)
