"""A fit as ArviZ has posteriors: `vi.to_arviz`."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import (
    NOISE,
    X,
    evidence_of_normals,
    evidence_of_rows,
    normals,
    posterior_of_normals,
    rows,
)
from tests.workflow.test_predictive import a_fit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of its next version
    import arviz as az


def groups_of(data):
    """Of an `InferenceData`, or of the `DataTree` of ArviZ 1.x."""
    return set(data.groups() if callable(data.groups) else data.children)


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def test_groups_dims_and_log_likelihoods(lib):
    model, guide, args = normals(lib)
    data = vi.to_arviz(lib.Loss(), model, guide, *args, num_samples=200, seed=3)
    assert groups_of(data) == {
        "posterior",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
    }
    assert data.posterior["z"].dims == ("chain", "draw")
    for group in (data.log_likelihood, data.posterior_predictive, data.prior_predictive):
        assert group["x"].dims == ("chain", "draw", "data") and group["x"].shape == (1, 200, 4)
    np.testing.assert_allclose(data.observed_data["x"], X)
    np.testing.assert_allclose(data.constant_data["x"], X)
    z = data.posterior["z"].values[..., None]
    np.testing.assert_allclose(data.log_likelihood["x"], log_normal(X, z, NOISE), rtol=1e-6)
    assert data.posterior.attrs["seed"] == 3
    assert data.posterior.attrs["inference_library"] == lib.name
    # the guide is the posterior: every weight is the evidence
    np.testing.assert_allclose(data.sample_stats["log_weight"], evidence_of_normals(), rtol=1e-6)
    assert data.sample_stats.attrs["ess"] == pytest.approx(200)


def test_log_likelihoods_are_not_scaled(lib):
    model, guide, args = normals(lib)
    scaled = lib.handlers.scale(model, scale=2.0)
    data = vi.to_arviz(lib.Loss(), scaled, guide, *args, num_samples=20)
    exact = log_normal(X, data.posterior["z"].values[..., None], NOISE)
    np.testing.assert_allclose(data.log_likelihood["x"], exact, rtol=1e-6)  # mutant: twice as much
    lp = 2 * (exact.sum(-1) + log_normal(data.posterior["z"].values, 0.0, 1.0))
    np.testing.assert_allclose(data.sample_stats["lp"], lp, rtol=1e-6)


def test_a_minibatch_that_the_model_draws_is_no_data(lib):
    """Its columns are other rows in each draw: a `loo` of them would be of nothing."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 4, subsample_size=2) as rows:
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=lib.array(X)[rows])
        lib.sample("y", lib.dist.Normal(z, 1.0), obs=lib.array(0.5))

    def guide():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="plate 'data': 2 of 4 elements") as told:
        data = vi.to_arviz(lib.Loss(), model, guide, num_samples=20)
    assert len(told) == 1
    assert "sample_stats" not in groups_of(data)
    assert "minibatch" in data.posterior.attrs["no_log_weights"]
    z = data.posterior["z"].values
    assert data.posterior["data_rows"].shape == (*z.shape, 2)
    for group in ("observed_data", "posterior_predictive", "prior_predictive", "log_likelihood"):
        assert set(data[group]) == {"y"}
    np.testing.assert_allclose(data.log_likelihood["y"], log_normal(0.5, z, 1.0), rtol=1e-6)


def test_hidden_elements_are_left_out(lib):
    seen = np.array([True, False, True, True])

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 4), lib.handlers.mask(mask=lib.array(seen)):
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    data = vi.to_arviz(lib.Loss(), model, guide, lib.array(X), num_samples=20)
    own = data.log_likelihood["x"]
    assert own.dims == ("chain", "draw", "x_entry")
    np.testing.assert_array_equal(own.coords["x_entry"], [0, 2, 3])
    z = data.posterior["z"].values
    np.testing.assert_allclose(own, log_normal(X[seen], z[..., None], NOISE), rtol=1e-6)
    np.testing.assert_allclose(data.sample_stats["log_weight"], own.sum("x_entry"), rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(data.observed_data["x"]), ~seen)


def test_event_dims_nested_plates(lib):
    def model():
        with lib.plate("a", 2, dim=-2):
            with lib.plate("b", 3, dim=-1):
                lib.sample("w", lib.dist.Dirichlet(lib.array(np.ones(4))))
            lib.sample("v", lib.dist.Normal(0.0, 1.0))

    data = vi.to_arviz(lib.Loss(), model, model, num_samples=6)
    assert data.posterior["w"].dims == ("chain", "draw", "a", "b", "w_dim_0")
    assert data.posterior["v"].dims == ("chain", "draw", "a", "v_dim_0")
    assert "log_likelihood" not in groups_of(data)


def test_dims_of_a_joint_guide_are_the_plates_of_the_model(lib):
    def model():
        with lib.plate("g", 3):
            lib.sample("t", lib.dist.Normal(0.0, 1.0))
            lib.sample("w", lib.dist.Dirichlet(lib.array(np.ones(4))))

    def guide():  # as AutoMultivariateNormal of NumPyro draws: all dims are event dims, in no plate
        lib.sample("t", lib.dist.Delta(lib.array(np.zeros(3)), event_dim=1))
        lib.sample("w", lib.dist.Delta(lib.array(np.full((3, 4), 0.25)), event_dim=2))

    data = vi.to_arviz(lib.Loss(), model, guide, num_samples=5)
    for group in (data.posterior, data.prior):
        assert group["t"].dims == ("chain", "draw", "g")
        assert group["w"].dims == ("chain", "draw", "g", "w_dim_0")


