"""Prior and posterior predictive draws: `vi.predictive`."""

import contextlib

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import NOISE, X, normals, posterior_of_normals, rows
from tests.workflow.test_sample import deterministic_of, z_scores


def test_the_posterior_predictive_is_the_closed_form(lib):
    model, guide, args = normals(lib)
    drawn = vi.predictive(lib.Loss(), model, guide, *args, num_samples=4000)
    assert drawn.keys() == {"x"} and drawn["x"].shape == (4000, len(X))
    mean, scale = posterior_of_normals()
    variance = scale**2 + NOISE**2
    assert (abs(z_scores(drawn["x"], mean)) <= 5).all()
    assert (abs(z_scores((drawn["x"] - mean) ** 2, variance)) <= 5).all()
    # mutants: the data themselves; the noise alone
    assert (abs(z_scores(drawn["x"], X)) >= 8).any()
    assert (abs(z_scores((drawn["x"] - mean) ** 2, NOISE**2)) >= 8).any()


def test_the_prior_predictive_is_the_closed_form(lib):
    model, guide, args = normals(lib)
    drawn = vi.predictive(lib.Loss(), model, guide, *args, num_samples=4000, prior=True)
    assert drawn.keys() == {"z", "x"}
    assert (abs(z_scores(drawn["x"], 0.0)) <= 5).all()
    assert abs(z_scores(drawn["z"] * drawn["x"][:, 0], 1.0)) <= 5  # of the same run; mutant: 0
    assert abs(z_scores(drawn["z"] * drawn["x"][:, 0], 0.0)) >= 8
    assert (abs(z_scores(drawn["x"] ** 2, 1 + NOISE**2)) <= 5).all()
    assert abs(z_scores(drawn["x"][:, 0] * drawn["x"][:, 1], 1.0)) <= 5  # they share z


def test_new_rows_of_an_amortised_guide(lib):
    model, guide, _ = rows(lib)
    new = np.array([5.0, -3.0])
    drawn = vi.predictive(lib.Loss(), model, guide, lib.array(new), num_samples=2000)
    assert drawn["x"].shape == (2000, 2)
    assert (abs(z_scores(drawn["x"], new / (1 + NOISE**2))) <= 5).all()


def test_data_that_are_not_there(lib):
    def model(x=None):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(z, 0.1), obs=x)

    def guide(x=None):
        lib.sample("z", lib.dist.Normal(2.0, 0.01))

    for prior, mean in ((False, 2.0), (True, 0.0)):
        drawn = vi.predictive(lib.Loss(), model, guide, num_samples=500, prior=prior)
        assert drawn.keys() == ({"z", "x"} if prior else {"x"})
        assert drawn["x"].shape == (500, 3)
        assert (abs(z_scores(drawn["x"], mean)) <= 5).all()


def test_partly_observed(lib):
    seen = np.array([True, False, True])

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(z, 0.1), obs=x, obs_mask=lib.array(seen))

    def guide(x):
        lib.sample("z", lib.dist.Normal(2.0, 0.01))
        with lib.plate("data", 3):
            lib.sample("x_unobserved", lib.dist.Normal(2.0, 0.1))

    drawn = vi.predictive(lib.Loss(), model, guide, lib.array(np.zeros(3)), num_samples=500)
    assert drawn.keys() == {"x"} and drawn["x"].shape == (500, 3)
    assert (
        abs(z_scores(drawn["x"], 2.0)) <= 5
    ).all()  # mutant: the data, zero, where they are seen


def per_row(lib, x):
    def model(x):
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    def guide(x):
        loc = lib.theta(np.zeros(4))
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(loc, 1.0))

    return model, guide


def test_rows_that_do_not_fit_are_one_error(lib):
    model, guide = per_row(lib, X)
    fit = a_fit(lib, model, guide, (lib.array(X),), {"theta": lib.array(np.zeros(4))})
    assert fit.predictive(num_samples=2)["x"].shape == (2, 4)
    with pytest.raises(vi.BackendError, match=r"does not fit these arguments(.|\n)*theta \(4,\)"):
        fit.predictive(lib.array(np.zeros(3)), num_samples=2)


