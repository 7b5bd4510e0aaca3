"""A site in whose value a cost jumps is not reparameterised by default, and refused if the user says so; kinks, and
comparisons that nothing depends on, change nothing."""

from __future__ import annotations

import functools
import re
import warnings

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import NumPyroWords, PyroWords
from tests.unseen import WAYS

VALUES = np.array([0.3, -0.2, 0.5])


def guide_of(lib):
    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", lib.dist.Normal(theta, 1.0).to_event(1))

    return guide


def model_of(lib, location):
    """A likelihood whose location is a function of three standard normal values."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        lib.sample("x", lib.dist.Normal(location(lib, z), 1.0), obs=lib.array(0.7))

    return model


def row(lib, model, guide, site="z", loss=None):
    """The line of `explain` about a site."""
    lines = (loss or lib.Loss()).explain(model, guide).splitlines()
    return next(line for line in lines if line.split()[0] == site)


def torch_functional():
    import torch

    return torch.nn.functional


def jax_nn():
    import jax

    return jax.nn


def fn(lib, name):
    return getattr(torch_functional() if lib.name == "pyro" else jax_nn(), name)


def where(lib, *args):
    return lib.xp.where(*args)


def huber(lib, z):
    r = abs(z[0])
    return where(lib, r < 1.0, r**2 / 2.0, r - 0.5)


def safe_log(lib, z):
    inside = z[0] > 1.0
    return where(lib, inside, lib.xp.log(where(lib, inside, z[0], 1.0 + 0.0 * z[0])), 0.0 * z[0])


def guarded_softplus(lib, z):
    small = where(lib, z > 20.0, 0.0 * z, z)
    return where(lib, z > 20.0, z, lib.xp.log1p(lib.xp.exp(small))).sum()


def sinc(lib, z):
    is_zero = z[0] == 0.0
    at = where(lib, is_zero, 1.0 + 0.0 * z[0], z[0])
    return where(lib, is_zero, 1.0 + 0.0 * z[0], lib.xp.sin(at) / at)


def interpolation(lib, z):
    knots, values = lib.array([-2.0, -1.0, 0.5, 2.0]), lib.array([1.0, -1.0, 3.0, 0.0])
    x = lib.xp.clip(z[0], -1.9, 1.9)
    right = lib.xp.searchsorted(knots, x)
    weight = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return values[right - 1] * (1.0 - weight) + values[right] * weight


def largest_by_index(lib, z):
    return z[lib.xp.argmax(z)]


def covariance(lib, z):
    return 0.1 * z[:, None] * z[None, :] + lib.xp.eye(3)


def kernel(lib, z):
    """Of a Gaussian process, whose distances are safe to differentiate where they are zero."""
    x = lib.array([0.0, 0.4, 1.0])
    squares = (x[:, None] - x[None, :]) ** 2 * lib.xp.exp(z[0])
    same = squares == 0.0
    distance = where(
        lib, same, 0.0 * squares, lib.xp.sqrt(where(lib, same, 1.0 + squares, squares))
    )
    return lib.xp.linalg.cholesky(lib.xp.exp(-distance) + 0.1 * lib.xp.eye(3))[2, 1]


def euler(lib, z):
    """Of a differential equation with a kink on the right hand side."""
    y = z[0]
    for _ in range(4):
        y = y + 0.1 * where(lib, y > 0.5, 0.5 - y, 2.0 * (0.5 - y))
    return y


def gram(lib, z):
    return z[:, None] * z[None, :] + lib.xp.eye(3)


def stable(lib, z):
    """A constant is taken out and put back, which cancels."""
    largest = lib.detach(z.max())
    return lib.xp.log(lib.xp.exp(z - largest).sum()) + largest


def masked(lib, z):
    mask = lib.array([0.3, -0.1, 2.0]) > 0.0
    return where(lib, mask, z, 0.0 * z).sum()


def while_loop(lib, goes_on, turn, state):
    """In torch a loop of which no more is seen than that one way is taken."""
    import jax

    return jax.lax.while_loop(goes_on, turn, state)


def root(lib, z):
    """By Newton's method, until it is near enough; its derivative is that of the last step."""
    if lib.name == "pyro":
        return z[0]

    def step(x):
        return (x + lib.xp.exp(z[0]) / x) / 2.0

    x, _ = while_loop(
        lib,
        lambda state: abs(state[1] - state[0]) > 1e-4,
        lambda state: (step(state[0]), state[0]),
        (1.0 + 0.0 * z[0], 9.0 + 0.0 * z[0]),
    )
    return x


