"""Compiled steps: equal to those that are run as they are written, whatever changes between them, or refused."""

import functools
import itertools
import logging
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import vi_kit as vi
from vi_kit.pyro import Loss, capture

X = torch.tensor([1.2, 0.7, 1.9, -0.4], dtype=torch.float64)


@pytest.fixture
def graphs(monkeypatch):
    """Steps are captured, and their graphs run by torch: inductor takes long."""
    monkeypatch.setattr(capture, "compiled", lambda graph, inputs: graph)


def model(x, scale=1.0):
    b = pyro.sample("b", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(b, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x, scale=1.0):
    b = pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_logit", torch.tensor(0.3))))
    spread = pyro.param("spread", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("z", dist.Normal(loc * x + 0.1 * b, spread))


class Pair:
    """A loss that is compiled, and the same that is not, on the same noise."""

    def __init__(self, *programs, loss=(), eager=None):
        self.programs = programs
        self.loss, self.eager = Loss(*loss, compile=True), Loss(*loss) if eager is None else eager
        self.seed = 0

    @property
    def num_captured(self):
        return len(self.loss._compiler.seconds)

    def estimates(self, loss, *args, **kwargs):
        pyro.set_rng_seed(self.seed)
        value = loss.loss_and_grads(*self.programs, *args, **kwargs)
        store = pyro.get_param_store()._params
        grads = {name: p.grad for name, p in store.items() if p.grad is not None}
        for p in store.values():
            p.grad = None
        return value, grads, torch.rand(())

    def check(self, *args, times=3, **kwargs):
        """As many steps are equal. Returns the last value."""
        for _ in range(times):
            self.seed += 1
            theirs = self.estimates(self.eager, *args, **kwargs)
            ours = self.estimates(self.loss, *args, **kwargs)
            assert ours[1].keys() == theirs[1].keys()
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        return ours[0]


@pytest.mark.usefixtures("graphs")
class TestWhatChanges:
    def test_data_and_noise(self):
        pair = Pair(model, guide, loss=(vi.iwae(num_particles=3), {"b": vi.MeasureValued()}))
        first, second = pair.check(X), pair.check(X + 1.0)
        assert abs(first - second) > 0.1
        assert pair.num_captured == 1
        values = {pair.loss.loss_and_grads(model, guide, X) for _ in range(3)}
        assert len(values) == 3  # the generator goes on
        pyro.set_rng_seed(pair.seed)
        assert pair.loss.loss_and_grads(model, guide, X + 1.0) == second

    def test_shapes_types_and_numbers_among_the_arguments(self):
        pair = Pair(model, guide)
        for args in ((X,), (X[:3],), (X.float(),), (X, 2.0), (X, 0.5)):
            pair.check(*args)
        assert pair.num_captured == 5
        pair.check(X, scale=0.5)
        pair.check(X)
        assert pair.num_captured == 6

    def test_parameters(self):
        pair = Pair(model, guide)
        pair.check(X)
        store = pyro.get_param_store()
        with torch.no_grad():
            store._params["loc"].add_(1.0)  # as optimisers do
        moved = pair.check(X)
        kept = store.get_state()
        pyro.clear_param_store()
        at_start = pair.estimates(pair.loss, X)[0]
        assert abs(at_start - moved) > 1e-3
        pair.check(X)
        store.set_state(kept)
        assert pair.check(X) != at_start
        assert pair.num_captured == 1
        pyro.clear_param_store()
        pyro.param("spread", torch.tensor(0.5), constraint=dist.constraints.interval(0.0, 1.0))
        pair.check(X)
        assert pair.num_captured == 2  # the map from what is trained is another

    def test_modules(self):
        net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))

        def amortised(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))

        def local(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        # in each of them the guide is evaluated again, with the noise of its draw
        pair = Pair(local, amortised, loss=(vi.iwae(num_particles=2), vi.DoublyReparam()))
        start = {name: value.clone() for name, value in net.state_dict().items()}
        pair.check(X)
        averages = []
        for loss in (pair.eager, pair.loss):
            net.load_state_dict(start)
            pair.estimates(loss, X)
            averages.append({name: value.clone() for name, value in net.state_dict().items()})
        torch.testing.assert_close(*averages)
        assert (averages[0]["1.running_mean"] != start["1.running_mean"]).all()
        net.eval()
        pair.check(X)
        net.load_state_dict({name: p + 1.0 for name, p in start.items()})
        pair.check(X)
        net.train()
        pair.check(X)
        assert pair.num_captured == 2


WEIGHT = 1.0
WEIGHTS = {"of": [1.0]}


def set_global(weight):
    globals()["WEIGHT"] = weight


def set_item(weight):
    WEIGHTS["of"][0] = weight


class Annealed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.settings = 1.0, WEIGHTS

    def read(self):
        return self.weight

    def model(self, x):
        with pyro.poutine.scale(scale=self.read()):
            model(x)

    def by_settings(self, x):
        with pyro.poutine.scale(scale=self.settings["of"][0]):
            model(x)


def by_global(x):
    with pyro.poutine.scale(scale=WEIGHT):
        model(x)


def by_closure():
    weight = 1.0

    def set_weight(other):
        nonlocal weight
        weight = other

    def program(x):
        with pyro.poutine.scale(scale=weight):
            model(x)

    return program, set_weight


def by_attribute():
    annealed = Annealed()
    return annealed.model, functools.partial(setattr, annealed, "weight")


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    "made",
    [
        lambda: (by_global, set_global),
        by_closure,
        by_attribute,
        lambda: (Annealed().by_settings, set_item),
    ],
    ids=["global", "closure", "attribute", "item"],
)
@pytest.mark.parametrize("is_tensor", [False, True])
def test_what_a_program_reads(made, is_tensor):
    """A number is followed by another capture, a tensor by none."""
    program, set_weight = made()
    make = torch.tensor if is_tensor else float
    set_weight(make(1.0))
    pair = Pair(program, guide)
    first = pair.check(X)
    set_weight(make(0.25))
    second = pair.check(X)
    assert abs(first - second) > 0.1
    assert pair.num_captured == (1 if is_tensor else 2)
    set_weight(make(1.0))
    pair.check(X, times=1)
    assert pair.num_captured == (1 if is_tensor else 2)


