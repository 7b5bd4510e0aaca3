"""Objectives that fit the guide by a forward KL divergence: wake and sleep phases, and their like."""

from typing import Annotated

from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.words import (
    SettingRange,
    SettingRule,
    divergence,
    given,
    held_draw,
    iid,
    log_density,
    log_mean_exp,
    objective,
    simulate,
    softmax,
    split_gradients,
    stop_gradient,
    uncondition,
)


@objective
def wake_sleep(
    model: Program,
    guide: Program,
    *,
    num_particles: int,
    insomnia: Annotated[float, SettingRange(0.0, 1.0)] = 1.0,
    num_sleep_particles: int = 1,
) -> Cost:
    r"""Reweighted wake-sleep, in nats; maximised: the model's parameters ascend IWAE, the guide's ascend
    `insomnia` times the wake phase plus `1 - insomnia` times the sleep phase. The value is the former.

    Wake: $\sum_k \tilde w_k \log q(z_k | x)$ with self-normalised weights. Sleep: $\log q(z | x)$ at latent
    variables *and data* that are simulated from the model, as in `forward_kl`. Draws and weights are held
    fixed, so that no site is differentiated through and every estimator serves.

    With a guide whose density is estimated (`vi.marginal`, `vi.normalize`) this is nested-importance wake-sleep:
    weights are those of the draws as they were made, and $\log q$ is estimated anew at them.

    Unbiased for the model's parameters, and in the sleep phase. In the wake phase the gradient is that of
    $-\mathrm{KL}(p \| q)$ only as `num_particles` grows.

    Args:
        num_particles: draws from the guide.
        insomnia: 1 for the wake phase of the guide only, 0 for the sleep phase only.
        num_sleep_particles: draws from the model, where there is a sleep phase.

    Example:
        >>> wake_sleep(num_particles=10)
        wake_sleep(num_particles=10, insomnia=1.0, num_sleep_particles=1)
        >>> # nested: SVI(model, vi.normalize(model, vi.SIR(guide, 5)), optimizer, Loss(wake_sleep(num_particles=10)))

    References:
        Bornschein and Bengio 2015, Reweighted Wake-Sleep.
        Naesseth, Lindsten and Schön 2015, Nested Sequential Monte Carlo Methods.
        Le et al. 2020, Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow.
    """
    draws = iid(lambda: densities(model, guide), num_particles)
    of_guide = []
    if insomnia > 0.0:
        of_guide.append(insomnia * draws.reduce(wake))
    if insomnia < 1.0:
        asleep = iid(lambda: log_density_of_simulated(model, guide), num_sleep_particles)
        of_guide.append((1.0 - insomnia) * asleep.mean())
    return split_gradients(model=draws.reduce(bound), guide=sum(of_guide[1:], of_guide[0]))


@divergence
def forward_kl(model: Program, guide: Program, *, num_particles: int = 1) -> Cost:
    r"""$-E_{p(x, z)}[\log q(z | x)]$ over joint simulations from the model, in nats; minimised.

    Equals $E_{p(x)}[\mathrm{KL}(p(z|x) \| q(z|x))]$ but for a constant: neural posterior estimation, the sleep phase
    of wake-sleep. The data are used for their shapes only. Wherever a model site observes an argument of the step,
    the guide gets the simulated value in its place. Only the guide's parameters have a gradient; it is unbiased with
    every estimator.

    Args:
        num_particles: joint simulations that are averaged, each as large as the data.

    Raises:
        ObjectiveError: what the model observes is not an argument of the step, or it has a factor.

    Example:
        >>> forward_kl(num_particles=4)
        forward_kl(num_particles=4)

    References:
        Hinton et al. 1995, The Wake-Sleep Algorithm for Unsupervised Neural Networks.
        Papamakarios and Murray 2016, Fast Epsilon-free Inference of Simulation Models.
    """
    return -iid(lambda: log_density_of_simulated(model, guide), num_particles).mean()


