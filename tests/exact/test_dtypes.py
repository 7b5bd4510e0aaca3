"""Programs that mix float32, float64 and whole numbers, against closed forms in float64."""

import contextlib

import numpy as np
import pytest

import vi_kit as vi

ROWS = np.array([1.0, 3.0, -2.0, 4.0])
START = np.array([0.5, -0.25])
"""Location and log scale, numbers that both precisions have."""


def expected(of_data):
    """The loss and its gradient, for unit Normal priors and data."""
    rows = ROWS.astype(of_data).astype(float)
    loc, scale = START[0], np.exp(START[1])
    constant = 0.5 * np.log(2 * np.pi)
    loss = (constant + 0.5 * ((rows - loc) ** 2 + scale**2)).sum() + 0.5 * (loc**2 + scale**2 - 1)
    slopes = [len(rows) * loc - rows.sum() + loc, (len(rows) + 1) * scale**2 - 1]
    return np.array([loss - START[1], *slopes])


def x64(lib, is_on):
    """JAX with 64 bits or without; torch has both at once."""
    import jax

    return contextlib.nullcontext() if lib.name == "pyro" else jax.enable_x64(is_on)


def found(lib, of_params, of_data, estimator):
    """By the library's own types."""
    if lib.name == "pyro":
        import pyro

        pyro.clear_param_store()
        made = lambda values, dtype: lib.xp.tensor(values).to(getattr(lib.xp, dtype))  # noqa: E731
    else:
        made = lambda values, dtype: lib.xp.asarray(values, dtype=dtype)  # noqa: E731
    rows = made(ROWS, of_data)

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("rows", len(ROWS)):
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=rows)

    def guide():
        theta = param()
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    loss = lib.Loss(vi.elbo(), estimator)
    if lib.name == "pyro":
        param = lambda: pyro.param("theta", made(START, of_params))  # noqa: E731
        value = loss.loss_and_grads(model, guide)
        return np.array([value, *pyro.get_param_store()._params["theta"].grad.double().numpy()])
    import jax
    import numpyro

    param = lambda: numpyro.param("theta", made(START, of_params))  # noqa: E731
    of = lambda theta: loss.loss(jax.random.key(0), {"theta": theta}, model, guide)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(of))(made(START, of_params))
    assert grad.dtype == of_params and value.dtype in ("float32", "float64")
    return np.array([float(value), *np.asarray(grad, dtype=float)])


@pytest.mark.parametrize("estimator", [vi.Analytic(), vi.Quadrature(5)], ids=repr)
@pytest.mark.parametrize("of_data", ["float32", "float64", "int64", "int32"])
@pytest.mark.parametrize("of_params", ["float32", "float64"])
def test_types_that_are_mixed(of_params, of_data, estimator, lib):
    exact = expected(of_data)
    np.testing.assert_allclose(found(lib, of_params, of_data, estimator), exact, rtol=1e-5)


@pytest.mark.parametrize("of_data", ["float32", "float16", "int32"])
@pytest.mark.parametrize("of_params", ["float32", "bfloat16"])
def test_jax_without_64_bits(of_params, of_data):
    from tests.libraries import NumPyroWords

    lib = NumPyroWords()
    with x64(lib, False):
        made = found(lib, of_params, of_data, vi.Analytic())
    np.testing.assert_allclose(made, expected(of_data), rtol=1e-2 if "b" in of_params else 1e-5)


def test_a_fit_of_which_all_weights_are_zero(lib):
    """The loss is infinite, which ends it; parameters stay as they were."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.factor("impossible", -np.inf + 0.0 * z)

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(START)[0], 1.0))

    with pytest.raises(vi.NotFiniteError, match="step 1: the loss is inf") as caught:
        lib.fit(model, guide, objective=vi.iwae(num_particles=3), num_steps=5, progress=False)
    assert len(caught.value.fit.losses) == 0
    theta = caught.value.fit.params["theta"]
    theta = theta.detach() if lib.name == "pyro" else theta
    np.testing.assert_array_equal(np.asarray(theta), START)
