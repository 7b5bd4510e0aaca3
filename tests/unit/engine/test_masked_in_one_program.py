"""A latent site that is masked in the model only: its density in the guide counts alone."""

import warnings

import numpy as np
import pytest

import vi_kit as vi


def programs(lib, in_guide, masked=False):
    mask = lib.array(np.array([True, True, masked]))

    def model():
        with lib.plate("data", 3), lib.handlers.mask(mask=mask):
            lib.sample("z", lib.dist.Normal(0.0, 1.0))

    def guide():
        with lib.plate("data", 3):
            if in_guide:
                with lib.handlers.mask(mask=mask):
                    lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(3)), 1.0))
            else:
                lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(3)), 1.0))

    return model, guide


def test_it_is_told(lib):
    with pytest.warns(UserWarning, match="'z' is masked in the model and not in the guide"):
        lib.Loss().explain(*programs(lib, False))


def test_what_is_right_is_not(lib):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib.Loss().explain(*programs(lib, True))
        if lib.name == "pyro":  # where programs are traced what a mask leaves out is not known
            lib.Loss().explain(*programs(lib, False, masked=True))


@pytest.mark.parametrize(
    "objective", [vi.forward_kl(3), vi.wake_sleep(3, insomnia=0.5), vi.eubo(3)], ids=str
)
def test_data_that_are_masked_are_no_such_site(lib, objective):
    """Also where the model draws them."""
    mask = lib.array(np.array([True, False, True]))

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3), lib.handlers.mask(mask=mask):
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib.Loss(objective).explain(model, guide, lib.array(np.ones(3)))


@pytest.mark.parametrize("by_handler", [False, True])
def test_a_flat_prior_is_no_such_site(lib, by_handler):
    """`.mask(False)` is how an improper prior is written."""

    def model(x):
        normal = lib.dist.Normal(0.0, 1.0)
        with lib.handlers.mask(mask=not by_handler):
            z = lib.sample("z", normal if by_handler else normal.mask(False))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib.Loss().explain(model, guide, lib.array(np.asarray(1.0)))
