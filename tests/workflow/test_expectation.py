"""Posterior means and resampled draws: `vi.expectation`, `vi.resample`."""

import functools

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import NOISE, X, normals, posterior_of_normals, rows
from tests.workflow.test_sample import deterministic_of, z_scores


def off_guide(lib):
    mean, scale = posterior_of_normals()
    return normals(lib, loc=mean + 0.5 * scale, scale=1.5 * scale)


def test_plain_means_are_those_of_the_guide_and_corrected_ones_of_the_posterior(lib):
    mean, scale = posterior_of_normals()
    model, guide, args = off_guide(lib)
    for psis, exact, other in (
        (False, mean + 0.5 * scale, mean),
        (True, mean, mean + 0.5 * scale),
    ):
        found = vi.expectation(lib.Loss(), model, guide, *args, psis=psis, num_samples=3000)
        assert abs(found.mean["z"] - exact) <= 5 * found.error["z"]
        # mutant: corrected for plain, and the other way round
        assert abs(found.mean["z"] - other) >= 8 * found.error["z"]
    assert found.pareto_k < 0.5


@pytest.mark.parametrize("loc", [0.0, 0.5])
def test_draws_that_are_impossible_have_no_weight(lib, loc):
    """A Normal cut at zero; with `loc` at zero all other weights are equal."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.factor("positive", lib.xp.where(z > 0, lib.array(0.0), lib.array(-np.inf)))

    def guide():
        lib.sample("z", lib.dist.Normal(loc, 1.0))

    found = vi.expectation(lib.Loss(), model, guide, psis=True, num_samples=3000)
    assert abs(found.mean["z"] - (2 / np.pi) ** 0.5) <= 5 * found.error["z"] < 0.2
    assert found.pareto_k < 0.5
    drawn = vi.resample(lib.Loss(), model, guide, num_samples=500)
    assert (drawn["z"] > 0).all()


def test_functions_of_a_draw(lib):
    mean, scale = posterior_of_normals()
    model, guide, args = off_guide(lib)
    found = vi.expectation(
        lib.Loss(),
        model,
        guide,
        *args,
        psis=True,
        num_samples=3000,
        function=lambda z: {"square": z["z"] ** 2, "both": np.stack([z["z"], -z["z"]])},
    )
    assert abs(found.mean["square"] - (mean**2 + scale**2)) <= 5 * found.error["square"]
    assert found.mean["both"].shape == (2,)


def test_resampled_draws_are_of_the_posterior(lib):
    mean, scale = posterior_of_normals()
    model, guide, args = off_guide(lib)
    drawn = vi.resample(lib.Loss(), model, guide, *args, num_samples=1000)
    assert drawn["z"].shape == (1000,)
    assert abs(z_scores(drawn["z"], mean)) <= 5
    assert abs(z_scores((drawn["z"] - mean) ** 2, scale**2)) <= 5
    # mutant: draws of the guide
    assert abs(z_scores(drawn["z"], mean + 0.5 * scale)) >= 8


def test_a_function_that_is_none(lib):
    model, guide, args = normals(lib)
    with pytest.raises(vi.ObjectiveError, match="expectation: the function cannot be called"):
        vi.expectation(lib.Loss(), model, guide, *args, function="z")


@pytest.mark.parametrize(
    "function",
    [
        lambda z: None,
        lambda z: {"z": "a word"},
        lambda z: {"big": z["z"]} if z["z"] > 1.0 else {"small": z["z"]},
        lambda z: np.zeros(1 + (z["z"] > 1.0)),
    ],
    ids=["none", "a word", "other names", "other shapes"],
)
def test_functions_without_a_mean(lib, function):
    model, guide, args = normals(lib)
    with pytest.raises(vi.ObjectiveError, match="the function returns what has no mean"):
        vi.expectation(lib.Loss(), model, guide, *args, num_samples=50, function=function)


MANY = np.tile(X, 50)
SLOPE, SCALE = 1 / (1 + NOISE**2), (NOISE**2 / (1 + NOISE**2)) ** 0.5


def many_rows(lib, with_total=False):
    """200 independent rows, a guide that is off by half a standard deviation."""
    model, _, args = rows(lib, x=MANY)

    def off(x):
        theta = lib.theta(np.array([SLOPE]))
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(theta[0] * x + 0.5 * SCALE, 1.5 * SCALE))
        if with_total:
            deterministic_of(lib)("total", z.sum())

    return model, off, args


def test_independent_rows_are_corrected_by_their_own_weights(lib):
    model, guide, args = many_rows(lib)
    found = vi.expectation(lib.Loss(), model, guide, *args, psis=True, num_samples=2000)
    z = (found.mean["z"] - SLOPE * MANY) / found.error["z"]
    assert found.pareto_k < 0.7 and abs(z).max() <= 5 and 0.8 < np.std(z) < 1.2
    # mutant: the joint weights, which leave a draw or two
    assert (found.error["z"] < 0.1 * SCALE).all()


def test_functions_of_independent_rows(lib):
    model, guide, args = many_rows(lib)
    found = vi.expectation(
        lib.Loss(),
        model,
        guide,
        *args,
        psis=True,
        num_samples=2000,
        function=lambda z: {"mean": z["z"].mean(), "square": z["z"].mean() ** 2},
    )
    mean, variance = SLOPE * MANY.mean(), SCALE**2 / len(MANY)
    assert abs(found.mean["mean"] - mean) <= 5 * found.error["mean"]
    assert abs(found.mean["square"] - (mean**2 + variance)) <= 5 * found.error["square"]
    # mutant: draws of the guide
    assert abs(0.5 * SCALE) >= 8 * found.error["mean"]


def test_independent_rows_are_resampled_one_by_one(lib):
    model, guide, args = many_rows(lib)
    drawn = vi.resample(lib.Loss(), model, guide, *args, num_samples=500)["z"]
    assert drawn.shape == (500, 200)
    assert len(np.unique(drawn[:, 0])) > 300  # mutant: by joint weights a dozen
    z = (drawn - SLOPE * MANY) / SCALE
    assert (abs(z.mean(axis=0)) <= 5 * (1 / 500 + 1 / 1000) ** 0.5).all()
    assert abs((z**2).mean() - 1) < 0.05
    means = z.mean(axis=1) * 200**0.5  # rows are as independent as they are in the posterior
    assert abs(means.var() - 1) <= 5 * (2 / 500) ** 0.5


def test_values_of_several_rows(lib):
    model, guide, args = many_rows(lib, with_total=True)
    with pytest.raises(
        vi.BackendError, match=r"resample: rows are weighed one by one(.|\n)*'total'"
    ):
        vi.resample(lib.Loss(), model, guide, *args, num_samples=50)
    ask = functools.partial(vi.expectation, lib.Loss(), model, guide, *args, psis=True)
    found = ask(num_samples=500)
    assert found.pareto_k > 0.7 and found.error["z"].max() < 0.2 * SCALE
    with pytest.raises(vi.BackendError, match="expectation: rows are weighed one by one"):
        ask(num_samples=50, function=lambda z: z["total"])
    total = ask(num_samples=500, function=lambda z: z["z"].sum())
    assert abs(total.mean["value"] - SLOPE * MANY.sum()) <= 5 * total.error["value"]