KINKS = {
    "relu": lambda lib, z: fn(lib, "relu")(z).sum(),
    "leaky_relu": lambda lib, z: fn(lib, "leaky_relu")(z).sum(),
    "elu": lambda lib, z: fn(lib, "elu")(z).sum(),
    "relu_by_where": lambda lib, z: where(lib, z > 0.0, z, 0.0 * z).sum(),
    "relu_by_product": lambda lib, z: (z * (z > 0.0)).sum(),
    "abs": lambda lib, z: abs(z).sum(),
    "abs_by_sign": lambda lib, z: (z * lib.xp.sign(z)).sum(),
    "clip": lambda lib, z: lib.xp.clip(z, -0.5, 0.5).sum(),
    "maximum": lambda lib, z: lib.xp.maximum(z[0], z[1]),
    "huber": huber,
    "safe_log": safe_log,
    "guarded_softplus": guarded_softplus,
    "sinc": sinc,
    "logsumexp": lambda lib, z: lib.xp.log(lib.xp.exp(z - z.max()).sum()) + z.max(),
    "norm": lambda lib, z: lib.xp.linalg.norm(z),
    "interpolation": interpolation,
    "triangles": lambda lib, z: abs(z[0] - lib.xp.round(z[0])),
    "remainder": lambda lib, z: (z[0] % 1.0) * (1.0 - z[0] % 1.0),
    "largest_by_index": largest_by_index,
    "ordered": lambda lib, z: (z[lib.xp.argsort(z)] * lib.array([1.0, 2.0, 3.0])).sum(),
    "cholesky": lambda lib, z: lib.xp.linalg.cholesky(covariance(lib, z))[2, 1],
    "slogdet": lambda lib, z: lib.xp.linalg.slogdet(covariance(lib, z))[1],
    "kernel": kernel,
    "euler": euler,
    "masked": masked,
    "steep": lambda lib, z: lib.xp.tanh(100.0 * z[0]),
    "rational": lambda lib, z: z[1] / (1.0 + z[0] ** 2),
    "unguarded_sinc": lambda lib, z: lib.xp.sin(z[0]) / z[0],
    "same_on_both_sides": lambda lib, z: lib.xp.arctan(1.0 / z[0] ** 2),
    "direction": lambda lib, z: lib.xp.cos(lib.xp.arctan2(z[0], z[1] + 1.0)),
    "copied_sign": lambda lib, z: lib.xp.copysign(z[0], z[0] * lib.array(1.0)),
    "inverse": lambda lib, z: lib.xp.linalg.inv(gram(lib, z)).sum(),
    "solution": lambda lib, z: lib.xp.linalg.solve(gram(lib, z), z[:, None]).sum(),
    "stable": stable,
    "unit_vector": lambda lib, z: (z / lib.xp.sqrt((z**2).sum()))[0],
    "tent": lambda lib, z: where(lib, abs(z[0] - 0.9) < 0.1, 0.1 - abs(z[0] - 0.9), 0.0 * z[0]),
    "root": root,
}


@pytest.mark.parametrize("case", KINKS)
def test_kinks_keep_reparam(case, lib):
    told = row(lib, model_of(lib, KINKS[case]), guide_of(lib))
    assert "Reparam()" in told and "sampler" in told
    assert "assumed" not in told


def as_int(lib, z):
    return z.long() if lib.name == "pyro" else z.astype(int)


def by_branch(lib, z):
    if lib.name == "pyro":
        return z[0] if z[0] > 0.0 else -1.0 + z[1]
    import jax

    return jax.lax.cond(z[0] > 0.0, lambda z: z[0], lambda z: -1.0 + z[1], z)


def levels(lib, z):
    knots, values = lib.array([-1.0, 0.0, 1.0]), lib.array([1.0, -1.0, 3.0, 0.0])
    return values[lib.xp.searchsorted(knots, z[0])]


def recursion(lib, z):
    y = z[0]
    for _ in range(3):
        y = where(lib, y > 0.2, 0.5 * y, y + z[1])
    return y


def hankel(lib, z):
    return lib.xp.stack([z[:2], z[1:]])


def changed(lib, z):
    """Written into a copy."""
    if lib.name == "numpyro":
        return (z + 0.0).at[0].set(where(lib, z[0] > 0.0, 1.0, -1.0)).sum()
    y = z.clone()
    y[z > 0.0] = 2.0
    return y.sum()


def inside(lib, z):
    """By a branch in torch."""
    if lib.name == "numpyro":
        return where(lib, abs(z[0] - 0.9) < 0.1, 1.5, -0.5)
    return z[1] + 1.5 if abs(z[0] - 0.9) < 0.1 else z[1]


def stairs(step):
    def location(lib, z):
        if lib.name == "pyro":
            return step * lib.xp.floor(z[0] / step)
        return while_loop(lib, lambda x: x < z[0], lambda x: x + step, lib.array(-1.0))

    return location


def counted(lib, z):
    if lib.name == "pyro":
        return stairs(0.5)(lib, z)
    import jax

    turns = as_int(lib, lib.xp.clip(2.0 * z[0], 0.0, 5.0))
    return jax.lax.fori_loop(0, turns, lambda i, x: x + 1.0, lib.array(0.0))


