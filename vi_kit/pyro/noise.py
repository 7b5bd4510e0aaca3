"""The random numbers that a program draws besides its sites, as dropout does: a draw has its own, and whoever evaluates
the program there again sees the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes


@dataclass(frozen=True, eq=False)
class Generators:
    """The state of all generators of random numbers."""

    torch_states: list[torch.Tensor]
    of_python: Any
    of_numpy: Any

    @classmethod
    def now(cls) -> Generators:
        return cls(noise_states(), random.getstate(), np.random.get_state())

    def restore(self) -> None:
        set_noise(self.torch_states)
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)

    def same(self, other: Generators) -> bool:
        pairs = zip(self.torch_states, other.torch_states, strict=False)
        with _disable_current_modes():  # a step that is captured does not ask for it
            same = all(map(torch.equal, *zip(*pairs, strict=True)))
        return same and self.same_outside_torch(other)

    def same_outside_torch(self, other: Generators) -> bool:
        """Whether other libraries have drawn nothing."""
        kept = zip(self.of_numpy, other.of_numpy, strict=True)
        return self.of_python == other.of_python and all(np.array_equal(a, b) for a, b in kept)


@contextmanager
def buffers_kept() -> Iterator[dict[Any, Any]]:
    """Afterwards the buffers of modules that are called, as the averages of batch normalisation, are what they were,
    but for those that are taken out of what it gives."""
    kept: dict[tuple[int, str], tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = {}

    def keep(module: torch.nn.Module, inputs: Any) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None and (id(module), name) not in kept:
                kept[id(module), name] = module, buffer, buffer.detach().clone()

    hook = register_module_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
        for (_, name), (module, buffer, old) in kept.items():
            with _disable_current_modes():  # a step that is captured does not ask for it
                same = torch.equal(buffer, old)
            if not same:  # what is not written can still be differentiated
                buffer.detach().copy_(old)
            module._buffers[name] = buffer


@dataclass(eq=False)
class Noise:
    """Watches the generators while a program runs.

    Attributes:
        before: where they stood at its start (`None`) and after each of its latent sites, in the first run.
        again: whether that is what this run shall see.
        found: whether anything but a site drew from them.
    """

    before: dict[str | None, Generators]
    again: bool = False
    found: bool = False
    last: Generators = field(default_factory=Generators.now)
    outside: Generators = field(default_factory=Generators.now)

    def start(self) -> None:
        self._passed(None)

    def at_site(self) -> None:
        """A latent site is about to draw."""
        self.found |= not self.last.same(Generators.now())

    def after_site(self, name: str) -> None:
        self._passed(name)

    def stop(self) -> None:
        self.at_site()
        if self.again:
            self.outside.restore()

    def _passed(self, name: str | None) -> None:
        if self.again and name in self.before:
            self.before[name].restore()
        self.last = Generators.now()
        if not self.again:
            self.before[name] = self.last


def generators() -> list[torch.Generator]:
    """Those of torch: of the host, and of devices that are in use."""
    of_devices = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *of_devices]


def noise_states() -> list[torch.Tensor]:
    """The states of the generators of torch."""
    return [generator.get_state() for generator in generators()]


def set_noise(states: list[torch.Tensor]) -> None:
    """Bring the generators to states that they had; a device that was not in use then is left as it is."""
    for generator, state in zip(generators(), states, strict=False):
        generator.set_state(state)


@contextmanager
def noise_kept() -> Iterator[None]:
    """Afterwards the generators of torch are what they were, those of devices among them."""
    before = noise_states()
    try:
        yield
    finally:
        set_noise(before)