def test_a_number_in_each_step_is_said(monkeypatch, graphs):
    pair = Pair(model, guide)
    with pytest.warns(UserWarning, match=r"not compiled\n.*in each step"):
        for n in range(10):
            pair.check(X, 1.0 + 0.1 * n, times=1)
    assert pair.num_captured == 0
    pair.check(X, 3.0, times=10)  # steps are looked at rarely then, but they are
    assert pair.num_captured == 1


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    "estimator",
    [
        vi.Score(vi.MovingAverage()),
        vi.Score(vi.NeuralBaseline(nn.Linear(4, 1).double(), inputs=lambda x: x)),
        vi.Rebar(),
        vi.Enumerate(),
    ],
    ids=["average", "network", "rebar", "enumerate"],
)
def test_what_estimators_keep_and_learn(estimator):
    steps = {}
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        if isinstance(estimator, vi.Score) and hasattr(estimator.baseline, "network"):
            nn.init.zeros_(estimator.baseline.network.weight)
            nn.init.zeros_(estimator.baseline.network.bias)
        loss = Loss(vi.elbo(), {"b": estimator}, compile=compile)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
        values = [svi.step(X) for _ in range(6)]
        store = pyro.get_param_store()
        steps[compile] = values, dict(store.items()), loss.state
        assert len(loss._compiler.seconds) == compile
    torch.testing.assert_close(steps[True], steps[False], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("graphs")
def test_what_stands_around_a_step():
    pair = Pair(model, guide)
    pair.check(X)
    with pyro.poutine.scale(scale=0.5):
        half = pair.check(X)
    assert abs(pair.check(X, times=1) - half) > 0.1
    pair.estimates(pair.loss, X)
    pyro.enable_validation(False)
    pair.check(X)
    pyro.enable_validation(True)
    assert pair.num_captured == 2


@pytest.mark.usefixtures("graphs")
def test_a_tensor_in_two_places():
    """An argument that the program closes over too is told apart from it once they are two."""
    data = [X]
    pair = Pair(lambda x: model(data[0] + 0.0 * x), guide)
    for closed_over, x in ((X, X), (X, X + 1.0), (X + 2.0, X), (X, X)):
        data[0] = closed_over
        pair.check(x)
    assert pair.num_captured == 2


@pytest.mark.usefixtures("graphs")
def test_what_is_trained_may_change():
    net = nn.Linear(1, 1).double().train()

    def amortised(x):
        pyro.module("net", net)
        b_and_z(net(x[:, None])[:, 0])

    def b_and_z(loc):
        pyro.sample("b", dist.Bernoulli(0.5))
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pair = Pair(model, amortised)
    pair.check(X)
    net.weight.register_hook(lambda grad: 2.0 * grad)
    with pytest.raises(vi.CaptureError, match="a tensor that is trained has a hook"):
        pair.check(X)


@pytest.mark.usefixtures("graphs")
def test_autoguides_are_made_by_the_first_step():
    def regression(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w[0] + w[1] * x, s), obs=x)

    guides = pyro.infer.autoguide
    for make in (guides.AutoNormal, guides.AutoMultivariateNormal, guides.AutoIAFNormal):
        pyro.clear_param_store()
        pair = Pair(regression, make(regression))
        pair.check(X)
        pair.check(X + 1.0)
        assert pair.num_captured == 1


