"""What a step costs: no value leaves the tensors, and work grows linearly."""

from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vi_kit as vi
from vi_kit.pyro import Loss

X = torch.tensor([0.3, 1.2, -0.4, 0.9], dtype=torch.float64)
ESTIMATORS = {
    "enumerate": vi.Enumerate(),
    "score": vi.Score(),
    "leave one out": vi.Score(vi.LeaveOneOut()),
    "moving average": vi.Score(vi.MovingAverage()),
    "measure valued": vi.MeasureValued(),
}
OBJECTIVES = [vi.elbo(), vi.iwae(num_particles=3), vi.miwae(num_outer=2, num_inner=2)]


class Escapes(TorchFunctionMode):
    """Notes every call that makes a Python value of a tensor."""

    NAMES = frozenset("item tolist __bool__ __float__ __int__ __index__ numpy __array__".split())

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class CountOps(TorchDispatchMode):
    """Counts operations, and notes those that wait for a number."""

    def __init__(self):
        super().__init__()
        self.num_ops = 0
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_ops += 1
        if func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "is_nonzero",
            "equal",
            "nonzero",
        ):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def validation_off():
    with pyro.validation_enabled(False):
        yield


def model(x):
    b = pyro.sample("b", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(b, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    b = pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.1))))
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc + 0.1 * b, 0.5))


def escapes(loss, model, guide, *args):
    """What left the tensors in the second step, the plan being known after the first."""
    with validation_off():
        loss.differentiable_loss(model, guide, *args)
        with Escapes() as python, CountOps() as aten:
            loss.differentiable_loss(model, guide, *args).backward()
    return python.seen + aten.waits


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_differentiable_loss_can_be_captured(objective, estimator):
    loss = Loss(objective, {"b": ESTIMATORS[estimator]}, num_samples=2)
    assert escapes(loss, model, guide, X) == []


def test_a_value_that_leaves_the_tensors_is_noticed():
    def branching_model(x):
        model(x)
        if x[0] > 0:
            pyro.factor("f", torch.as_tensor(x[1].item()))

    assert {"__bool__", "item"} <= set(escapes(Loss(), branching_model, guide, X))


def chain(length):
    def chain_model():
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=0.3 - z))
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.1))

    def chain_guide():
        a = pyro.param("a", torch.tensor(0.2))
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=a + z))

    return chain_model, chain_guide


def num_ops(loss, *programs):
    loss.loss_and_grads(*programs)
    with CountOps() as count:
        loss.loss_and_grads(*programs)
    return count.num_ops


@pytest.mark.parametrize("estimator", ["enumerate", "score", "leave one out"])
def test_ops_grow_linearly_with_the_length_of_a_chain(estimator):
    loss = Loss(vi.elbo(), ESTIMATORS[estimator], num_samples=2)
    short, middle, long = (num_ops(loss, *chain(length)) for length in (5, 10, 20))
    assert long - middle <= 2.3 * (middle - short), (short, middle, long)


class CountedNormal(dist.Normal):
    """Notes the number of elements of each log density."""

    elements = 0

    def log_prob(self, value):
        result = super().log_prob(value)
        type(self).elements += result.numel()
        return result

    def expand(self, batch_shape, _instance=None):
        return CountedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def elements(loss, model, guide):
    loss.loss_and_grads(model, guide)
    CountedNormal.elements = 0
    loss.loss_and_grads(model, guide)
    return CountedNormal.elements


def counted_model():
    with pyro.plate("data", 3):
        b = pyro.sample("b", dist.Bernoulli(0.4))
        pyro.sample("x", CountedNormal(b, torch.tensor(0.5)), obs=X[:3])


def counted_guide():
    with pyro.plate("data", 3):
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))


@pytest.mark.parametrize("estimator", ["measure valued", "leave one out", "score"])
def test_elements_grow_linearly_with_particles(estimator):
    """MeasureValued: the drawn value and one alternative, for each particle."""
    each = 6 if estimator == "measure valued" else 3
    for num_particles in (2, 4, 8):
        loss = Loss(vi.iwae(num_particles=num_particles), ESTIMATORS[estimator])
        assert elements(loss, counted_model, counted_guide) == each * num_particles


def test_elements_of_an_enumerated_site():
    for num_samples in (1, 4):
        loss = Loss(vi.elbo(), vi.Enumerate(), num_samples=num_samples)
        assert elements(loss, counted_model, counted_guide) == 2 * 3 * num_samples
