"""Particle filters over NumPyro's `scan`, against enumerations and against the same series in a Python loop."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI

import vi_kit as vi
from models import state_space
from tests.exact import test_smc as loop
from tests.exact.test_marginal import density, reciprocal
from tests.exact.test_smc import DATA, MILD, NEAR, NUM, START
from tests.libraries import LIBRARIES
from vi_kit.numpyro import Loss
from vi_kit.numpyro.filter import Filtering

LIBRARY = LIBRARIES["numpyro"]()


def coins(lib, kind, start=START, least=0.05, more=0.9, sd=0.5):
    """`tests.exact.test_smc.coins` with its steps in a scan."""
    data = jnp.asarray(DATA)

    def datum(name, z, x, mask=True):
        numpyro.sample(name, dist.Normal(z, sd).mask(mask), obs=x)

    def sites(transition, observes):
        def step(z, x):
            number, x = x
            z = transition(z, x, "z").astype(float)
            if observes:
                mask = number < 2 if kind == "backwards, datum after" else True
                datum("x", z, x, mask)
            return z, None

        z, xs = jnp.array(0.0), (jnp.arange(3), data)
        if kind.endswith("outside"):
            z = transition(z, data[0], "first").astype(float)
            if observes:
                datum("x first", z, data[0])
            xs = (jnp.arange(1, 3), data[1:])
        if kind.startswith("backwards"):
            xs = (xs[0][::-1], data[::-1])
        z, _ = scan(step, z, xs, reverse=kind.startswith("backwards"))
        if kind == "backwards, datum after" and observes:
            datum("x after", z, data[2])

    def model():
        sites(lambda z, x, name: numpyro.sample(name, dist.Bernoulli(least + more * z)), True)

    def guide():
        theta = lib.theta(start)

        def transition(z, x, name):
            logits = theta[0] + theta[1] * z + theta[2] * x
            return numpyro.sample(name, dist.Bernoulli(logits=logits))

        sites(transition, False)

    return model, guide


@pytest.fixture
def lib():
    return LIBRARY


@functools.cache
def estimated(lib, kind, threshold, num_samples=4000):
    model, guide = coins(lib, kind)
    posterior = vi.normalize(model, vi.SMC(guide, NUM, ess_threshold=threshold))
    loss = lib.Loss(vi.elbo(), vi.Score(), num_samples=num_samples)
    draws = -lib.estimates(loss, model, posterior, START, 40, 3)
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("kind", "threshold"),
    [("inside", 0.8), ("first outside", 1.0), ("backwards, datum after", 1.0)],
)
def test_bound_and_gradient(kind, threshold, lib):
    mean, error = estimated(lib, kind, threshold)
    bound = functools.partial(loop.bound, threshold=threshold)
    exact = [bound(START), *loop.gradient(bound, START)]
    assert (np.abs(mean - exact) < 5 * error).all(), (mean, exact, error)
    assert error[0] < 0.01
    assert (error[1:] < 0.04).all()


def uniform(kind):
    def program():
        def step(z, x):
            return numpyro.sample("z", dist.Bernoulli(jnp.array(0.5))).astype(float), None

        z = jnp.array(0.0)
        if kind.endswith("outside"):
            numpyro.sample("first", dist.Bernoulli(0.5))
        scan(
            step,
            z,
            jnp.arange(2 if kind.endswith("outside") else 3),
            reverse=kind.startswith("backwards"),
        )

    return program


@pytest.mark.parametrize(("kind", "threshold"), [("inside", 0.8), ("start outside", 1.0)])
def test_the_density_and_its_reciprocal_have_no_bias(kind, threshold, lib):
    """Conditional SMC at draws of another program."""
    model, guide = coins(lib, kind, start=NEAR, **MILD)
    posterior = vi.normalize(model, vi.SMC(guide, 3, ess_threshold=threshold))
    for objective, exact in ((reciprocal(), 8.0), (density(), 0.125)):
        loss = lib.Loss(objective, vi.Score(), num_samples=2000)
        draws = -lib.estimates(loss, uniform(kind), posterior, NEAR, 8, 2)[:, 0]
        error = draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(draws.mean() - exact) < 5 * error, (draws.mean(), exact, error)
        assert error < 0.03 * exact


def linear(kind=""):
    """A linear-Gaussian series of `models.state_space`, and its exact log evidence."""
    data = state_space.linear_data(6)
    exact = state_space.linear_log_evidence(data)
    observed = jnp.array([True, True, False, True, False, True])

    def series(name, transition, observes):
        def step(z, x):
            x, is_known = x
            z = numpyro.sample(name, transition(state_space.STAY * z, x))
            if observes:
                likelihood = dist.Normal(z, state_space.OBS_NOISE)
                mask = is_known if kind == "masked" else True
                numpyro.sample(f"x of {name}", likelihood.mask(mask), obs=x)
            return z, None

        scan(step, 0.0, (jnp.asarray(data), observed))

    def model():
        for name in "zw" if kind == "two scans" else "z":
            series(name, lambda ahead, _: dist.Normal(ahead, state_space.NOISE), True)

    def proposal():
        gain = LIBRARY.theta(START)[2]
        for name in "zw" if kind == "two scans" else "z":
            series(name, lambda ahead, x: dist.Normal(ahead + gain * (x - ahead), 0.6), False)

    if kind == "masked":
        exact = kalman(data, np.asarray(observed))
    return model, proposal, exact * (2 if kind == "two scans" else 1)


def kalman(data, observed):
    mean, variance, total = 0.0, 0.0, 0.0
    for x, is_known in zip(data, observed, strict=True):
        mean, variance = 0.9 * mean, 0.81 * variance + 1.0
        if is_known:
            predicted = variance + 0.25
            total -= 0.5 * (np.log(2 * np.pi * predicted) + (x - mean) ** 2 / predicted)
            mean, variance = (
                mean + variance / predicted * (x - mean),
                variance * 0.25 / predicted,
            )
    return total


@pytest.mark.parametrize("kind", ["masked", "two scans"])
def test_the_bound_is_near_the_evidence(kind, lib):
    model, proposal, exact = linear(kind)
    posterior = vi.normalize(model, vi.SMC(proposal, 64, biased=True))
    bounds = -lib.estimates(lib.Loss(vi.elbo(), num_samples=50), model, posterior, START, 4, 0)
    assert exact - 0.2 < bounds[:, 0].mean() < exact + 0.05
    assert (np.abs(bounds[:, 3]) > 0.0).all()


def test_baselines_are_kept(lib):
    model, proposal, exact = linear()
    loss = Loss(vi.elbo())
    guide = loss.with_state(vi.normalize(model, vi.SMC(proposal, 8)))
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), loss)
    found = svi.run(jax.random.key(0), 200, progress_bar=False)
    assert {"vi_kit.baseline.ancestor of z (guide filter)"} <= found.state.mutable_state.keys()
    assert exact - 0.5 < -found.losses[-50:].mean() < exact + 0.1


def test_names_in_a_scope(lib):
    """What a handler around a scan calls its sites changes nothing."""
    model, proposal, _ = linear()
    scoped = (
        numpyro.handlers.scope(model, prefix="A"),
        numpyro.handlers.scope(proposal, prefix="A", hide_types=["param"]),
    )
    values = []
    for program, by in ((model, proposal), scoped):
        for guide in (by, vi.normalize(program, vi.SMC(by, 4, biased=True))):
            draws = lib.estimates(lib.Loss(vi.elbo()), program, guide, START, 1, 0)
            values.append(draws)
    np.testing.assert_array_equal(values[:2], values[2:])


def test_data_in_a_scan_cannot_be_simulated(lib):
    model, proposal, _ = linear()
    with pytest.raises(vi.ObjectiveError, match="observed in the body of a scan or cond"):
        lib.value(lib.Loss(vi.wake_sleep(2, insomnia=0.0)), model, proposal, 0)


def test_scans_that_do_not_match_are_refused(lib):
    model, _, _ = linear()

    def proposal(length=6, name="z", reverse=False, mask=True, plate=None):
        def program():
            def step(z, _):
                with numpyro.plate("p", 2, subsample_size=plate) if plate else nullcontext():
                    return numpyro.sample(name, dist.Normal(z, 1.0)), None

            with numpyro.handlers.mask(mask=mask):
                scan(step, jnp.zeros(plate or ()), None, length, reverse)

        return program

    loss = lib.Loss(vi.elbo(), vi.Score())
    for wrong, text in (
        (proposal(5), "proposal 5 steps; model 6 steps"),
        (proposal(reverse=True), "proposal 6 steps, the last first; model 6 steps"),
        (proposal(name="w"), r"proposal \['w'\], model \['z'\]"),
        (proposal(mask=False), r"proposal sites \['z'\] have a mask or a scale around"),
        (proposal(plate=1), r"in a minibatch of plates \['p'\]"),
        (lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), "does not draw 'z' next"),
    ):
        with pytest.raises(vi.ObjectiveError, match=text):
            lib.value(loss, model, vi.normalize(model, vi.SMC(wrong, 2)), 0)


def test_mutants_are_rejected(lib, monkeypatch):
    with monkeypatch.context() as patch:  # values are not those of the lineage
        patch.setattr(Filtering, "descent", lambda self, values: values)
        with pytest.raises(AssertionError):
            test_the_density_and_its_reciprocal_have_no_bias("inside", 1.0, lib)
    with monkeypatch.context() as patch:  # ancestors have no score
        patch.setattr(vi.SMC, "_how", loop.without_score)
        estimated.cache_clear()
        with pytest.raises(AssertionError):
            test_bound_and_gradient("backwards, datum after", 1.0, lib)
        estimated.cache_clear()


def test_hierarchical_guide_over_a_scan(lib):
    """A Gaussian series with an offset that is integrated out: of many draws of it, the bound of the marginal."""
    model, _, _ = linear()
    data, stay = state_space.linear_data(6), state_space.STAY

    def guide():
        offset = numpyro.sample("u", dist.Normal(0.0, 0.3))

        def step(z, x):
            ahead = stay * z
            z = numpyro.sample("z", dist.Normal(ahead + 0.6 * (x - ahead) + offset, 0.5))
            return z, None

        scan(step, 0.0, jnp.asarray(data))

    chain = np.linalg.inv(np.eye(6) - 0.4 * stay * np.eye(6, k=-1))
    mean, spread = chain @ (0.6 * data), np.eye(6) * 0.25 + 0.09
    cov = chain @ spread @ chain.T
    diff = np.eye(6) - stay * np.eye(6, k=-1)
    squares = ((diff @ mean) ** 2).sum() + np.trace(diff @ cov @ diff.T)
    errors = ((data - mean) ** 2).sum() + np.trace(cov)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]
    exact = entropy - 0.5 * squares - 2 * errors - 6 * np.log(2 * np.pi * 0.5)
    known = 0.5 * np.log(
        1 + 6 * 0.09 / 0.25
    )  # what a value says of the offset, by which a single draw is off
    for num, gap in ((1, known), (300, 0.0)):
        marginal = vi.marginal(guide, ["z"], vi.ImportanceSampling(num))
        loss = lib.Loss(vi.elbo(), num_samples=2000)
        draws = -lib.estimates(loss, model, marginal, START, 8, 0)[:, 0]
        error = draws.std(ddof=1) / np.sqrt(8)
        assert abs(exact - gap - draws.mean()) < 5 * error + 0.02, (exact - gap, draws, error)
        assert error < 0.08