# What is refused


def asks(x, z):
    if z.sum() > 0:
        return z
    return 2 * z


def makes_no_difference_yet(x, z):
    h = z if z.sum().item() > 0 else 0.1 * z
    return SWITCH * h


def shows(x, z):
    print(z.sum().item(), z)
    logging.info("%s", z.sum().item())
    return z


SWITCH = torch.tensor(0.0)


def indexes(x, z):
    return z[x > 0].sum() + 0.0 * z


def to_numpy(x, z):
    return z + float(z.detach().numpy().sum())


def draws(x, z):
    return z + random.random()


ROUNDS = itertools.cycle([0.0, 1.0])


def goes_round(x, z):
    return z + next(ROUNDS)


def counts(x, z, seen=[0]):  # noqa: B006
    seen[0] += 1
    return z * seen[0]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (asks, r"a value is asked for at test_compiled.py:\d+, .*\n.*`if z.sum\(\) > 0:`"),
        (makes_no_difference_yet, r"a value is asked for .*\n.*`h = z if z.sum"),
        (indexes, r"the shape of a result .*\n.*`return z\[x > 0\].sum\(\) \+ 0.0 \* z`"),
        (to_numpy, r"became an array of NumPy at .*\n.*`return z \+ float\("),
        (draws, "random numbers outside torch"),
        (goes_round, "ROUNDS is an iterator"),
        (counts, r"use\.defaults\[0\]\[0\] is another one after the step"),
    ],
    ids=["branch", "branch at zero", "mask", "numpy", "random", "iterator", "counter"],
)
def test_refused_with_nothing_lost(use, words):
    norm = nn.BatchNorm1d(1)

    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            norm(x[:, None])
            pyro.sample("x", dist.Normal(use(x, z), 1.0), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    loss = Loss(vi.elbo(), vi.Score(), compile=True)
    loss.loss_and_grads(program, its_guide, X)
    leaf = pyro.get_param_store()._params["loc"]
    before = leaf.grad.clone(), norm.running_mean.clone(), torch.get_rng_state(), random.getstate()
    with pytest.raises(vi.CaptureError, match=words):
        loss.loss_and_grads(program, its_guide, X)
    after = leaf.grad, norm.running_mean, torch.get_rng_state(), random.getstate()
    assert after[3] == before[3]
    torch.testing.assert_close(after[:3], before[:3], rtol=0, atol=0)


@pytest.mark.usefixtures("graphs")
def test_values_that_are_only_shown():
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(shows(x, z), 1.0), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    pair = Pair(program, its_guide)
    pair.check(X)
    assert pair.num_captured == 1


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("bad", [math.nan, math.inf, "negative"])
def test_bad_data_are_said_as_without(bad):
    def counted(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Exponential(z.exp()), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    pair = Pair(counted, its_guide)
    pair.check(X.abs())
    data = -X if bad == "negative" else X.abs() * bad
    said = []
    for loss in (pair.eager, pair.loss):
        pyro.set_rng_seed(0)
        with pytest.raises(vi.ViKitError) as error:
            loss.loss_and_grads(counted, its_guide, data)
        said.append(str(error.value))
    assert said[0] == said[1]
    pair.check(X.abs())


def test_compile_is_a_bool():
    with pytest.raises(vi.ObjectiveError, match="compile is True or False"):
        Loss(compile="yes")


# With inductor


def test_svi_by_inductor():
    """The same steps, values that are told to listeners, and one line in explain."""
    steps = {}
    for compile in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = Loss(vi.elbo(), {"b": vi.Score(vi.MovingAverage())}, compile=compile)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
        values = [svi.step(X + n) for n in range(6)]
        with pyro.poutine.trace(param_only=True) as listened:
            loss.loss_and_grads(model, guide, X)
        told = {name: site["value"].detach() for name, site in listened.trace.nodes.items()}
        steps[compile] = values, dict(pyro.get_param_store().items()), told
    torch.testing.assert_close(steps[True], steps[False], rtol=1e-4, atol=1e-5)
    assert "captured and compiled in" in loss.explain(model, guide, X)
    assert np.isfinite(values).all()
