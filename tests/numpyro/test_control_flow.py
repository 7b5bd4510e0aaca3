"""Sites in the body of `scan` and `cond`, in model and guide, against enumeration and algebra."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import vi_kit as vi
from tests import oracles
from tests.numpyro.programs import gradients, value
from vi_kit.numpyro import Loss

X = np.array([1.5, -0.3, 2.0])
LOGITS = np.array([0.3, -0.4, 0.7])


def coins_model():
    def body(previous, x):
        z = numpyro.sample("z", dist.Bernoulli(logits=1.2 * previous - 0.4))
        numpyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=x)
        return 1.0 * z, None

    scan(body, 0.0, jnp.asarray(X))


def coins_guide():
    def body(previous, logit):
        z = numpyro.sample("z", dist.Bernoulli(logits=logit + 0.5 * previous))
        return 1.0 * z, None

    scan(body, 0.0, numpyro.param("logits", LOGITS))


def chain(logits, z, x, scale=1.0, mask=(1, 1, 1)):
    """Log density of the guide, and log weight, of one path."""
    log_q, log_w, previous = 0.0, 0.0, 0.0
    for logit, bit, datum, kept in zip(logits, z, x, mask, strict=True):
        step = oracles.log_bernoulli(logit + 0.5 * previous, bit)
        log_q = log_q + step
        log_w = log_w + oracles.log_bernoulli(1.2 * previous - 0.4, bit) - step
        log_w = log_w + scale * kept * oracles.log_normal(datum, 1.5 * bit, 1.0)
        previous = bit
    return log_q, log_w


def minus_bound(logits, particles=1, **settings):
    paths = [chain(logits, z, X, **settings) for z in itertools.product((0, 1), repeat=3)]
    log_q, log_w = (np.array(column) for column in zip(*paths, strict=True))
    return -oracles.expected_log_mean_exp(log_q, log_w, particles)


@pytest.mark.parametrize(
    ("particles", "baseline"),
    [(1, vi.Constant()), (1, vi.LeaveOneOut()), (2, vi.LeaveOneOut())],
    ids=repr,
)
def test_bernoulli_chain_in_a_scan(particles, baseline):
    objective = vi.elbo() if particles == 1 else vi.iwae(num_particles=particles)
    loss = Loss(objective, vi.Score(baseline), num_samples=20)
    draws = gradients(loss, coins_model, coins_guide, {"logits": LOGITS}, 4000)
    exact = oracles.gradient(lambda t: minus_bound(t, particles), LOGITS)
    oracles.check_unbiased(draws, exact)


def test_straight_through_inside_a_scan():
    """The surrogate's gradient is that of the same coins without the scan, one plain site each."""
    estimator = vi.StraightThrough(biased=True)

    def programs(wrap):
        def guide():
            logits = numpyro.param("logits", LOGITS)
            wrap(lambda _, t: numpyro.sample("z", dist.Bernoulli(logits=t)), logits)

        def model():
            def body(_, x):
                z = numpyro.sample("z", dist.Bernoulli(0.4))
                numpyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=x)

            wrap(body, jnp.asarray(X))

        return model, guide

    def in_scan(body, xs):
        scan(lambda carry, x: (carry, body(carry, x)), 0.0, xs)

    def in_plate(body, xs):
        with numpyro.plate("steps", 3):
            body(0.0, xs)

    loss = Loss(vi.elbo(), estimator, num_samples=20)
    draws = [
        gradients(loss, *programs(wrap), {"logits": LOGITS}, 2000) for wrap in (in_scan, in_plate)
    ]
    oracles.check_unbiased(draws[0], draws[1].mean(axis=0))


def test_default_inside_a_scan_is_the_score():
    table = Loss(num_samples=2).explain(coins_model, coins_guide)
    assert "Score(baseline=LeaveOneOut())" in table
    assert "inside control flow" in table


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_several_values_at_once_are_refused_inside(estimator):
    text = rf"site 'z': {type(estimator).__name__}\(\) needs several values at once, which a scan"
    with pytest.raises(vi.EstimatorError, match=text):
        gradients(Loss(estimators=estimator), coins_model, coins_guide, {"logits": LOGITS}, 1)


