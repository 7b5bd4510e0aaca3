"""The tables of docs/migration.md: both losses of each row are evaluated as they are written there."""

import re

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.docs.pages import ROOT
from tests.statistical_cases import expectation, log_mean_exp

PAGE = (ROOT / "docs" / "migration.md").read_text()
START = 0.3
ROW = re.compile(
    r"^\| `(.+?)` \| `(.+?)` \| (Normal|Bernoulli) \| same (numbers|expectation) \|$", re.M
)


def rows(library):
    table = PAGE.split(f"## Which loss of {library} is")[1].split("\n- ")[0]
    found = ROW.findall(table)
    assert len(found) == table.count("\n| ") - 1  # all but the head
    return found


def log_density(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def exact(objective, site):
    """The gradient of the loss at the start, by enumeration or by Gauss-Hermite quadrature."""

    def loss(a):
        a = a[0]
        if site == "Bernoulli":
            z, q = np.array([0.0, 1.0]), np.array([1 / (1 + np.exp(a)), 1 / (1 + np.exp(-a))])
            log_q, log_w = np.log(q), np.log(0.5) + log_density(2.0, z, 1.0) - np.log(q)
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(40)
            log_q, z = np.log(weights / weights.sum()), a + 0.8 * nodes
            log_w = log_density(z, 0, 1) + log_density(1.5, z, 1) - log_density(z, a, 0.8)
        if objective == vi.elbo():
            return -(np.exp(log_q) * log_w).sum()
        power = 1 - dict(objective.settings).get("alpha", 0.0)
        return -expectation(log_q, 2, lambda w: log_mean_exp(power * w) / power, log_w)

    return oracles.gradient(loss, np.array([START]))[0]


class OfPyro:
    def __init__(self):
        import pyro
        import pyro.infer
        import torch

        from vi_kit.pyro import Loss

        self.pyro, self.torch = pyro, torch
        self.names = {**vars(pyro.infer), "Loss": Loss, "vi": vi}

    def programs(self, site):
        pyro, dist, tensor = self.pyro, self.pyro.distributions, self.torch.tensor

        def model():
            prior = dist.Bernoulli(0.5) if site == "Bernoulli" else dist.Normal(0.0, 1.0)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=tensor(2.0 if site == "Bernoulli" else 1.5))

        def guide():
            a = pyro.param("a", tensor(START))
            q = dist.Bernoulli(logits=a) if site == "Bernoulli" else dist.Normal(a, 0.8)
            pyro.sample("z", q)

        return model, guide

    def draws(self, loss, site, num_draws):
        """Losses and gradients, a row a draw."""
        model, guide = self.programs(site)
        if isinstance(loss, self.pyro.infer.TraceEnum_ELBO):
            guide = self.pyro.infer.config_enumerate(guide)
        self.pyro.clear_param_store()
        self.pyro.param("a", self.torch.tensor(START))
        leaf = self.pyro.get_param_store()._params["a"]
        found = []
        loss.loss_and_grads(model, guide)  # where either finds out how many plates there are
        for seed in range(num_draws):
            self.pyro.set_rng_seed(seed)
            leaf.grad = self.torch.zeros(())
            value = loss.loss_and_grads(model, guide)
            found.append((np.ravel(value)[0], leaf.grad.item()))  # of wake-sleep the model's
        return np.array(found)


class OfNumPyro:
    def __init__(self):
        import numpyro
        import numpyro.infer

        from vi_kit.numpyro import Loss

        numpyro.enable_x64()
        self.numpyro, self.names = numpyro, {**vars(numpyro.infer), "Loss": Loss, "vi": vi}

    def draws(self, loss, site, num_draws):
        import jax

        numpyro, dist = self.numpyro, self.numpyro.distributions

        def model():
            prior = dist.Bernoulli(0.5) if site == "Bernoulli" else dist.Normal(0.0, 1.0)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0 if site == "Bernoulli" else 1.5)

        def guide():
            a = numpyro.param("a", START)
            q = dist.Bernoulli(logits=a) if site == "Bernoulli" else dist.Normal(a, 0.8)
            numpyro.sample("z", q)

        def value(a, key):
            return loss.loss(key, {"a": a}, model, guide)

        keys = jax.random.split(jax.random.key(0), num_draws)
        found = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))(START, keys)
        return np.stack([np.asarray(x) for x in found], axis=-1)


LIBRARIES = {"Pyro": OfPyro, "NumPyro": OfNumPyro}
NUM_DRAWS = {"Pyro": 400, "NumPyro": 20_000}


@pytest.mark.parametrize(
    ("library", "theirs", "ours", "site", "agree"),
    [(library, *row) for library in LIBRARIES for row in rows(library)],
)
def test_row(library, theirs, ours, site, agree):
    """A gradient without the score term, or of another objective, is many standard errors away."""
    lib = LIBRARIES[library]()
    pair = [eval(code, dict(lib.names)) for code in (theirs, ours)]
    if agree == "numbers":
        np.testing.assert_allclose(*(lib.draws(loss, site, 3) for loss in pair), rtol=1e-6)
        return
    of_exact = exact(pair[1].settings.objective, site)
    for loss in pair:
        gradients = lib.draws(loss, site, NUM_DRAWS[library])[:, 1]
        error = gradients.std() / len(gradients) ** 0.5 + 1e-7
        assert abs(gradients.mean() - of_exact) < 5 * error
    assert abs(of_exact) > 20 * error  # of ours
