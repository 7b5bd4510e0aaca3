"""Verdicts on cases whose answer is known: `vi.diagnose`."""

from dataclasses import replace

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import (
    NOISE,
    X,
    evidence_of_normals,
    evidence_of_rows,
    log_normal,
    normals,
    posterior_of_normals,
    rows,
)
from vi_kit.workflow.error_bounds import divergence_bound
from vi_kit.workflow.verdict import judged


def test_the_exact_posterior_is_trusted(lib):
    model, guide, args = normals(lib)
    found = vi.diagnose(lib.Loss(), model, guide, *args, num_gradients=10)
    assert found.verdict == "trust"
    assert found.elbo == pytest.approx(evidence_of_normals(), rel=1e-6)
    assert found.gap < 1e-6 and found.ess == pytest.approx(found.num_samples)
    assert abs(found.prior_evidence - evidence_of_normals()) <= 5 * found.prior_error < 1.0
    assert found.divergence < 1e-6 and max(found.wasserstein) < 1e-2
    assert "trust" in repr(found) and "&lt;=" in found._repr_html_()
    assert set(found.noise) == {"theta"}


def correlated(lib, scale):
    """A Normal of correlation 0.95, and the guide with independent coordinates that is nearest in KL(q, p)."""
    covariance = np.array([[1.0, 0.95], [0.95, 1.0]])

    def model():
        lib.sample("z", lib.dist.MultivariateNormal(lib.array(np.zeros(2)), lib.array(covariance)))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.array(np.zeros(2)), scale).to_event(1))

    return model, guide


def test_mean_field_of_a_correlated_posterior(lib):
    own = (1 - 0.95**2) ** 0.5
    found = vi.diagnose(lib.Loss(), *correlated(lib, own))
    assert found.verdict == "richer guide" and found.pareto_k > 0.7
    assert np.isinf(found.divergence) and np.isinf(found.moments["z"].mean_bound).all()
    text = " ".join(found.reasons)
    assert "Pareto k" in text and ("too small" in text or "more evidence" in text)


def test_a_guide_that_is_somewhat_wide_is_corrected(lib):
    mean, scale = posterior_of_normals()
    model, guide, args = normals(lib, loc=mean, scale=1.8 * scale)
    found = vi.diagnose(lib.Loss(), model, guide, *args)
    assert found.verdict == "correct by importance sampling"
    low, _ = found.moments["z"].ratios
    assert low == pytest.approx(1.8**2, rel=0.2)
    assert found.elbo < evidence_of_normals() < found.cubo


