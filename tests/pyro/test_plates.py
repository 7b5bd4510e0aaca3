"""Plates: nested, subsampled with the same elements in model and guide, sequential, and Markov chains."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

import vi_kit as vi
from tests import oracles
from tests.pyro.same_draw import (
    check_same,
    check_same_as_trace_elbo,
    check_same_in_all_ways,
    value_and_gradients,
)
from vi_kit.pyro import Loss

X = torch.tensor([0.3, 1.2, -0.4, 0.9, 0.1, -1.3], dtype=torch.float64)
POSITIVE = dist.constraints.positive


def minibatch_model(x, size):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as batch:
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[batch])


def minibatch_guide(x, size):
    loc = pyro.sample("loc", dist.Normal(pyro.param("a", torch.tensor(0.4)), 0.7))
    local = pyro.param("local", torch.zeros(len(x)))
    with pyro.plate("data", len(x), subsample_size=size) as batch:
        pyro.sample("z", dist.Normal(local[batch] + loc, 0.5))


def test_subsample():
    check_same_as_trace_elbo(minibatch_model, minibatch_guide, X, 2)
    settings = {"vectorize_particles": True, "max_plate_nesting": 1}
    ours, theirs = Loss(num_samples=4), Trace_ELBO(num_particles=4, **settings)
    check_same(ours, theirs, minibatch_model, minibatch_guide, X, 2)


def test_subsample_inside_a_nonlinear_function_is_warned_of():
    bound = Loss(vi.iwae(num_particles=3))
    with pytest.warns(UserWarning, match="subsampled plates \\['data'\\] are summed inside"):
        bound.loss(minibatch_model, minibatch_guide, X, 2)
    theirs = RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    check_same(bound, theirs, minibatch_model, minibatch_guide, X, 2)


def test_subsample_of_a_global_guide():
    def model(x, size):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as batch:
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x[batch])

    check_same_as_trace_elbo(model, AutoNormal(model), X, 2)


def test_subsample_is_drawn_once_per_step():
    seen = []

    def model(x, size):
        with pyro.plate("data", len(x), subsample_size=size) as batch:
            seen.append(batch.tolist())
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[batch])

    def guide(x, size):
        local = pyro.param("local", torch.zeros(len(x)))
        with pyro.plate("data", len(x), subsample_size=size) as batch:
            seen.append(batch.tolist())
            pyro.sample("z", dist.Normal(local[batch], 0.5))

    loss = Loss(vi.iwae(num_particles=3), num_samples=2)
    loss.loss_and_grads(model, guide, X, 2)
    batches = []
    for _ in range(5):
        seen.clear()
        pyro.get_param_store()._params["local"].grad = None
        loss.loss_and_grads(model, guide, X, 2)
        assert len(seen) == 2
        assert seen[0] == seen[1]
        batches.append(tuple(seen[0]))
        gradient = pyro.get_param_store()._params["local"].grad
        assert set(gradient.nonzero().flatten().tolist()) == set(seen[0])
    assert len(set(batches)) > 1


def test_mean_over_minibatches_is_the_gradient_of_all_the_data():
    draws = []
    loss = Loss(num_samples=10)
    poutine.trace(minibatch_guide).get_trace(X, 2)
    for seed in range(1000):
        _, got = value_and_gradients(loss, minibatch_model, minibatch_guide, X, 2, seed=seed)
        draws.append([got["a"].item(), *got["local"].tolist()])
    # E[loss] = a^2/2 + sum_i (local_i^2 / 2 + 4 (x_i - a - local_i)^2 / 2) + const, at a = 0.4, local = 0.
    x = X.numpy()
    exact = np.array([0.4 - 4 * (x - 0.4).sum(), *(-4 * (x - 0.4))])
    oracles.check_unbiased(np.array(draws), exact)


def test_nested_plates():
    y = torch.linspace(-1, 1, 12).reshape(3, 4)

    def model(y):
        with pyro.plate("rows", 4, dim=-1):
            row = pyro.sample("row", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-2, subsample_size=2) as batch:
                cell = pyro.sample("cell", dist.Normal(row, 1.0))
                pyro.sample("y", dist.Normal(cell, 0.5), obs=y[batch])

    def guide(y):
        with pyro.plate("rows", 4, dim=-1):
            row = pyro.sample("row", dist.Normal(pyro.param("row_loc", torch.zeros(4)), 0.5))
            with pyro.plate("columns", 3, dim=-2, subsample_size=2):
                scale = pyro.param("scale", torch.tensor(0.6), constraint=POSITIVE)
                pyro.sample("cell", dist.Normal(row, scale))

    check_same_as_trace_elbo(model, guide, y)


def test_sequential_plate():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x), subsample_size=3):
            z = pyro.sample(f"z{i}", dist.Normal(loc, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 0.5), obs=x[i])

    def guide(x):
        loc = pyro.sample("loc", dist.Normal(pyro.param("a", torch.tensor(0.4)), 0.7))
        local = pyro.param("local", torch.zeros(len(x)))
        for i in pyro.plate("data", len(x), subsample_size=3):
            pyro.sample(f"z{i}", dist.Normal(local[i] + loc, 0.5))

    with pytest.warns(UserWarning, match="minibatch"):  # inside iwae
        check_same_in_all_ways(model, guide, X, max_plate_nesting=0)


def test_sequential_plate_in_a_vectorised_one():
    def model(x):
        for i in pyro.plate("steps", 2):
            with pyro.plate(f"data{i}", len(x)):
                z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x{i}", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        local = pyro.param("local", torch.zeros(len(x)))
        for i in pyro.plate("steps", 2):
            with pyro.plate(f"data{i}", len(x)):
                pyro.sample(f"z{i}", dist.Normal(local + i, 0.5))

    check_same_as_trace_elbo(model, guide, X)
    settings = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    check_same(one_bound(), RenyiELBO(alpha=0.0, **settings), model, guide, X)


def one_bound():
    """IWAE over all elements of all plates together, as Pyro has it."""

    @vi.objective
    def bound(model, guide):
        def log_weight():
            z = vi.simulate(guide)
            return vi.log_density(model, z) - z.log_density

        return vi.iid(log_weight, 3).log_mean_exp(plates=[])

    return Loss(bound())


def test_markov_chain_of_normals():
    def model(x):
        z = torch.tensor(0.0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, 1.0))
            pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[t])

    def guide(x):
        z = torch.tensor(0.0)
        local = pyro.param("local", torch.zeros(len(x)))
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Normal(local[t] + 0.3 * z, 0.5))

    check_same_in_all_ways(model, guide, X, max_plate_nesting=0)


def discrete_chain(length):
    def model():
        theta = pyro.param("theta", torch.tensor([0.3, -0.6, 0.8, 0.2]))
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=theta[2] - z))
            pyro.sample(f"x{t}", dist.Normal(z * theta[3], 1.0), obs=torch.tensor(0.1 * t))

    def guide():
        theta = pyro.param("theta", torch.tensor([0.3, -0.6, 0.8, 0.2]))
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=theta[0] + theta[1] * z))

    return model, guide


def test_markov_chain_of_bernoullis():
    model, guide = discrete_chain(5)
    theirs = TraceEnum_ELBO(max_plate_nesting=0)
    guide()
    expected, gradients = value_and_gradients(theirs, model, config_enumerate(guide))
    value, got = value_and_gradients(Loss(), model, guide)
    assert value == pytest.approx(expected)
    torch.testing.assert_close(got, gradients)


def test_mixture_has_the_gradient_of_trace_enum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            loc = pyro.param("loc", torch.arange(3.0))[z.long()]
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.linspace(-1, 1, 3 * len(x)).reshape(len(x), 3))
        with pyro.plate("data", len(x)):
            infer = {"enumerate": "parallel"}
            pyro.sample("z", dist.Categorical(logits=logits), infer=infer)

    theirs = TraceEnum_ELBO(max_plate_nesting=1)
    check_same(Loss(), theirs, model, guide, X)


def rows_model(x, batch):
    with pyro.plate("data", len(x), subsample=batch):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[batch])


def test_a_minibatch_that_only_the_model_is_given():
    """The guide would draw rows of its own."""
    batch = torch.tensor([4, 1, 2])
    with pytest.raises(
        vi.ObjectiveError, match="'data': model and guide are on different mini"
    ) as e:
        Loss().loss_and_grads(rows_model, AutoNormal(rows_model), X, batch)
    assert "create_plates" in str(e.value)


def test_a_minibatch_that_both_are_given():
    def create_plates(x, batch):
        return pyro.plate("data", len(x), subsample=batch)

    batch = torch.tensor([4, 1, 2])
    guide = AutoNormal(rows_model, create_plates=create_plates)
    check_same_as_trace_elbo(rows_model, guide, X, batch)


def test_a_guide_that_numbers_the_rows_of_a_minibatch():
    """The guide's plate is as large as the minibatch: its positions are no rows."""
    seen = []

    def model(x):
        with pyro.plate("data", len(x), subsample_size=3) as batch:
            seen.append(tuple(batch.tolist()))
            pyro.sample("z", dist.Normal(x[batch], 1.0))

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    loss = Loss()
    for _ in range(10):
        loss.loss(model, guide, X)
    assert len(set(seen)) > 3


