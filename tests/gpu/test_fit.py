"""A fit on a device: as on the host, its checkpoints among it; data on another device are told."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from tests.gpu.devices import DEVICES, IS_SIMULATED, SIMULATED, available, can_simulate
from vi_kit.numpyro import fit as numpyro_fit
from vi_kit.pyro import Loss, fit

X = np.linspace(-1.0, 3.0, 8)


def programs(device):
    here = {"device": device, "dtype": torch.float64}
    one, start, x = torch.ones((), **here), torch.zeros(2, **here), torch.tensor(X, **here)

    def model(x):
        z = pyro.sample("z", dist.Normal(one, one))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, one), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: start.clone())
        pyro.sample("z", dist.Normal(loc[0], loc[1].exp()))

    return model, guide, x


def fitted(device, num_steps, **kwargs):
    pyro.clear_param_store()
    model, guide, x = programs(device)
    kind = {"estimators": vi.Score(vi.MovingAverage()), "optimizer": 0.05, "progress": False}
    return fit(model, guide, x, num_steps=num_steps, num_samples=3, **kind, **kwargs)


@pytest.mark.parametrize("device", DEVICES)
def test_goes_on_from_a_checkpoint(device, tmp_path):
    """With what the baseline and the optimiser keep on the device, and with its random numbers."""
    device = available(device)
    states = [g.clone() for g in _states(device)]
    whole = fitted(device, 30)
    fitted(device, 15, checkpoint=tmp_path)
    again = fitted(device, 30, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert again.params["loc"].device.type == device
    assert all(map(torch.equal, _states(device), states))  # the user's generators are left alone


def _states(device):
    states = [torch.get_rng_state()]
    return [*states, *torch.cuda.get_rng_state_all()] if device == "cuda" else states


@pytest.mark.parametrize("device", [d for d in DEVICES if d != "cpu"])
def test_a_checkpoint_of_the_host_on_a_device(device, tmp_path):
    device = available(device)
    fitted("cpu", 15, checkpoint=tmp_path)
    there = fitted(device, 20, checkpoint=tmp_path)
    assert there.num_steps == 20
    assert there.params["loc"].device.type == device


@pytest.mark.parametrize("device", [d for d in DEVICES if d != "cpu"])
def test_data_on_another_device(device):
    device = available(device)
    model, guide, x = programs("cpu")
    with pytest.raises(vi.ViKitError, match="tensors on several devices") as told:
        Loss().loss_and_grads(model, guide, x.to(device))
    assert f"arguments on {device}:0; parameters loc on cpu" in str(told.value)


def test_numpyro_brings_nothing_to_the_device_between_steps():
    """After the first callback JAX is told to refuse what it would read back by itself; what `fit` reads, it asks for.

    It can fail on a device alone: on the CPU nothing is brought back.
    """

    def model(x):
        z = numpyro.sample("z", ndist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", ndist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = numpyro.param("loc", jnp.zeros(()))
        numpyro.sample("z", ndist.Normal(loc, 1.0))

    seen = []

    def callback(moment):
        seen.append(moment)
        if len(seen) == 1:
            jax.config.update("jax_transfer_guard_device_to_host", "disallow")

    try:
        found = numpyro_fit(
            model,
            guide,
            jnp.asarray(X),
            num_steps=60,
            callbacks=callback,
            callback_every=20,
            progress=False,
        )
    finally:
        jax.config.update("jax_transfer_guard_device_to_host", "allow")
    assert found.num_steps == 60
    assert len(seen) == 3


@pytest.mark.skipif(IS_SIMULATED, reason="this is the process")
@pytest.mark.skipif(not can_simulate(), reason="no c++ and ninja to build the simulated device")
def test_on_the_simulated_device():
    """All tests of this folder that are run on devices."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", SIMULATED]
    done = subprocess.run(
        [*command, Path(__file__).parent],
        env={**os.environ, "VI_KIT_SIMULATED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.gpu
def test_compiled_steps_replay_a_cuda_graph():
    """They are those of the uncompiled fit."""
    available("cuda")
    compiled = fitted("cuda", 60, compile=True)
    np.testing.assert_allclose(compiled.losses, fitted("cuda", 60).losses, rtol=1e-6)


@pytest.mark.gpu
def test_the_host_waits_for_no_value_of_a_step():
    """Where waiting is an error of CUDA's own."""
    device = available("cuda")
    model, guide, x = programs(device)
    with pyro.validation_enabled(False):
        loss = Loss(estimators=vi.Score(vi.MovingAverage()), num_samples=3)
        loss.differentiable_loss(model, guide, x).backward()  # plans
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss.differentiable_loss(model, guide, x).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