def mapped_stairs(lib, z):
    if lib.name == "pyro":
        return stairs(0.5)(lib, z)
    import jax

    return jax.vmap(lambda x: stairs(0.5)(lib, x[None]))(z).sum()


def entry(lib, z):
    """Of a table that is flat but for the last one."""
    knots = lib.array([-4.0, -3.0, -2.0, -1.0, 1.6])
    if lib.name == "pyro":
        import torch

        at = torch.bucketize(z[0].contiguous(), knots)
    else:
        at = lib.xp.searchsorted(knots, z[0])
    return lib.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.2])[at]


def one_floor(lib, z):
    at = lib.xp.clip(lib.xp.floor(4.0 * z[0]), -8.0, 8.0)
    return where(lib, at == 7.0, 1.5, 0.0)


def info(lib, z):
    """Whether a matrix has a Cholesky factor."""
    matrix = lib.xp.stack(
        [lib.xp.stack([1.0 + 0 * z[0], z[0] / 1.6]), lib.xp.stack([z[0] / 1.6, 1.0 + 0 * z[0]])]
    )
    if lib.name == "pyro":
        return 1.0 * (lib.xp.linalg.cholesky_ex(matrix).info > 0)
    return 1.0 * lib.xp.isnan(lib.xp.linalg.cholesky(matrix)[1, 1])


def finite(lib, z):
    return 1.0 * lib.xp.isfinite(lib.xp.log(lib.xp.clip(z[0], 0.0, 9.0)))


def reordered(lib, z):
    """Numbers in the order of others."""
    if lib.name == "numpyro":
        import jax

        return jax.lax.sort((z, lib.array([0.0, 1.0, 3.0])), num_keys=1)[1][0]
    return lib.array([0.0, 1.0, 3.0])[lib.xp.sort(z).indices][0]


JUMPS = {
    "reordered": reordered,
    "finite": finite,
    "entry": entry,
    "one_floor": one_floor,
    "info": info,
    "where": lambda lib, z: where(lib, z[0] > 0.0, 1.5, -0.5),
    "where_by_elements": lambda lib, z: where(lib, z > 0.0, z + 1.0, z).sum(),
    "truth_value": lambda lib, z: 1.5 * (z[0] > 0.0) + z[1],
    "far": lambda lib, z: where(lib, z[0] > 4.0, 1.5, -0.5),
    "sign": lambda lib, z: lib.xp.sign(z[0]) + z[1],
    "floor": lambda lib, z: lib.xp.floor(z[0]),
    "round": lambda lib, z: lib.xp.round(z[0]) + z[0],
    "remainder": lambda lib, z: z[0] % 1.0,
    "index": lambda lib, z: lib.array([0.5, 1.5, -0.5])[as_int(lib, lib.xp.clip(z[0], 0.0, 2.5))],
    "argmax": lambda lib, z: lib.array([0.5, 1.5, -0.5])[lib.xp.argmax(z)],
    "order": lambda lib, z: (lib.xp.argsort(z) * lib.array([1.0, 2.0, 4.0])).sum(),
    "levels": levels,
    "branch": by_branch,
    "recursion": recursion,
    "behind_a_function": lambda lib, z: lib.xp.exp(-lib.xp.floor(lib.xp.exp(z[0]))) + z[1],
    "changed": changed,
    "pole": lambda lib, z: lib.xp.arctan(1.0 / z[0]),
    "own_size": lambda lib, z: z[0] / abs(z[0]),
    "inverse_root": lambda lib, z: z[0] * (z[0] ** 2) ** -0.5,
    "kept_from_zero": lambda lib, z: z[0] / lib.xp.clip(lib.xp.sqrt(z[0] ** 2), 1e-12, 9.0),
    "two_limits": lambda lib, z: lib.xp.exp(-lib.xp.exp(-1.0 / (z[0] - 4.0))),
    "angle": lambda lib, z: lib.xp.arctan2(z[0], 0.0 * z[0] - 1.0),
    "angle_of_both": lambda lib, z: lib.xp.arctan2(z[0], z[1] + 2.0),
    "copied_sign": lambda lib, z: lib.xp.copysign(lib.array(1.3), z[0]) + z[1],
    "inverse_of_one": lambda lib, z: lib.xp.arctan(lib.xp.linalg.inv(z[:1, None])[0, 0]),
    "inverse_of_two": lambda lib, z: lib.xp.arctan(lib.xp.linalg.inv(hankel(lib, z)))[0, 0],
    "solution": lambda lib, z: lib.xp.arctan(
        lib.xp.linalg.solve(hankel(lib, z), lib.array([[1.0], [0.3]]))
    ).sum(),
    "tangent": lambda lib, z: lib.xp.arctan(lib.xp.tan(z[0])),
    "ball": lambda lib, z: where(lib, (z[0] - 0.9) ** 2 < 0.05, 3.0, 0.0),
    "window": lambda lib, z: where(lib, abs(z[0] - 0.9) < 0.15, 3.0, 0.0),
    "narrow": lambda lib, z: where(lib, abs(z[0] - 0.3) < 0.02, 30.0, 0.0),
    "windows": lambda lib, z: where(lib, abs(z - lib.array([0.9, 0.3, -1.2])) < 0.02, z, 1.0).sum(),
    "sign_of_window": lambda lib, z: lib.xp.sign(abs(z[0] - 0.9) - 0.02),
    "branch_of_window": inside,
    "stairs": stairs(0.5),
    "small_stairs": stairs(0.005),
    "counted": counted,
    "mapped_stairs": mapped_stairs,
}


