"""Ways by which values reach terms unseen by provenance, which follows Python's calls of torch only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pyro.ops import provenance
from torch.utils._python_dispatch import TorchDispatchMode

from vi_kit.base.layouts import is_support
from vi_kit.costs.terms import Site
from vi_kit.pyro.frames import LIBRARIES, caller, is_validation
from vi_kit.pyro.leaks import is_apart, tells, tensors_in

AROUND = tuple(
    str(Path(torch.__file__).parent / name) for name in ("_compile", "_dynamo", "utils/_device")
)
"""What torch puts around the calls of a mode, and around all calls where a default device is set."""

CALLING = tuple(str(Path(torch.__file__).parent / name) for name in ("nn/modules", "jit"))
"""What calls a scripted module."""

OWN = (str(Path(__file__).parents[1]), provenance.__file__)
"""Where provenance is followed: a value that is read by way of it is known to be read."""


class LeakProbe(TorchDispatchMode):
    """Finds sites whose values reach a term on a way that provenance does not follow (`torch.vmap`,
    `torch.jit.script`): the operations that these make of a call are seen here, by the memory that they read.

    Attributes:
        untraceable: labels of such sites.
        may_branch: whether values are read on such a way, by which it may be another one in another run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.untraceable: set[str] = set()
        self.may_branch = False
        self._sites: dict[int, frozenset[Site]] = {}
        self._kept: list[torch.Tensor] = []

    def mark(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        """The value in memory of its own, from where it is followed."""
        value = value.clone()
        if is_support(site.layout):  # however it was drawn here, it depends on nothing
            self._sites[_memory(value)] = frozenset()
        self._add(value, frozenset({site}))
        return value

    def compare(self, value: torch.Tensor, known: frozenset[Site]) -> None:
        self._report(self._found(value) - known)

    def _report(self, sites: frozenset[Site], by_script: bool = False) -> None:
        self.untraceable.update(s.label for s in sites)
        self.may_branch |= by_script

    def _found(self, value: torch.Tensor) -> frozenset[Site]:
        return frozenset() if is_apart(value) else self._sites.get(_memory(value), frozenset())

    def _add(self, value: torch.Tensor, sites: frozenset[Site]) -> None:
        if is_apart(value):
            return
        self._sites[_memory(value)] = self._found(value) | sites
        self._kept.append(value)  # or its memory might be another's later

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sites = frozenset[Site]().union(*map(self._found, tensors_in((args, kwargs))))
        with torch._C.DisableTorchFunction():  # or provenance would be followed here, too
            result = func(*args, **kwargs)
        if sites:
            frame = _reading()
            if tells(func, args, result) and not _is_known_read(frame):
                self._report(sites, _is_script(frame))
            for x in tensors_in(result):
                self._add(x, sites)
        return result


def _memory(value: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():  # or this would count as reading it
        return value.untyped_storage()._cdata


def _reading() -> Any:
    """The frame in which a value is read."""
    frame: Any = caller(2)
    while frame.f_code.co_filename.startswith(AROUND):
        frame = frame.f_back
    return frame


def _is_known_read(frame: Any) -> bool:
    """Whether a value is read where provenance sees it, or where a distribution checks its own arguments."""
    return frame.f_code.co_filename.startswith(OWN) or is_validation(frame)


def _is_script(frame: Any) -> bool:
    """Whether it is read by what is called there, and not by an operation of torch."""
    name = frame.f_code.co_filename
    return name.startswith(CALLING) or not name.startswith(LIBRARIES)