def test_normal_chain_in_a_scan():
    """The bound of one Gaussian chain under another, by recursion of means and variances."""
    theta = np.array([0.5, -0.3, 0.8, -0.4])

    def model():
        def body(previous, x):
            z = numpyro.sample("z", dist.Normal(0.8 * previous, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(body, 0.0, jnp.asarray(X))

    def guide():
        t = numpyro.param("theta", theta)

        def body(previous, loc):
            z = numpyro.sample("z", dist.Normal(loc + 0.5 * previous, jnp.exp(t[3])))
            return z, None

        scan(body, 0.0, t[:3])

    def minus_gaussian_bound(t):
        mean, variance, total = 0.0, 0.0, -3 * t[3]
        for loc, x in zip(t[:3], X, strict=True):
            new_mean = loc + 0.5 * mean
            new_variance = np.exp(2 * t[3]) + 0.25 * variance
            step = (new_mean - 0.8 * mean) ** 2 + np.exp(2 * t[3]) + 0.09 * variance
            total = total + 0.5 * step + 0.5 * ((x - new_mean) ** 2 + new_variance)
            mean, variance = new_mean, new_variance
        return total

    draws = gradients(Loss(num_samples=20), model, guide, {"theta": theta}, 2000)
    oracles.check_unbiased(draws, oracles.gradient(minus_gaussian_bound, theta))


def test_scale_and_mask_inside_a_scan():
    """The likelihood is scaled, and masked at one time."""
    mask = np.array([1, 0, 1])

    def model():
        def body(previous, now):
            x, kept = now
            z = numpyro.sample("z", dist.Bernoulli(logits=1.2 * previous - 0.4))
            with handlers.scale(scale=0.5), handlers.mask(mask=kept):
                numpyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=x)
            return 1.0 * z, None

        scan(body, 0.0, (jnp.asarray(X), jnp.asarray(mask) == 1))

    loss = Loss(estimators=vi.Score(vi.LeaveOneOut()), num_samples=20)
    draws = gradients(loss, model, coins_guide, {"logits": LOGITS}, 4000)
    exact = oracles.gradient(lambda t: minus_bound(t, scale=0.5, mask=mask), LOGITS)
    oracles.check_unbiased(draws, exact)


THETA = np.array([0.4, 0.9, -0.7])


def branches_model():
    b = numpyro.sample("b", dist.Bernoulli(0.5))

    def left(_):
        return numpyro.sample("z", dist.Normal(1.0, 1.0))

    def right(_):
        return numpyro.sample("z", dist.Normal(-1.0, 1.0))

    z = cond(b == 1, left, right, None)
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.8)


def branches_guide():
    t = numpyro.param("theta", THETA)
    b = numpyro.sample("b", dist.Bernoulli(logits=t[0]))

    def left(_):
        return numpyro.sample("z", dist.Normal(t[1], 0.6))

    def right(_):
        return numpyro.sample("z", dist.Normal(t[2], 0.9))

    cond(b == 1, left, right, None)


def minus_branches_bound(t):
    total = 0.0
    for b, mean, scale, prior in ((1, t[1], 0.6, 1.0), (0, t[2], 0.9, -1.0)):
        log_q = oracles.log_bernoulli(t[0], b)
        quadratic = (mean - prior) ** 2 + (0.8 - mean) ** 2 + 2 * scale**2
        log_w = np.log(0.5) - 0.5 * quadratic - 0.5 * np.log(2 * np.pi) + np.log(scale) + 0.5
        total = total - np.exp(log_q) * (log_w - log_q)
    return total


def test_cond():
    loss = Loss(estimators={"b": vi.Score(vi.LeaveOneOut())}, num_samples=20)
    draws = gradients(loss, branches_model, branches_guide, {"theta": THETA}, 2000)
    oracles.check_unbiased(draws, oracles.gradient(minus_branches_bound, THETA))


def test_enumerated_predicate_is_exact_or_refused():
    try:
        draws = gradients(
            Loss(estimators={"b": vi.Enumerate()}, num_samples=20),
            branches_model,
            branches_guide,
            {"theta": THETA},
            1000,
        )
    except Exception as error:
        assert "enumerated" in str(error) + "".join(getattr(error, "__notes__", []))
    else:
        oracles.check_unbiased(draws, oracles.gradient(minus_branches_bound, THETA))