LOGITS = np.array([0.3, -0.5, 0.8])


def coins(shape, subsample):
    """Coins and what was seen of them, in a plate that is gone through or lies along a dim."""

    def model():
        if shape == "loop":
            for i in pyro.plate("data", 3, subsample=subsample):
                z = pyro.sample(f"z{i}", dist.Bernoulli(0.4))
                pyro.sample(f"x{i}", dist.Normal(1.5 * z, 1.0), obs=X[i])
        else:
            with pyro.plate("data", 3, subsample=subsample) as i:
                z = pyro.sample("z", dist.Bernoulli(0.4))
                pyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=X[i])

    def guide():
        logits = pyro.param("logits", torch.tensor(LOGITS))
        if shape == "loop":
            for i in pyro.plate("data", 3, subsample=subsample):
                pyro.sample(f"z{i}", dist.Bernoulli(logits=logits[i]))
        else:
            with pyro.plate("data", 3, subsample=subsample) as i:
                pyro.sample("z", dist.Bernoulli(logits=logits[i]))

    return model, guide


def minus_bound_of_coins(logits, particles, rows=(0, 1, 2)):
    total = 0.0
    for logit, x in zip(logits[list(rows)], X.numpy()[list(rows)], strict=True):
        log_q = np.array([oracles.log_bernoulli(logit, z) for z in (0, 1)])
        log_p = np.log([0.6, 0.4]) + oracles.log_normal(x, 1.5 * np.arange(2), 1.0)
        total = total - oracles.expected_log_mean_exp(log_q, log_p - log_q, particles)
    return 3 / len(rows) * total


