"""NumPyro's own example models, small, with the default loss."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import LocScaleReparam

from tests.numpyro.programs import POSITIVE, falls
from vi_kit.numpyro import Loss

RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(20, 3)))
TARGETS = FEATURES @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=20)


def trains(model, guide, loss=None, steps=100):
    loss = loss or Loss()
    svi = SVI(model, loss.with_state(guide), numpyro.optim.Adam(0.05), loss)
    return falls(svi.run(jax.random.key(0), steps, progress_bar=False).losses)


def linear_regression():
    """Without plates: undeclared batch dims."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(3), 1.0))
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    numpyro.sample("y", dist.Normal(intercept + FEATURES @ weights, sigma), obs=TARGETS)


EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@handlers.reparam(config={"theta": LocScaleReparam(0)})
def eight_schools():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)


def logistic_regression():
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with numpyro.plate("data", 20, subsample_size=10):
        x = numpyro.subsample(FEATURES, event_dim=1)
        y = numpyro.subsample((TARGETS > 0) * 1.0, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def hidden_normal_chain():
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def body(previous, y):
        z = numpyro.sample("z", dist.Normal(previous + drift, 0.3))
        numpyro.sample("y", dist.Normal(z, 0.2), obs=y)
        return z, None

    scan(body, 0.0, jnp.asarray([0.4, 1.1, 1.4, 2.2]))


@pytest.mark.parametrize(
    "model",
    [linear_regression, eight_schools, logistic_regression],
    ids=lambda f: getattr(f, "__name__", "eight_schools"),
)
def test_with_an_automatic_guide(model):
    assert trains(model, AutoNormal(model))


def test_chain_of_normals():
    def guide():
        numpyro.sample("drift", dist.Normal(numpyro.param("drift_loc", 0.0), 0.2))
        loc = numpyro.param("loc", jnp.zeros(4))
        scale = numpyro.param("scale", 0.3 * jnp.ones(4), constraint=POSITIVE)

        def body(carry, now):
            numpyro.sample("z", dist.Normal(*now))
            return carry, None

        scan(body, 0, (loc, scale))

    assert trains(hidden_normal_chain, guide)


def test_gaussian_mixture():
    """Assignments enumerated in the guide."""
    x = np.concatenate([RNG.normal(-2, 0.5, 6), RNG.normal(2, 0.5, 6)])

    def model():
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("components", 2):
            locs = numpyro.sample("locs", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(locs[z], 0.5), obs=x)

    def guide():
        total = numpyro.param("total", jnp.ones(2), constraint=POSITIVE)
        numpyro.sample("weights", dist.Dirichlet(total))
        locs = numpyro.param("locs_loc", jnp.array([-0.5, 0.5]))
        with numpyro.plate("components", 2):
            numpyro.sample("locs", dist.Normal(locs, 0.1))
        logits = numpyro.param("logits", jnp.zeros((len(x), 2)))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Categorical(logits=logits))

    loss = Loss()
    assert "Enumerate" in loss.explain(model, guide)
    assert trains(model, guide, loss)


def test_poisson_latent():
    def model():
        count = numpyro.sample("count", dist.Poisson(5.0))
        with numpyro.plate("data", 4):
            numpyro.sample("y", dist.Normal(count, 2.0), obs=np.array([9.0, 11.0, 8.0, 10.0]))

    def guide():
        numpyro.sample("count", dist.Poisson(numpyro.param("rate", 3.0, constraint=POSITIVE)))

    assert trains(model, guide, steps=200)
    assert trains(model, guide, Loss(num_samples=4))
