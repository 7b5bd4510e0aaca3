"""A cost that jumps between the discrete values would make `Rebar` biased: it is refused, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests.libraries import PyroWords

VALUES = np.array([0.3])


def programs(lib, location):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)))
        lib.sample("x", lib.dist.Normal(location(b), 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(VALUES)[0]))

    return model, guide


def gradient(lib, location, estimator):
    return lib.gradients(lib.Loss(vi.elbo(), estimator), *programs(lib, location), VALUES, 1, 0)


def as_int(lib, b):
    return b.long() if lib.name == "pyro" else b.astype(int)


JUMPING = {
    "where": lambda lib, b: lib.xp.where(b > 0.5, 1.5, -0.5) + 0.0 * b,
    "equal": lambda lib, b: lib.xp.where(b == 1.0, 1.5, b),
    "index": lambda lib, b: lib.array(np.array([-0.5, 1.5]))[as_int(lib, b)] + 0.0 * b,
    "round": lambda lib, b: lib.xp.round(b) + b,
    "behind_a_function": lambda lib, b: lib.xp.floor(lib.xp.exp(lib.xp.tanh(b))) + b,
}


@pytest.mark.parametrize("jump", JUMPING)
def test_jumps_are_refused(jump, lib):
    text = r"site 'b': Rebar\(\) is biased if a cost jumps between the discrete values of 'b'\n"
    text += r"  got:      .*model site 'x', because of \w+"
    with pytest.raises(vi.EstimatorError, match=text):
        gradient(lib, lambda b: JUMPING[jump](lib, b), vi.Rebar())


@pytest.mark.parametrize("jump", ["where", "index"])
def test_others_take_them(jump, lib):
    for estimator in (vi.DisARM(), vi.Score()):
        assert np.isfinite(gradient(lib, lambda b: JUMPING[jump](lib, b), estimator)).all()


def test_a_branch_is_refused_in_pyro():
    with pytest.raises(vi.EstimatorError, match="because of a value that became a Python number"):
        gradient(PyroWords(), lambda b: b if b > 0.5 else -b, vi.Rebar())


def softplus(lib, x):
    import jax

    return lib.xp.nn.functional.softplus(x) if lib.name == "pyro" else jax.nn.softplus(x)


def relu(lib, x):
    import jax

    return lib.xp.relu(x) if lib.name == "pyro" else jax.nn.relu(x)


def logsumexp(lib, x):
    import jax

    both = lib.xp.stack([x, 1.0 - x])
    return lib.xp.logsumexp(both, 0) if lib.name == "pyro" else jax.nn.logsumexp(both)


CONTINUOUS = {
    "mixture": lambda lib, b: b * 1.5 - (1.0 - b) * 0.5,
    "exp": lambda lib, b: lib.xp.exp(lib.xp.sin(b)),
    "clip": lambda lib, b: lib.xp.clip(b, 0.2, 0.8),
    "abs": lambda lib, b: abs(b - 0.5),
    "softplus": softplus,
    "relu": relu,
    "logsumexp": logsumexp,
}


@pytest.mark.parametrize("function", CONTINUOUS)
def test_no_jump_is_seen_where_there_is_none(function, lib):
    draws = gradient(lib, lambda b: CONTINUOUS[function](lib, b), vi.Rebar(learn=False))
    assert np.isfinite(draws).all()


def likelihoods(lib, b):
    """Of distributions whose densities look at their parameters."""
    d, zero = lib.dist, 0.0 * b
    steps = lib.xp.stack([zero, b, 1.0 - b], -1)
    return {
        "bernoulli": (d.Bernoulli(logits=b), 1.0),
        "probs": (d.Bernoulli(probs=0.2 + 0.5 * b), 1.0),
        "categorical": (d.Categorical(logits=steps), 2),
        "poisson": (d.Poisson(lib.xp.exp(b)), 3.0),
        "gamma": (d.Gamma(1.0 + b, 2.0 + zero), 0.8),
        "student": (d.StudentT(4.0 + b, b, 1.0 + b), 0.8),
        "beta": (d.Beta(1.0 + b, 2.0 + zero), 0.3),
        "negative_binomial": (d.NegativeBinomial(3.0 + zero, logits=b), 2.0),
    }


LIKELIHOODS = "bernoulli probs categorical poisson gamma student beta negative_binomial".split()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_of_the_library_are_continuous(name, lib):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)))
        q, x = likelihoods(lib, b)[name]
        lib.sample("x", q, obs=lib.array(x))

    _, guide = programs(lib, None)
    loss = lib.Loss(vi.elbo(), vi.Rebar(learn=False))
    assert np.isfinite(lib.gradients(loss, model, guide, VALUES, 1, 0)).all()


def test_the_tests_inside_of_jax_s_own_functions_are_no_steps():
    """`logsumexp` asks whether its largest operand is finite."""
    import jax
    import jax.numpy as jnp

    from vi_kit.numpyro.degrees import takes_steps

    def read(fn):
        return takes_steps(jax.make_jaxpr(fn)(jnp.ones(3)).jaxpr)

    assert not read(lambda x: jax.nn.logsumexp(x, 0))
    assert read(lambda x: jnp.where(jnp.isfinite(x), 0.0, -2.0))
