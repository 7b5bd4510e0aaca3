"""How probable new data are: `vi.heldout`."""

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
from vi_kit.workflow.asking import asked
from vi_kit.workflow.sampling import drawn
from vi_kit.workflow.weights import log_mean_error, log_mean_exp, rows_of

NEW = np.array([0.4, -1.1, 2.0])


def test_with_the_exact_posterior_there_is_no_error(lib):
    model, guide, args = normals(lib)
    found = vi.heldout(lib.Loss(), model, guide, *args, num_samples=50)
    assert found.log_prob == pytest.approx(evidence_of_normals(), rel=1e-6)
    assert found.error < 1e-6 and found.ess == pytest.approx(50) and found.rows is None


def test_all_data_together(lib):
    mean, scale = posterior_of_normals(NEW)
    model, guide, _ = normals(lib, loc=mean + scale, scale=1.5 * scale)
    found = vi.heldout(lib.Loss(), model, guide, lib.array(NEW), num_samples=4000)
    assert abs(found.log_prob - evidence_of_normals(NEW)) <= 5 * found.error
    assert found.error < 0.05
    # mutant: the mean of log weights
    data = vi.sample(lib.Loss(), model, guide, lib.array(NEW), num_samples=4000)["z"]
    below = evidence_of_normals(NEW) - kl_normal(mean + scale, 1.5 * scale, mean, scale)
    assert abs(below - evidence_of_normals(NEW)) >= 8 * found.error and len(data) == 4000


def test_row_by_row(lib):
    exact = evidence_of_rows(NEW)
    model, guide, _ = rows(lib, slope=0.5, scale=0.8)
    found = vi.heldout(lib.Loss(), model, guide, lib.array(NEW), num_samples=4000)
    assert found.plate == "data" and found.rows.shape == found.row_errors.shape == (3,)
    assert (abs(found.rows - exact) <= 5 * found.row_errors).all()
    assert abs(found.log_prob - exact.sum()) <= 5 * found.error
    assert found.error == pytest.approx(np.sqrt((found.row_errors**2).sum()))
    # mutant: rows in another order
    assert (abs(found.rows[::-1] - exact)[[0, 2]] >= 8 * found.row_errors[[0, 2]]).all()


def test_the_standard_error_is_that_of_repetitions(lib):
    model, guide, _ = rows(lib, slope=0.5, scale=0.8)
    who = asked("heldout", lib.Loss(), (model, guide, lib.array(NEW)), {})
    weights = rows_of(drawn(who, 60 * 300, 0)).log_weights.T.reshape(3, 60, 300)
    spread = log_mean_exp(weights).std(axis=1, ddof=1)
    ratio = log_mean_error(weights).mean(axis=1) / spread
    assert (abs(ratio - 1) <= 5 / (2 * 60) ** 0.5).all()
    # mutant: the error of one draw instead of that of a mean
    assert (abs(ratio * 300**0.5 - 1) >= 8 / (2 * 60) ** 0.5).all()


def test_masked_rows_count_nothing(lib):
    def model(x):
        with lib.plate("data", 4), lib.handlers.mask(mask=lib.array(X > 0)):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    def guide(x):
        slope, scale = 1 / (1 + NOISE**2), (NOISE**2 / (1 + NOISE**2)) ** 0.5
        with lib.plate("data", 4), lib.handlers.mask(mask=lib.array(X > 0)):
            lib.sample("z", lib.dist.Normal(slope * x, scale))

    found = vi.heldout(lib.Loss(), model, guide, lib.array(X), num_samples=10)
    np.testing.assert_allclose(found.rows, np.where(X > 0, evidence_of_rows(), 0.0), atol=1e-6)


def test_without_a_density_it_is_refused(lib):
    def point(x):
        lib.sample("z", lib.dist.Delta(lib.array(0.5)))

    model, _, args = normals(lib)
    with pytest.raises(vi.BackendError, match="heldout: the draws have no importance weights"):
        vi.heldout(lib.Loss(), model, point, *args)


def kl_normal(m, s, mean, scale):
    return np.log(scale / s) + (s**2 + (m - mean) ** 2) / (2 * scale**2) - 0.5


def test_new_rows_of_a_fit_by_minibatches_count_for_themselves(lib):
    import importlib

    fit = importlib.import_module(f"vi_kit.{lib.name}").fit
    model, guide, _ = rows(lib, x=np.tile(X, 5))
    found = fit(model, guide, lib.array(np.tile(X, 5)), batch_size=10, num_steps=2)
    with_all = found.heldout(lib.array(np.tile(X, 5)), num_samples=50)
    new = found.heldout(lib.array(X), num_samples=50)
    assert len(with_all.rows) == 20 and len(new.rows) == 4
    # the parameter has moved a little; mutant: each row counts five times
    assert abs(new.log_prob - evidence_of_rows().sum()) < 1.0 < abs(evidence_of_rows().sum())
    assert found.sample(num_samples=3)["z"].shape == (3, 20)


def minibatches_of_its_own(lib):
    def model(x):
        with lib.plate("rows", 30, subsample_size=10) as chosen:
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x[chosen])

    def guide(x):
        with lib.plate("rows", 30, subsample_size=10):
            lib.sample("z", lib.dist.Normal(0.0, 1.0))

    return model, guide, (lib.array(np.tile(X, 8)[:30]),)


