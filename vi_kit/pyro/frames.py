"""Who calls: the one place where frames of the interpreter are looked at. Torch says which operation is asked for, and
not whether by the program, by a distribution that checks its arguments, or by vi_kit itself; and errors name lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import array_api_compat
import pyro
import pyro.distributions as dist
import torch
from pyro.ops import provenance
from torch.overrides import TorchFunctionMode

import vi_kit

LIBRARIES = tuple(
    f"{Path(str(module.__file__)).parent}/" for module in (torch, pyro, array_api_compat, vi_kit)
)

PYRO, VI_KIT = LIBRARIES[1], LIBRARIES[-1]


def caller(up: int = 1) -> Any:
    """The frame from which the function was called that asks for it, or one further up."""
    return sys._getframe(1 + up)


def in_one_thread() -> Any:
    """Backward passes run in the thread that asks for them, those on a device too, which has no frames in its own."""
    return torch.autograd.set_multithreading_enabled(False)


def line_of(frame: Any) -> str:
    """The line of the program on which something is done."""
    return asked(frame)[2]


def asked(frame: Any) -> tuple[str, int, str]:
    """The line of the program on which something is done: file, number, and as it is shown."""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(LIBRARIES):
            return name, frame.f_lineno, f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "", 0, ""


def is_own(frame: Any, folders: tuple[str, ...] = LIBRARIES[-1:]) -> bool:
    """Whether this library, or one of some, does something, and not a program."""
    while frame is not None:
        code = frame.f_code
        passes_on = code.co_name in ("__torch_function__", "__torch_dispatch__", "__repr__")
        if not (passes_on or code.co_filename.startswith(LIBRARIES[0])):
            return code.co_filename.startswith(folders)
        frame = frame.f_back
    return False


DISTRIBUTIONS = tuple(
    os.path.join(folder, "")
    for package in (torch.distributions, dist)
    for folder in package.__path__
)
"""The folders of the distributions of torch and Pyro."""


ORIGIN = "vi_kit_origin"
"""Under which name a node of the autograd graph keeps where its operation was asked for."""


class Origins(TorchFunctionMode):
    """Lets the operations of a backward pass be known by the lines of those that they are derivatives of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, frame = func(*args, **(kwargs or {})), caller()
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and made.grad_fn is not None:
                known: Any = made.grad_fn.metadata
                known.setdefault(ORIGIN, (line_of(frame), is_validation(frame)))
        return result


def origin(frame: Any, name: str) -> tuple[str, bool]:
    """The line of the program on which an operation of this name, or what it is a derivative of, is asked for; and
    whether by a distribution, as by `is_validation`, which knows what it does: but for the derivatives of `abs`."""
    node: Any = torch._C._current_autograd_node()  # type: ignore[attr-defined]
    known = None if node is None else node.metadata.get(ORIGIN)
    line, by_distribution = known or (line_of(frame), is_validation(frame))
    return line, by_distribution and not (known and name in ("sgn", "sign"))


def is_validation(frame: Any) -> bool:
    """Whether a distribution is checking its own arguments."""
    seen = 0
    while frame is not None and seen < 4:
        if frame.f_code.co_filename.startswith(DISTRIBUTIONS):
            return True
        seen += frame.f_code.co_name != "__torch_function__"  # what only passes a call on
        frame = frame.f_back
    return False


AROUND = tuple(
    str(Path(torch.__file__).parent / name) for name in ("_compile", "_dynamo", "utils/_device")
)
"""What torch puts around the calls of a mode, and around all calls where a default device is set."""

CALLING = tuple(str(Path(torch.__file__).parent / name) for name in ("nn/modules", "jit"))
"""What calls a scripted module."""


def _asking(frame: Any) -> Any:
    """The frame in which an operation is asked for."""
    while frame.f_code.co_filename.startswith(AROUND):
        frame = frame.f_back
    return frame


def is_traced(frame: Any) -> bool:
    """Whether provenance knows what is asked for, as it follows Python's calls of torch; or it is no matter, since a
    distribution checks its own arguments."""
    frame, known = _asking(frame), (*LIBRARIES[-1:], provenance.__file__)
    return frame.f_code.co_filename.startswith(known) or is_validation(frame)


def is_script(frame: Any) -> bool:
    """Whether an operation is asked for by what is called there, and not by one of torch's calls."""
    name = _asking(frame).f_code.co_filename
    return name.startswith(CALLING) or not name.startswith(LIBRARIES)
