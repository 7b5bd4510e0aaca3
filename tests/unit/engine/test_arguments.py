"""A plan holds for the arguments for which it was made."""

from __future__ import annotations

import functools
import timeit

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pytest
import torch

import vi_kit as vi
from tests import oracles
from vi_kit.base.demands import Polynomial
from vi_kit.engine.arguments import closed_over, described
from vi_kit.engine.plan import Plan, Plans
from vi_kit.numpyro import Loss as NumPyroLoss

VALUES = np.array([0.4])


def programs(lib):
    def model(power=2, kind="normal"):
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z**power, 1.0), obs=lib.array(0.5))

    def guide(power=2, kind="normal"):
        theta = lib.theta(VALUES)[0]
        lib.sample(
            "z", lib.dist.Normal(theta, 1.0) if kind == "normal" else lib.dist.Gamma(theta, 1.0)
        )

    return model, guide


def test_a_proof_is_one_of_arguments(lib):
    """Four nodes are exact for the square of a square, not for that of a fourth power."""
    loss = lib.Loss(vi.elbo(), vi.Quadrature())
    model, guide = programs(lib)

    def loss_of(power, nodes=60):
        z, w = np.polynomial.hermite_e.hermegauss(nodes)
        w = w / w.sum()

        def value(theta):
            at = theta[0] + z
            log_w = oracles.log_normal(at, 0.0, 1.0) + oracles.log_normal(0.5, at**power, 1.0)
            return (w * (log_w - oracles.log_normal(z, 0.0, 1.0))).sum()

        return -oracles.gradient(value, VALUES)

    for power in (1, 2, 1):
        (gradient,) = lib.gradients(loss, model, guide, VALUES, 1, 0, args=(power,))
        np.testing.assert_allclose(gradient, loss_of(power), rtol=1e-9)
    for power in (8, 200):
        try:
            (gradient,) = lib.gradients(loss, model, guide, VALUES, 1, 0, args=(power,))
        except vi.EstimatorError as error:
            assert "Quadrature" in str(error)
        else:
            np.testing.assert_allclose(gradient, loss_of(power), rtol=1e-9)


def test_estimators_that_an_argument_rules_out(lib):
    """The guide's distribution changes with an argument."""
    loss = lib.Loss(vi.elbo(), vi.Quadrature(8, biased=True))
    model, guide = programs(lib)

    def refused():
        lib.sample("z", lib.dist.Laplace(lib.theta(VALUES)[0], 1.0))

    def either(power=2, kind="normal"):
        guide(power, kind) if kind != "laplace" else refused()

    lib.gradients(loss, model, either, VALUES, 1, 0, args=(1, "normal"))
    with pytest.raises(vi.EstimatorError, match="has no rule for Laplace"):
        lib.gradients(loss, model, either, VALUES, 1, 0, args=(1, "laplace"))


def test_a_distribution_that_changes_behind_the_arguments_is_chosen_for_anew():
    """By what the guide closes over: by default it is not differentiated as if it were the one before."""
    import pyro
    import pyro.distributions as dist

    from vi_kit.pyro import Loss

    discrete = False

    def either(p):
        return dist.Bernoulli(p) if discrete else dist.Normal(p, 1.0)

    def model():
        pyro.sample("z", either(torch.tensor(0.5)))

    def guide():
        pyro.sample("z", either(pyro.param("a", torch.tensor(0.4))))

    loss = Loss()
    loss.loss_and_grads(model, guide)
    leaf, discrete = pyro.get_param_store()._params["a"], True
    leaf.grad = None
    loss.loss_and_grads(model, guide)
    np.testing.assert_allclose(leaf.grad, np.log(0.4 / 0.6), rtol=1e-9)


