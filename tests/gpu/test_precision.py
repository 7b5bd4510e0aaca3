"""Half precision ends where densities begin: networks may be autocast, log densities and their sums are float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.numpyro import Loss as NumPyroLoss
from vi_kit.pyro import Loss, backend, fit

NUM = 1000
X = np.linspace(-2.0, 2.0, NUM)
OBJECTIVES = {"elbo": vi.elbo(), "iwae": vi.iwae(num_particles=3)}
ESTIMATORS = {
    "reparam": vi.Reparam(),
    "loo": vi.Score(vi.LeaveOneOut()),
    "quadrature": vi.Quadrature(5),
}
CASES = [("elbo", e) for e in ESTIMATORS] + [("iwae", "reparam"), ("iwae", "loo")]


@pytest.fixture(autouse=True)
def single():
    torch.set_default_dtype(torch.float32)  # put back by the fixture of all tests


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def programs(net, outside):
    """A guide by a network; `outside` has what it gives rounded, but all that comes after it in float32."""
    x = torch.tensor(X, dtype=torch.float32)

    def outputs():
        pyro.module("net", net)
        if not outside:
            return of_network()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = of_network()
        assert made[1].dtype == torch.bfloat16
        return [one.float() for one in made]

    def of_network():
        loc, log_scale = net(x[:, None]).unbind(-1)
        return loc, torch.exp(log_scale)

    def model():
        with pyro.plate("rows", NUM):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), torch.ones(())))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide():
        loc, scale = outputs()
        with pyro.plate("rows", NUM):
            pyro.sample("z", dist.Normal(loc, scale))

    return model, guide


def step(objective, estimator, outside, autocast):
    net = network()
    model, guide = programs(net, outside)
    loss = Loss(OBJECTIVES[objective], ESTIMATORS[estimator], num_samples=2)
    found = []
    for seed in range(3):
        pyro.set_rng_seed(seed)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss.loss_and_grads(model, guide)
        grads = [p.grad.flatten().double().numpy() for p in net.parameters() if p.grad is not None]
        found.append(np.concatenate([[value], *grads]))
        net.zero_grad()
    return np.array(found)


@pytest.mark.parametrize(("objective", "estimator"), CASES)
def test_densities_are_not_autocast(objective, estimator):
    """As if the network alone were: equal to what is left to rounding in float32, in which 1000 terms are summed."""
    found = step(objective, estimator, outside=False, autocast=True)
    exact = step(objective, estimator, outside=True, autocast=False)
    np.testing.assert_allclose(found[:, 0], exact[:, 0], rtol=2e-6)
    grads, exact = found[:, 1:], exact[:, 1:]  # the backward pass of the network has 8 bits
    np.testing.assert_allclose(grads, exact, rtol=2.0**-7, atol=2.0**-9 * np.abs(exact).max())


def test_densities_in_bf16_are_told_apart(monkeypatch):
    """The mutant: log densities and their sums in the precision of the network."""
    exact = step("elbo", "reparam", outside=True, autocast=False)
    monkeypatch.setattr(backend, "widened", lambda fn: fn)
    found = step("elbo", "reparam", outside=False, autocast=True)
    assert np.abs(found[:, 0] / exact[:, 0] - 1).max() > 1e-4


def test_near_what_it_is_in_float32():
    """The network rounds to 8 bits, and its outputs are of the size of one: so are the gradient and the loss."""
    found = step("elbo", "reparam", outside=False, autocast=True)
    single = step("elbo", "reparam", outside=False, autocast=False)
    np.testing.assert_allclose(found[:, 0], single[:, 0], rtol=2.0**-7)
    assert not np.array_equal(found[:, 0], single[:, 0])  # it was autocast


def test_a_fit_that_is_autocast():
    """Casts of parameters are not kept from step to step, nor from where there is no gradient."""
    ends = []
    for autocast in (False, True):
        pyro.clear_param_store()
        net = network()
        model, guide = programs(net, outside=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = fit(model, guide, num_steps=60, optimizer=0.02, progress=False)
        ends.append(found.losses)
    assert ends[0][-10:].mean() < ends[0][:10].mean() - 100
    np.testing.assert_allclose(ends[1], ends[0], rtol=0.05)


def test_moments_are_not_autocast():
    """What `Analytic` pushes through a product of matrices."""
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([0.3, -1.0, 2.0])

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w @ z, 0.7).to_event(1), obs=x)

    def guide():
        loc = pyro.param("loc", torch.tensor([0.123, 0.456, -0.789]))
        pyro.sample("z", dist.Normal(loc, 0.4321).to_event(1))

    values = []
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            values.append(Loss(estimators=vi.Analytic()).loss_and_grads(model, guide))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_in_numpyro(dtype):
    """Outputs of a network in half precision: as if they were brought to float32 by the guide."""
    half = getattr(jnp, dtype)
    loc, scale = jnp.asarray(0.3 * X, half), jnp.asarray(0.5 + 0.1 * X**2, half)
    x = jnp.asarray(X, jnp.float32)

    def model(wide):
        with numpyro.plate("rows", NUM):
            z = numpyro.sample("z", ndist.Normal(jnp.float32(0.0), jnp.float32(1.0)))
            numpyro.sample("x", ndist.Normal(z, jnp.float32(0.5)), obs=x)

    def guide(wide):
        shift: Any = numpyro.param("shift", jnp.zeros((), half))
        to = jnp.float32 if wide else half
        with numpyro.plate("rows", NUM):
            numpyro.sample("z", ndist.Normal((loc + shift).astype(to), scale.astype(to)))

    loss = NumPyroLoss(estimators=vi.Reparam())
    params = {"shift": jnp.zeros((), half)}

    def value(params, wide):
        return loss.loss(jax.random.key(0), params, model, guide, wide)

    found, exact = (jax.value_and_grad(value)(params, wide) for wide in (False, True))
    assert found[0].dtype == jnp.float32 or found[0].dtype == jnp.float64
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(found[1]["shift"], float), np.asarray(exact[1]["shift"], float), rtol=1e-6
    )


def half_programs(lib, dtype, wide):
    """Rows z ~ N(0, 1), x ~ N(z, 1/2); a guide whose outputs are in half precision, or brought to float32 by it."""
    if lib == "pyro":
        half, to = getattr(torch, dtype), torch.float32 if wide else getattr(torch, dtype)
        loc, scale = (torch.tensor(v, dtype=half).to(to) for v in (0.3 * X, 0.5 + 0.1 * X**2))
        x, one, zero = torch.tensor(X, dtype=torch.float32), torch.ones(()), torch.zeros(())
        words, dists = pyro, dist
    else:
        half, to = getattr(jnp, dtype), jnp.float32 if wide else getattr(jnp, dtype)
        loc, scale = (jnp.asarray(v, half).astype(to) for v in (0.3 * X, 0.5 + 0.1 * X**2))
        x, one, zero = jnp.asarray(X, jnp.float32), jnp.float32(1.0), jnp.float32(0.0)
        words, dists = numpyro, ndist
    of_words: Any = words
    of_dists: Any = dists

    def model():
        with of_words.plate("rows", NUM):
            z = of_words.sample("z", of_dists.Normal(zero, one))
            of_words.deterministic("half", loc + 0)
            of_words.sample("x", of_dists.Normal(z, one / 2), obs=x)

    def guide():
        with of_words.plate("rows", NUM):
            of_words.sample("z", of_dists.Normal(loc, scale))

    return (Loss if lib == "pyro" else NumPyroLoss)(), model, guide


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lib", ["pyro", "numpyro"])
def test_draws_and_what_is_made_of_them(lib, dtype):
    """As if the guide brought its outputs to float32: in half precision a log density has 8 or 11 bits."""
    found, exact = (half_programs(lib, dtype, wide) for wide in (False, True))
    draws, wide = (vi.sample(*own, num_samples=20) for own in (found, exact))
    assert draws["half"].dtype == np.float32
    assert draws["z"].dtype in (
        np.float32,
        np.float64,
    )  # NumPyro draws in double precision where JAX has it
    for name in ("z", "half"):
        np.testing.assert_array_equal(draws[name], wide[name])
    held, wide = (vi.heldout(*own, num_samples=200) for own in (found, exact))
    np.testing.assert_allclose(held.log_prob, wide.log_prob, rtol=1e-6)
    told, wide = (vi.diagnose(*own, num_samples=200, num_gradients=10) for own in (found, exact))
    np.testing.assert_allclose([told.elbo, told.ess], [wide.elbo, wide.ess], rtol=1e-5)
