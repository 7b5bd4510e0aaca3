"""Neural networks as NumPyro registers them, in a small regression."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax.example_libraries import stax
from numpyro.contrib.module import eqx_module, flax_module, nnx_module, random_flax_module
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

import vi_kit as vi
from tests.numpyro.programs import falls
from vi_kit.numpyro import Loss, fit

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 8)[:, None]
Y = 2 * X[:, 0] - 0.5


def stax_net():
    net = stax.serial(stax.Dense(4), stax.Tanh, stax.Dense(1))
    return numpyro.module("net", net, (len(X), 1))


def flax_net():
    return flax_module("net", nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(1)]), X)


def nnx_net():
    return nnx_module("net", nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def eqx_net():
    return jax.vmap(eqx_module("net", eqx.nn.Linear(1, 1, key=jax.random.key(1))))


def regression(net):
    def model():
        mean = net()(X)[:, 0]
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(X)):
            numpyro.sample("y", dist.Normal(mean + shift, 0.3), obs=Y)

    def guide():
        numpyro.sample("shift", dist.Normal(numpyro.param("a", 0.0), 0.1))

    return model, guide


@pytest.mark.parametrize("net", [stax_net, flax_net, nnx_net, eqx_net], ids=lambda f: f.__name__)
def test_network_in_the_model_trains(net):
    model, guide = regression(net)
    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Loss(vi.iwae(num_particles=2)))
    result = svi.run(KEY, 60, progress_bar=False)
    assert falls(result.losses)
    assert "net$params" in result.params


def test_a_fit_says_how_many_arrays_a_network_has():
    found = fit(*regression(stax_net), num_steps=2, progress=False)
    assert "a (), net$params (4 arrays)" in str(found)


def test_network_in_the_guide_amortises():
    def model():
        with numpyro.plate("data", len(X)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.3), obs=Y)

    def guide():
        encoded = flax_module("net", nn.Dense(2), X)(X)
        with numpyro.plate("data", len(X)):
            numpyro.sample("z", dist.Normal(encoded[:, 0], jnp.exp(encoded[:, 1])))

    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Loss(num_samples=2))
    assert falls(svi.run(KEY, 60, progress_bar=False).losses)


def test_random_flax_module():
    def model():
        net = random_flax_module("net", nn.Dense(1), dist.Normal(0.0, 1.0), X)
        with numpyro.plate("data", len(X)):
            numpyro.sample("y", dist.Normal(net(X)[:, 0], 0.3), obs=Y)

    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.05), Loss(num_samples=2))
    result = svi.run(KEY, 60, progress_bar=False)
    assert falls(result.losses)
    assert "net/kernel_auto_loc" in result.params


class Normed(nn.Module):
    """A network with mutable batch statistics."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.5)(x)
        return nn.Dense(1)(x)


def normed_net():
    return flax_module("net", Normed(), X + 1.0, mutable=["batch_stats"])


def normed():
    return regression(lambda: lambda x: normed_net()(x + 1.0))


def mean_of(state):
    return float(jnp.squeeze(state["net$state"]["batch_stats"]["BatchNorm_0"]["mean"]))


@pytest.mark.parametrize("jit", [True, False])
def test_batch_statistics_are_updated_once_a_step(jit):
    """The data's mean is 1, and each step goes half of the way."""
    model, guide = normed()
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Loss())
    state = svi.init(KEY)
    start = mean_of(state.mutable_state)
    update = jax.jit(svi.update) if jit else svi.update
    for _ in range(2):
        state, value = update(state)
        assert np.isfinite(value)
        now = mean_of(state.mutable_state)
        assert now == pytest.approx((start + 1) / 2, abs=1e-6)
        start = now


def test_mutable_state_comes_back_from_the_loss():
    model, guide = normed()
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Loss())
    state = svi.init(KEY)
    params = {**svi.get_params(state), **state.mutable_state}
    start = mean_of(params)
    result = Loss().loss_with_mutable_state(KEY, params, model, guide)
    assert sorted(result) == ["loss", "mutable_state"]
    assert mean_of(result["mutable_state"]) == pytest.approx((start + 1) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", [Loss(num_samples=2), Loss(vi.iwae(num_particles=2))], ids=repr)
def test_mutable_state_inside_replicates_is_refused(loss):
    model, guide = normed()
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), loss)
    state = svi.init(KEY)
    with pytest.raises(vi.ObjectiveError, match=r"mutable site 'net\$state' inside replicates"):
        svi.update(state)


def test_mutable_state_of_an_nnx_module():
    net = nnx.Sequential(nnx.BatchNorm(1, rngs=nnx.Rngs(0)), nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    model, guide = regression(lambda: lambda x: nnx_module("net", net)(jnp.float32(x)))
    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Loss())
    result = svi.run(KEY, 60, progress_bar=False)
    assert falls(result.losses)
    assert "net$state" in result.state.mutable_state
