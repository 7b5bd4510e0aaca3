"""What a minibatch stands for: which plates hold its rows, and whether they count for all data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_kit.base.errors import ObjectiveError, message


@dataclass(frozen=True)
class Frame:
    """A plate around a statement.

    Attributes:
        name: of the plate.
        size: elements that there are in this run.
        full_size: elements that it stands for, by its own account.
    """

    name: str
    size: int
    full_size: int

    def holds(self, num_rows: int) -> bool:
        """Whether it may be the plate of a minibatch's rows, or of some of them that a program takes itself."""
        return num_rows in (self.size, self.full_size)


@dataclass(frozen=True)
class Statement:
    """A sample statement as one run had it.

    Attributes:
        site: its name.
        role: of the program, `"guide"` or `"model"`.
        is_observed: whether it is data.
        scale: of its log density.
        frames: its plates.
    """

    site: str
    role: str
    is_observed: bool
    scale: float
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Seen:
    """One run of guide and model.

    Attributes:
        num_rows: of the minibatch.
        statements: of both programs.
        shapes: of the parameters that they make.
    """

    num_rows: int
    statements: Sequence[Statement]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AllRows:
    """What the rows of a minibatch are a part of.

    Attributes:
        num_rows: of all data.
        is_weighed: whether the program itself has them count for these, by the scale of their densities.
    """

    num_rows: int
    is_weighed: bool = False

    def factor(self, own: int) -> float:
        """On the scale of statements in a plate that counts for so many rows by itself."""
        return 1.0 if self.is_weighed else self.num_rows / own


def frames_of_rows(first: Seen, other: Seen | None) -> dict[str, set[Frame]]:
    """The plates that hold the rows of a minibatch, by name."""
    found: dict[str, set[Frame]] = {}
    for frame in (f for s in first.statements for f in s.frames if f.holds(first.num_rows)):
        found.setdefault(frame.name, set()).add(frame)
    if other is not None:
        moved = {f.name for s in other.statements for f in s.frames if f.holds(other.num_rows)}
        found = {name: frames for name, frames in found.items() if name in moved}
    return found


def plates_of_rows(
    first: Seen, other: Seen | None, data_size: int | None, shared: int | None = None
) -> dict[str, AllRows]:
    """The plates of the rows that are, by their own account, of a minibatch alone, with what they are a part of.

    Args:
        first: a run on a minibatch.
        other: on one of another length, if the programs can be run on it.
        data_size: rows of all data, if known.
        shared: rows of a step of all processes, where each has some of them.

    Raises:
        ObjectiveError: no plate follows the minibatch, so that its data would count as if they were all; a plate is of
            another size than the data; the size is not known where it is needed; some statements of a plate count for
            all rows and others do not; or a parameter has as many elements as the minibatch.
    """
    texts = [_of_parameter(*found) for found in _following(first, other)]
    sizes = frames_of_rows(first, other)
    if not sizes:
        texts.append(_no_plate(first))
    needed: dict[str, AllRows] = {}
    for name, frames in sizes.items():
        frame = max(frames, key=lambda f: f.full_size)
        if len(frames) > 1:
            texts.append(_contradicts(frame, min(f.full_size for f in frames)))
        elif frame.full_size not in (frame.size, first.num_rows):
            if data_size not in (None, frame.full_size):
                texts.append(_contradicts(frame, data_size))
        elif uneven := _uneven(name, first, other, data_size, shared):
            texts.append(_counts_unevenly(frame, *uneven))
        elif not _is_scaled(name, first, other, data_size):
            if data_size and shared and _weighs(name, first, data_size / shared):
                texts.append(_of_all_processes(frame, data_size, shared))
            elif data_size is None:
                texts.append(_unknown_size(frame))
            else:
                needed[name] = AllRows(data_size)
        elif data_size and (other or _weighs(name, first, data_size / first.num_rows)):
            needed[name] = AllRows(data_size, is_weighed=True)
    if texts:
        raise ObjectiveError("\n".join(texts))
    return needed


