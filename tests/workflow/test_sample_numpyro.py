"""Draws of NumPyro's programs as people write them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import autoguide

import vi_kit as vi
from vi_kit.numpyro import Loss, fit
from vi_kit.numpyro import draws as numpyro_draws

X = jnp.array([0.3, 1.0, -0.5])


def hierarchy(x):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, scale))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize(
    "make",
    [
        autoguide.AutoNormal,
        autoguide.AutoDelta,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    ],
    ids=lambda m: m.__name__,
)
def test_autoguides(make):
    drawn = vi.sample(Loss(), hierarchy, make(hierarchy), X, num_samples=50)
    assert {n: drawn[n].shape for n in ("loc", "scale", "z")} == {
        "loc": (50,),
        "scale": (50,),
        "z": (50, 3),
    }
    assert (drawn["scale"] > 0).all()
    assert len(np.unique(drawn["z"])) == (3 if make is autoguide.AutoDelta else 150)


def test_autoguide_list():
    guide = autoguide.AutoGuideList(hierarchy)
    guide.append(autoguide.AutoDelta(numpyro.handlers.block(hierarchy, expose=["scale"])))
    guide.append(autoguide.AutoNormal(numpyro.handlers.block(hierarchy, hide=["scale"])))
    drawn = vi.sample(Loss(), hierarchy, guide, X, num_samples=10)
    assert drawn["z"].shape == (10, 3) and len(set(drawn["scale"].tolist())) == 1


def test_sites_in_a_scan():
    def program():
        def step(carry, _):
            z = numpyro.sample("z", dist.Normal(carry, 1.0))
            return z, numpyro.deterministic("double", 2 * z)

        scan(step, 0.0, None, length=4)

    drawn = vi.sample(Loss(), program, program, num_samples=2000)
    assert drawn["z"].shape == (2000, 4)
    np.testing.assert_allclose(drawn["double"], 2 * drawn["z"], rtol=1e-5)
    variance = drawn["z"].var(axis=0)
    z = (variance - np.arange(1, 5)) / (np.arange(1, 5) * (2 / 2000) ** 0.5)
    assert (abs(z) <= 5).all()
    # mutant: independent steps
    assert abs((variance[3] - 1) / (2 / 2000) ** 0.5) >= 8


def test_params_are_those_given_and_else_the_first():
    def guide():
        numpyro.sample(
            "z", dist.Normal(numpyro.param("loc", lambda key: jax.random.normal(key)), 1e-6)
        )

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    first = vi.sample(Loss(), model, guide, num_samples=3)["z"]
    assert np.ptp(first) < 1e-4
    given = vi.sample(Loss(), model, guide, num_samples=3, params={"loc": jnp.array(5.0)})["z"]
    np.testing.assert_allclose(given, 5.0, atol=1e-4)
    for call in (vi.sample, vi.expectation, vi.check_unbiased):
        with pytest.raises(vi.ObjectiveError, match=r"(?s)no use for 'Loc'.*'loc': \.\.\."):
            call(Loss(), model, guide, params={"Loc": jnp.array(5.0)})


def test_parameters_of_a_baseline_are_no_parameters_of_programs():
    """A fit holds them with the others; whoever draws, or scores new rows, has no use for them."""

    def model(x):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logits", jnp.array(0.3))))

    baseline = vi.NeuralBaseline(lambda x: numpyro.param("baseline_w", jnp.array(0.1)) * x)
    found = fit(model, guide, jnp.array(1.0), estimators=vi.Score(baseline), num_steps=3)
    assert "baseline_w" in found.params
    assert found.sample(num_samples=3)["z"].shape == (3,)
    assert np.isfinite(found.heldout(jnp.array(2.0), num_samples=5).log_prob)
    assert np.isfinite(vi.expectation(found, num_samples=5).mean["z"])


def test_chunks_do_not_matter(monkeypatch):
    model, guide = hierarchy, autoguide.AutoNormal(hierarchy)
    whole = vi.sample(Loss(), model, guide, X, num_samples=7)
    monkeypatch.setattr(numpyro_draws, "CHUNK_BYTES", 200)
    parts = vi.sample(Loss(), model, guide, X, num_samples=7)
    for name, values in whole.items():
        np.testing.assert_allclose(values, parts[name], rtol=1e-6)


def test_semi_dais_draws_its_local_sites():
    def global_model():
        return {"loc": numpyro.sample("loc", dist.Normal(0.0, 1.0))}

    def local_model(found):
        with numpyro.plate("data", 3, subsample_size=3):
            z = numpyro.sample("z", dist.Normal(found["loc"], 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def model():
        local_model(global_model())

    base = autoguide.AutoNormal(global_model)
    guide = autoguide.AutoSemiDAIS(model, local_model, base, K=2)
    drawn = vi.sample(Loss(), model, guide, num_samples=5)
    assert drawn["z"].shape == (5, 3) and np.isfinite(drawn["z"]).all()
