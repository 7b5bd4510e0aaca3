"""Posterior means and resampled draws: `vi.expectation`, `vi.resample`."""

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import normals, posterior_of_normals
from tests.workflow.test_sample import z_scores


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
