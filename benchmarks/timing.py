"""How the rows of the table are measured: contenders take turns in one process, and the median of each counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One kind of work, and what it takes.

    Attributes:
        work: what is done, and in which library.
        numbers: by contender; the first is that of which the others are multiples.
        unit: of the numbers; `""` for numbers that are no multiples of each other, as exponents.
    """

    work: str
    numbers: dict[str, float]
    unit: str = "ms"

    def __str__(self) -> str:
        """As a line of a Markdown table."""
        (name, base), *others = self.numbers.items()
        if not self.unit:
            cells = [f"{n} {x:.2f}" for n, x in self.numbers.items()]
            return f"| {self.work} | | {', '.join(cells)} |"
        cells = [f"{n} {x / base:.2f}" for n, x in others]
        return f"| {self.work} | {name}: {base:.3g} {self.unit} | {', '.join(cells)} |"


def in_turn(
    contenders: Mapping[str, Callable[[], Any]], *, seconds: float = 4.0, warm_up: int = 3
) -> dict[str, float]:
    """Median milliseconds of each contender, which do not return before they are done.

    Args:
        contenders: in the order of the row.
        seconds: for all together; five rounds at least.
        warm_up: rounds before, which do not count.
    """
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names, start = list(contenders), time.perf_counter()
    first = 0
    while time.perf_counter() - start < seconds or first < 5:
        for name in names[first % len(names) :] + names[: first % len(names)]:
            before = time.perf_counter()
            contenders[name]()
            times[name].append(1e3 * (time.perf_counter() - before))
        first += 1
    return {name: statistics.median(found) for name, found in times.items()}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """By which power of the size a cost grows, as fitted to the upper half of the sizes."""
    import numpy as np

    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(costs[half:]), 1)[0])
