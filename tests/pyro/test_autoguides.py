"""Every automatic guide of Pyro, on a model with a global, a vector and a local latent variable."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide

from tests.pyro.same_draw import check_same_in_all_ways
from vi_kit.pyro import Loss

X = torch.tensor([0.3, 1.2, -0.4, 0.9], dtype=torch.float64)


def model(x):
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc[..., 0], scale))
        pyro.sample("x", dist.Normal(z + loc[..., 1], 0.5), obs=x)


def low_rank(model):
    return autoguide.AutoLowRankMultivariateNormal(model, rank=2)


def autoregressive_flow(model):
    return autoguide.AutoIAFNormal(model, hidden_dim=[8])


def affine_flow(model):
    def flow(latent_dim):
        return dist.transforms.affine_autoregressive(latent_dim, hidden_dims=[8])

    return autoguide.AutoNormalizingFlow(model, flow)


def structured(model):
    return autoguide.AutoStructured(
        model,
        conditionals={"scale": "normal", "loc": "mvn", "z": "normal"},
        dependencies={"z": {"loc": "linear"}},
    )


def guide_list(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["scale", "loc"])))
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["z"])))
    return guide


GUIDES = [
    autoguide.AutoNormal,
    autoguide.AutoDelta,
    autoguide.AutoDiagonalNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoLaplaceApproximation,
    autoguide.AutoGaussian,
    low_rank,
    autoregressive_flow,
    affine_flow,
    structured,
    guide_list,
]


@pytest.mark.parametrize("make", GUIDES, ids=lambda make: make.__name__)
def test_guide_has_the_gradients_of_pyro(make):
    guide = make(model)
    check_same_in_all_ways(model, guide, X, max_plate_nesting=1)


@pytest.mark.parametrize("make", [autoguide.AutoNormal, low_rank], ids=lambda make: make.__name__)
def test_guide_trains(make):
    guide = make(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Loss(num_samples=4))
    losses = [svi.step(X) for _ in range(120)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_discrete_guide_is_enumerated_exactly():
    probs = torch.tensor([0.2, 0.3, 0.5])

    def mixture(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs))
            pyro.sample("x", dist.Normal(z * 1.0, 0.5), obs=x)

    guide = autoguide.AutoDiscreteParallel(mixture)
    guide(X)
    values = torch.arange(3.0)
    log_joint = probs.log() + dist.Normal(values, 0.5).log_prob(X[:, None])
    logits = pyro.param("AutoDiscreteParallel.z_probs").detach().log().requires_grad_()
    expected = (logits.softmax(-1) * (log_joint - logits.log_softmax(-1))).sum()
    loss = Loss()
    assert loss.loss(mixture, guide, X) == pytest.approx(-expected.item())
    loss.loss_and_grads(mixture, guide, X)
    (got,) = (p.grad for p in pyro.get_param_store()._params.values())
    # The unconstrained coordinates differ from `logits` by an invertible map: compare by the chain rule.
    (by_logits,) = torch.autograd.grad(-expected, logits)
    leaf = pyro.param("AutoDiscreteParallel.z_probs").unconstrained().detach().requires_grad_()
    simplex = torch.distributions.transform_to(dist.constraints.simplex)(leaf)
    (by_leaf,) = torch.autograd.grad(simplex.log(), leaf, by_logits)
    torch.testing.assert_close(got, by_leaf)
    assert "Enumerate(max_worlds=64)" in loss.explain(mixture, guide, X)
