"""`Loss.gradient_variance` against sums over all joint values."""

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from vi_kit.engine.plan import Plan
from vi_kit.engine.select import Choice, Selection
from vi_kit.engine.variance import variance_of

AT = np.array([0.4, -0.7])
WEIGHTS, X = np.array([1.0, 2.0]), 1.3


def coins(lib):
    """Two coins that the guide tosses apart and the data tie together, each with a parameter of its own."""

    def model():
        z = [lib.sample(name, lib.dist.Bernoulli(lib.array(0.5))) for name in ("z1", "z2")]
        lib.sample("x", lib.dist.Normal(z[0] + 2.0 * z[1], 1.0), obs=lib.array(X))

    def guide():
        for name, at in zip("ab", AT, strict=True):
            lib.sample(f"z{'ab'.index(name) + 1}", lib.dist.Bernoulli(logits=lib.theta(at, name)))

    return model, guide


def gradients():
    """Of the loss by the score function at each joint value: their probabilities, and the gradients."""
    z = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    log_q = oracles.log_bernoulli(AT, z)
    cost = log_q - np.log(0.5) - oracles.log_normal(X, z @ WEIGHTS, 1.0)[:, None]
    score = z - 1 / (1 + np.exp(-AT))
    return np.exp(log_q.sum(1)), score * cost


def variance(probs, values):
    probs = probs / probs.sum()
    return probs @ (values - probs @ values) ** 2


def left(held):
    """Mean over one coin of the variance by the other, summed over coordinates."""
    probs, values = gradients()
    z = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    parts = [z[:, held] == v for v in (0, 1)]
    return sum(probs[p].sum() * variance(probs[p], values[p]).sum() for p in parts)


def test_parameters_and_sites_against_enumeration(lib):
    found = lib.Loss(estimators=vi.Score()).gradient_variance(*coins(lib), num_draws=400)
    exact = variance(*gradients())
    wanted = {"a": exact[0], "b": exact[1], "z1": left(held=1), "z2": left(held=0)}
    parts = {p.name: p for p in (*found.params, *found.sites)}
    assert list(parts) == list(wanted)
    for name, number in wanted.items():
        assert abs(parts[name].variance - number) <= 5 * parts[name].error, (name, number, found)
    # a mutant: all noise drawn again in the place of one site's
    assert abs(parts["z1"].variance - exact.sum()) >= 8 * parts["z1"].error
    assert abs(found.total.variance - exact.sum()) <= 5 * found.total.error
    assert "site (its noise alone)" in repr(found)


class Normals:
    """Replays of gradients that are drawn from a Normal; their variance is 4 + 9, and half that by the one site."""

    coordinates = owners = ("a", "b")

    def plan(self, loss):
        return loss

    def redrawn(self, loss, labels, num_draws, warm_up, seed):
        rng = np.random.default_rng(seed)
        shared, *others = rng.normal(size=(2 + len(labels), num_draws, 2))
        return (shared[:, None] + np.stack(others, 1)) * [2.0, 3.0] / np.sqrt(2)


def test_standard_errors_are_those_of_repetitions():
    plan = Plan(Selection(resolved={"z": Choice(vi.Score(), "", "", ("Normal",))}), 0)
    found = [variance_of(plan, Normals(), 200, seed) for seed in range(200)]
    for own, exact in (([f.total for f in found], 13.0), ([f.sites[0] for f in found], 6.5)):
        variances = np.array([p.variance for p in own])
        assert abs(variances.mean() - exact) <= 5 * variances.std() / len(own) ** 0.5
        assert 0.8 <= variances.std() / np.mean([p.error for p in own]) <= 1.25


def test_gradients_that_are_equal_do_not_vary(lib):
    """Exactly: a difference from their mean has a rounding error, here and in most programs."""
    found = lib.Loss(estimators=vi.Enumerate()).gradient_variance(*coins(lib), num_draws=60)
    assert found.total.variance == 0.0 == found.total.error

    class Equal(Normals):
        def redrawn(self, loss, labels, num_draws, warm_up, seed):
            return np.full((num_draws, 1 + len(labels), 2), 0.1)

    assert Equal().redrawn(None, "z", 60, 0, 0).std() > 0.0  # the mutant
    plan = Plan(Selection(resolved={"z": Choice(vi.Score(), "", "", ("Normal",))}), 0)
    assert variance_of(plan, Equal(), 60, 0).total.variance == 0.0


def test_an_enumerated_site_contributes_nothing(lib):
    loss = lib.Loss(estimators={"z1": vi.Enumerate(), "z2": vi.Score(vi.MovingAverage())})
    found = loss.gradient_variance(*coins(lib), num_draws=60)
    first, second = found.sites
    assert first.variance == 0.0 and second.variance > 0.0
    assert abs(second.variance - found.total.variance) <= 5 * (second.error + found.total.error)


def test_reparameterised_sites_share_no_noise(lib):
    """The loss is a sum of one square for each site: contributions add up to the total, which is 4 b^2."""

    def model():
        for name in ("u", "v"):
            lib.sample(name, lib.dist.Normal(lib.array(0.0), 1.0))

    def guide():
        for name, scale in (("u", 1.0), ("v", 0.5)):
            lib.sample(name, lib.dist.Normal(lib.theta(np.array(0.3), f"m_{name}"), scale))

    found = lib.Loss().gradient_variance(model, guide, num_draws=150)
    for part, scale in zip(found.sites, (1.0, 0.5), strict=True):
        assert abs(part.variance - scale**2) <= 5 * part.error  # the slope is the value
        # in the other parameter there is nothing of it
    for site, param in zip(found.sites, found.params, strict=True):
        assert abs(site.variance - param.variance) <= 5 * np.hypot(site.error, param.error)


def test_nothing_is_changed():
    import pyro
    import torch

    from tests.libraries import PyroWords

    lib = PyroWords()
    model, guide = coins(lib)
    loss = lib.Loss(estimators=vi.Score(vi.MovingAverage()))
    loss.loss_and_grads(model, guide)
    store = pyro.get_param_store()
    before = {n: (p, p.detach().clone()) for n, p in store._params.items()}
    random_state, kept = torch.get_rng_state(), dict(loss.state)
    loss.gradient_variance(model, guide, num_draws=5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loss.state.keys() == kept.keys() and all(loss.state[k] is v for k, v in kept.items())
    for name, leaf in store._params.items():
        assert leaf is before[name][0] and torch.equal(leaf, before[name][1])


def test_sites_in_a_scan():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    from vi_kit.numpyro import Loss

    def program(loc):
        def step(carry, _):
            value = numpyro.sample("z", dist.Normal(carry + loc, 1.0))
            return value, value

        scan(step, jnp.zeros(()), None, length=3)

    def guide():
        program(numpyro.param("m", jnp.asarray(0.2)))

    found = Loss().gradient_variance(lambda: program(0.0), guide, num_draws=100)
    (part,) = found.sites
    assert part.variance > 0
    assert abs(part.variance - found.total.variance) <= 5 * np.hypot(part.error, found.total.error)


def test_too_few_draws(lib):
    with pytest.raises(vi.ObjectiveError, match="gradient_variance: num_draws"):
        lib.Loss().gradient_variance(*coins(lib), num_draws=1)