def lengthened(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    lengths: Callable[[Any], list[int]],
    cut: Callable[[Any, Any], Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A minibatch with a row less, or two of them where it has one; `None` if it has no rows."""
    found = [n for one in (*args, *kwargs.values()) for n in lengths(one)]
    if not found or found[0] == 0:
        return None
    num = found[0]
    index = np.arange(num - 1) if num > 1 else np.zeros(2, int)

    def other(one: Any) -> Any:
        return cut(one, index) if set(lengths(one)) == {num} else one

    return tuple(map(other, args)), {k: other(v) for k, v in kwargs.items()}


def _is_scaled(name: str, first: Seen, other: Seen | None, data_size: int | None) -> bool:
    """Whether the program gives the rows of a minibatch more weight the fewer they are, or the very weight by which
    they count for all rows."""

    if data_size and _weighs(name, first, data_size / first.num_rows):
        return True
    before = _scales(name, first)
    if other is None:
        return not any(np.isclose(scale, 1.0) for scale in before.values())
    following = _following_rows(name, first, other)
    return bool(following) and all(following.values())


def _uneven(
    name: str, first: Seen, other: Seen | None, data_size: int | None, shared: int | None
) -> tuple[list[str], list[str]] | None:
    """The statements in a plate that count for all rows, and those that do not, if there are both."""
    counts = {} if other is None else _following_rows(name, first, other)
    weights = [(data_size or num) / num for num in (first.num_rows, shared) if num]
    for weight in (weight for weight in weights if weight != 1.0):  # by a number
        if any(counts.values()):
            break
        scales = _scales(name, first).items()
        counts = {k: _close(s, weight) for k, s in scales if _close(s, weight) or _close(s, 1.0)}
    sides = [
        [f"{role} site {site!r}" for (role, site), yes in counts.items() if yes is side]
        for side in (True, False)
    ]
    return (sides[0], sides[1]) if all(sides) else None


def _following_rows(name: str, first: Seen, other: Seen) -> dict[tuple[str, str], bool]:
    """Which statements in a plate have more weight the fewer its rows are."""
    before, after = _scales(name, first), _scales(name, other)
    ratio = first.num_rows / other.num_rows
    return {k: _close(after[k], scale * ratio) for k, scale in before.items() if k in after}


def _scales(name: str, seen: Seen) -> dict[tuple[str, str], float]:
    """Of the statements in a plate, by program and site, without what subsamples of their plates count for."""
    own = [s for s in seen.statements if name in {f.name for f in s.frames}]
    return {
        (s.role, s.site): s.scale * math.prod(f.size / f.full_size for f in s.frames) for s in own
    }


def _weighs(name: str, seen: Seen, weight: float) -> bool:
    """Whether the rows of a plate have such a weight, other than one."""
    scales = _scales(name, seen).values()
    return weight != 1.0 and bool(scales) and all(_close(s, weight) for s in scales)


def _close(scale: float, weight: float) -> bool:
    return bool(np.isclose(scale, weight, rtol=1e-4))


def _counts_unevenly(frame: Frame, scaled: Sequence[str], unscaled: Sequence[str]) -> str:
    return message(
        f"fit: in plate {frame.name!r} some statements count for all rows, and others for those of the minibatch",
        got=f"a scale by the rows for {', '.join(scaled)}; none for {', '.join(unscaled)}",
        expected="the same of all statements in the plate, in model and guide",
        fix="no scale by rows at all (fit has them count for all rows), or the same scale around the plate in both",
    )


def _of_all_processes(frame: Frame, data_size: int, shared: int) -> str:
    return message(
        f"fit: plate {frame.name!r} has a scale by the rows of all processes",
        got=f"scale={data_size / shared:g}, that of {data_size} rows over the {shared} of a step",
        expected=f"the scale of the rows that a process has, {frame.size} in this one",
        fix=f"no scale at all, or scale={data_size} / len(x)",
    )


def _following(first: Seen, other: Seen | None) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Parameters whose shape goes with the minibatch's."""
    if other is None:
        return
    for name, shape in first.shapes.items():
        if name in other.shapes and other.shapes[name] != shape:
            yield name, shape


def _of_parameter(name: str, shape: tuple[int, ...]) -> str:
    return message(
        f"fit: parameter {name!r} has as many elements as a minibatch has rows",
        got=f"shape {shape}; each minibatch would train the same elements for other rows",
        expected="a guide that computes what it needs of the rows (amortised), or knows which rows it has",
        fix='all data as arguments, and plate("data", size, subsample_size=...) in model and guide',
    )


def _no_plate(first: Seen) -> str:
    names = sorted({s.site for s in first.statements if s.is_observed})
    return message(
        "fit: no plate holds the rows of a minibatch, so that they would count as if they were all data",
        got=f"{first.num_rows} rows; observed sites {', '.join(map(repr, names)) or 'none'}",
        expected="the data of each row in a plate of as many elements as there are rows",
        fix='with plate("data", len(x)): sample(..., obs=x)',
    )


def _contradicts(frame: Frame, data_size: int | None) -> str:
    return message(
        f"fit: plate {frame.name!r} has another size than the data, or than in the other program",
        got=f"a plate of {frame.full_size}, of which {frame.size} at a time; {data_size}",
        expected="the same number",
        fix=f"plate({frame.name!r}, {data_size}, subsample_size=...)",
    )


def _unknown_size(frame: Frame) -> str:
    return message(
        f"fit: how many rows there are is not known, and plate {frame.name!r} counts those of a minibatch alone",
        got=f"batches without a length, a plate of {frame.size}",
        expected="the number of rows of all data",
        fix="data_size=...",
    )