def test_sites_that_are_summed_out(lib):
    def mixture(k_inside):
        def model(x):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            k = 0.0 if k_inside else enumerated()
            with lib.plate("data", len(x)):
                k = enumerated() if k_inside else k
                lib.sample("x", lib.dist.Normal(z + 10.0 * k, 0.1), obs=x)

        return model

    def enumerated():
        return lib.sample("k", lib.dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    def guide(x):
        lib.sample("z", lib.dist.Normal(0.0, 0.01))

    x = lib.array(np.zeros(2))
    drawn = vi.predictive(lib.Loss(), mixture(True), guide, x, num_samples=500)
    assert (abs(z_scores(drawn["x"], 5.0)) <= 5).all()
    with pytest.raises(vi.BackendError, match=r"stand outside all plates(.|\n)*'k'"):
        vi.predictive(lib.Loss(), mixture(False), guide, x)


def a_fit(lib, model, guide, args, params):
    from vi_kit.workflow.fitted import Fit

    values = np.zeros(1)
    return Fit(model, guide, args, {}, lib.Loss(), params, values, values, "", "", {}, {}, 0)


def test_deterministic_values_in_a_plate_keep_their_shape(lib):
    deterministic = deterministic_of(lib)

    def model(y):
        mu = lib.sample("mu", lib.dist.Normal(0.0, 1.0))
        with lib.plate("J", 4):
            theta = deterministic("theta", mu + lib.array(np.zeros(4)))
            lib.sample("y", lib.dist.Normal(theta, 1.0), obs=y)

    def guide(y):
        lib.sample("mu", lib.dist.Normal(3.0, 0.1))

    args = (lib.Loss(), model, guide, lib.array(np.zeros(4)))
    # with few draws each is run by itself; mutant: expanded by the plate once more, (n, 4, 4)
    for num in (3, 50):
        for prior in (False, True):
            found = vi.predictive(*args, num_samples=num, prior=prior)
            assert found["y"].shape == (num, 4)
            assert found.keys() == ({"mu", "theta", "y"} if prior else {"y"})
            if prior:
                np.testing.assert_allclose(
                    found["theta"], found["mu"][:, None] * np.ones(4), rtol=1e-5
                )
        groups = vi.to_arviz(*args, num_samples=num)
        for group, name in (
            ("posterior", "theta"),
            ("prior", "theta"),
            ("posterior_predictive", "y"),
        ):
            assert groups[group][name].dims == ("chain", "draw", "J")
            assert groups[group][name].shape == (1, num, 4)
    drawn = vi.predictive(*args, num_samples=4000)["y"]
    assert (abs(z_scores(drawn, 3.0)) <= 5).all()
    assert (abs(z_scores((drawn - 3.0) ** 2, 1.01)) <= 5).all()


@pytest.mark.parametrize("in_plate", [False, True])
def test_what_cannot_be_drawn_is_named(lib, in_plate):
    """An improper prior, and an improper site that the guide lacks (`lacks`), so that the model would draw it."""
    outer = (lambda: lib.plate("rows", 4)) if in_plate else contextlib.nullcontext

    def model():
        lib.sample("a", lib.dist.Normal(0.0, 1.0))
        with outer():
            z = lib.sample("z", lib.dist.ImproperUniform(lib.dist.constraints.real, (), ()))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(np.zeros(4 if in_plate else ())))

    def lacks():
        lib.sample("a", lib.dist.Normal(0.0, 1.0))

    def guide():
        lacks()
        with outer():
            lib.sample("z", lib.dist.Normal(0.0, 1.0))

    drawn = vi.predictive(lib.Loss(), model, guide, num_samples=3)
    assert drawn.keys() == {"x"}
    for own, prior in ((guide, True), (lacks, False)):
        with pytest.raises(vi.BackendError, match="site 'z': one cannot draw from ImproperUniform"):
            vi.predictive(lib.Loss(), model, own, num_samples=3, prior=prior)


def test_errors_of_the_program_stay_as_they_are(lib):
    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))
        raise NotImplementedError("of mine")

    def guide():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="of mine"):
        vi.predictive(lib.Loss(), model, guide, num_samples=3)


def test_a_factor_is_no_prior(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(3.0, 0.01))
        lib.factor("energy", -(z**2))

    drawn = vi.predictive(lib.Loss(), model, model, num_samples=50, prior=True)
    assert drawn.keys() == {"z"} and abs(drawn["z"] - 3.0).max() < 0.1
