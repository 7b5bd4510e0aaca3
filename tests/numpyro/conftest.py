"""NumPyro in double precision, as the oracles are."""

import numpyro
import pytest


@pytest.fixture(autouse=True)
def double_precision():
    numpyro.enable_x64()
