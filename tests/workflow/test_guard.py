"""Fits that leave the range of a distribution say where."""

import importlib

import numpy as np
import pytest

import vi_kit as vi


def test_a_scale_that_a_step_made_negative_is_told_with_its_line(lib):
    fit = importlib.import_module(f"vi_kit.{lib.name}").fit

    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    def guide():
        scale = lib.theta(np.array([3.0]))[0]
        lib.sample("z", lib.dist.Normal(4.0, scale))  # without a constraint

    kwargs = {"num_steps": 50, "optimizer": _descent(lib)}
    with pytest.raises(vi.NotFiniteError, match="out of its range") as caught:
        fit(model, guide, **kwargs)
    text = str(caught.value)
    assert "test_guard.py" in text and "without a constraint" in text and "constraint=" in text
    assert text.startswith(f"step {caught.value.fit.num_steps + 1}:")
    assert isinstance(caught.value.__cause__, ValueError)


def _descent(lib):
    """Steps that are much too long."""
    if lib.name == "pyro":
        import torch

        return lambda params: torch.optim.SGD(params, 5.0)
    import optax

    return optax.sgd(5.0)
