"""`Loss` as NumPyro's own losses are used in `SVI`."""

import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import X, falls, gradients, guide, model
from vi_kit.numpyro import Loss, fit
from vi_kit.numpyro.planning import plan_for

KEY = jax.random.key(0)


def adam_svi(loss=None, lr=0.05):
    return SVI(model, guide, numpyro.optim.Adam(lr), loss or Loss())


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)], ids=repr)
def test_run_lowers_the_loss(objective):
    result = adam_svi(Loss(objective)).run(KEY, 150, X, progress_bar=False)
    assert falls(result.losses)
    assert sorted(result.params) == ["a", "b", "c"]


def test_run_with_optax_stable_update_and_a_progress_bar():
    svi = SVI(model, guide, optax.adam(0.05), Loss())
    settings = {"progress_bar": False, "stable_update": True}
    silent = svi.run(KEY, 40, X, **settings)
    shown = svi.run(KEY, 40, X, **{**settings, "progress_bar": True})
    np.testing.assert_allclose(silent.losses, shown.losses, rtol=1e-9)
    more = svi.run(KEY, 20, X, init_state=silent.state, **settings)
    assert np.mean(more.losses) < np.mean(silent.losses[:20])


def test_update_jitted_or_not_and_evaluate_give_the_same_number():
    svi = adam_svi()
    state = svi.init(KEY, X)
    after, loss = svi.update(state, X)
    after_jit, loss_jit = jax.jit(svi.update)(state, X)
    assert float(loss) == pytest.approx(float(loss_jit), rel=1e-12)
    assert float(svi.evaluate(state, X)) == pytest.approx(float(loss), rel=1e-12)
    for name, param in svi.get_params(after).items():
        np.testing.assert_allclose(param, svi.get_params(after_jit)[name], rtol=1e-9)
        assert not np.array_equal(param, svi.get_params(state)[name])


def test_scan_over_updates_is_run():
    svi = adam_svi()

    @jax.jit
    def train(key):
        body = lambda state, _: svi.update(state, X)  # noqa: E731
        return jax.lax.scan(body, svi.init(key, X), None, length=10)[1]

    expected = svi.run(KEY, 10, X, progress_bar=False).losses
    np.testing.assert_allclose(train(KEY), expected, rtol=1e-9)
    many = jax.vmap(train)(jax.random.split(KEY, 3))
    assert many.shape == (3, 10)
    alone = train(jax.random.split(KEY, 3)[1])
    np.testing.assert_allclose(many[1], alone, rtol=1e-9)


def test_same_key_same_numbers():
    loss = Loss(vi.iwae(num_particles=2), num_samples=3)
    params = {"a": 0.5, "b": 0.7, "c": jnp.zeros(4)}
    first, second, other = (
        float(loss.loss(jax.random.key(k), params, model, guide, X)) for k in (1, 1, 2)
    )
    assert first == second != other


def test_one_loss_serves_two_traces_of_different_sizes():
    svi = adam_svi()
    for x in (X, X[:2]):
        state = svi.init(KEY, x)
        _, value = jax.jit(svi.update)(state, x)
        assert float(value) == pytest.approx(float(svi.update(state, x)[1]), rel=1e-12)


def test_gradient_agrees_with_that_of_trace_elbo():
    """By the algebra of Normals; NumPyro's own loss is held to the same numbers."""
    a, b, c = 0.4, 0.7, np.array([0.1, -0.2, 0.3, 0.0])

    def minus_bound(theta):
        a, b, c = theta[0], theta[1], theta[2:]
        log_p = -0.5 * (a**2 + b**2) - 0.5 * ((c**2).sum() + 4 * b**2)
        log_p = log_p - 2 * ((a + c - X) ** 2).sum() - 2 * 4 * 2 * b**2
        return -(log_p + 5 * np.log(b))

    exact = oracles.gradient(minus_bound, np.array([a, b, *c]))
    params = {"a": a, "b": b, "c": c}
    for loss in (Loss(num_samples=20), Trace_ELBO(num_particles=20)):
        oracles.check_unbiased(gradients(loss, model, guide, params, 2000, X), exact)


