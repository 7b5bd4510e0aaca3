"""Draws of a guide: `vi.sample`."""

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import X, normals, posterior_of_normals, rows


def z_scores(draws, mean):
    return (draws.mean(axis=0) - mean) / (draws.std(axis=0, ddof=1) / len(draws) ** 0.5)


def test_draws_are_those_of_the_guide(lib):
    model, guide, args = normals(lib)
    drawn = vi.sample(lib.Loss(), model, guide, *args, num_samples=2000)
    assert drawn.keys() == {"z"} and drawn["z"].shape == (2000,)
    mean, scale = posterior_of_normals()
    assert abs(z_scores(drawn["z"], mean)) <= 5
    assert abs(z_scores((drawn["z"] - mean) ** 2, scale**2)) <= 5
    # mutant: draws of the prior
    assert abs(z_scores(drawn["z"], 0.0)) >= 8


def test_the_seed_says_which(lib):
    model, guide, args = rows(lib)
    one, again = (vi.sample(lib.Loss(), model, guide, *args, num_samples=3) for _ in range(2))
    other = vi.sample(lib.Loss(), model, guide, *args, num_samples=3, seed=1)
    assert one["z"].shape == (3, len(X))
    assert (one["z"] == again["z"]).all() and (one["z"] != other["z"]).all()
    assert len(set(one["z"].ravel())) == one["z"].size


def test_deterministic_sites_are_of_the_same_draw(lib):
    deterministic = deterministic_of(lib)

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        deterministic("double", 2 * z)

    def guide():
        z = lib.sample("z", lib.dist.Normal(1.0, 1.0))
        deterministic("square", z**2)

    drawn = vi.sample(lib.Loss(), model, guide, num_samples=20)
    assert set(drawn) == {"z", "square", "double"}
    np.testing.assert_allclose(drawn["double"], 2 * drawn["z"])
    np.testing.assert_allclose(drawn["square"], drawn["z"] ** 2)


def test_subsampled_rows_and_their_indices(lib):
    table = np.arange(10.0)

    def locals_of(name):
        def program():
            with lib.plate("data", 10, subsample_size=4) as rows:
                lib.sample(name, lib.dist.Normal(lib.array(table)[rows], 1e-6))

        return program

    drawn = vi.sample(lib.Loss(), locals_of("z"), locals_of("z"), num_samples=30)
    assert drawn["data"].shape == drawn["z"].shape == (30, 4)
    np.testing.assert_allclose(drawn["z"], table[drawn["data"]], atol=1e-4)
    assert len({tuple(r) for r in drawn["data"]}) > 10


def test_events_discrete_sites_and_masks(lib):
    def model():
        lib.sample("w", lib.dist.Dirichlet(lib.array(np.ones(3))))
        with lib.plate("data", 2), lib.handlers.mask(mask=lib.array(np.array([True, False]))):
            lib.sample("k", lib.dist.Categorical(probs=lib.array(np.array([0.1, 0.9]))))

    drawn = vi.sample(lib.Loss(), model, model, num_samples=400)
    assert drawn["w"].shape == (400, 3) and drawn["k"].shape == (400, 2)
    np.testing.assert_allclose(drawn["w"].sum(-1), 1.0, rtol=1e-6)
    assert (abs(z_scores(drawn["k"], 0.9)) <= 5).all()


def test_what_is_summed_out_is_left_out(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("k", lib.dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        lib.sample("l", lib.dist.Bernoulli(0.5))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(1.0))

    def guide():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    drawn = vi.sample(lib.Loss(marginalize=["l"]), model, guide, num_samples=2)
    assert set(drawn) == {"z"}


def test_a_guide_by_resampling(lib):
    model, guide, args = normals(lib, loc=0.5, scale=1.0)
    posterior = vi.normalize(model, vi.SIR(guide, num_particles=60))
    drawn = vi.sample(lib.Loss(), model, posterior, *args, num_samples=1500)
    mean, _ = posterior_of_normals()
    assert abs(z_scores(drawn["z"], mean)) <= 5
    # mutant: draws of the proposal
    assert abs(z_scores(drawn["z"], 0.5)) >= 8


def test_a_marginal_keeps_some_sites(lib):
    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    def guide():
        u = lib.sample("u", lib.dist.Bernoulli(0.5))
        lib.sample("z", lib.dist.Normal(4.0 * u, 1.0))

    kept = vi.marginal(guide, ["z"], vi.Exact())
    assert set(vi.sample(lib.Loss(), model, kept, num_samples=2)) == {"z"}


def test_other_programs_of_programs_are_refused(lib):
    model, guide, args = normals(lib)
    posterior = vi.normalize(model, vi.SMC(guide, num_particles=2))
    with pytest.raises(vi.BackendError, match="sample: no plain draws"):
        vi.sample(lib.Loss(), model, posterior, *args)


@pytest.mark.parametrize("given", [(), (3,), ("model",)])
def test_what_is_neither_a_fit_nor_programs(given, lib):
    with pytest.raises(vi.ObjectiveError, match="neither a fit nor a loss"):
        vi.sample(lib.Loss(), *given)


def test_num_samples_is_a_count(lib):
    model, guide, args = normals(lib)
    with pytest.raises(vi.ObjectiveError, match="num_samples"):
        vi.sample(lib.Loss(), model, guide, *args, num_samples=0)


def deterministic_of(lib):
    import numpyro
    import pyro

    return {"pyro": pyro, "numpyro": numpyro}[lib.name].deterministic
