"""Simulation-based calibration: `vi.calibrate`."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.programs import X, normals, posterior_of_normals, rows
from tests.workflow.test_predictive import a_fit


def test_an_exact_amortised_guide_is_calibrated_and_a_narrow_one_is_not(lib):
    found = {}
    for scale in (None, 0.08):  # mutant: a sixth of the exact scale
        model, guide, args = rows(lib, scale=scale)
        found[scale] = vi.calibrate(
            lib.Loss(), model, guide, *args, num_simulations=25, num_samples=60
        )
    assert found[None].passed and not found[0.08].passed
    assert found[None].ranks["z"].shape == (25, 4)


def test_other_guides_are_fitted_anew(lib):
    model, guide, args = normals(lib)

    def refit(x):
        mean, scale = posterior_of_normals(np.asarray(x))
        _, own, _ = normals(lib, loc=mean, scale=scale)
        return a_fit(lib, model, own, (x,), {"theta": lib.array(np.array([mean]))})

    settings = {"num_simulations": 25, "num_samples": 60}
    assert vi.calibrate(lib.Loss(), model, guide, *args, refit=refit, **settings).passed
    # mutant: the guide that was fitted to other data
    assert not vi.calibrate(lib.Loss(), model, guide, *args, **settings).passed


class Both(NamedTuple):
    noise: float
    x: Any


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (lambda x: {"noise": 1.0, "all": {"x": x}}, lambda data: data["all"]["x"]),
        (lambda x: [1.0, (x,)], lambda data: data[1][0]),
        (lambda x: Both(1.0, x), lambda data: data.x),
    ],
    ids=["dict", "list", "named tuple"],
)
def test_data_in_containers(lib, packed, unpacked):
    """Each simulation has its own data there, and what was given is left as it was."""
    model, guide, (x,) = normals(lib)
    data, met = packed(x), []

    def refit(data):
        met.append(np.asarray(unpacked(data)))
        mean, scale = posterior_of_normals(met[-1])
        _, own, _ = normals(lib, loc=mean, scale=scale)
        programs = (lambda data: model(unpacked(data)), lambda data: own(unpacked(data)))
        return a_fit(lib, *programs, (data,), {"theta": lib.array(np.array([mean]))})

    programs = (lambda data: model(unpacked(data)), lambda data: guide(unpacked(data)))
    found = vi.calibrate(
        lib.Loss(), *programs, data, refit=refit, num_simulations=25, num_samples=60
    )
    assert found.passed and unpacked(data) is x
    assert len({one.tobytes() for one in met}) == 25


def test_data_that_are_no_arguments(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(X[0]))

    def guide():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    with pytest.raises(vi.BackendError, match="calibrate: data of the model are no arguments"):
        vi.calibrate(lib.Loss(), model, guide)
