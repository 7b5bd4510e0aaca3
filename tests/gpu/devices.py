"""Where tests run: on the host, on a GPU where there is one, and on a device that is simulated in the host's memory.

The simulated one (`simulated.cpp`) is to torch a device of its own: tensors of the host among its tensors are errors,
and what the host would have to wait for is counted, as `torch.cuda.set_sync_debug_mode` does on a GPU. It draws by the
host's generator, so that all random numbers are those of a run on the host.
"""

from __future__ import annotations

import functools
import os
import shutil
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.libraries import PyroWords

SIMULATED = "simulated"
DEVICES: list[Any] = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IS_SIMULATED = os.environ.get("VI_KIT_SIMULATED") == "1"
"""In a process of its own: autograd counts the devices at its first backward pass."""


def available(name: str) -> str:
    """The device, or a skip that says why there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here: torch.cuda.is_available() is False")
    return name


def can_simulate() -> bool:
    """Whether the simulated device can be built."""
    return bool(shutil.which("c++") and shutil.which("ninja"))


def _simulated() -> None:
    from torch.utils import cpp_extension

    source = Path(__file__).with_name("simulated.cpp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpp_extension.load("simulated", [str(source)], is_python_module=False, extra_cflags=["-O0"])
    torch.utils.rename_privateuse1_backend(SIMULATED)  # pyright: ignore[reportPrivateImportUsage]
    module: Any = types.ModuleType(SIMULATED)
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.is_available = module.is_initialized = lambda: True
    module.device_count, module.current_device = lambda: 1, lambda: 0
    torch._register_device_module(SIMULATED, module)


@contextmanager
def waits(device: str) -> Iterator[list[str]]:
    """Where the host waits for the device."""
    found: list[str] = []
    if device == SIMULATED:
        torch.ops.simulated.waited()
        yield found
        found += torch.ops.simulated.waited()
    elif device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found += [str(w.message) for w in told if "synchroniz" in str(w.message)]
    else:
        with Waits() as counted:
            yield found
        found += counted.found


class Waits(TorchDispatchMode):
    """What would have to be waited for, of operations on the host."""

    NAMES = frozenset("_local_scalar_dense nonzero masked_select equal is_nonzero _unique2".split())

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class NoiseOfHost(TorchDispatchMode):
    """Random numbers of a GPU are drawn by the host's generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        at = [x.device for x in args if isinstance(x, torch.Tensor)]
        at += [kwargs["device"]] * (kwargs.get("device") is not None)
        here = [x.cpu() if isinstance(x, torch.Tensor) else x for x in args]
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        made = func(*here, **kwargs)
        if func._schema.is_mutable:
            return args[0].copy_(made)
        return made.to(at[0]) if at else made


class Distributions:
    """Those of Pyro, of numbers that are on the device already."""

    def __init__(self, lib: DeviceWords) -> None:
        self.lib = lib

    def __getattr__(self, name: str) -> Any:
        import pyro.distributions as dist

        def make(*args: Any, **kwargs: Any) -> Any:
            def here(x: Any) -> Any:
                return self.lib.array(x) if isinstance(x, float | np.floating) else x

            return getattr(dist, name)(*map(here, args), **{k: here(v) for k, v in kwargs.items()})

        return make


class DeviceWords(PyroWords):
    """The words of Pyro, for programs that live on a device."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.device, self.dtype = torch.device(device), dtype
        self.known: dict[Any, torch.Tensor] = {}
        self.dist = Distributions(self)

    def array(self, values: Any) -> Any:
        """Brought to the device once: a program that brings its constants there in each step waits for it."""
        array = np.asarray(values)
        key = array.dtype, array.shape, array.tobytes()
        if key not in self.known:
            made = torch.as_tensor(array, device=self.device)
            self.known[key] = made.to(self.dtype) if made.is_floating_point() else made
        return self.known[key]

    def theta(self, values: np.ndarray, name: str = "theta") -> Any:
        import pyro

        return pyro.param(name, lambda: torch.tensor(values, dtype=self.dtype, device=self.device))

    def here(self, program: Any) -> Any:
        """A program whose own arrays are made on the device; those of `vi_kit` are not."""

        @functools.wraps(program)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.device:
                return program(*args, **kwargs)

        return run

    def estimates(self, loss: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """See `PyroWords.estimates`; `waited` has what the last draw waited for."""
        return super().estimates(loss, self.here(model), self.here(guide), *args, **kwargs)

    def step(self, loss: Any, model: Any, guide: Any, args: tuple[Any, ...]) -> float:
        import pyro

        with waits(self.device.type) as self.waited:
            value = super().step(loss, model, guide, args)
        for param in pyro.get_param_store()._params.values():
            assert param.grad is None or param.grad.device.type == self.device.type
        return value


if IS_SIMULATED:
    _simulated()
    DEVICES = [SIMULATED]
