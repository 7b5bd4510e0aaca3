"""What only the guide observes, as where model and guide were exchanged."""

import warnings

import numpy as np
import pytest

import vi_kit as vi


def programs(lib, infer=None):
    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 2):
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x, infer=infer or {})

    def guide(x):
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    return model, guide, lib.array(np.array([1.0, 2.0]))


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(3)], ids=str)
def test_programs_that_were_exchanged(lib, objective):
    model, guide, x = programs(lib)
    with pytest.warns(UserWarning, match="'x' is observed in the guide.*exchanged"):
        lib.Loss(objective).explain(guide, model, x)


def test_what_is_meant_is_not_told(lib):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, guide, x = programs(lib)
        lib.Loss().explain(model, guide, x)
        lib.Loss().explain(model, model, x)  # the prior, with the likelihood in both
        model, guide, x = programs(lib, {"is_auxiliary": True})
        lib.Loss().explain(guide, model, x)
