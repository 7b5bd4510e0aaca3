"""Fits on a mesh of eight simulated devices, beside the same on one: run by `test_sharding.py` in a process of its own,
since the number of devices is set before JAX starts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import torch
from flax import linen as nn
from jax import random
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpyro.contrib.module import flax_module
from numpyro.infer.autoguide import AutoNormal

import vi_kit as vi
from tests.numpyro.programs_on_devices import (
    DIM,
    ROWS,
    X,
    amortised,
    assigned,
    mixture,
    model,
    of_minibatch_inside,
    row_by_row,
    with_minibatch_inside,
)
from vi_kit.numpyro import Loss, fit
from vi_kit.numpyro.sharding import Devices

DEVICES = np.array(jax.devices())
BY_ROWS = Mesh(DEVICES, ("data",))
BY_BOTH = Mesh(DEVICES.reshape(2, 4), ("data", "particles"))


BASELINE = {"k": vi.Score(vi.MovingAverage())}
CASES = {
    "a parameter per row": (model, row_by_row, BY_ROWS, {}),
    "minibatches": (model, amortised, BY_ROWS, {"batch_size": 16}),
    "minibatches of a loader": (model, amortised, BY_ROWS, {"batches": [X[:16], X[16:32], X[32:]]}),
    "iwae": (model, amortised, BY_BOTH, {"batch_size": 16, "objective": vi.iwae(num_particles=8)}),
    "num_samples": (model, amortised, BY_BOTH, {"batch_size": 16, "num_samples": 4}),
    "score with a baseline": (
        mixture,
        assigned,
        BY_BOTH,
        {"batch_size": 16, "estimators": BASELINE, "num_samples": 4},
    ),
    "enumerated": (mixture, assigned, BY_ROWS, {"estimators": vi.Enumerate()}),
    "restarts": (model, amortised, BY_ROWS, {"batch_size": 16, "num_restarts": 3}),
    "rows taken inside": (with_minibatch_inside, of_minibatch_inside, BY_ROWS, {}),
}


def fitted(model, guide, *args, **settings):
    settings = {"num_steps": 7, "optimizer": optax.adam(0.05), "clip_norm": 100.0, **settings}
    return fit(model, guide, *args, progress=False, **settings)


def same(found, expected):
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-10)
    np.testing.assert_allclose(found.gradient_norms, expected.gradient_norms, rtol=1e-8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12),
        (found.params, found.state),
        (expected.params, expected.state),
    )


@pytest.fixture
def texts(monkeypatch):
    """What loops are compiled to, for each device."""
    found, compiled = [], Devices.compiled

    def recorded(self, fn):
        loop = compiled(self, fn)

        def run(*args):
            program = loop.lower(*args).compile()
            found.append(program.as_text())
            return program(*args)

        return run

    monkeypatch.setattr(Devices, "compiled", recorded)
    return found


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_one_device(case):
    own_model, guide, mesh, settings = CASES[case]
    args = () if "batches" in settings else (jnp.asarray(X),)
    expected = fitted(own_model, guide, *args, **settings)
    same(fitted(own_model, guide, *args, mesh=mesh, **settings), expected)
    assert len(set(expected.losses)) == len(expected.losses)


class Network(nn.Module):
    """A hidden layer, and an output for each of some numbers of columns."""

    columns: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
        hidden = nn.tanh(dense(5)(x))
        return [dense(n)(hidden) for n in self.columns]


def test_networks_and_a_loader_of_torch():
    """A VAE of modules, whose minibatches a `DataLoader` shuffles."""
    from torch.utils.data import DataLoader, TensorDataset

    def vae(x):
        decoder = flax_module("decoder", Network((DIM,)), input_shape=(1, 2))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(decoder(z)[0], 0.5).to_event(1), obs=x)

    def encoder(x):
        network = flax_module("encoder", Network((2, 2)), input_shape=(1, DIM))
        with numpyro.plate("rows", len(x)):
            loc, log_scale = network(x)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    def found(**settings):
        data = TensorDataset(torch.tensor(np.asarray(X)))
        loader = DataLoader(data, batch_size=16, shuffle=True)
        return fitted(vae, encoder, batches=loader, objective=vi.iwae(num_particles=4), **settings)

    expected = found()
    same(found(mesh=BY_BOTH), expected)
    assert len(set(expected.losses)) == len(expected.losses)


def test_each_device_has_its_rows(texts):
    fitted(model, amortised, X, batch_size=24, num_steps=1, mesh=BY_ROWS)
    assert f"f64[3,{DIM}]" in texts[0] and f"f64[24,{DIM}]" not in texts[0]
    assert "all-reduce" in texts[0]  # of gradients; rows and draws stay where they are
    assert not re.search("all-gather|all-to-all|collective-permute", texts[0])


def test_each_device_has_its_replicates(texts):
    objective = vi.iwae(num_particles=20)
    fitted(model, amortised, X, objective=objective, num_steps=1, mesh=BY_BOTH)
    assert f"f64[5,24,{DIM}]" in texts[0]  # of 20 replicates and 48 rows
    assert not any(f"f64[{k},{n},{DIM}]" in texts[0] for k, n in ((20, 48), (5, 48), (20, 24)))


def test_replicates_alone(texts):
    mesh = Mesh(DEVICES, ("particles",))
    found = fitted(model, row_by_row, X, num_samples=16, num_steps=2, mesh=mesh)
    same(found, fitted(model, row_by_row, X, num_samples=16, num_steps=2))
    assert f"f64[2,{ROWS},{DIM}]" in texts[0] and f"f64[16,{ROWS},{DIM}]" not in texts[0]


def test_restarts_and_replicates(texts):
    settings = {"num_restarts": 3, "num_samples": 8, "num_steps": 2}
    found = fitted(model, row_by_row, X, mesh=BY_BOTH, **settings)
    assert f"f64[3,2,24,{DIM}]" in texts[0]
    same(found, fitted(model, row_by_row, X, **settings))


@pytest.mark.parametrize("spec", [P("data"), P()])
def test_data_stay_where_the_user_has_placed_them(spec, texts):
    mesh = jax.make_mesh((8,), ("data",))  # with axes that programs would have to know of
    x = jax.device_put(jnp.asarray(X), NamedSharding(mesh, spec))
    found = fitted(model, amortised, x, batch_size=16, mesh=mesh)
    same(found, fitted(model, amortised, X, batch_size=16))
    assert f"f64[2,{DIM}]" in texts[0]  # of the 16 rows of a step
    assert (f"f64[{ROWS},{DIM}]" in texts[0]) == (spec == P())


def test_the_loss_at_inputs_that_the_user_has_placed():
    loss = Loss(vi.iwae(num_particles=3))
    params = {"weights": jnp.ones((2, DIM)) / 3, "encoder": jnp.ones((DIM, 2)) / 9}
    compiled = jax.jit(jax.grad(lambda p, key, x: loss.loss(key, p, model, amortised, x)))
    expected = compiled(params, random.key(1), X)
    placed = jax.device_put(X, NamedSharding(BY_ROWS, P("data")))
    program = compiled.lower(params, random.key(1), placed).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10),
        program(params, random.key(1), placed),
        expected,
    )
    assert f"f64[3,6,{DIM}]" in program.as_text()
    assert f"f64[3,{ROWS},{DIM}]" not in program.as_text()


def test_checkpoints_go_on_with_another_number_of_devices(tmp_path):
    settings = {"batch_size": 16, "num_samples": 4, "checkpoint": tmp_path}
    fitted(model, amortised, X, num_steps=4, mesh=BY_BOTH, **settings)
    fitted(model, amortised, X, num_steps=6, mesh=Mesh(DEVICES[:2], ("data",)), **settings)
    found = fitted(model, amortised, X, num_steps=9, **settings)
    assert found.seconds["steps"] + found.seconds["first step"] > 0
    del settings["checkpoint"]
    same(found, fitted(model, amortised, X, num_steps=9, **settings))


def test_a_stopping_rule_stops_at_the_same_step():
    def stops(moment):
        return moment.step >= 6

    settings = {"batch_size": 16, "stop": vi.Stationary(every=5), "num_steps": 30}
    settings |= {"callbacks": stops, "callback_every": 3}
    found = fitted(model, AutoNormal(model), X, mesh=BY_ROWS, **{**settings, "batch_size": ROWS})
    same(found, fitted(model, AutoNormal(model), X, **{**settings, "batch_size": ROWS}))
    assert found.num_steps == 6


def test_a_number_that_is_none_is_told_with_its_row():
    x = X.copy()
    x[37, 2] = np.nan
    told = []
    for mesh in (None, BY_ROWS):
        with pytest.raises(vi.NotFiniteError) as error:
            fitted(model, amortised, x, batch_size=16, mesh=mesh)
        told.append(error.value)
    assert "row 37" in str(told[1]) and str(told[0]) == str(told[1])
    same(told[1].fit, told[0].fit)


@pytest.mark.parametrize(
    ("mesh", "settings", "says"),
    [
        (Mesh(DEVICES, ("batch",)), {}, r"'batch'.*\n.*'data'.*'particles'"),
        (8, {}, "mesh is a int"),
        (BY_ROWS, {"batch_size": 12}, "batch_size: 12, for 8 devices(.*\n)+.*batch_size=8"),
        (BY_BOTH, {"num_samples": 6}, r"6 \(.*\)(.*\n)+.*num_samples=4"),
        (BY_BOTH, {}, "replicates: none"),
        (BY_ROWS, {"fixed_draws": 8}, "mesh"),
    ],
)
def test_refusals(mesh, settings, says):
    if "fixed_draws" in settings:
        settings |= {"optimizer": None, "clip_norm": None}
    with pytest.raises(vi.ObjectiveError, match=says):
        fitted(model, amortised, X, mesh=mesh, **settings)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "of no rows"),
        ((X, X[:8]), r"\[48, 8\]"),
        ((X[:44],), "44, for 8 devices"),
    ],
)
def test_rows_that_cannot_be_divided(args, says):
    ran = []

    def program(*args):
        ran.append(args)

    with pytest.raises(vi.ObjectiveError, match=says):
        fitted(program, program, *args, mesh=BY_ROWS)
    assert not ran
