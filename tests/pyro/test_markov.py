"""Chains whose steps share dims: `pyro.markov` tells their sites apart, where it is right, and provenance else."""

from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.engine.run import Run
from vi_kit.pyro import Loss, backend

LENGTH = 9
DATA = torch.linspace(-1.0, 2.0, LENGTH)
MARKED = {"enumerate": "parallel"}


def bernoulli(name, logits, infer):
    return pyro.sample(name, dist.Bernoulli(logits=logits), infer=infer)


def first_order(steps, infer):
    z = torch.tensor(0.0)
    for t in steps(1):
        z = bernoulli(f"z{t}", pyro.param("logit", torch.tensor(0.3)) - z, infer)
        yield t, z


def second_order(steps, infer):
    y = z = torch.tensor(0.0)
    for t in steps(2):
        y, z = (
            z,
            bernoulli(f"z{t}", pyro.param("logit", torch.tensor(0.3)) + 0.7 * z - 2 * y, infer),
        )
        yield t, y + z


def about_a_global(steps, infer):
    c, z = bernoulli("c", torch.tensor(0.5), infer), torch.tensor(0.0)
    for t in steps(1):
        z = bernoulli(f"z{t}", pyro.param("logit", torch.tensor(0.3)) - 2 * z * c, infer)
        yield t, z + c


def two_chains(steps, infer):
    y = z = torch.tensor(0.0)
    for t in steps(1):
        y = bernoulli(f"y{t}", pyro.param("logit", torch.tensor(0.3)) - y, infer)
        z = bernoulli(f"z{t}", y - z, infer)
        yield t, y + 0.5 * z


def first_again(steps, infer):
    """Not as declared: all steps see the first."""
    first, z = None, torch.tensor(0.0)
    for t in steps(1):
        z = bernoulli(f"z{t}", pyro.param("logit", torch.tensor(0.3)) - z, infer)
        first = z if first is None else first
        yield t, z + t * first


def declared(history):
    return pyro.markov(range(LENGTH), history=history)


def undeclared(history):
    return range(LENGTH)


def value_and_gradient(chain, steps, *, of_guide):
    pyro.clear_param_store()
    infer = {} if of_guide else MARKED

    def model():
        for t, z in chain(steps, infer):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=DATA[t])

    def guide():
        if of_guide:
            list(chain(steps, {}))

    loss = Loss(vi.elbo(), vi.Enumerate() if of_guide else None)
    values = []
    for _ in range(2):
        with mock.patch.object(
            backend, "track_provenance", wraps=backend.track_provenance
        ) as follows:
            values.append(loss.loss_and_grads(model, guide))
    leaf = pyro.param("logit")
    return torch.tensor([*values, leaf.grad / 2]), follows.called


@pytest.mark.parametrize(
    ("chain", "dims"),
    [(first_order, 2), (second_order, 3), (about_a_global, 4), (two_chains, 4)],
)
@pytest.mark.parametrize("of_guide", [False, True])
def test_steps_that_share_dims(chain, dims, of_guide, monkeypatch):
    expected, _ = value_and_gradient(chain, declared, of_guide=of_guide)
    monkeypatch.setattr(Run, "max_world_dims", dims)
    actual, follows = value_and_gradient(chain, declared, of_guide=of_guide)
    torch.testing.assert_close(actual, expected)
    assert not follows
    actual, follows = value_and_gradient(chain, undeclared, of_guide=of_guide)
    torch.testing.assert_close(actual, expected)
    assert follows


def test_a_wrong_declaration_is_not_believed(monkeypatch):
    expected, _ = value_and_gradient(first_again, declared, of_guide=False)
    monkeypatch.setattr(Run, "max_world_dims", 4)
    actual, follows = value_and_gradient(first_again, declared, of_guide=False)
    torch.testing.assert_close(actual, expected)
    assert follows
