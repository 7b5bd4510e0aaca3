"""`Loss` as Pyro's own losses are used: in `SVI`, and as a module."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample

import vi_kit as vi
from tests.pyro.same_draw import check_same_as_trace_elbo, check_same_in_all_ways
from vi_kit.pyro import Loss

X = torch.tensor([0.3, 1.2, -0.4, 0.9], dtype=torch.float64)


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    a = pyro.param("a", torch.tensor(2.0))
    b = pyro.param("b", torch.tensor(0.7), constraint=dist.constraints.positive)
    loc = pyro.sample("loc", dist.Normal(a, b))
    c = pyro.param("c", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(c + loc, b))


class Regression(PyroModule):
    """A linear regression whose weight is latent and whose noise is a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))
        self.noise = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, x):
        weight = self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(weight * x, self.noise), obs=2 * x)


class WeightGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.1))

    def forward(self, x):
        pyro.sample("weight", dist.Normal(self.loc, 0.3))


class ModuleGuide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(1, 2)

    def forward(self, x):
        pyro.module("encoder", self.encoder)
        pyro.sample("loc", dist.Normal(self.encoder(x[:1])[0], 1.0))
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def test_gradients_of_pyro():
    check_same_in_all_ways(model, guide, X, max_plate_nesting=1)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)])
def test_steps_lower_the_loss(objective):
    loss = Loss(objective)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
    before = sum(svi.evaluate_loss(X) for _ in range(100))
    for _ in range(100):
        svi.step(X)
    assert sum(svi.evaluate_loss(X) for _ in range(100)) < before - 50


def test_one_step_moves_the_parameters_and_evaluation_does_not():
    svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), loss=Loss())
    guide(X)
    start = pyro.param("a").item()
    assert isinstance(svi.evaluate_loss(X), float)
    assert pyro.param("a").item() == start
    assert isinstance(svi.step(X), float)
    assert pyro.param("a").item() != start


def test_as_a_module():
    guide_module = WeightGuide()
    loss_fn = Loss(num_samples=100)(Regression(), guide_module)
    names = [name for name, _ in loss_fn.named_parameters()]
    assert sorted(names) == ["guide.loc_unconstrained", "model.noise_unconstrained"]
    optimiser = torch.optim.Adam(loss_fn.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss_fn(X)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert guide_module.loc.item() > 1.0


def test_differentiable_loss_has_the_gradient_of_loss_and_grads():
    guide(X)
    leaf = pyro.get_param_store()._params["a"]
    pyro.set_rng_seed(1)
    value = Loss().loss_and_grads(model, guide, X)
    pyro.set_rng_seed(1)
    loss = Loss().differentiable_loss(model, guide, X)
    (gradient,) = torch.autograd.grad(loss, [leaf])
    assert loss.item() == value
    torch.testing.assert_close(gradient, leaf.grad)


def test_pyro_module_with_latent_attributes():
    check_same_as_trace_elbo(Regression(), WeightGuide(), X)


def test_neural_networks_registered_by_pyro_module():
    check_same_as_trace_elbo(model, ModuleGuide(), X)
    assert "encoder$$$weight" in pyro.get_param_store()


def test_parameters_with_constraints():
    def mixture(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            components = dist.Normal(torch.arange(3.0), scale[..., None])
            components = dist.MixtureSameFamily(dist.Categorical(weights), components)
            pyro.sample("x", components, obs=x)

    def mixture_guide(x):
        simplex, positive = dist.constraints.simplex, dist.constraints.positive
        weights = pyro.param("mean", torch.ones(3) / 3, constraint=simplex)
        total = pyro.param("total", torch.tensor(10.0), constraint=positive)
        pyro.sample("weights", dist.Dirichlet(total * weights))
        spread = pyro.param("spread", torch.tensor(0.3), constraint=positive)
        pyro.sample("scale", dist.LogNormal(0.0, spread))

    check_same_as_trace_elbo(mixture, mixture_guide, X)


def test_an_outer_trace_of_parameters_sees_parameters_only():
    with poutine.trace(param_only=True) as capture:
        Loss(vi.iwae(num_particles=2)).loss_and_grads(model, guide, X)
    assert sorted(capture.trace.nodes) == ["a", "b", "c"]
    assert {site["type"] for site in capture.trace.nodes.values()} == {"param"}


def test_a_block_around_the_loss_changes_nothing():
    loss = Loss(num_samples=2)
    pyro.set_rng_seed(1)
    expected = loss.loss(model, guide, X)
    pyro.set_rng_seed(1)
    with poutine.block():
        assert loss.loss(model, guide, X) == expected