def test_gradient_is_that_of_trace_elbo_for_a_point_guide():
    guide = AutoDelta(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Loss())
    params = svi.get_params(svi.init(KEY, X))
    ours, theirs = (gradients(loss, model, guide, params, 1, X) for loss in (Loss(), Trace_ELBO()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def counts_model():
    rate = numpyro.sample("rate", dist.Poisson(3.0))
    numpyro.sample("x", dist.Normal(rate, 1.0), obs=5.0)


def counts_guide():
    a = numpyro.param("a", 2.0, constraint=dist.constraints.positive)
    numpyro.sample("rate", dist.Poisson(a))


@pytest.mark.parametrize("progress_bar", [True, False])
def test_moving_average_lives_in_the_mutable_state(progress_bar):
    loss = Loss()
    svi = SVI(counts_model, loss.with_state(counts_guide), numpyro.optim.Adam(0.02), loss)
    start = svi.init(KEY)
    (name,) = start.mutable_state
    assert not np.any(start.mutable_state[name])
    result = svi.run(KEY, 30, progress_bar=progress_bar)
    assert np.all(result.state.mutable_state[name] != 0)
    assert list(result.params) == ["a"]
    assert np.isfinite(result.losses).all()


def test_gradient_by_the_state_of_a_moving_average_is_zero():
    loss = Loss()
    stateful = loss.with_state(counts_guide)
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        stateful()
    (name,) = [n for n, site in trace.items() if site["type"] == "mutable"]
    params = {"a": jnp.asarray(2.0), name: jnp.array([1.5, 0.5])}
    by = jax.grad(lambda p: loss.loss(KEY, p, counts_model, stateful))(params)
    assert np.all(by[name] == 0)
    assert by["a"] != 0


def test_moving_average_with_nowhere_to_be_kept_is_warned_of():
    loss = Loss(estimators=vi.Score(vi.MovingAverage()))
    svi = SVI(counts_model, counts_guide, numpyro.optim.Adam(0.02), loss)
    state = svi.init(KEY)
    with pytest.warns(UserWarning, match=r"nowhere to keep .*loss\.with_state\(guide\)"):
        svi.update(state)


def test_discrete_sites_make_no_warning_in_svi():
    loss = Loss()
    svi = SVI(counts_model, loss.with_state(counts_guide), numpyro.optim.Adam(0.02), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.init(KEY)


def test_forward_mode_differentiation():
    svi = adam_svi()
    state = svi.init(KEY, X)
    reverse = svi.get_params(svi.update(state, X)[0])
    forward = svi.get_params(svi.update(state, X, forward_mode_differentiation=True)[0])
    for name, param in reverse.items():
        np.testing.assert_allclose(param, forward[name], rtol=1e-9)


LEAKS = [
    Loss(),
    Loss(vi.elbo(), {"z": vi.Score()}),
    Loss(num_samples=2),
    Loss(num_samples=2, vectorize=False),
    Loss(vi.iwae(num_particles=2), {"b": vi.Score(vi.LeaveOneOut())}),
    Loss(vi.elbo(), {"z": vi.Analytic()}),
    Loss(vi.elbo(), {"z": vi.Quadrature(2), "b": vi.Score()}, num_samples=2),
]


@pytest.mark.parametrize("loss", LEAKS, ids=repr)
def test_nothing_traced_outlives_its_trace(loss):
    def guide():
        loc = numpyro.param("loc", jnp.zeros(3))
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("logit", 0.0)))

    params = {"loc": jnp.zeros(3), "logit": jnp.zeros(())}
    with jax.checking_leaks():
        jax.make_jaxpr(jax.grad(lambda p: loss.loss(jax.random.key(0), p, guide, guide)))(params)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_restarts": 2},
        {"batch_size": 4},
        {"batches": [np.ones(4)] * 3, "data_size": 12},
    ],
    ids=lambda how: next(iter(how), "all rows"),
)
def test_a_fit_plans_its_step_once(how):
    """What is explained is the plan of the step, which the loop finds."""

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    args = () if "batches" in how else (np.ones(12),)
    with mock.patch("vi_kit.numpyro.loss.plan_for", wraps=plan_for) as planned:
        found = fit(model, AutoNormal(model), *args, num_steps=3, **how)
    assert planned.call_count == 1 and "Reparam()" in found.explained
