"""Values that a program is told, but that make no difference to it: it checks, prints or logs them.

It is told others in their place, line by line. Where every log density stays what it was, or the program says in its
own words that something is wrong (`assert`, `raise`), nothing depends on them. Truth values are turned round; numbers
are made much larger and smaller, and moved in small steps over where they are. Whole numbers are left out: a program
may ask whether they are equal to any other.
"""

from __future__ import annotations

import dis
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vi_kit.engine.dry_run import DryRun
from vi_kit.engine.plan import Plan
from vi_kit.engine.run import Run
from vi_kit.pyro.backend import PyroBackend
from vi_kit.pyro.degrees import moved_a_little
from vi_kit.pyro.frames import LIBRARIES, caller, is_own, is_validation, line_of
from vi_kit.pyro.leaks import CHANGED, TELLING, listed, tells, tensors_in
from vi_kit.pyro.noise import Generators

MOST_LINES = 6
"""At more lines a program is taken to depend on what it is told."""

MOST_TIMES = 1000
"""How often it may be told another value in one run, or it may never end."""

LARGE = 1e9
"""Beyond what a program compares a number with."""

FAR: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (
    lambda x: -x - 1,
    lambda x: 3 * x + 7,
    lambda x: x + LARGE,
    lambda x: x - LARGE,
)
"""Other numbers in the place of one."""

NEAR = tuple(np.linspace(-2.0, 2.0, 65).tolist())
"""Further ones, in units of how far numbers lie apart at several draws: for narrow windows."""

NUM_DRAWS = 3
"""At how many draws of the program each is tried, since one may hide a difference; near ones at one."""

NUM_SPREAD = 3
"""At how many more it is seen how far numbers lie apart."""


def harmless_lines(plan: Plan, execute: Callable[[Run], None]) -> frozenset[str]:
    """The lines at which a program is told values that make no difference.

    Args:
        plan: of the program.
        execute: makes a dry run.
    """
    plain = replace(plan, num_slots=1, tracked=False, analytic=frozenset())
    start, backend = Generators.now(), PyroBackend()

    def made(seed: int, other: Retold) -> list[tuple[str, torch.Tensor]]:
        nonlocal backend
        start.restore()
        torch.manual_seed(seed)
        backend = PyroBackend()
        run = DryRun(backend, plain)
        with other, other.calls:
            execute(run)
        return [(t.label, t.base.array.detach().clone()) for t in run.terms]

    def is_harmless(line: str, way: Callable[[torch.Tensor], torch.Tensor], seed: int) -> bool:
        other = Retold(line, way)
        try:
            return _same(made(seed, other), plainly[seed])
        except Exception as error:
            return other.has_told and _is_said(error)

    def tries(line: str) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], int]]:
        numbers = first.numbers[line]
        yield from itertools.product(FAR if numbers else FAR[:1], range(NUM_DRAWS))
        width = max(numbers) - min(numbers) if numbers else 0.0
        if math.isfinite(width) and width > 0.0:
            yield from ((lambda x, by=by: x + by * width, 0) for by in NEAR)

    try:
        first = Retold()
        made(0, first)
        if not 0 < len(first.lines) <= MOST_LINES:
            return frozenset()
        with moved_a_little([*backend.leaves("model"), *backend.leaves("guide")]):
            plainly = [made(seed, first) for seed in range(NUM_DRAWS + NUM_SPREAD)]
            lines = [line for line, may in first.lines.items() if may]
            return frozenset(x for x in lines if all(is_harmless(x, *t) for t in tries(x)))
    except Exception:  # the program refuses other draws
        return frozenset()
    finally:
        start.restore()


class Retold(TorchDispatchMode):
    """Tells a program another value at one of its lines.

    Args:
        line: which; at none if left out.
        way: makes another number of one.

    Attributes:
        calls: to be entered, too.
        lines: at which it is told values, and whether all of these can be others.
        numbers: that it is told at them, but for truth values; of several at once the largest.
        has_told: whether it has told one.
    """

    def __init__(
        self, line: str = "", way: Callable[[torch.Tensor], torch.Tensor] = FAR[0]
    ) -> None:
        super().__init__()
        self.line, self.way = line, way
        self.calls = _Calls(self)
        self.lines: dict[str, bool] = {}
        self.numbers: dict[str, list[float]] = defaultdict(list)
        self.has_told, self._left = False, MOST_TIMES
        self._kept: list[torch.Tensor] = []

    def is_here(self, frame: Any, values: Iterable[torch.Tensor], may_change: bool) -> bool:
        """Note where the program is told something; whether it is to be something else."""
        line = line_of(frame)
        self.lines[line] = self.lines.get(line, True) and may_change
        if not self.line:
            told = (x.detach() for x in values if x.dtype != torch.bool and x.numel())
            self.numbers[line] += [float(x.max()) for x in told]
        if line != self.line or not may_change:
            return False
        self.has_told, self._left = True, self._left - 1
        if self._left < 0:
            raise RecursionError("a program does not end with other values")
        return True

    def instead(self, x: Any) -> Any:
        """What it is told in the place of a value."""
        if isinstance(x, torch.Tensor):
            self._kept.append(self._other(x.detach()))
            return self._kept[-1]
        made = self._other(torch.as_tensor(x))
        return type(x)(made.item())

    def _other(self, x: torch.Tensor) -> torch.Tensor:
        return ~x if x.dtype == torch.bool else self.way(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, frame = func(*args, **(kwargs or {})), caller()
        if not tells(func, args, result) or is_validation(frame) or is_own(frame):
            return result
        if self.calls.is_inside:
            return result
        value = torch.as_tensor(result)
        may = isinstance(result, bool | int | float) and not _is_whole(value)
        return self.instead(result) if self.is_here(frame, [value], may) else result


class _Calls(TorchFunctionMode):
    """The same where values are read without an operation."""

    def __init__(self, told: Retold) -> None:
        super().__init__()
        self.told, self.is_inside = told, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame, of_list = caller(), listed(func, args)
        if not (func in TELLING or of_list) or is_own(frame):
            return func(*args, **(kwargs or {}))
        values = tensors_in(args)
        may = (bool(of_list) or func in CHANGED) and not any(_is_whole(x.detach()) for x in values)
        if self.told.is_here(frame, values, may):
            args = tree_map(self._instead, args)
        outside, self.is_inside = self.is_inside, True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.is_inside = outside

    def _instead(self, x: Any) -> Any:
        return self.told.instead(x) if isinstance(x, torch.Tensor) else x


def _is_whole(x: torch.Tensor) -> bool:
    """Whether a tensor has whole numbers, but for zeros among others."""
    if x.dtype == torch.bool:
        return False
    is_whole = x == x.round() if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
    return bool(is_whole.all() | (is_whole & (x != 0)).any())


def _same(
    some: Iterable[tuple[str, torch.Tensor]], others: Iterable[tuple[str, torch.Tensor]]
) -> bool:
    pairs = list(zip(some, others, strict=True))
    return all(
        a == b and x.shape == y.shape and torch.allclose(x, y, 0.0, 0.0, equal_nan=True)
        for (a, x), (b, y) in pairs
    )


def _is_said(error: Exception) -> bool:
    """Whether a program itself says that something is wrong."""
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    is_raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    is_own = not code.co_filename.startswith(LIBRARIES)
    return isinstance(error, AssertionError) or (is_raised and is_own)