@pytest.mark.parametrize("case", JUMPS)
def test_jumps_are_not_reparameterised(case, lib):
    told = row(lib, model_of(lib, JUMPS[case]), guide_of(lib))
    assert "Score(" in told and "a cost jumps: model site 'x', because of" in told
    assert re.search(r"\(test_reparam_jumps.py:\d+\)", told)


def test_levels_that_start_alike_are_seen(lib):
    """Parameters are moved: where they start, there is no jump."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        levels = lib.theta(np.zeros(2), "levels")
        location = where(lib, z[0] > 0.0, levels[0], levels[1])
        lib.sample("x", lib.dist.Normal(location, 1.0), obs=lib.array(0.7))

    assert "Score(" in row(lib, model, guide_of(lib))


def chosen(lib, predicate, one, other, z):
    if lib.name == "pyro":
        return where(lib, predicate, one(z), other(z))
    import jax

    return jax.lax.cond(predicate, one, other, z)


def gated(lib, z, p):
    """All three have their part in it."""
    y = where(lib, p > 0.5, z[0], step(lib, z))
    return where(lib, p > 0.6, z[1], where(lib, p < 0.4, z[2], y))


def step(lib, z):
    return where(lib, z[0] > 0.0, 1.0, 0.0)


HIDDEN = {
    "chosen": lambda lib, z, p: chosen(lib, p > 0.5, lambda z: step(lib, z), lambda z: z[0], z),
    "by_where": lambda lib, z, p: where(lib, p > 0.5, step(lib, z), z[0]),
    "by_elements": lambda lib, z, p: where(lib, lib.xp.stack([p, p]) > 0.5, step(lib, z), z[0])[0],
    "factor": lambda lib, z, p: (p > 0.5) * step(lib, z) + z[0],
    "dead": lambda lib, z, p: fn(lib, "relu")(p - 0.5) * step(lib, z) + z[0],
    "several": gated,
    "masked": None,
}
"""By a parameter that starts at 0.3."""
UNHIDDEN = {
    "either_kink": lambda lib, z, p: where(lib, p > 0.5, fn(lib, "relu")(z[0]), abs(z[1])),
    "only_masked": lambda lib, z, p: where(lib, p > 9.0, lib.xp.sqrt(abs(z[0])), 0.0 * z[0]),
    "dead_kinks": lambda lib, z, p: (fn(lib, "relu")(p - 0.5) * abs(z)).sum(),
}


def hiding(lib, case):
    def model():
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        p = lib.theta(np.array([0.3]), "p")[0]
        if case is None:
            with lib.handlers.mask(mask=p > 0.5):
                lib.sample("x", lib.dist.Normal(step(lib, z), 1.0), obs=lib.array(0.7))
        else:
            lib.sample("x", lib.dist.Normal(case(lib, z, p), 1.0), obs=lib.array(0.7))

    return model


@pytest.mark.parametrize("case", HIDDEN)
def test_jumps_that_a_parameter_hides_at_first(case, lib):
    model = hiding(lib, HIDDEN[case])
    assert "a cost jumps: model site 'x', because of" in row(lib, model, guide_of(lib))
    with pytest.raises(vi.EstimatorError, match="is biased if a cost jumps"):
        lib.Loss(vi.elbo(), vi.Reparam()).explain(model, guide_of(lib))


@pytest.mark.parametrize("case", UNHIDDEN)
def test_kinks_that_a_parameter_hides_at_first(case, lib):
    told = row(lib, hiding(lib, UNHIDDEN[case]), guide_of(lib))
    assert "Reparam()" in told and "assumed" not in told


@pytest.mark.parametrize("chosen", [{}, {"b": vi.Score()}], ids=repr)
@pytest.mark.parametrize("value", [0, 1, 2])
def test_jumps_at_a_rare_value_of_another_site(value, chosen, lib):
    """By a branch of the program, in Pyro."""
    probs = np.full(3, 0.001)
    probs[(value + 1) % 3] = 0.998

    def model():
        b = lib.sample("b", lib.dist.Categorical(lib.array(probs)))
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        if lib.name == "pyro":
            location = step(lib, z) if b == value else z[0]
        else:
            location = where(lib, b == value, step(lib, z), z[0])
        lib.sample("x", lib.dist.Normal(location, 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("b", lib.dist.Categorical(lib.array(probs)))
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES), 1.0).to_event(1))

    told = row(lib, model, guide, loss=lib.Loss(estimators=chosen or None))
    assert "a cost jumps: model site 'x', because of" in told


def likelihoods(lib, z):
    """Of distributions whose densities look at their parameters."""
    d, zero = lib.dist, 0.0 * z
    scale = lib.xp.exp(0.1 * z)
    return {
        "student": (d.StudentT(4.0 + zero, z, scale), 0.8),
        "von_mises": (d.VonMises(z, scale), 0.8),
        "laplace": (d.Laplace(z, scale), 0.8),
        "logits": (d.Bernoulli(logits=z), 1.0),
        "categorical": (d.Categorical(logits=lib.xp.stack([zero, z, 1.0 - z], -1)), 2),
        "poisson": (d.Poisson(scale), 3.0),
        "negative_binomial": (d.NegativeBinomial(3.0 + zero, logits=z), 2.0),
        "mixture": (
            d.MixtureSameFamily(
                d.Categorical(logits=lib.xp.stack([zero, z], -1)),
                d.Normal(lib.xp.stack([z, -z], -1), 1.0),
            ),
            0.8,
        ),
        "masked": (d.Normal(z, 1.0).mask(lib.array([True, False, True])), 0.8),
    }


LIKELIHOODS = (
    "student von_mises laplace logits categorical poisson negative_binomial mixture masked".split()
)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_of_the_library(name, lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        q, x = likelihoods(lib, z)[name]
        lib.sample("x", q.to_event(1), obs=lib.array([x, x, x]))

    told = row(lib, model, guide_of(lib))
    assert "Reparam()" in told and "assumed" not in told


def test_a_jump_of_the_guide(lib):
    """In the distribution of a site that is drawn given another: only the other's path is broken."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        y = lib.sample("y", lib.dist.Normal(z, 1.0))
        lib.sample("x", lib.dist.Normal(y, 1.0), obs=lib.array(0.7))

    def guide():
        theta = lib.theta(VALUES)
        z = lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        lib.sample("y", lib.dist.Normal(where(lib, z > 0.0, theta[1], theta[2]), 1.0))

    assert "MeasureValued()" in row(lib, model, guide)
    assert "Reparam()" in row(lib, model, guide, "y")


