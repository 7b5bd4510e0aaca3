"""Marginal programs under NumPyro's own SVI."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Predictive

import vi_kit as vi
from vi_kit.numpyro import Loss


def model():
    x = numpyro.sample("x", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=1.4)


def guide():
    u = numpyro.sample("u", dist.Bernoulli(logits=numpyro.param("a", 0.4)))
    numpyro.sample("x", dist.Bernoulli(logits=numpyro.param("b", 0.3) * u - 0.2))


def guess(kept):
    numpyro.sample("u", dist.Bernoulli(logits=numpyro.param("c", 0.1) * (1 + kept["x"])))


MARGINAL = vi.marginal(guide, ["x"], vi.ImportanceSampling(2, guess))


def test_parameters_of_the_proposal_are_found_and_trained():
    svi = SVI(model, MARGINAL, optax.sgd(0.1), Loss(num_samples=50))
    state = svi.init(jax.random.key(0))
    start = svi.get_params(state)
    assert set(start) == {"a", "b", "c"}
    after = svi.get_params(jax.jit(svi.update)(state)[0])
    assert all(after[name] != start[name] for name in start)


def test_baselines_inside_have_room():
    loss = Loss(vi.elbo(), vi.Score(vi.MovingAverage()))
    svi = SVI(model, loss.with_state(MARGINAL), optax.sgd(0.1), loss)
    state = svi.init(jax.random.key(0))
    kept = jax.jit(svi.update)(state)[0].mutable_state
    baselines = {name: value for name, value in kept.items() if "baseline" in name}
    assert {"vi_kit.baseline.u", "vi_kit.baseline.u (guide proposal)"} <= set(baselines)
    assert all(jnp.any(value != 0) for value in baselines.values())


def test_by_itself_it_runs_with_all_its_sites():
    draws = Predictive(MARGINAL, params={"a": 0.4, "b": 0.3, "c": 0.1}, num_samples=3)(
        jax.random.key(0)
    )
    assert set(draws) == {"u", "x"}


def test_a_loop_is_no_proposal_of_a_scan():
    data = jnp.array([0.3, 1.6, -0.2])

    def model():
        def body(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
            return z, None

        scan(body, jnp.array(0.0), data)

    def unrolled():
        for t in range(len(data)):
            numpyro.sample(f"z{t}", dist.Normal(data[t], 0.7))

    with pytest.raises(vi.ObjectiveError, match="does not draw 'z' next"):
        Loss().loss(jax.random.key(0), {}, model, vi.normalize(model, vi.SMC(unrolled, 3)))