def test_loo_compare_and_plots(lib):
    import matplotlib

    matplotlib.use("Agg")
    rng = np.random.default_rng(0)
    x = rng.normal(0.7, NOISE, 30)
    models = {}
    for name, loc in (("posterior", None), ("elsewhere", 3.0)):
        model, guide, args = normals(lib, x=x, loc=loc)
        fit = a_fit(lib, model, guide, args, None)
        models[name] = fit.to_arviz(num_samples=500)
    data = models["posterior"]
    found = az.loo(data)
    mean, scale = posterior_of_normals(x)
    loo = []
    for i in range(30):  # in closed form
        mean, scale = posterior_of_normals(np.delete(x, i))
        loo.append(log_normal(x[i], mean, (scale**2 + NOISE**2) ** 0.5))
    assert abs(found.elpd_loo - sum(loo)) < 0.3
    with warnings.catch_warnings():  # what ArviZ says of the second model, and to its dependencies
        warnings.simplefilter("ignore")
        assert az.compare(models).index[0] == "posterior"
        az.plot_ppc(data)
        az.plot_posterior(data)
        az.summary(data)
    import matplotlib.pyplot as plt

    plt.close("all")


def test_partly_observed_sites_have_the_name_of_the_whole(lib):
    seen = np.array([True, False, True])

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(z, 0.1), obs=x, obs_mask=lib.array(seen))

    def guide(x):
        lib.sample("z", lib.dist.Normal(2.0, 0.01))
        with lib.plate("data", 3):
            lib.sample("x_unobserved", lib.dist.Normal(2.0, 0.1))

    data = vi.to_arviz(lib.Loss(), model, guide, lib.array(np.ones(3)), num_samples=5)
    assert list(data.observed_data) == list(data.posterior_predictive) == ["x"]
    assert data.log_likelihood["x"].shape == (1, 5, 2)
    assert {"z", "x_unobserved"} <= set(data.posterior)


def test_without_weights(lib):
    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 4):
            k = lib.sample("k", lib.dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            lib.sample("x", lib.dist.Normal(z + k, NOISE), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    data = vi.to_arviz(lib.Loss(), model, guide, lib.array(X), num_samples=5)
    assert "k" not in data.posterior and "sample_stats" not in groups_of(data)
    assert "log_likelihood" not in groups_of(data)
    assert "sums out 'k'" in data.posterior.attrs["no_log_weights"]

    def point(x):
        lib.sample("z", lib.dist.Delta(lib.array(0.5)))

    data = vi.to_arviz(lib.Loss(), normals(lib)[0], point, lib.array(X), num_samples=5)
    assert "sample_stats" not in groups_of(data)
    assert "point masses" in data.posterior.attrs["no_log_weights"]


def test_an_improper_prior_has_no_groups(lib):
    def model(x):
        z = lib.sample("z", lib.dist.ImproperUniform(lib.dist.constraints.real, (), ()))
        with lib.plate("data", 4):
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    _, guide, args = normals(lib)
    with pytest.warns(UserWarning, match="no prior groups: site 'z'.*ImproperUniform") as told:
        data = vi.to_arviz(lib.Loss(), model, guide, *args, num_samples=20)
    assert len(told) == 1
    assert {"prior", "prior_predictive"}.isdisjoint(groups_of(data))
    assert {"posterior", "posterior_predictive", "log_likelihood"} <= groups_of(data)
    z = data.posterior["z"].values[..., None]
    np.testing.assert_allclose(data.log_likelihood["x"], log_normal(X, z, NOISE), rtol=1e-6)


def test_rows_have_their_log_weights(lib):
    model, guide, args = rows(lib)
    data = vi.to_arviz(lib.Loss(), model, guide, *args, num_samples=30)
    exact = evidence_of_rows().sum()
    np.testing.assert_allclose(data.sample_stats["log_weight"], exact, rtol=1e-6)
    assert data.posterior["z"].dims == ("chain", "draw", "data")


AZ1 = os.environ.get("VI_KIT_ARVIZ_1")
"""A folder with ArviZ 1.x (`pip install --target`), which Python 3.11 has no wheels for."""


@pytest.mark.skipif(AZ1 is None, reason="VI_KIT_ARVIZ_1 names no folder with ArviZ 1.x")
def test_arviz_1():
    code = """
import sys
sys.modules["arviz"] = None
import numpy as np, pyro, torch
import pyro.distributions as dist
import vi_kit as vi
from vi_kit.pyro import Loss
x = torch.linspace(-1, 1, 10)
def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
def guide(x):
    pyro.sample("z", dist.Normal(0.1, 0.3))
tree = vi.to_arviz(Loss(), model, guide, x, num_samples=500)
import arviz_stats
assert type(tree).__name__ == "DataTree"
assert tree.posterior["z"].dims == ("chain", "draw")
assert abs(arviz_stats.loo(tree).elpd) < 100
assert tree.sample_stats.attrs["pareto_k"] < 0.7
"""
    environ = {**os.environ, "PYTHONPATH": f"{AZ1}:."}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
