"""Every test starts from double precision, an empty param store and a known seed."""

import pytest


@pytest.fixture(autouse=True)
def clean_pyro():
    import pyro
    import torch

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)
    pyro.clear_param_store()
