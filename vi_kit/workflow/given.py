"""What a step was given, for whoever asks why it has failed: numbers in the data that are none, and which rows of all
data there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_kit.workflow.batches import Call, Source, Stream

MOST = 3
"""Rows that are told."""


@dataclass(frozen=True)
class Given:
    """The arguments of a step.

    Attributes:
        spoilt: where they have numbers that are none, in words.
        rows: the places of a minibatch's rows in all data, if they are known.
        plates: that hold these rows.
    """

    spoilt: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    plates: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        program: Callable,
        call: Call,
        numbers: Callable[[Any], list[np.ndarray]],
        source: Source,
        *,
        step: int | None = None,
        plates: Iterable[str] = (),
    ) -> Given:
        """From the arguments themselves.

        Args:
            program: that takes them, and so has their names.
            numbers: the arrays in one of them.
            source: where they are from.
            step: which has them, counted from nought; `None` if they are its example, of which the first rows of all
                data are the rows.
        """
        args, kwargs = call
        rows = None if step is None else source.rows(step)
        is_whole = not isinstance(source, Stream)
        arrays = [(name, rows, x) for name, one in _named(program, args) for x in numbers(one)]
        arrays += [(name, None, x) for name, one in kwargs.items() for x in numbers(one)]
        texts = [_text(*one, is_whole) for one in arrays if _is_spoilt(one[2])]
        return cls(tuple(texts), rows, frozenset(plates))

    def index(self, index: tuple[int, ...], plates: dict[int, str]) -> tuple[int, ...]:
        """Of an element, with rows of all data in place of those of a minibatch.

        Args:
            plates: their names, by dim from the right.
        """
        rows, num = self.rows, len(index)
        if rows is None:
            return index
        return tuple(
            int(rows[i]) if plates.get(dim - num) in self.plates else i
            for dim, i in enumerate(index)
        )


def _named(program: Callable, args: tuple[Any, ...]) -> list[tuple[str, Any]]:
    try:
        names = list(inspect.signature(program).parameters)
    except (TypeError, ValueError):
        names = []
    names = [*names, *map(str, range(len(names), len(args)))]
    return list(zip(names, args, strict=False))


def _is_spoilt(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def _text(name: str, rows: np.ndarray | None, array: np.ndarray, is_whole: bool) -> str:
    is_bad = ~np.isfinite(array)
    nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    counts = " and ".join([f"{nan} nan"] * (nan > 0) + [f"{inf} inf"] * (inf > 0))
    if not array.ndim:
        return f"argument {name!r} is {array}"
    at = np.flatnonzero(is_bad.reshape(len(array), -1).any(axis=1))
    if rows is not None and len(rows) == len(array):
        at, is_whole = np.sort(rows[at]), True
    shown = ", ".join(map(str, at[:MOST])) + f" and {len(at) - MOST} more" * (len(at) > MOST)
    of = "" if is_whole else " of the minibatch"
    return f"argument {name!r} has {counts}, in row{'s' * (len(at) > 1)} {shown}{of}"
