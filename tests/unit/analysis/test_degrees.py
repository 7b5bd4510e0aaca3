"""Degrees of programs as both libraries read them, and the refusals that follow."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.analysis.degrees import CONSTANT, Form
from vi_kit.base.demands import Polynomial


def degree(lib, fn, shape=(3,)):
    """What `fn` makes of an array of degree one."""
    if lib.name == "pyro":
        from vi_kit.pyro.degrees import Reading, Traced

        reading = Reading()
        result = fn(
            lib.xp, reading.leaf("z", lib.xp.ones(shape), Polynomial(1, lambda dist, zero: zero))
        )
        own = result.degrees if isinstance(result, Traced) else {}
        return {**own, **reading.leaks}.get("z", CONSTANT)
    import jax

    from vi_kit.numpyro.degrees import Reading

    closed = jax.make_jaxpr(lambda z: fn(lib.xp, z))(lib.xp.ones(shape))
    return Reading().read(closed, [{"z": Form(1)}])[0].get("z", CONSTANT)


POLYNOMIALS = {
    "itself": (1, lambda xp, z: z),
    "affine": (1, lambda xp, z: 2.0 - z / 3.0 + z * 4.0),
    "square": (2, lambda xp, z: xp.square(z) - z),
    "power": (5, lambda xp, z: z**5 + z**2),
    "product": (3, lambda xp, z: z * (z + 1.0) * (2.0 - z)),
    "sums": (2, lambda xp, z: (z.sum() - z.mean()) * xp.cumsum(z, 0)),
    "shapes": (1, lambda xp, z: xp.reshape(z[None, ::2] * xp.ones((4, 1)), (8,))),
    "index": (2, lambda xp, z: z[0] * z[-1]),
    "stack": (2, lambda xp, z: xp.stack([z, z**2, xp.ones(3)]).sum(0)),
    "concatenate": (2, lambda xp, z: xp.concatenate([z, z * z])),
    "matmul": (2, lambda xp, z: (z[None, :] @ xp.ones((3, 3)) @ z[:, None])[0, 0]),
    "einsum": (2, lambda xp, z: xp.einsum("i,ij,j->", z, xp.ones((3, 3)), z)),
    "outer": (2, lambda xp, z: xp.outer(z, z)),
    "where": (2, lambda xp, z: xp.where(xp.arange(3) > 1, z, z**2)),
    "exp_log": (1, lambda xp, z: xp.log(2.0 * xp.exp(z) / xp.exp(3.0 * z))),
    "exp_power": (2, lambda xp, z: xp.log(xp.exp(z**2) ** 0.5) + xp.log(xp.sqrt(xp.exp(z)))),
    "of_a_constant": (0, lambda xp, z: xp.exp(xp.ones(3)) + xp.zeros_like(z)),
    "flip": (1, lambda xp, z: xp.flip(z, (0,)) + xp.roll(z, 1)),
    "take": (1, lambda xp, z: z[xp.asarray([2, 0])]),
    "zero_power": (0, lambda xp, z: z**0 + 1.0),
    "variance": (2, lambda xp, z: ((z - z.mean()) ** 2).mean()),
}

OTHERS = {
    "exp": ("exp", "exp", lambda xp, z: xp.exp(z) + 1.0),
    "exp_twice": ("exp", "exp", lambda xp, z: xp.exp(xp.exp(z))),
    "exp_times": ("exp", "exp", lambda xp, z: z * xp.exp(z)),
    "log": ("log", "log", lambda xp, z: xp.log(z)),
    "sine": ("sin", "sin", lambda xp, z: xp.sin(z) * 0.5),
    "tanh": ("tanh", "tanh", lambda xp, z: xp.tanh(z)),
    "over": ("reciprocal", "div", lambda xp, z: 1.0 / z),
    "quotient": ("div", "div", lambda xp, z: z**2 / z),
    "root": ("sqrt", "sqrt", lambda xp, z: xp.sqrt(z)),
    "fraction": ("pow", "pow", lambda xp, z: z**1.5),
    "as_exponent": ("pow", "pow", lambda xp, z: 2.0**z),
    "absolute": ("abs", "abs", lambda xp, z: xp.abs(z)),
    "clip": ("clamp", "max", lambda xp, z: xp.clip(z, 0.0, None)),
    "maximum": ("maximum", "max", lambda xp, z: xp.maximum(z, xp.ones(3))),
    "larger": ("gt", "gt", lambda xp, z: xp.where(z > 0, z, -z)),
    "as_mask": ("gt", "gt", lambda xp, z: (z > 0) * 1.0),
    "floor": ("floor", "floor", lambda xp, z: xp.floor(z)),
    "largest": ("max", "reduce_max", lambda xp, z: z.max()),
    "sorted": ("sort", "sort", lambda xp, z: xp.sort(z)[0]),
    "as_index": (
        "floor",
        "floor",
        lambda xp, z: (
            xp.ones(3)[xp.asarray(xp.floor(z), dtype=int)]
            if xp.__name__ != "torch"
            else xp.ones(3)[xp.floor(z).long().clamp(0, 2)]
        ),
    ),
    "softplus": ("log1p", "log1p", lambda xp, z: xp.log1p(xp.exp(z))),
}


@pytest.mark.parametrize("case", POLYNOMIALS)
def test_polynomials(case, lib):
    expected, fn = POLYNOMIALS[case]
    found = degree(lib, fn)
    assert found.reason is None
    assert found.degree == expected


@pytest.mark.parametrize("case", OTHERS)
def test_others(case, lib):
    torch_name, jax_name, fn = OTHERS[case]
    assert degree(lib, fn).reason == (torch_name if lib.name == "pyro" else jax_name)


OPERATIONS = (
    lambda xp, x, y: x + y,
    lambda xp, x, y: x - 0.5 * y,
    lambda xp, x, y: x * y,
    lambda xp, x, y: x / (1.0 + 0.0 * xp.ones(3)),
    lambda xp, x, y: x / y,
    lambda xp, x, y: x**2,
    lambda xp, x, y: x**3,
    lambda xp, x, y: xp.exp(x),
    lambda xp, x, y: xp.log(x),
    lambda xp, x, y: xp.sqrt(x),
    lambda xp, x, y: xp.where(x > y, x, y),
    lambda xp, x, y: xp.where(xp.arange(3) > 0, x, y),
    lambda xp, x, y: (x[:, None] * xp.ones((3, 3)))[:, 1] + y.sum(),
    lambda xp, x, y: xp.stack([x, y]).mean(0),
    lambda xp, x, y: xp.sin(x) + y,
    lambda xp, x, y: xp.ones(3) + 0.0 * xp.arange(3),
)


@pytest.mark.parametrize("seed", range(100))
def test_no_program_has_a_higher_degree_than_was_proved(seed, lib):
    """The differences of one order more vanish, along a line of values."""

    def fn(xp, z):
        rng = np.random.default_rng(seed)
        values = [z, 0.3 + 0.5 * z, xp.ones(3)]
        for _ in range(rng.integers(2, 7)):
            chosen = OPERATIONS[rng.integers(len(OPERATIONS))]
            x, y = (values[rng.integers(len(values))] for _ in range(2))
            values.append(chosen(xp, x, y))
        return values[-1].sum() + 0.0 * z.sum()

    found = degree(lib, fn)
    if found.reason is not None or found.degree > 8:
        return
    count = found.degree + 4
    at = 1.0 + 0.5 * np.cos(np.pi * (np.arange(count) + 0.5) / count)
    values = [float(fn(lib.xp, lib.array(np.array([1.0, 0.7, 1.2]) * t))) for t in at]
    if not np.isfinite(values).all():
        return
    fit = np.polynomial.Polynomial.fit(at, values, found.degree)
    np.testing.assert_allclose(fit(at), values, rtol=1e-8, atol=1e-8 * np.abs(values).max())


def refused(lib, cost, estimators=None, objective=None, latent=None):
    """The text of the error about a cost of a Normal value, with a further latent site given it."""
    values = np.array([0.4])

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        if latent is not None:
            latent(z)
        lib.factor("f", cost(z))

    def guide():
        z = lib.sample("z", lib.dist.Normal(lib.theta(values)[0], 1.0))
        if latent is not None:
            latent(z)

    loss = lib.Loss(objective or vi.elbo(), estimators or vi.Quadrature(2))
    with pytest.raises(vi.EstimatorError) as caught:
        lib.gradients(loss, model, guide, values, 1, 0)
    return str(caught.value)


def test_the_error_about_a_degree(lib):
    assert refused(lib, lambda z: z**6) == (
        "site 'z': Quadrature() is exact for polynomials of degree at most 3 in 'z'\n"
        "  got:      model site 'f', of degree 6\n"
        "  expected: polynomials of that degree; biased=True; or an unbiased estimator: Reparam() or Score()\n"
        '  fix:      estimators={"z": vi.Quadrature(num_nodes=4, biased=False, max_worlds=1024)}'
    )


def test_the_error_about_an_operation(lib):
    name = "tanh"
    assert refused(lib, lambda z: lib.xp.tanh(z)) == (
        "site 'z': Quadrature() is exact for polynomials of degree at most 3 in 'z'\n"
        f"  got:      model site 'f', not a polynomial, because of {name}\n"
        "  expected: polynomials of that degree; biased=True; or an unbiased estimator: Reparam() or Score()\n"
        '  fix:      estimators={"z": vi.Reparam()}, or vi.Quadrature(..., biased=True)'
    )


def test_a_poisson_likelihood(lib):
    def cost(z):
        lib.sample("x", lib.dist.Poisson(lib.xp.exp(z)), obs=lib.array(3.0))
        return z

    assert "model site 'x', not a polynomial, because of " in refused(lib, cost)


def test_a_nonlinear_function(lib):
    text = refused(lib, lambda z: z, objective=vi.iwae(num_particles=2))
    assert "site 'z': Quadrature() is not exact inside log_mean_exp" in text
    assert "biased=True" in text


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score()], ids=repr)
def test_a_discrete_draw_given_the_site(estimator, lib):
    """Its probabilities are no polynomials."""

    def latent(z):
        lib.sample("b", lib.dist.Bernoulli(logits=z))

    estimators = {"z": vi.Quadrature(2), "b": estimator}
    text = refused(lib, lambda z: z, estimators, latent=latent)
    assert "the draw of site 'b', not a polynomial" in text


@pytest.mark.parametrize("other", [vi.Reparam(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_a_continuous_draw_given_the_site(other, lib):
    """A polynomial of it is one of the site, if location and scale are."""
    values = np.array([0.4])

    def program(loc, power):
        z = lib.sample("z", lib.dist.Normal(loc, 1.0))
        lib.sample("y", lib.dist.Normal(z**power, 1.0))

    def gradients(power):
        guide, model = (lambda: program(lib.theta(values)[0], power)), lambda: program(0.0, 1)
        loss = lib.Loss(vi.elbo(), {"z": vi.Quadrature(2), "y": other})
        lib.gradients(loss, model, guide, values, 1, 0)

    gradients(1)
    with pytest.raises(vi.EstimatorError, match="model site 'y', of degree 4"):
        gradients(2)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        ("into_others", "because of copy_, which writes in place"),
        ("of_higher_degree", "because of mul_, which writes in place"),
        ("number", "because of a value that became a Python number"),
    ],
)
def test_what_leaves_the_reach_of_tracing_in_torch(write, text):
    import torch

    from tests.libraries import PyroWords

    def cost(z):
        if write == "into_others":
            out = torch.zeros(2)
            out[0] = z
            return out.sum()
        if write == "of_higher_degree":
            x = 1.0 * z
            x[...].mul_(z)
            return x
        return z if z.item() > 0 else -z

    assert text in refused(PyroWords(), cost)


def test_writes_that_keep_the_degree_in_torch():
    from tests.libraries import PyroWords

    lib, values = PyroWords(), np.array([0.4])

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        x = 1.0 * z
        x += 3.0
        lib.factor("f", x)

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(values)[0], 1.0))

    lib.gradients(lib.Loss(vi.elbo(), vi.Quadrature(2)), model, guide, values, 1, 0)


def test_other_ways_through_torch():
    import torch

    from tests.libraries import PyroWords

    lib = PyroWords()

    def squared(x):
        return x * x + 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(squared)
    square = Form(2)
    assert degree(lib, lambda xp, z: torch.vmap(lambda x: x * x)(z)) == square
    assert degree(lib, lambda xp, z: scripted(z)) == square
    assert degree(lib, lambda xp, z: z.data * z.detach()) == square
    assert degree(
        lib, lambda xp, z: torch.nn.functional.linear(z, xp.ones((2, 3)), xp.ones(2))
    ) == Form(1)
    assert degree(lib, lambda xp, z: xp.div(z, 2.0, rounding_mode="floor")).reason == "floor_divide"
    assert degree(lib, lambda xp, z: z.long() * 1.0).reason == "_to_copy"
    assert degree(lib, lambda xp, z: z.sum(dtype=xp.int64) * 1.0).reason == "sum"
    assert degree(lib, lambda xp, z: xp.xlogy(xp.ones(3), xp.exp(z))) == Form(1)
    assert degree(
        lib, lambda xp, z: xp.linalg.solve_triangular(xp.eye(3), z[:, None], upper=True)
    ) == Form(1)


def test_control_flow_in_jax():
    import jax

    from tests.libraries import NumPyroWords

    lib = NumPyroWords()

    def autoregressive(xp, z):
        return jax.lax.scan(lambda c, x: (0.5 * c + x, c * z[0]), 0.0, z)[1]

    def growing(xp, z):
        return jax.lax.scan(lambda c, x: (c * x, c), 1.0, z)[0]

    def branch(xp, z):
        return jax.lax.cond(xp.ones(()) > 0, lambda: z**2, lambda: z)

    def chosen_by_value(xp, z):
        return jax.lax.cond(z[0] > 0, lambda: z, lambda: -z)

    def loop(xp, z):
        return jax.lax.while_loop(lambda c: c.sum() < 5, lambda c: c + 1, z)

    assert degree(lib, autoregressive) == Form(2)
    assert degree(lib, growing).reason == "scan"
    assert degree(lib, branch) == Form(2)
    assert degree(lib, chosen_by_value).reason == "gt"
    assert degree(lib, loop).reason == "while"
    xlogy = jax.scipy.special.xlogy
    assert degree(lib, lambda xp, z: xlogy(xp.ones(3), xp.exp(z))) == Form(1)
    assert degree(lib, lambda xp, z: z.astype(int) * 1.0).reason == "convert_element_type"
    assert degree(lib, lambda xp, z: xp.ones(3).at[0].set(z[0] ** 2)) == Form(2)
    assert degree(lib, lambda xp, z: jax.checkpoint(lambda x: x * x)(z)) == Form(2)
    assert degree(lib, lambda xp, z: jax.vmap(lambda x: x**3)(z)) == Form(3)
    assert degree(lib, lambda xp, z: jax.jit(lambda x: x * x)(z)) == Form(2)
    assert degree(lib, lambda xp, z: jax.nn.relu(z)).reason == "relu"