def key(*args, **kwargs):
    return described(args, kwargs)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.long)),
        (np.zeros(2), np.zeros((2, 1))),
        (True, False),
        (True, 1),
        (2, 8),
        (2, 2.0),
        ("a", "b"),
        (None, False),
        ([torch.zeros(2)], [torch.zeros(2), None]),
        ({"a": 1}, {"b": 1}),
        (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),
        (functools.partial(np.power, 2), functools.partial(np.power, 8)),
        (len, functools.partial(len)),
        (range(1), range(2)),
    ],
    ids=repr,
)
def test_arguments_told_apart(first, second):
    assert hash(key(first)) == hash(key(first))
    assert key(first) == key(first)
    assert key(x=first) == key(x=first)
    assert key(first) != key(second)


def test_arguments_that_are_not_told_apart():
    class Batch:
        def __init__(self, x):
            self.x = x

    assert key(torch.zeros(2)) == key(torch.ones(2))
    assert key(Batch(torch.zeros(2))) == key(Batch(torch.ones(2)))
    assert key(Batch(torch.zeros(2))) != key(Batch(torch.ones(3)))
    first, second = (lambda: None for _ in range(2))
    assert key(first) == key(second)
    loop = Batch(None)
    loop.x = loop
    assert key(loop) == key(loop)


def test_functions_without_a_module():
    """Those that `exec` makes in bare globals have none, and are a user's own."""
    found = {}
    exec("number = 1.0\ndef model():\n    return number", found)
    before = closed_over(found["model"])
    found["number"] = 2.0
    assert found["model"].__module__ is None and closed_over(found["model"]) != before


def test_a_key_takes_microseconds():
    data = torch.zeros(3, 2), torch.zeros(3), {"size": 3, "flag": True}
    assert min(timeit.repeat(lambda: described(data, {}), number=1000, repeat=5)) < 0.1


def test_numbers_of_many_values_are_data():
    plans, plan = Plans(max_plans=2, max_numbers=3), Plan(None, 0)
    for i in range(3):
        assert plans.find("key", i) is None
        plans.keep("key", i, plan)
    assert plans.find("key", 7) is plan
    proved = Plan(None, 0, degrees={"z": Polynomial(3, lambda dist, zero: zero)})
    plans.keep("key", 7, proved)
    assert plans.find("key", 7) is proved and plans.find("key", 8) is None
    for name in "abc":
        plans.keep(name, 0, plan)
    assert list(plans.kept) == ["b", "c"] and len(plans.kept["b"]) == 1


SWITCH = {"power": 1}


def power():
    return SWITCH["power"]


class Held:
    power = 1

    def model(self):
        numpyro.factor("f", -(numpyro.sample("z", numpyro_dist.Normal(0.0, 1.0)) ** self.power))


def guide_of_one():
    numpyro.sample("z", numpyro_dist.Normal(numpyro.param("m", 1.0), 1e-3))


def model_by_global():
    numpyro.factor("f", -(numpyro.sample("z", numpyro_dist.Normal(0.0, 1.0)) ** power()))


def model_by_closure():
    power = 1

    def model():
        numpyro.factor("f", -(numpyro.sample("z", numpyro_dist.Normal(0.0, 1.0)) ** power))

    def switch(to):
        nonlocal power
        power = to

    return model, switch


def test_numpyro_keeps_a_plan_outside_jit():
    """While nothing changes that the programs are made of: their runs are those of a step alone."""
    held, (closed, switch) = Held(), model_by_closure()
    cases = [
        (model_by_global, lambda to: SWITCH.update(power=to)),
        (held.model, lambda to: setattr(held, "power", to)),
        (closed, switch),
    ]
    for model, switch in cases:
        runs = np.zeros(1)

        def counted(model=model, runs=runs):
            runs += 1
            model()

        loss = NumPyroLoss(vi.elbo(), vi.Quadrature(2))  # exact for the power 3, and no more
        arguments = jax.random.key(0), {"m": jnp.array(1.0)}, counted, guide_of_one
        loss.loss(*arguments)
        first = runs[0]
        for _ in range(3):
            loss.loss(*arguments)
        assert runs[0] == first + 3 == 6  # three to plan and for the first, then one each
        switch(4)
        with pytest.raises(vi.EstimatorError, match="Quadrature"):
            loss.loss(*arguments)
        switch(1)
