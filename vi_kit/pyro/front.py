"""What lies in front of a program's own dims: replicates, worlds and alternatives; and how one index is taken."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import vi_kit
from vi_kit.base.errors import ViKitError
from vi_kit.base.named import Axis
from vi_kit.costs.terms import Site
from vi_kit.engine.statements import Evaluation, Replay, Simulation
from vi_kit.estimators.base import Expansion
from vi_kit.language.programs import Draw, Program, with_replaced
from vi_kit.pyro.noise import Noise

Position = Callable[[int, int], int]
"""From a negative dim, counted without those of the event, and its size to one index of it."""


def at(value: torch.Tensor, position: Position, nesting: int, event_ndim: int) -> torch.Tensor:
    """A value at one index of every dim in front of those of plates (`nesting`) and of the event."""
    for dim in range(event_ndim - value.ndim, -nesting):
        size = value.shape[0]
        value = value[position(dim, size) if size > 1 else 0]
    return value


def fitted(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A value in the shape that the program alone gives it, and always another tensor than before: transforms
    remember those that they made."""
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = value[0]
    return value.expand(tuple(shape)) if value.ndim <= len(shape) else value[...]


class Uneven(Exception):
    """The program has other statements at one value of its sites than at another, or too many values."""


OWN = str(Path(str(vi_kit.__file__)).parent)


def in_words(error: Exception) -> str:
    """What went wrong in a run with values in front, or one after the other, in one line."""
    first, *rest = str(error).splitlines() or [""]
    if isinstance(error, Uneven):
        return first
    if isinstance(error, ViKitError):
        got = [line.split(":", 1)[1].strip() for line in rest if line.startswith("  got:")]
        return f"{first} ({got[0]})" if got else first
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(OWN):
        return "what lies in front of its own dims does not stay there"
    return f"{type(error).__name__}: {first}"


def with_one_of_each(
    program: Program, position_of: Callable[[torch.Tensor], Position], nesting: int
) -> Program:
    """A program with its simulated data at one index of what is in front."""
    simulated = {id(s.value): s for s in program.simulated}

    def alone(argument: Any) -> Any:
        if id(argument) not in simulated:
            return argument
        of = simulated[id(argument)]
        return fitted(at(argument, position_of(argument), nesting, of.event_ndim), of.shape)

    args, kwargs = (with_replaced(a, alone) for a in (program.args, program.kwargs))
    return replace(program, args=args, kwargs=kwargs, simulated=())


@dataclass(frozen=True, eq=False)
class Recorded:
    """A program that was run with something in front.

    Attributes:
        reading: of it.
        dims: where the axes were that lay in front.
        num_terms: how many terms there were before.
        saved: for its backward pass (bytes).
    """

    reading: Simulation | Replay | Evaluation
    dims: dict[Axis, int]
    num_terms: int
    saved: float = 0.0

    @property
    def key(self) -> Any:
        """The same for runs that only differ in what they hold."""
        reading = self.reading
        values = dict(getattr(getattr(reading, "draw", None), "by_name", {}))
        if isinstance(reading, Simulation):
            values.update(reading.values)
        program = reading.program
        return program.fn, program.joint, tuple(sorted((n, id(v)) for n, v in values.items()))

    @property
    def draw(self) -> Draw:
        """The values of its sites."""
        reading = self.reading
        return reading.result() if isinstance(reading, Simulation) else reading.draw


class Runner(Protocol):
    """What runs a program at one joint value.

    Attributes:
        leaked: sites whose values the program was told, so that all that comes after depends on them.
        tracking: whether it is followed what depends on which site, and not everything on all before it.
    """

    leaked: frozenset[Site]
    tracking: bool

    def once(self, reading: Any, noise: Noise | None = None) -> Any: ...
    def track(self, value: torch.Tensor, site: Site) -> torch.Tensor: ...


class InPlaceOf:
    """A reading that stands in the place of another one, and answers like it what depends on no value."""

    def __init__(self, reading: Any):
        self.reading = reading

    def draws(self, name: str) -> bool:
        return self.reading.draws(name)

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        return self.reading.stops_at(name, is_auxiliary)

    def wants(self, name: str) -> bool:
        return self.reading.wants(name)

    def leaves_out(self, name: str) -> bool:
        return self.reading.leaves_out(name)

    def takes_given(self, name: str) -> bool:
        return self.reading.takes_given(name)

    def relaxes(self, name: str) -> bool:
        return self.reading.relaxes(name)

    def drawn_from(self, name: str) -> Any:
        return self.reading.drawn_from(name)


def dims_of(part: str, expansion: Expansion, event_ndim: int) -> tuple[int, int]:
    """How many dims in front of the batch dims, and of the event, a part of an expansion has."""
    leads = part in ("weights", "alternatives", "coefficients", "control")
    leads = leads or (part == "value" and expansion.is_worlds)
    return int(leads), event_ndim if part in ("value", "alternatives") else 0


@contextmanager
def saved_bytes() -> Iterator[Callable[[], float]]:
    """Gives a function that says how much has been saved for backward passes inside."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: float(sum(sizes.values()))
