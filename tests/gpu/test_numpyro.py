"""NumPyro's estimators on a device that is not the one that JAX takes: as there.

What a program has is placed on the device, so that an array that is placed on another one is an error.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conformance.shapes import Independent
from tests.gpu.test_estimators import ESTIMATORS, OBJECTIVES, programs
from tests.libraries import NumPyroWords
from tests.oracles import seed_of

OF_TORCH = ("relax", "neural")
"""Whose networks are; those of NumPyro are ordinary parameters."""
CASES = [(name, "elbo") for name in ESTIMATORS if name not in OF_TORCH] + [
    *(("reparam", name) for name in OBJECTIVES if name != "elbo"),
    ("enumerate", "iwae"),
    ("loo", "iwae"),
]
DEVICES = ["second", pytest.param("gpu", marks=pytest.mark.gpu)]
SECOND = "--xla_force_host_platform_device_count=2"


def available(name):
    """The device, or a skip that says why there is none."""
    if name == "second":
        if len(jax.devices("cpu")) < 2:
            pytest.skip("one device of the host here: test_on_a_second_device has two")
        return jax.devices("cpu")[1]
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU here: JAX has none")


class PlacedWords(NumPyroWords):
    """The words of NumPyro, with arrays on one device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.met = device, set()

    def array(self, values):
        return jax.device_put(super().array(values), self.device)

    def value_and_grads(self, loss, model, guide, values, seed):
        """In one run after the other operation, and of a compiled one: the loss and its gradient."""
        guide = loss.with_state(guide)
        key = jax.device_put(jax.random.key(seed), self.device)
        with self.handlers.seed(rng_seed=key), self.handlers.trace() as trace:
            guide()
        own = {n: s["value"] for n, s in trace.items() if s["type"] in ("param", "mutable")}
        params = jax.device_put({**own, "theta": self.array(values)}, self.device)

        def value(theta, params, key):
            given = {**params, "theta": theta}
            return loss.loss_with_mutable_state(key, given, model, guide)["loss"]

        found = []
        for run in (jax.value_and_grad(value), jax.jit(jax.value_and_grad(value))):
            made = run(params["theta"], params, key)
            for x in jax.tree.leaves(made):
                assert x.devices() == {self.device}
            found.append(np.append(*map(np.asarray, made)))
        return np.array(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("estimator", "objective"), CASES)
def test_on_a_device_as_on_the_first(estimator, objective, device):
    device, seed = available(device), seed_of(f"{estimator}{objective}")
    family, make = ESTIMATORS[estimator]
    found = []
    for one in (jax.devices("cpu")[0], device):
        lib = PlacedWords(one)
        loss = lib.Loss(OBJECTIVES[objective], make(), num_samples=2)
        found.append(lib.value_and_grads(loss, *programs(family, Independent, lib), seed))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0][0], found[0][1], rtol=1e-9)  # compiled or not
    assert np.abs(found[0][:, 1:]).max() > 1e-3


@pytest.mark.skipif(SECOND in os.environ.get("XLA_FLAGS", ""), reason="this is the process")
@pytest.mark.parametrize("cases", ["second and loo and elbo", "second"])
def test_on_a_second_device(cases):
    """Tests of this file that are run on devices, where there are two of the host."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", cases, __file__],
        env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {SECOND}"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
