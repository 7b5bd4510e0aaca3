"""Reweighted wake-sleep."""

from array_api_compat import array_namespace

from vi_kit._named import Array
from vi_kit.backend import current
from vi_kit.cost import Cost
from vi_kit.language import (
    iid,
    log_density,
    log_mean_exp,
    objective,
    simulate,
    split_gradients,
    stop_gradient,
)
from vi_kit.objectives.renyi import softmax
from vi_kit.programs import Program


@objective
def wake_sleep(model: Program, guide: Program, *, num_particles: int) -> Cost:
    r"""Both wake phases on one set of draws, in nats; maximised: the model's parameters ascend IWAE, the
    guide's ascend $\sum_k \tilde w_k \log q(z_k)$ with self-normalised weights that are held fixed, as are the
    draws. The value is the former.

    Unbiased for the model's parameters. For the guide's the gradient is that of
    $-\mathrm{KL}(p \| q)$ only as `num_particles` grows. No site is differentiated through, so that every
    estimator serves.

    Example:
        >>> wake_sleep(num_particles=10)
        wake_sleep(num_particles=10)

    References:
        Bornschein and Bengio 2015, Reweighted Wake-Sleep.
        Le et al. 2020, Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow.
    """

    def densities() -> tuple[Cost, Cost]:
        z = stop_gradient(simulate(stop_gradient(guide)))
        return log_density(model, z), log_density(guide, z)

    draws = iid(densities, num_particles)
    return split_gradients(model=draws.reduce(bound), guide=draws.reduce(weighted))


def bound(log_p: Array, log_q: Array) -> Array:
    """The IWAE bound."""
    return log_mean_exp(log_p - log_q)


def weighted(log_p: Array, log_q: Array) -> Array:
    """The log density of the draws, weighted."""
    weights = current().backend.stop_gradient(softmax(log_p - log_q))
    return array_namespace(log_q).sum(weights * log_q, axis=0)