@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)])
@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
def test_a_bound_for_each_iteration_of_a_sequential_plate(objective, rows):
    particles = 1 if objective == vi.elbo() else 2
    exact = oracles.gradient(lambda t: minus_bound_of_coins(t, particles, rows), LOGITS)
    for shape in ("loop", "dim"):
        programs = coins(shape, torch.tensor(rows))
        programs[1]()
        value, got = value_and_gradients(Loss(objective, vi.Enumerate(255)), *programs)
        assert value == pytest.approx(minus_bound_of_coins(LOGITS, particles, rows).real)
        np.testing.assert_allclose(got["logits"], exact, atol=1e-10)


@pytest.mark.parametrize(
    "estimator", [vi.Score(vi.LeaveOneOut()), vi.MeasureValued(), vi.DisARM()], ids=repr
)
def test_estimators_inside_a_sequential_plate(estimator):
    exact = oracles.gradient(lambda t: minus_bound_of_coins(t, 2), LOGITS)
    programs, draws = coins("loop", torch.arange(3)), []
    programs[1]()
    loss = Loss(vi.iwae(num_particles=2), estimator, num_samples=500)
    for seed in range(30):
        draws.append(value_and_gradients(loss, *programs, seed=seed)[1]["logits"].numpy())
    oracles.check_unbiased(np.array(draws), exact)


def test_doubly_reparam_inside_a_sequential_plate_is_refused():
    def program():
        scale = pyro.param("scale", torch.tensor(0.5))
        for i in pyro.plate("data", 2):
            pyro.sample(f"z{i}", dist.Normal(0.0, scale))

    with pytest.raises(vi.EstimatorError, match="'z0': DoublyReparam\\(\\) in a sequential plate"):
        Loss(vi.iwae(num_particles=2), vi.DoublyReparam()).loss(program, program)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
def test_a_guide_that_knows_the_minibatch_only(objective):
    """Its plate is as large as the minibatch and without a scale: that of the model is for both."""
    particles, rows = 1 if objective == vi.elbo() else 2, [2, 0]
    model = coins("dim", torch.tensor(rows))[0]

    def guide():
        logits = pyro.param("logits", torch.tensor(LOGITS))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]))

    guide()
    value, got = value_and_gradients(Loss(objective, vi.Enumerate(255)), model, guide)
    assert value == pytest.approx(minus_bound_of_coins(LOGITS, particles, rows).real)
    exact = oracles.gradient(lambda t: minus_bound_of_coins(t, particles, rows), LOGITS)
    np.testing.assert_allclose(got["logits"], exact, atol=1e-10)


@pytest.mark.parametrize(
    "objective",
    [vi.elbo(), vi.iwae(num_particles=3), vi.renyi(alpha=0.5, num_particles=3)],
    ids=repr,
)
@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.Score(vi.LeaveOneOut())], ids=repr)
@pytest.mark.parametrize("local", [True, False])
def test_a_plate_without_a_size_has_that_of_its_sites(objective, estimator, local):
    """That of their distributions, or else of the data."""

    def value(*size):
        def model():
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("data", *size):
                if local:
                    loc = pyro.sample("z", dist.Normal(loc + torch.zeros(6), 1.0))
                pyro.sample("x", dist.Normal(loc, 0.5), obs=X)

        def guide():
            pyro.sample("loc", dist.Normal(0.2, 0.7))
            with pyro.plate("data", *size):
                if local:
                    pyro.sample("z", dist.Normal(pyro.param("a", torch.zeros(6)), 1.0))

        pyro.set_rng_seed(1)
        return Loss(objective, estimator, num_samples=2).loss(model, guide)

    assert value() == pytest.approx(value(6), rel=1e-12)