def entering(dependent):
    """A Bernoulli site outside whose value enters a scan of Normals."""

    def model():
        b = numpyro.sample("b", dist.Bernoulli(0.4))

        def body(previous, x):
            z = numpyro.sample("z", dist.Normal(0.5 * b, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return previous + 1, None

        scan(body, 0, jnp.asarray(X))

    def guide():
        t = numpyro.param("theta", THETA)
        b = numpyro.sample("b", dist.Bernoulli(logits=t[0]))

        def body(previous, _):
            numpyro.sample("z", dist.Normal(t[1] + t[2] * b * dependent, 0.7))
            return previous + 1, None

        scan(body, 0, jnp.zeros(3))

    def minus_bound(t):
        total = 0.0
        for b in (0, 1):
            log_q = oracles.log_bernoulli(t[0], b)
            mean, prior = t[1] + t[2] * b * dependent, np.log(0.4 if b else 0.6)
            quadratic = ((X - mean) ** 2).sum() + 3 * (mean - 0.5 * b) ** 2 + 6 * 0.49
            log_w = prior - 0.5 * quadratic + 3 * (np.log(0.7) + 0.5 - 0.5 * np.log(2 * np.pi))
            total = total - np.exp(log_q) * (log_w - log_q)
        return total

    return model, guide, minus_bound


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()], ids=repr)
def test_enumerated_site_whose_value_enters_a_scan(estimator, dependent):
    model, guide, minus_bound = entering(dependent)
    loss = Loss(estimators={"b": estimator}, num_samples=20)
    draws = gradients(loss, model, guide, {"theta": THETA}, 1000)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, THETA))


def test_score_site_whose_value_enters_a_scan():
    model, guide, minus_bound = entering(dependent=True)
    loss = Loss(estimators={"b": vi.Score(vi.LeaveOneOut())}, num_samples=20)
    draws = gradients(loss, model, guide, {"theta": THETA}, 2000)
    oracles.check_unbiased(draws, oracles.gradient(minus_bound, THETA))


def test_plate_scale_and_mask_inside_a_scan():
    """Two independent chains in a plate, the likelihood scaled, and masked at one time."""
    mask, data = np.array([1, 0, 1]), np.stack([X, X], -1)

    def model():
        def body(previous, now):
            x, kept = now
            with numpyro.plate("chains", 2):
                z = numpyro.sample("z", dist.Bernoulli(logits=1.2 * previous - 0.4))
                with handlers.scale(scale=0.5), handlers.mask(mask=kept):
                    numpyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=x)
            return 1.0 * z, None

        scan(body, jnp.zeros(2), (jnp.asarray(data), jnp.asarray(mask) == 1))

    def guide():
        def body(previous, logit):
            with numpyro.plate("chains", 2):
                z = numpyro.sample("z", dist.Bernoulli(logits=logit + 0.5 * previous))
            return 1.0 * z, None

        scan(body, jnp.zeros(2), numpyro.param("logits", LOGITS))

    loss = Loss(estimators=vi.Score(vi.LeaveOneOut()), num_samples=20)
    draws = gradients(loss, model, guide, {"logits": LOGITS}, 1500)
    exact = oracles.gradient(lambda t: 2 * minus_bound(t, scale=0.5, mask=mask), LOGITS)
    oracles.check_unbiased(draws, exact)


def test_sites_of_a_scan_are_no_states():
    loss = Loss(vi.sub_trajectory_balance(lambda_=0.9))
    with pytest.raises(vi.ObjectiveError, match="guide site 'z' is in a scan: its steps cannot be"):
        gradients(loss, coins_model, coins_guide, {"logits": LOGITS}, 1)


def test_values_of_a_reversed_scan_are_those_of_their_steps():
    """NumPyro counts steps in the order in which it takes them, and puts what they make where the data are."""
    values = np.array([1.0, 2.0, 5.0])

    def model():
        def body(previous, x):
            z = numpyro.sample("z", dist.Normal(0.5 * previous, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(body, 0.0, jnp.asarray(X), reverse=True)

    def guide():
        def body(carry, value):
            numpyro.sample("z", dist.Delta(value))
            return carry, None

        scan(body, 0.0, numpyro.param("values", jnp.asarray(values)), reverse=True)

    exact = oracles.log_normal(values, 0.5 * np.array([2.0, 5.0, 0.0]), 1.0)
    exact = exact.sum() + oracles.log_normal(X, values, 1.0).sum()
    assert value(Loss(), model, guide, {"values": values}) == pytest.approx(-exact)