def test_a_mode_that_is_missed(lib):
    """Two modes, one fitted exactly: the weights are nearly equal, and only draws of the prior see the other."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 3.0))
        lib.sample("x", lib.dist.Normal(z**2, 1.0), obs=lib.array(9.0))

    def guide():
        lib.sample("z", lib.dist.Normal(3.0, 0.17))

    found = vi.diagnose(lib.Loss(), model, guide, num_samples=4000)
    assert found.verdict == "another divergence"
    assert abs(found.prior_evidence - found.iwae - np.log(2)) < 0.2


def test_prior_draws_of_which_one_has_all_the_weight(lib):
    """30 dims: the exact log evidence is far above what draws of the prior find."""
    x = np.random.default_rng(0).normal(size=30)

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(30)), 1.0).to_event(1))
        lib.sample("x", lib.dist.Normal(z, 0.2).to_event(1), obs=lib.array(x))

    def guide():
        scale = (0.04 / 1.04) ** 0.5
        lib.sample("z", lib.dist.Normal(lib.array(x / 1.04), scale).to_event(1))

    found = vi.diagnose(lib.Loss(), model, guide)
    exact = log_normal(x, np.zeros(30), 1.04 * np.eye(30))
    assert found.verdict == "trust" and found.iwae == pytest.approx(exact, rel=1e-4)
    assert exact - found.prior_evidence > 50
    assert found.prior_error == np.inf  # mutant: by the delta method, 1.0
    text = f"prior draws do not tell the log evidence (they say {found.prior_evidence:.4g})"
    assert text in repr(found)


@pytest.mark.parametrize(
    ("more", "error", "is_missed"),
    [(0.5, 0.05, True), (0.5, 0.2, False), (7.0, np.inf, False), (20.0, np.inf, True)],
)
def test_evidence_by_few_prior_draws_has_to_be_far_more(lib, more, error, is_missed):
    """A mean of which one draw has all the weight is over e^7 times too high in up to one case of e^7."""
    model, guide, args = normals(lib)
    exact = vi.diagnose(lib.Loss(), model, guide, *args, num_gradients=0)
    found = judged(
        replace(exact, prior_evidence=exact.iwae + more, prior_error=error), 0.0, 0.0, None
    )
    assert found.verdict == ("another divergence" if is_missed else "trust")
    assert ("a part of the posterior is missed" in " ".join(found.reasons)) is is_missed


def test_a_funnel_is_not_trusted(lib):
    def model():
        v = lib.sample("v", lib.dist.Normal(0.0, 3.0))
        with lib.plate("rows", 9):
            lib.sample("z", lib.dist.Normal(0.0, lib.xp.exp(v / 2)))

    def guide():
        lib.sample("v", lib.dist.Normal(-0.8, 0.45))
        with lib.plate("rows", 9):
            lib.sample("z", lib.dist.Normal(0.0, 0.63))

    found = vi.diagnose(lib.Loss(), model, guide)
    assert found.verdict == "richer guide" and found.pareto_k > 0.7


def test_many_rows_are_judged_one_by_one(lib):
    x = np.tile(X, 50)
    model, guide, args = rows(lib, x=x, scale=0.35)
    found = vi.diagnose(lib.Loss(), model, guide, *args)
    assert found.row_k.shape == (200,) and (found.row_k < 0.7).all()
    assert found.pareto_k > 0.7  # jointly it is hopeless
    assert found.verdict in ("trust", "correct by importance sampling")


def test_all_of_the_report_is_row_by_row(lib):
    """200 rows, whose joint weights say nothing."""
    x = np.tile(X, 50)
    model, guide, args = rows(lib, x=x, scale=0.6)
    found = vi.diagnose(lib.Loss(), model, guide, *args)
    exact = evidence_of_rows(x).sum()
    assert abs(found.iwae - exact) < 1.0
    assert found.elbo < exact < found.cubo and found.iwae <= found.eubo
    assert abs(found.prior_evidence - exact) <= 5 * found.prior_error
    assert found.prior_error < 5.0
    assert found.divergence < np.inf and (found.moments["z"].mean_bound < 0.5).all()
    # each corrected mean is that of the posterior of its row; mutant: by joint weights, which are one draw
    slope, scale = 1 / (1 + NOISE**2), (NOISE**2 / (1 + NOISE**2)) ** 0.5
    off = (found.moments["z"].corrected_mean - slope * x) / (scale / found.num_samples**0.5)
    assert abs(off).max() < 8 and found.moments["z"].shift < 0.3
    low, high = found.moments["z"].ratios
    assert 1.2 < low and high < 2.4  # about 0.36 / 0.2
    assert found.verdict == "correct by importance sampling"
    assert "missed" not in " ".join(found.reasons)


def test_few_draws_and_point_masses(lib):
    model, guide, args = normals(lib)
    assert vi.diagnose(lib.Loss(), model, guide, *args, num_samples=50).verdict == "more samples"

    def point(x):
        lib.sample("z", lib.dist.Delta(lib.array(0.5)))

    with pytest.raises(vi.BackendError, match="point masses"):
        vi.diagnose(lib.Loss(), model, point, *args)


def test_a_wide_guide_has_a_gap_that_says_nothing_against_its_weights(lib):
    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    def guide():
        lib.sample("z", lib.dist.Normal(0.0, 30.0))

    found = vi.diagnose(lib.Loss(), model, guide, num_samples=3000)
    assert found.verdict == "correct by importance sampling"
    assert found.gap > 300 and found.least_ess > 100


@pytest.mark.parametrize(
    ("ess", "verdict"),
    [(500.0, "correct by importance sampling"), (22.0, "more samples"), (3.0, "richer guide")],
)
def test_k_alone_does_not_make_weights_good(lib, ess, verdict):
    """Bounds that are 77 nats apart, and a k that happens to be good: it is asked what the weights are worth."""
    model, guide, args = normals(lib)
    exact = vi.diagnose(lib.Loss(), model, guide, *args, num_gradients=0)
    found = replace(exact, pareto_k=0.6, least_ess=ess, elbo=exact.iwae - 77.0)
    assert judged(found, 77.0, 0.0, None).verdict == verdict


def test_draws_that_are_made_one_by_one_are_told_once(lib):
    """A product with a matrix does not broadcast over draws in front, a sum does; NumPyro maps both."""
    x = lib.array(np.arange(15.0).reshape(3, 5))

    def diagnosed(row):
        def model():
            z = lib.sample("z", lib.dist.Normal(lib.array(np.zeros(5)), 1.0).to_event(1))
            loc = row(z)
            with lib.plate("rows", 3):
                lib.sample("x", lib.dist.Normal(loc, 100.0), obs=lib.array(np.zeros(3)))

        def guide():
            lib.sample("z", lib.dist.Normal(lib.array(np.zeros(5)), 1.0).to_event(1))

        return vi.diagnose(lib.Loss(), model, guide, num_samples=60)

    slow, quick = diagnosed(lambda z: x @ z), diagnosed(lambda z: z.sum(-1))
    assert quick.notes == ()
    assert len(slow.notes) == (lib.name == "pyro")
    if lib.name == "pyro":
        assert "one by one" in slow.notes[0] and "do not broadcast" in slow.notes[0]
        assert repr(slow).count("one by one") == 1


def test_the_bounds_are_bounds():
    """Of two Normals, by quadrature: q = N(0, 1), p = N(m, s^2)."""
    rng = np.random.default_rng(0)
    for m, s in ((0.3, 0.9), (0.0, 1.2), (0.6, 0.7)):
        z = rng.normal(size=200_000)
        weights = -0.5 * ((z - m) / s) ** 2 - np.log(s) + 0.5 * z**2
        grid = np.linspace(-12, 12, 20_001)
        p = np.exp(-0.5 * ((grid - m) / s) ** 2) / s / np.sqrt(2 * np.pi)
        q = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
        exact = np.log((p**2 / q).sum() * (grid[1] - grid[0]))
        bound = divergence_bound(weights)
        assert bound > exact - 0.02  # that it is no bound of the KL instead: the mutant is
        chi = np.expm1(exact) ** 0.5
        assert abs(m) <= chi  # the standard deviation of q is one
        assert abs(s**2 - 1) <= chi * 2**0.5 + chi**2