def plate_guide(lib, size=3):
    def guide():
        theta = lib.theta(VALUES)
        with lib.plate("data", size):
            lib.sample("z", lib.dist.Normal(theta[0], 1.0))

    return guide


def test_a_term_outside_the_plate_gets_score(lib):
    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        total = where(lib, z > 0.0, 1.0, 0.0).sum(-1, keepdims=True)
        lib.sample("x", lib.dist.Normal(total[..., 0], 1.0), obs=lib.array(0.7))

    assert "Score(baseline=MovingAverage" in row(lib, model, plate_guide(lib))


CHOSEN = [vi.Reparam, vi.DoublyReparam]


@pytest.mark.parametrize("chosen", CHOSEN)
def test_a_chosen_estimator_is_refused(chosen, lib):
    model, guide = model_of(lib, JUMPS["where"]), guide_of(lib)
    name = chosen.__name__
    text = rf"site 'z': {name}\(\) is biased if a cost jumps in the value of 'z'\n"
    text += r"  got:      model site 'x', because of gt \(test_reparam_jumps.py:\d+\)\n"
    with pytest.raises(vi.EstimatorError, match=text):
        lib.Loss(vi.elbo(), {"z": chosen()}).explain(model, guide)
    told = row(lib, model, guide, loss=lib.Loss(vi.elbo(), {"z": chosen(biased=True)}))
    assert f"{name}(biased=True)" in told


@pytest.mark.parametrize("chosen", [vi.RejectionReparam(), vi.GeneralizedReparam()])
def test_paths_of_gamma_sites_are_refused(chosen, lib):
    def model():
        z = lib.sample("z", lib.dist.Gamma(2.0, 1.0))
        lib.sample("x", lib.dist.Normal(where(lib, z > 2.0, 1.5, -0.5), 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("z", lib.dist.Gamma(lib.xp.exp(lib.theta(VALUES)[0]), 1.0))

    with pytest.raises(vi.EstimatorError, match="is biased if a cost jumps"):
        lib.Loss(vi.elbo(), {"z": chosen}).explain(model, guide)


def test_while_the_step_is_traced():
    """Where neither parameters nor data are known."""
    import jax

    lib = NumPyroWords()

    def model(location, x, flags):
        z = lib.sample("z", lib.dist.Normal(lib.xp.zeros(3), 1.0).to_event(1))
        with lib.plate("data", 2):
            shift = lib.xp.where(flags > 0, 0.3, 0.0)
            lib.sample("x", lib.dist.Normal(location(lib, z) + shift, 1.0), obs=x)

    def told(location, x, flags, theta):
        loss, given = lib.Loss(num_samples=2), functools.partial(model, location)
        loss.loss(jax.random.key(0), {"theta": theta}, given, guide, x, flags)
        found.append(loss.explain(given, guide, x, flags))
        return x

    def guide(x, flags):
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES), 1.0).to_event(1))

    found = []
    for case in (JUMPS["where"], KINKS["huber"]):
        jax.jit(functools.partial(told, case))(np.array([0.3, 0.7]), np.array([1, 0]), VALUES)
    assert "Score(" in found[0]
    assert "Reparam()" in found[1] and "assumed" not in found[1]