@divergence
def eubo(
    model: Program,
    guide: Program,
    *,
    num_particles: Annotated[int, SettingRule(lambda n: n >= 2, "be at least 2", "10")],
) -> Cost:
    r"""$\sum_k \tilde w_k \log w_k$ with self-normalised weights $\tilde w_k$ of K draws from the guide, in nats;
    minimised. One per element of the plates that all terms share, then summed.

    As K grows it is an upper bound $E_{p(z | x)}[\log p(x, z) - \log q(z)] = \log p(x) + \mathrm{KL}(p \| q)$.
    It is consistent, not unbiased: with K draws it lies lower, so that it is an upper bound on $\log p(x)$ only as K
    grows; one draw would be the ELBO's.

    Draws and weights are held fixed, so that every estimator serves. Only the guide's parameters have a gradient (those
    of the model inside a posterior are among them), that of $-\sum_k \tilde w_k \log q(z_k | x)$, as in the wake phase
    of `wake_sleep`: the forward KL's as K grows, not that of the expected value of the estimate.

    Args:
        num_particles: draws from the guide, at least 2.

    Raises:
        ObjectiveError: fewer than two draws.

    Example:
        >>> eubo(num_particles=10)
        eubo(num_particles=10)

        A sandwich: with the ELBO of one posterior it lies on either side of the log evidence.

        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.5))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> posterior = vi.normalize(model, vi.SIR(guide, num_particles=5))
        >>> lower = -Loss(vi.elbo(), num_samples=2000).loss(model, posterior)
        >>> upper = Loss(vi.eubo(num_particles=10), num_samples=2000).loss(model, posterior)
        >>> lower < -1.828 < upper
        True

    References:
        Ji and Shen 2019, Stochastic Variational Inference via Upper Bound.
        Blessing et al. 2024, Beyond ELBOs: A Large-Scale Evaluation of Variational Methods for Sampling.
    """
    return iid(lambda: densities(stop_gradient(model), guide), num_particles).reduce(upper_bound)


@objective
def multi_trace(model: Program, guide: Program, *, num_particles: int) -> Cost:
    r"""The multi-trace bound with a forward-KL phase, in nats; maximised: the model's parameters ascend IWAE; the
    guide's ascend $\sum_k \tilde w_k \log q(z_k | x)$ at draws from the model's prior $p(z)$, with
    self-normalised weights $\tilde w_k \propto p(x | z_k)$. The value is the former.

    Draws and weights are held fixed, so that every estimator serves. Unbiased for the model's parameters; for the
    guide's the gradient is that of $-\mathrm{KL}(p \| q)$ only as `num_particles` grows.

    Example:
        >>> multi_trace(num_particles=8)
        multi_trace(num_particles=8)

    References:
        Zhou et al. 2025, Variational Reasoning for Language Models.
    """

    def from_prior() -> tuple[Cost, Cost]:
        z = simulate(stop_gradient(model))
        return stop_gradient(z.log_likelihood), log_density(guide, stop_gradient(z))

    draws = iid(lambda: densities(model, guide), num_particles)
    return split_gradients(
        model=draws.reduce(bound), guide=iid(from_prior, num_particles).reduce(weighted)
    )


def densities(model: Program, guide: Program) -> tuple[Cost, Cost, Cost]:
    """Log densities of model and guide at a draw from the guide that is held fixed, and that of the guide as it was
    drawn, which makes the weights: an estimate of it is one of the reciprocal only there (nats)."""
    z = held_draw(guide)
    return log_density(model, z), log_density(guide, z), stop_gradient(z.density)


def log_density_of_simulated(model: Program, guide: Program) -> Cost:
    """Log density of the guide, given simulated data, at what they were simulated from (nats)."""
    joint = held_draw(uncondition(model))
    return log_density(given(guide, joint), joint)


def bound(log_p: Array, log_q: Array, drawn: Array) -> Array:
    """The IWAE bound."""
    return log_mean_exp(log_p - drawn)


def upper_bound(log_p: Array, log_q: Array, drawn: Array) -> Array:
    """The log weights, weighted."""
    return weighted(log_p - drawn, log_p - log_q)


def wake(log_p: Array, log_q: Array, drawn: Array) -> Array:
    """The log density of draws from the guide, weighted."""
    return weighted(log_p - drawn, log_q)


def weighted(log_w: Array, x: Array) -> Array:
    """What is known of each draw, with self-normalised weights that are held fixed."""
    weights = current().backend.stop_gradient(softmax(log_w))
    return array_namespace(x).sum(weights * x, axis=0)
