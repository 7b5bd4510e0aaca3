"""`Analytic` for whole numbers: a Categorical as an index, one-hot, compared and as a number."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

NUM_DATA, NUM_VALUES, SCALE = 4, 3, 0.8
X = np.array([[0.4, -0.9], [1.1, 0.6], [-0.3, 0.2], [0.8, -1.2]])
PRIOR = np.array([0.2, -0.1, 0.4])
TABLE = np.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.9]])
VALUES = np.append(np.linspace(-0.6, 0.7, NUM_DATA * NUM_VALUES), TABLE)
"""Logits of the guide; the table."""


def one_hot(lib, z):
    if lib.name == "pyro":
        return lib.xp.nn.functional.one_hot(z, NUM_VALUES).double()
    import jax

    return jax.nn.one_hot(z, NUM_VALUES)


def shifted(lib, z, table):
    return table[(z + 1) - 1]


LOCS = {
    "index": lambda lib, z, table: table[z],
    "index of the last dim": lambda lib, z, table: lib.xp.swapaxes(
        lib.xp.swapaxes(table, 0, 1)[:, z], 0, 1
    ),
    "one-hot": lambda lib, z, table: one_hot(lib, z) @ table,
    "compared": lambda lib, z, table: (
        (z == 1)[..., None] * table[1]
        + (1.0 * (z < 1))[..., None] * table[0]
        + (1.0 * (z >= 2))[..., None] * table[2]
    ),
    "laid out anew": lambda lib, z, table: one_hot(lib, z[:, None].reshape(-1)[:]) @ table,
    "shifted": shifted,
    "number": lambda lib, z, table: z[..., None] * table[1],
}


def model(lib, loc):
    logits = lib.array(PRIOR)
    table = lib.theta(VALUES)[NUM_DATA * NUM_VALUES :].reshape((NUM_VALUES, 2))
    with lib.plate("data", NUM_DATA):
        z = lib.sample("z", lib.dist.Categorical(logits=logits))
        lib.sample("x", lib.dist.Normal(loc(lib, z, table), SCALE).to_event(1), obs=lib.array(X))


def guide(lib):
    logits = lib.theta(VALUES)[: NUM_DATA * NUM_VALUES].reshape((NUM_DATA, NUM_VALUES))
    with lib.plate("data", NUM_DATA):
        lib.sample("z", lib.dist.Categorical(logits=logits))


def bound(loc):
    def elbo(theta):
        logits = theta[: NUM_DATA * NUM_VALUES].reshape((NUM_DATA, NUM_VALUES))
        table = theta[NUM_DATA * NUM_VALUES :].reshape((NUM_VALUES, 2))
        log_q = oracles.normalised(logits, np.zeros(NUM_VALUES))
        log_p = oracles.normalised(PRIOR[None], np.zeros(NUM_VALUES))
        log_lik = oracles.log_normal(X[:, None], loc(table), SCALE).sum(-1)
        return (np.exp(log_q) * (log_p + log_lik - log_q)).sum()

    return elbo


def numbers(table):
    return np.arange(NUM_VALUES)[:, None] * table[1]


@pytest.mark.parametrize("name", LOCS)
def test_exact(name, lib):
    exact = bound(numbers if name == "number" else lambda table: table)
    draws = lib.gradients(
        lib.Loss(vi.elbo(), vi.Analytic()),
        lambda: model(lib, LOCS[name]),
        lambda: guide(lib),
        VALUES,
        2,
        0,
    )
    np.testing.assert_allclose(draws, [-oracles.gradient(exact, VALUES)] * 2, atol=1e-9)


def test_fallback(lib, request):
    def nonlinear(lib, z, table):
        return lib.xp.tanh(table[z])

    loss = lib.Loss(vi.elbo(), vi.Analytic(fallback=vi.Score(vi.LeaveOneOut())), num_samples=1000)
    draws = lib.gradients(
        loss,
        lambda: model(lib, nonlinear),
        lambda: guide(lib),
        VALUES,
        40,
        oracles.seed_of(request.node.name),
    )
    oracles.check_unbiased(draws, -oracles.gradient(bound(np.tanh), VALUES))
    text = "Analytic\\(\\) has no closed form for tanh at test_analytic_categorical.py"
    with pytest.raises(vi.AnalyticError, match=text):
        lib.gradients(
            lib.Loss(vi.elbo(), vi.Analytic()),
            lambda: model(lib, nonlinear),
            lambda: guide(lib),
            VALUES,
            1,
            0,
        )


TRUE_LOC = {
    "chosen": lambda lib, z, a: lib.xp.where(z > 0, a[0], a[1] * lib.array(X[:, 0])),
    "equal": lambda lib, z, a: lib.xp.where(z == 1, a[0], a[1] * lib.array(X[:, 0])),
    "truth value": lambda lib, z, a: lib.xp.where(
        z.bool() if lib.name == "pyro" else z, a[0], a[1] * lib.array(X[:, 0])
    ),
    "number": lambda lib, z, a: z * a[0] + (1 - z) * a[1] * lib.array(X[:, 0]),
}


@pytest.mark.parametrize("name", TRUE_LOC)
def test_bernoulli(name, lib):
    """A mixture of two, chosen by a condition."""
    values = np.append(np.linspace(-0.6, 0.7, NUM_DATA), [0.7, -1.2])

    def model():
        levels = lib.theta(values)[NUM_DATA:]
        with lib.plate("data", NUM_DATA):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = TRUE_LOC[name](lib, z, levels)
            lib.sample("x", lib.dist.Normal(loc, SCALE), obs=lib.array(X[:, 1]))

    def guide():
        with lib.plate("data", NUM_DATA):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(values)[:NUM_DATA]))

    def elbo(theta):
        q = 1 / (1 + np.exp(-theta[:NUM_DATA]))
        yes = np.log(0.3) - np.log(q) + oracles.log_normal(X[:, 1], theta[-2], SCALE)
        no = np.log(0.7) - np.log(1 - q) + oracles.log_normal(X[:, 1], theta[-1] * X[:, 0], SCALE)
        return (q * yes + (1 - q) * no).sum()

    draws = lib.gradients(lib.Loss(vi.elbo(), vi.Analytic()), model, guide, values, 2, 0)
    np.testing.assert_allclose(draws, [-oracles.gradient(elbo, values)] * 2, atol=1e-9)
