"""Draws of Pyro's programs as people write them."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import vi_kit as vi
from vi_kit.pyro import Loss, at_once


def z_scores(draws, mean):
    return (draws.mean(axis=0) - mean) / (draws.std(axis=0, ddof=1) / len(draws) ** 0.5)


def hierarchy(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


X = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [
        autoguide.AutoNormal,
        autoguide.AutoDelta,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    ],
    ids=lambda m: m.__name__,
)
def test_autoguides(make):
    guide = make(hierarchy)
    drawn = vi.sample(Loss(), hierarchy, guide, X, num_samples=50)
    assert {n: drawn[n].shape for n in ("loc", "scale", "z")} == {
        "loc": (50,),
        "scale": (50,),
        "z": (50, 3),
    }
    assert (drawn["scale"] > 0).all()
    assert len(np.unique(drawn["z"])) == (3 if make is autoguide.AutoDelta else 150)


def test_autoguide_list():
    guide = autoguide.AutoGuideList(hierarchy)
    guide.append(autoguide.AutoDelta(pyro.poutine.block(hierarchy, expose=["scale"])))
    guide.append(autoguide.AutoNormal(pyro.poutine.block(hierarchy, expose=["loc", "z"])))
    drawn = vi.sample(Loss(), hierarchy, guide, X, num_samples=10)
    assert drawn["z"].shape == (10, 3) and len(set(drawn["scale"])) == 1


def reduces(x):
    """Says something else of many draws than of one: its plate is not at a dim of its own."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.deterministic("share", z / z.exp().sum())
    pyro.sample("x", dist.Normal(z.exp().sum(), 1.0), obs=x)


def branches(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.deterministic("sign", torch.tensor(1.0) if z > 0 else torch.tensor(-1.0))


def loops(x):
    total = torch.zeros(())
    for i in pyro.markov(range(3)):
        total = pyro.sample(f"z{i}", dist.Normal(total, 1.0))
    pyro.deterministic("total", total)


def broadcasts(x):
    with pyro.plate("a", 2, dim=-1), pyro.plate("b", 3, dim=-2):
        z = pyro.sample("z", dist.Dirichlet(torch.ones(4)))
        pyro.deterministic("square", z**2, event_dim=1)


@pytest.mark.parametrize("program", [reduces, branches, loops, broadcasts])
def test_many_at_once_are_what_each_is(program, monkeypatch):
    latent = pyro.poutine.block(program, hide=["x", "share", "sign", "total", "square"])
    drawn = vi.sample(Loss(), program, latent, torch.tensor(1.0), num_samples=40)
    for i in range(40):
        given = {n: torch.tensor(v[i]) for n, v in drawn.items() if n[0] == "z"}
        trace = pyro.poutine.trace(pyro.poutine.condition(program, given)).get_trace(
            torch.tensor(1.0)
        )
        for name, values in drawn.items():
            np.testing.assert_allclose(values[i], trace.nodes[name]["value"].numpy(), rtol=1e-6)


@pytest.mark.parametrize("with_factor", [False, True])
def test_in_several_runs_they_are_those_of_one_run(with_factor, monkeypatch):
    def model(x):
        hierarchy(x)
        if with_factor:
            pyro.factor("more", torch.zeros(()))

    guide = autoguide.AutoNormal(hierarchy)
    calls, narrowed = [], at_once._narrowed

    def counted(*args):
        calls.append(args[2])
        return narrowed(*args)

    monkeypatch.setattr(at_once, "_narrowed", counted)
    monkeypatch.setattr(at_once, "CHUNK_BYTES", 2000)
    drawn = vi.sample(Loss(), model, guide, X, num_samples=20)
    assert sum(calls) == 2 * 20 and len(calls) > 2  # of guide and model
    assert {n: len(np.unique(drawn[n])) for n in ("loc", "z")} == {"loc": 20, "z": 60}
    assert vi.expectation(Loss(), model, guide, X, num_samples=20).mean["z"] == pytest.approx(
        drawn["z"].mean(axis=0)
    )


def test_as_many_draws_as_rows_are_taken_at_once(monkeypatch):
    calls = []

    def model(x):
        calls.append(1)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    vi.sample(
        Loss(),
        model,
        lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)),
        X.repeat(10),
        num_samples=30,
    )
    assert len(calls) < 30


def test_a_network_in_train_mode_and_nothing_changes():
    net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("net", net)
        scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], scale))

    guide(X)
    pyro.get_param_store()["scale"] = torch.tensor(0.2)
    store = pyro.get_param_store()
    params = {n: v.detach().clone() for n, v in store.items()}
    params["scale"] = torch.tensor(1e-9)
    params["net$$$3.weight"] = torch.zeros(1, 2)
    params["net$$$3.bias"] = torch.tensor([7.0])
    before = {n: v.clone() for n, v in net.state_dict().items()}
    state = torch.get_rng_state()
    drawn = vi.sample(Loss(), model, guide, X, num_samples=8, params=params)
    np.testing.assert_allclose(drawn["z"], 7.0, atol=1e-6)
    assert net.training and all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert store["scale"].item() == pytest.approx(0.2)
    assert (
        abs(vi.sample(Loss(), model, guide, X, num_samples=8)["z"].mean()) < 6
    )  # the present ones


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))
        self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("x", dist.Normal(self.weight * x, self.noise), obs=x)


def test_pyro_modules_with_a_store_that_was_cleared():
    model = Regression()
    guide = autoguide.AutoNormal(model)
    guide(X)
    params = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    params["AutoNormal.locs.weight"] = torch.tensor(3.0)
    params["AutoNormal.scales.weight"] = torch.tensor(1e-6)
    pyro.clear_param_store()
    drawn = vi.sample(Loss(), model, guide, X, num_samples=4, params=params)
    np.testing.assert_allclose(drawn["weight"], 3.0, atol=1e-4)
    assert not list(pyro.get_param_store().keys())
    assert (guide.locs.weight.detach() != 3.0).all()


def test_programs_that_change_from_run_to_run_are_refused():
    def program():
        if pyro.sample("b", dist.Bernoulli(0.5)) > 0:
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vi.BackendError, match=r"cannot be stacked(.|\n)*'z'"):
        vi.sample(Loss(), program, program, num_samples=50)