@pytest.mark.parametrize(
    "asks",
    [vi.heldout, vi.diagnose, vi.resample, lambda *a: vi.expectation(*a, psis=True)],
    ids=["heldout", "diagnose", "resample", "expectation"],
)
def test_a_minibatch_that_the_model_draws_is_refused(lib, asks):
    model, guide, args = minibatches_of_its_own(lib)
    with pytest.raises(vi.BackendError) as caught:
        asks(lib.Loss(), model, guide, *args)
    text = str(caught.value)
    assert "draws its minibatch itself" in text and "plate 'rows': 10 of 30 elements" in text
    assert "without subsample_size" in text


def test_what_needs_no_weights_takes_such_a_minibatch(lib):
    model, guide, args = minibatches_of_its_own(lib)
    assert vi.sample(lib.Loss(), model, guide, *args, num_samples=3)["z"].shape == (3, 10)
    assert vi.predictive(lib.Loss(), model, guide, *args, num_samples=3)["x"].shape == (3, 10)


def test_rows_of_the_first_minibatch_count_for_themselves(lib):
    x = np.tile(X, 10)
    model, guide, _ = rows(lib)
    first = [lib.array(x[i : i + 10]) for i in range(0, 40, 10)]
    found = lib.fit(model, guide, batches=first, data_size=40, num_steps=1)
    own = found.heldout(num_samples=200)
    exact = evidence_of_rows(x[:10])
    # one step has moved the guide a little; mutant: each row counts four times
    np.testing.assert_allclose(own.rows, exact, atol=0.05)
    assert (abs(4 * exact - exact) > 0.5).all()
    assert found.diagnose(num_samples=200).elbo == pytest.approx(exact.sum(), abs=0.5)


def test_sites_summed_out_are_for_the_model_to_mend(lib):
    def model(x):
        with lib.plate("data", 4):
            k = lib.sample("k", lib.dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            lib.sample("x", lib.dist.Normal(2.0 * k, NOISE), obs=x)

    def guide(x):
        pass

    with pytest.raises(vi.BackendError, match="the loss sums out 'k'") as caught:
        vi.heldout(lib.Loss(), model, guide, lib.array(X))
    text = str(caught.value)
    assert "in the model: a mixture in closed form" in text and "AutoNormal" not in text


def test_the_normal_around_the_mode_has_weights(lib):
    """What the error says can be done."""
    model, _, args = normals(lib)
    guide, around, params = laplace(lib, model, args)
    with pytest.raises(
        vi.BackendError, match="the guide has no density at 'z': point masses"
    ) as caught:
        vi.heldout(lib.Loss(), model, guide, *args, num_samples=10)
    way = {"pyro": "guide.laplace_approximation", "numpyro": "guide.get_posterior"}[lib.name]
    assert way in str(caught.value)
    found = vi.heldout(lib.Loss(), model, around(), *args, num_samples=10, params=params)
    assert found.log_prob == pytest.approx(evidence_of_normals(), abs=1e-2)


def test_rows_that_share_a_site_of_the_model_alone_are_not_independent(lib):
    def model(x):
        shared = lib.sample("shared", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(shared + z, NOISE), obs=x)

    def guide(x):
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(0.5 * x - 0.2, 0.8))

    found = vi.heldout(lib.Loss(), model, guide, lib.array(X), num_samples=20_000)
    exact = log_normal(X, np.zeros(4), (1 + NOISE**2) * np.eye(4) + 1.0)
    assert found.rows is None and abs(found.log_prob - exact) <= 5 * found.error
    # mutant: the sum of rows, as if each had a value of its own
    by_row = log_normal(X, np.zeros(4), (2 + NOISE**2) * np.eye(4))
    assert abs(by_row - exact) >= 8 * found.error


def test_it_says_how_far_it_can_be_relied_on(lib):
    model, guide, args = rows(lib, scale=0.8)
    good = vi.heldout(lib.Loss(), model, guide, *args)
    assert good.pareto_k < 0.7 and "Pareto k" in repr(good) and "effective" in repr(good)
    assert "4 rows of plate 'data'" in repr(good) and "warning" not in repr(good)
    # a guide with lighter tails than the posterior, whose weights have no variance
    for model, guide, args in (rows(lib, scale=0.1), normals(lib, scale=0.03)):
        bad = vi.heldout(lib.Loss(), model, guide, *args)
        assert bad.pareto_k > 0.7 and "\nwarning: Pareto k" in repr(bad)
    assert np.isnan(vi.heldout(lib.Loss(), model, guide, *args, num_samples=10).pareto_k)


def laplace(lib, model, args):
    """A Laplace guide at the mode, the guide of its Normal, and the parameters of that."""
    mean = posterior_of_normals()[0]
    if lib.name == "pyro":
        import pyro
        from pyro.infer import autoguide

        guide = autoguide.AutoLaplaceApproximation(model)
        guide(*args)
        guide.loc.data.fill_(mean)
        pyro.clear_param_store()
        return guide, lambda: guide.laplace_approximation(*args), None
    import jax
    from numpyro import handlers
    from numpyro.infer import autoguide

    guide = autoguide.AutoLaplaceApproximation(model)
    handlers.seed(guide, jax.random.key(0))(*args)
    normal = guide.get_posterior({"auto_loc": lib.array(np.array([mean]))})
    params = {"auto_loc": normal.loc, "auto_scale_tril": normal.scale_tril}
    return guide, lambda: autoguide.AutoMultivariateNormal(model), params
