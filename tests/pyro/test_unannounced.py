"""Parameters that neither `pyro.param` nor `pyro.module` announces are held and trained as those that they do."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import vi_kit as vi
from vi_kit.pyro import Loss

X, SHIFT = 1.5, 0.3
SCALE = 0.5**0.5
"""Of the posterior, whose mean is (X - SHIFT) / 2."""


class Net(torch.nn.Module):
    """A program with one parameter."""

    def __init__(self, program, start):
        super().__init__()
        self.own = torch.nn.Parameter(torch.tensor(start))
        self.program = program

    def forward(self, x):
        self.program(self.own, x)


def model(shift, x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def guide(loc, x):
    pyro.sample("z", dist.Normal(loc, SCALE))


def announced(program, start):
    net = Net(program, start)

    def run(x):
        pyro.module(f"net of {program.__name__}", net)
        net(x)

    return run, net.own


def plain_leaf(program, start):
    leaf = torch.tensor(start, requires_grad=True)
    return lambda x: program(leaf, x), leaf


def module(program, start):
    net = Net(program, start)
    return net, net.own


def bound_method(program, start):
    net = Net(program, start)
    return net.forward, net.own


def scaled(program, start):
    net = Net(program, start)
    return poutine.scale(net, 1.0), net.own


def partial(program, start):
    net = Net(program, start)
    return functools.partial(net), net.own


def late_module(program, start):
    net = Net(program, start)

    def run(x):
        net(x)
        pyro.module(f"net of {program.__name__}", net)

    return run, net.own


IDIOMS = [plain_leaf, module, bound_method, scaled, partial, late_module]
OBJECTIVES = [
    (vi.elbo(), vi.DoublyReparam()),
    (vi.iwae(num_particles=3), vi.DoublyReparam()),
    (vi.tail_adaptive(num_particles=3), None),
    (vi.piwae(num_outer=2, num_inner=2), None),
    (vi.piwae(num_outer=2, num_inner=2), vi.DoublyReparam()),
    (vi.wake_sleep(num_particles=3), None),
    (vi.wake_sleep(num_particles=3, insomnia=0.5), None),
    (vi.multi_trace(num_particles=3), None),
]


def gradients(idiom, objective, estimator, loc):
    """Of the model's parameter and the guide's, over two steps."""
    (p, shift), (q, mean) = idiom(model, SHIFT), idiom(guide, loc)
    x, loss, found = torch.tensor(X), Loss(objective, estimator), []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        loss.loss_and_grads(p, q, x)
        found += [shift.grad.item(), mean.grad.item()]
        shift.grad = mean.grad = None
    return np.array(found)


@pytest.mark.parametrize(("objective", "estimator"), OBJECTIVES, ids=repr)
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_same_as_announced(idiom, objective, estimator):
    expected = gradients(announced, objective, estimator, 0.1)
    assert np.abs(expected).min() > 1e-6
    np.testing.assert_allclose(gradients(idiom, objective, estimator, 0.1), expected, rtol=1e-10)


@pytest.mark.parametrize(("objective", "estimator"), OBJECTIVES[:3], ids=repr)
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_no_noise_where_the_guide_is_the_posterior(idiom, objective, estimator):
    of_guide = gradients(idiom, objective, estimator, (X - SHIFT) / 2)[1::2]
    np.testing.assert_allclose(of_guide, 0.0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda leaf: leaf, lambda leaf: 1.0 * leaf], ids=["leaf", "made"])
@pytest.mark.parametrize(("objective", "estimator"), OBJECTIVES, ids=repr)
def test_arguments(objective, estimator, make):
    """Held with a program, and of model or guide by their use."""
    leaves = [torch.tensor(start, requires_grad=True) for start in (SHIFT, 0.1)]
    x, loss, found = torch.tensor(X), Loss(objective, estimator), []

    def of_second(shift, mean, x):
        guide(mean, x)

    def of_first(shift, mean, x):
        model(shift, x)

    for seed in range(2):
        pyro.set_rng_seed(seed)
        loss.loss_and_grads(of_first, of_second, *map(make, leaves), x)
        found += [leaf.grad.item() for leaf in leaves]
        leaves[0].grad = leaves[1].grad = None
    expected = gradients(announced, objective, estimator, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_an_owner_of_both_is_named():
    leaf = torch.tensor(0.1, requires_grad=True)
    loss = Loss(vi.piwae(num_outer=2, num_inner=2))
    with pytest.raises(vi.ObjectiveError, match=r"parameters \['leaf'\] belong to model and guide"):
        loss.loss(lambda x: model(leaf, x), lambda x: guide(leaf, x), torch.tensor(X))


def test_what_was_computed_before_the_step_and_is_no_argument():
    leaf = torch.tensor(0.1, requires_grad=True)
    made = 2.0 * leaf
    loss = Loss(vi.iwae(num_particles=2), vi.DoublyReparam())
    with pytest.raises(vi.ObjectiveError, match=r"stop_gradient on the guide: .* cannot be held"):
        loss.loss_and_grads(
            functools.partial(model, 0.3), lambda x: guide(made, x), torch.tensor(X)
        )


def test_what_was_computed_before_the_step_beside_moments():
    """The policy's own parameter is reached by its moments, which is right, and by what the reference closes over."""
    leaf = torch.tensor(0.1, requires_grad=True)
    made = 2.0 * leaf

    def policy():
        pyro.sample("z", dist.Normal(leaf, 1.0))

    def reference(loc):
        pyro.sample("z", dist.Normal(loc, 1.0))

    loss = Loss(vi.expected_reward(reward=lambda values: values["z"]), vi.Analytic())
    loss.loss_and_grads(functools.partial(reference, 0.5), policy)
    np.testing.assert_allclose(leaf.grad, -(1.0 - (0.1 - 0.5)), rtol=1e-6)
    with pytest.raises(vi.ObjectiveError, match=r"stop_gradient on the model: .* cannot be held"):
        loss.loss_and_grads(lambda: reference(made), policy)


def test_of_the_objective_alone():
    leaf = torch.tensor(0.5, requires_grad=True)

    @vi.objective
    def split(model, guide):
        z = vi.simulate(guide)
        return vi.split_gradients(model=vi.log_density(model, z) * leaf, guide=-z.log_density)

    (p, _), (q, _) = plain_leaf(model, SHIFT), plain_leaf(guide, 0.1)
    with pytest.raises(vi.ObjectiveError, match="belong neither to model nor to guide"):
        Loss(split()).loss_and_grads(p, q, torch.tensor(X))