def test_what_cannot_be_followed_is_assumed():
    """Writes into tensors of the program's own, in torch."""
    import torch

    def location(lib, z):
        out = torch.zeros(2)
        out[0] = torch.where(z[0] > 0.0, z[0], 0.0 * z[0])
        return out.sum()

    lib = PyroWords()
    told = row(lib, model_of(lib, location), guide_of(lib))
    assert "Reparam()" in told
    assert (
        "assumed to have no jumps at copy_, which writes in place (test_reparam_jumps.py:" in told
    )


@pytest.mark.parametrize("which", range(3))
def test_an_element_of_a_comparison(lib, which):
    """That of which a cost depends alone may be another than the one that changes first."""
    model = model_of(lib, lambda lib, z: where(lib, z > 0.2, 1.0 + 0.0 * z, 0.0 * z)[which])
    told = row(lib, model, guide_of(lib))
    assert "Reparam()" not in told and "a cost jumps" in told


IN_PLACE = {
    "floor_": lambda x: x.floor_(),
    "round_": lambda x: x.mul_(2.0).round_(),
    "gt_": lambda x: x.gt_(0.2).mul_(2.0),
    "remainder_": lambda x: x.remainder_(0.5),
    "div_": lambda x: x.div_(0.5, rounding_mode="floor"),
    "sign_": lambda x: x.sub_(0.1).sign_(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_steps_in_place(name):
    """As those of the operation that makes a new tensor, in torch."""
    lib = PyroWords()
    model = model_of(lib, lambda lib, z: IN_PLACE[name](z * 1.0)[0])
    told = row(lib, model, guide_of(lib))
    assert "Reparam()" not in told and "a cost jumps" in told


def listed(z):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        return torch.tensor([z[0], z[1]]).sum()


UNSEEN = {n: way for n, way in WAYS.items() if n not in ("sparse", "array", "list")}

READS = {
    "item": lambda z: z[0].item(),
    "float": lambda z: z[1] * float(z[0].detach()),
    "list": lambda z: sum(z.tolist()),
    "array": lambda z: float(np.tanh(z.detach().numpy()).sum()),
    "tensor": listed,
    **{
        f"way {name}": lambda z, way=way: float(way(z.detach()).sum())
        for name, way in UNSEEN.items()
    },
    "branch": lambda z: z[0] if z[0].item() > 0.0 else 1.0 + z[0],
    "window": lambda z: z[0] if 1.7 < float(z.detach()[0]) < 2.0 else 1.0 + z[0],
    "text": lambda z: z[0] if "(2." in repr(z.detach()[0]) else 1.0 + z[0],
}


@pytest.mark.parametrize("case", READS)
def test_values_that_are_read_have_no_path(case):
    lib = PyroWords()
    model = model_of(lib, lambda lib, z: READS[case](z))
    reason = r"model site 'x', because of a value that "
    reason += r"(left torch|became a(n array of NumPy| Python number)) \(\w+.py:\d+\)"
    told = row(lib, model, guide_of(lib))
    assert "Score(" in told and re.search(rf"the path is broken: {reason}", told)
    text = r"site 'z': Reparam\(\) is biased if a cost has the value of 'z' without a derivative\n"
    with pytest.raises(vi.EstimatorError, match=rf"{text}  got:      {reason}"):
        lib.Loss(vi.elbo(), vi.Reparam()).explain(model, guide_of(lib))


def without_gradient(lib, z):
    if lib.name == "numpyro":
        return lib.detach(z[0]) * z[1]
    with lib.xp.no_grad():
        return z[0] * 2.0


def straight(lib, z):
    """A function with a derivative of its own, which is wrong."""
    if lib.name == "numpyro":
        import jax

        exp = jax.custom_jvp(lambda x: lib.xp.exp(x))
        exp.defjvp(lambda x, dx: (lib.xp.exp(x[0]), dx[0]))
        return exp(z[0])

    class Exp(lib.xp.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.exp()

        @staticmethod
        def backward(ctx, grad):
            return grad

    return Exp.apply(z[0])


def stopped_in_a_branch(lib, z):
    if lib.name == "pyro":
        return lib.detach(z[0])
    from jax import lax

    return lax.cond(lib.theta(VALUES)[0] > -9.0, lax.stop_gradient, lambda x: x, z[0])


STOPS = {
    "branch": stopped_in_a_branch,
    "other branch": lambda lib, z: lib.xp.where(lib.array(-1.0) > 0.0, lib.detach(z[0]), z[0]),
    "detach": lambda lib, z: lib.detach(z[0]) + z[1],
    "part": lambda lib, z: z[0] * lib.xp.exp(-lib.detach(z).sum()),
    "without_gradient": without_gradient,
    "straight": straight,
}


@pytest.mark.parametrize("case", STOPS)
def test_values_that_are_detached_have_no_path(case, lib):
    model = model_of(lib, STOPS[case])
    reason = r"model site 'x', because of (detach|stop_gradient|no_grad|custom_jvp)"
    reason += r" \(\w+.py:\d+\)"
    told = row(lib, model, guide_of(lib))
    assert "Score(" in told and re.search(rf"the path is broken: {reason}", told)
    text = r"site 'z': Reparam\(\) is biased if a cost has the value of 'z' without a derivative\n"
    with pytest.raises(vi.EstimatorError, match=rf"{text}  got:      {reason}"):
        lib.Loss(vi.elbo(), vi.Reparam()).explain(model, guide_of(lib))
    meant = lib.Loss(vi.elbo(), vi.Reparam(biased=True))
    assert "Reparam(biased=True)" in row(lib, model, guide_of(lib), loss=meant)


def test_detached_values_that_reach_no_cost_change_nothing(lib):
    """Of one site none does, in the distribution of another it does."""
    seen = []

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        y = lib.sample("y", lib.dist.Normal(0.0, 1.0))
        seen.append(lib.detach(z) + lib.detach(y))
        lib.sample("x", lib.dist.Normal(z + y, 1.0), obs=lib.array(0.7))

    def guide():
        theta = lib.theta(VALUES)
        z = lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        lib.sample("y", lib.dist.Normal(theta[1] + lib.detach(z), 1.0))

    told = row(lib, model, guide)
    assert "the path is broken: guide site 'y'" in told
    told = row(lib, model, guide, "y")
    assert "Reparam()" in told and "assumed" not in told


def test_a_detached_value_gets_the_gradient_of_the_cost(lib):
    """E[(z - 1.88)^2 + z^2] / 2 has the derivative -1.28, of which the path sees 0.3."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(lib.detach(z), 1.0), obs=lib.array(1.88))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    loss = lib.Loss(num_samples=100)
    draws = lib.gradients(loss, model, guide, VALUES, 100, oracles.seed_of("detached"))
    oracles.check_unbiased(draws, np.array([-1.28, 0.0, 0.0]))
    biased = lib.Loss(estimators=vi.Reparam(biased=True), num_samples=100)
    draws = lib.gradients(biased, model, guide, VALUES, 10, 0)
    np.testing.assert_allclose(draws.mean(0)[0], 0.3, atol=0.2)


def test_reads_that_reach_no_cost_change_nothing():
    """Of the two sites the other's value is used."""
    lib = PyroWords()

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        y = lib.sample("y", lib.dist.Normal(z, 1.0))
        assert abs(z.item()) + z.detach().numpy() < 4.0, f"{z.tolist()}"
        lib.sample("x", lib.dist.Normal(z + y.item(), 1.0), obs=lib.array(0.7))

    def guide():
        theta = lib.theta(VALUES)
        z = lib.sample("z", lib.dist.Normal(theta[0], 0.1))
        lib.sample("y", lib.dist.Normal(theta[1] + z, 1.0))

    told = row(lib, model, guide)
    assert "Reparam()" in told and "assumed" not in told
    assert "the path is broken" in row(lib, model, guide, "y")
    lib.Loss(vi.elbo(), {"z": vi.Reparam()}).explain(model, guide)


def test_no_comparison_no_run():
    """A program without one is not run any more often."""
    lib, runs = PyroWords(), []

    def location(lib, z):
        runs.append(z)
        return fn(lib, "relu")(z).sum()

    row(lib, model_of(lib, location), guide_of(lib))
    before = len(runs)
    runs.clear()
    row(lib, model_of(lib, lambda lib, z: huber(lib, z) + location(lib, z)), guide_of(lib))
    assert (before, len(runs)) == (2, 3)  # dry, and the one of which it tells


@pytest.mark.parametrize(
    "objective",
    [
        vi.iwae(2),
        vi.miwae(2, 2),
        vi.piwae(2, 2),
        vi.renyi(0.5, 2),
        vi.cubo(2.0, 2),
        vi.thermodynamic(2),
    ],
    ids=repr,
)
def test_jumps_inside_nonlinear_functions(objective, lib):
    model = model_of(lib, lambda lib, z: lib.xp.where(z.sum(-1) > 0.0, 2.0, 0.0))
    assert "Reparam()" not in row(lib, model, guide_of(lib), loss=lib.Loss(objective))
    with pytest.raises(vi.EstimatorError, match="jumps"):
        lib.Loss(objective, vi.Reparam()).explain(model, guide_of(lib))


def test_jumps_at_held_draws_do_not_matter(lib):
    model = model_of(lib, lambda lib, z: lib.xp.where(z.sum(-1) > 0.0, 2.0, 0.0))
    loss = lib.Loss(vi.log_variance(num_particles=2), vi.Reparam())
    assert "Reparam()" in row(lib, model, guide_of(lib), loss=loss)


def moved_normal(lib, theta):
    """A Normal distribution by an affine transform, whose parameters move its values."""
    base, module = lib.dist.Normal(0.0, 1.0), lib.dist.transforms
    return lib.dist.TransformedDistribution(base, [module.AffineTransform(theta[0], 1.2)])


def test_parameters_of_transforms_get_score(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(where(lib, z > 0.2, 1.0, 0.0), 1.0), obs=lib.array(1.0))

    def guide():
        lib.sample("z", moved_normal(lib, lib.theta(VALUES)))

    assert "Score(" in row(lib, model, guide)


def test_measures_of_what_a_transform_moves_are_refused_at_a_jump(lib):
    def model(value):
        def program():
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(value(z), 1.0), obs=lib.array(1.0))

        return program

    def guide():
        lib.sample("z", moved_normal(lib, lib.theta(VALUES)))

    loss = lib.Loss(estimators={"z": vi.MeasureValued()})
    assert "MeasureValued()" in row(lib, model(lambda z: 0.5 * z), guide, loss=loss)
    jumping = model(lambda z: where(lib, z > 0.2, 1.0, 0.0))
    with pytest.raises(
        vi.EstimatorError, match=r"site 'z': MeasureValued\(\) is biased if a cost jumps"
    ):
        row(lib, jumping, guide, loss=loss)


def test_a_jump_on_a_support_that_moves_is_refused(lib):
    """Neither a path nor a score is right there."""

    def model():
        z = lib.sample("z", lib.dist.Uniform(-5.0, 5.0))
        lib.sample("x", lib.dist.Normal(where(lib, z > 0.4, 1.0, 0.0), 1.0), obs=lib.array(1.0))

    def guide():
        low = lib.theta(VALUES)[0]
        lib.sample("z", lib.dist.Uniform(low - 1.0, low + 1.0))

    with pytest.raises(vi.EstimatorError, match="site 'z': Score"):
        lib.gradients(lib.Loss(), model, guide, VALUES, 1, 0)


def chain(location, num_steps):
    """A walk whose steps divide, in Pyro."""
    lib = PyroWords()

    def model():
        z = lib.xp.zeros(2)
        for t in range(num_steps):
            z = lib.sample(f"z{t}", lib.dist.Normal(location(z), 1.0).to_event(1))
        lib.sample("x", lib.dist.Normal(z, 1.0).to_event(1), obs=lib.xp.ones(2))

    def guide():
        z = lib.theta(VALUES[:2])
        for t in range(num_steps):
            z = lib.sample(f"z{t}", lib.dist.Normal(0.5 * z, 1.0).to_event(1))

    return model, guide


def test_divisions_of_a_chain_are_looked_at_together(monkeypatch):
    """How often a program is evaluated does not grow with the number of its divisions (it did: 400 times for 10 steps,
    each of them fifty times dearer, as torch has no cheap zero tangent)."""
    from vi_kit.pyro import Loss
    from vi_kit.pyro.degrees import Reading

    counts, repeated = [], Reading.repeated
    monkeypatch.setattr(
        Reading, "repeated", lambda *args, **kwargs: counts.append(1) or repeated(*args, **kwargs)
    )
    explained = Loss().explain(*chain(lambda z: z / 2.0 + 25.0 * z / (1.0 + z**2), 10))
    assert explained.count("Reparam") >= 10
    assert len(counts) < 60


@pytest.mark.parametrize("size", [0, 2**16])
def test_a_pole_in_a_chain_is_found_one_by_one_and_together(size, monkeypatch):
    """The last site is in no quotient. Of a size of 0, each place is evaluated alone."""
    from vi_kit.pyro import Loss, degrees

    monkeypatch.setattr(degrees, "MAX_MAPPED", size)
    model, guide = chain(lambda z: (1.0 / (0.3 - z)).tanh(), 3)
    lines = {line.split()[0]: line for line in Loss().explain(model, guide).splitlines() if line}
    assert ["Score" in lines[f"z{t}"] for t in range(3)] == [True, True, False]
