"""Guides that take gradients themselves, and losses whose callers have switched gradients off."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.pyro import Loss


def model():
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([1.0, -0.5]))


def guide_with_a_step():
    start = pyro.param("start", torch.tensor([0.3, 0.1]))
    energy = (0.5 * start**2 + 0.5 * (start - 1.0) ** 2).sum()
    (slope,) = torch.autograd.grad(energy, start, create_graph=True)
    with pyro.plate("data", 2):
        pyro.sample("z", dist.Normal(start - 0.1 * slope, 0.7))


def guide():
    loc = pyro.param("loc", torch.tensor([0.3, 0.1]))
    with pyro.plate("data", 2):
        pyro.sample("z", dist.Normal(loc, 0.7))


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)], ids=str)
def test_a_guide_that_takes_a_gradient(objective):
    """The same draws as a guide that starts where the step leads."""
    loss = Loss(objective, num_samples=2)
    pyro.set_rng_seed(1)
    value = loss.loss_and_grads(model, guide_with_a_step)
    start = pyro.get_param_store()._params["start"]
    moved = start - 0.1 * (2 * start - 1.0)
    pyro.param("loc", moved.detach())
    pyro.set_rng_seed(1)
    assert loss.loss_and_grads(model, guide) == pytest.approx(value, rel=1e-12)
    grad = pyro.get_param_store()._params["loc"].grad
    torch.testing.assert_close(start.grad, 0.8 * grad)
    pyro.set_rng_seed(1)
    assert loss.loss(model, guide_with_a_step) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["loss_and_grads", "differentiable_loss"])
def test_no_grad_around_a_gradient(name):
    loss = Loss()

    def gradient():
        pyro.set_rng_seed(2)
        result = getattr(loss, name)(model, guide)
        leaf = pyro.get_param_store()._params["loc"]
        if isinstance(result, torch.Tensor):
            result.backward()
        grad, leaf.grad = leaf.grad, None
        return grad

    expected = gradient()
    with torch.no_grad():
        found = gradient()
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected)


def test_inference_mode_is_refused():
    pyro.param("loc", torch.tensor([0.3, 0.1]))
    with torch.inference_mode(), pytest.raises(vi.BackendError, match="has no gradient"):
        Loss().loss_and_grads(model, guide)
