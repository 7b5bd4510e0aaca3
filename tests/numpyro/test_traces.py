"""How often a program is traced before its first gradient."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import vi_kit as vi
from vi_kit.numpyro import Loss
from vi_kit.numpyro.dependence import Sight

X = jnp.array([0.3, -0.2, 1.1])


def model(x):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        b = numpyro.sample("b", dist.Bernoulli(0.4))
        z = numpyro.sample("z", dist.Normal(w * b, 1.0))
        numpyro.sample("x", dist.Normal(jax.nn.relu(z), 1.0), obs=x)


def guide(x):
    numpyro.sample("w", dist.Normal(numpyro.param("w0", 0.1), 1.0))
    with numpyro.plate("rows", 3):
        b = numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("logit", jnp.zeros(3))))
        numpyro.sample("z", dist.Normal(numpyro.param("z0", 0.2) + b, 1.0))


PARAMS = {"w0": jnp.array(0.1), "logit": jnp.zeros(3), "z0": jnp.array(0.2)}

CASES = {
    "default": (vi.elbo(), {}),
    "scores": (vi.elbo(), {"b": vi.Score()}),
    "all values": (vi.elbo(), {"b": vi.Enumerate()}),
    "alternatives": (vi.iwae(num_particles=2), {"b": vi.MeasureValued()}),
    "all by scores": (vi.elbo(), vi.Score()),
}


def traced(objective, estimators):
    """How often model and guide are traced for a compiled gradient, and what the plan is."""
    counts = Counter()

    def counted(fn):
        def run(x):
            counts[fn.__name__] += 1
            return fn(x)

        return run

    loss, programs = Loss(objective, estimators), (counted(model), counted(guide))
    gradient = jax.grad(lambda p, key, x: loss.loss(key, p, *programs, x))
    jaxpr = jax.make_jaxpr(gradient)(PARAMS, jax.random.key(0), X)
    return dict(counts), str(jaxpr)


@pytest.mark.parametrize("name", CASES)
def test_once_to_plan_and_once_for_the_gradient(name, monkeypatch):
    counts, jaxpr = traced(*CASES[name])
    assert counts == {"model": 2, "guide": 2}
    # where tracers do not tell from what they come, what depends on what is read off a first trace
    monkeypatch.setattr(Sight, "asked_of", lambda self, key, value: frozenset())
    more, same = traced(*CASES[name])
    assert same == jaxpr
    assert max(more.values()) == 3
