"""SVI reaches exact posteriors: where the guide can be the posterior, the bound is the log evidence."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import special, stats

import vi_kit as vi
from vi_kit.pyro import Loss

POSITIVE = dist.constraints.positive


def fit(loss, model, guide, num_steps, lr=0.05):
    """Train with a learning rate that falls to a hundredth."""
    optim = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / num_steps)})
    svi = pyro.infer.SVI(model, guide, optim, loss=loss)
    for _ in range(num_steps):
        svi.step()


def bound(model, guide, objective=None, num_samples=4000):
    """The bound in nats, from many samples."""
    return -Loss(objective, num_samples=num_samples).loss(model, guide)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=5)], ids=repr)
def test_beta_bernoulli(objective):
    """Posterior Beta(2 + 6, 3 + 2); concentrations to 10%, the bound to 0.01 nats."""
    flips = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1])

    def model():
        rate = pyro.sample("rate", dist.Beta(2.0, 3.0))
        with pyro.plate("flips", len(flips)):
            pyro.sample("flip", dist.Bernoulli(rate), obs=flips)

    def guide():
        a = pyro.param("a", torch.tensor(2.0), constraint=POSITIVE)
        b = pyro.param("b", torch.tensor(2.0), constraint=POSITIVE)
        pyro.sample("rate", dist.Beta(a, b))

    fit(Loss(objective, num_samples=16), model, guide, 600, lr=0.2)
    assert pyro.param("a").item() == pytest.approx(8.0, rel=0.1)
    assert pyro.param("b").item() == pytest.approx(5.0, rel=0.1)
    evidence = special.betaln(8, 5) - special.betaln(2, 3)
    assert bound(model, guide, objective) == pytest.approx(evidence, abs=0.01)


def test_mean_of_normals():
    """Posterior by AutoNormal; location to 0.02, scale to 5%, the bound to 0.01 nats."""
    x = torch.tensor([0.3, 1.2, -0.4, 0.9, 2.1])
    noise, prior = 0.8, 2.0

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, prior))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, noise), obs=x)

    guide = AutoNormal(model)
    fit(Loss(num_samples=16), model, guide, 400)
    precision = 1 / prior**2 + len(x) / noise**2
    loc, scale = guide.locs.loc.item(), guide.scales.loc.item()
    assert loc == pytest.approx(x.sum().item() / noise**2 / precision, abs=0.02)
    assert scale == pytest.approx(precision**-0.5, rel=0.05)
    covariance = noise**2 * np.eye(len(x)) + prior**2
    evidence = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(x.numpy())
    assert bound(model, guide) == pytest.approx(evidence, abs=0.01)


def test_gamma_poisson():
    """Posterior Gamma(2 + sum x, 1 + n); mean to 5%, the bound to 0.01 nats."""
    counts = torch.tensor([3.0, 5, 2, 4])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("counts", len(counts)):
            pyro.sample("count", dist.Poisson(rate), obs=counts)

    def guide():
        a = pyro.param("a", torch.tensor(10.0), constraint=POSITIVE)
        b = pyro.param("b", torch.tensor(2.0), constraint=POSITIVE)
        pyro.sample("rate", dist.Gamma(a, b))

    fit(Loss(num_samples=16), model, guide, 600, lr=0.2)
    a, b = pyro.param("a").item(), pyro.param("b").item()
    assert a / b == pytest.approx(16 / 5, rel=0.05)
    assert a == pytest.approx(16, rel=0.15)
    evidence = special.gammaln(16) - special.gammaln(2) - 16 * math.log(5)
    evidence -= special.gammaln(counts.numpy() + 1).sum()
    assert bound(model, guide) == pytest.approx(evidence, abs=0.01)


X = np.array([-1.3, 0.4, 1.1, 2.2])
WEIGHTS = np.array([0.2, 0.5, 0.3])
LOCS = np.array([-1.0, 0.5, 2.0])


def mixture(num_components):
    """A mixture of known components; the latent variables are the assignments."""
    weights = torch.tensor(WEIGHTS[:num_components] / WEIGHTS[:num_components].sum())
    x, locs = torch.tensor(X), torch.tensor(LOCS[:num_components])

    def model():
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(weights[1]) if num_components == 2 else dist.Categorical(weights)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    def guide():
        free = num_components if num_components > 2 else 1
        logits = pyro.param("logits", torch.zeros(len(x), free))
        with pyro.plate("data", len(x)):
            if num_components == 2:
                pyro.sample("z", dist.Bernoulli(logits=logits[:, 0]))
            else:
                pyro.sample("z", dist.Categorical(logits=logits))

    def posterior():
        logits = pyro.param("logits").detach()
        return logits.sigmoid()[:, 0] if num_components == 2 else logits.softmax(-1)

    joint = weights.numpy() * stats.norm(LOCS[:num_components], 1.0).pdf(X[:, None])
    exact = joint / joint.sum(-1, keepdims=True)
    exact = exact[:, 1] if num_components == 2 else exact
    return model, guide, posterior, exact, np.log(joint.sum(-1)).sum()


ASSIGNMENTS = [
    (vi.elbo(), vi.Enumerate(), 1, 0.02),
    (vi.elbo(), vi.Score(vi.LeaveOneOut()), 16, 0.02),
    (vi.iwae(num_particles=5), vi.MeasureValued(), 4, 0.06),
    (vi.iwae(num_particles=5), vi.Score(vi.LeaveOneOut()), 8, 0.06),
]


@pytest.mark.parametrize("num_components", [2, 3])
@pytest.mark.parametrize(("objective", "estimator", "num_samples", "atol"), ASSIGNMENTS, ids=repr)
def test_assignments_of_a_mixture(num_components, objective, estimator, num_samples, atol):
    """Posterior probabilities and the ELBO to `atol`, the bound that is ascended to 0.01 nats.

    `atol` is larger for iwae, which is flat (of fourth order) where the guide is the posterior.
    """
    model, guide, posterior, exact, evidence = mixture(num_components)
    loss = Loss(objective, estimator, num_samples=num_samples)
    fit(loss, model, guide, 600, lr=0.3)
    np.testing.assert_allclose(posterior().numpy(), exact, atol=atol)
    assert bound(model, guide) == pytest.approx(evidence, abs=atol)
    assert bound(model, guide, objective) == pytest.approx(evidence, abs=0.01)


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(vi.LeaveOneOut())], ids=repr)
def test_parameters_of_a_mixture_by_maximum_likelihood(estimator):
    """With the exact posterior as guide, the model's locations reach those of EM, to 0.03."""
    x = torch.tensor([-2.1, -1.7, -1.4, 1.2, 1.9, 2.3])

    def model():
        locs = pyro.param("locs", torch.tensor([-0.5, 0.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    def guide():
        logits = pyro.param("logits", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    fit(Loss(estimators=estimator, num_samples=8), model, guide, 600, lr=0.3)
    data, locs = x.numpy(), np.array([-0.5, 0.5])
    for _ in range(200):
        joint = stats.norm(locs, 1.0).pdf(data[:, None])
        share = joint / joint.sum(-1, keepdims=True)
        locs = (share * data[:, None]).sum(0) / share.sum(0)
    np.testing.assert_allclose(pyro.param("locs").detach().numpy(), locs, atol=0.03)
