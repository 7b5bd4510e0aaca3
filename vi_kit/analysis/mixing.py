"""Whether elements of a plate see each other's values inside it, as with `z.roll(1)` or batch normalisation.

A plate says that they do not, and estimators credit an element with its own terms only, or take all elements at one of
their values at once. So the operations of the program are read: of which elements of a plate each entry of an array is
made. A term in whose entries several elements have met, or of which that is not known, counts as one over the plate.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from vi_kit.base.named import Axis

Key = TypeVar("Key", bound=Hashable)

NOWHERE = -1
"""In the place of a dim: all of an array is made of the same."""


class Along(NamedTuple):
    """Of which elements of a plate an array is made.

    Attributes:
        dim: along which they lie.
        elements: by their place along it, counted from one; zero where there is none.
    """

    dim: int
    elements: tuple[int, ...]


Place = Along | None
"""Of which elements each entry of an array is made; `None` if several have met."""

NOTHING = Along(NOWHERE, (0,))

SEVERAL = -1
"""In the place of an element."""


def along(dim: int, elements: Iterable[int]) -> Along:
    """These elements along a dim, or along none if they are one."""
    found = tuple(elements)
    return Along(NOWHERE, found[:1]) if len(set(found)) == 1 else Along(dim, found)


def only(place: Along) -> int | None:
    """The one element of which an array is made; `None` if it is made of several."""
    found = set(place.elements) - {0}
    return None if len(found) > 1 else max(found, default=0)


def merged(place: Along) -> Place:
    """Of what is made of all that lies along the dim."""
    element = only(place)
    return None if element is None else Along(NOWHERE, (element,))


def moved(place: Along, dim: int) -> Along:
    """The same along another dim."""
    return place if place.dim == NOWHERE else Along(dim, place.elements)


def together(places: Iterable[Place]) -> Place:
    """Of what is made entry by entry of arrays of one shape, or is one of them."""
    found = set(places)
    if None in found:
        return None
    spread = [p for p in found if p is not None and p.dim != NOWHERE]
    alone = {p.elements[0] for p in found if p is not None and p.dim == NOWHERE} - {0}
    if len({(p.dim, len(p.elements)) for p in spread}) > 1 or len(alone) > 1:
        return None
    one = max(alone, default=0)
    if not spread:
        return Along(NOWHERE, (one,))
    if len(spread) == 1 and not one:
        return along(*spread[0])
    rows = np.array([p.elements for p in spread])
    most = np.maximum(rows.max(0), one)
    if not ((rows == most) | (rows == 0)).all() or (one and (most != one).any()):
        return None
    return along(spread[0].dim, most.tolist())


def broadcast(place: Along, old: Sequence[int], new: Sequence[int]) -> Place:
    """The place of an array that is broadcast, which adds dims in front."""
    if place.dim == NOWHERE:
        return place
    dim = place.dim + len(new) - len(old)
    fits = dim >= 0 and new[dim] == len(place.elements)
    return Along(dim, place.elements) if fits else None


def joined(groups: Sequence[Mapping[Key, Place]]) -> dict[Key, Place]:
    """Of what is made entry by entry of several arrays, or is one of them."""
    keys = {key: None for of in groups for key in of}
    return {key: together(of.get(key, NOTHING) for of in groups) for key in keys}


def spread_out(place: Place, shape: Sequence[int]) -> np.ndarray:
    """For each entry of an array the element of which it is made, in as little memory as its place."""
    elements, dim = ((SEVERAL,), NOWHERE) if place is None else (place.elements, place.dim)
    if dim == NOWHERE:
        return np.broadcast_to(np.array(elements[0]), shape)
    return np.broadcast_to(np.reshape(elements, (-1, *(1,) * (len(shape) - dim - 1))), shape)


def gathered(elements: np.ndarray) -> Place:
    """The place of an array, from the element of each entry."""
    shape = elements.shape
    if elements.size:  # what is the same all along a dim without taking memory
        elements = elements[tuple(slice(0, None if step else 1) for step in elements.strides)]
    if (elements == SEVERAL).any():
        return None
    if elements.size == 0 or (elements == elements.reshape(-1)[0]).all():
        return Along(NOWHERE, (int(elements.reshape(-1)[0]) if elements.size else 0,))
    for dim in range(elements.ndim):
        others = tuple(d for d in range(elements.ndim) if d != dim)
        most, least = elements.max(others, keepdims=True), elements.min(others, keepdims=True)
        own = np.where(most > 0, most, least)
        if ((elements == own) | (elements == 0)).all():
            return along(dim, map(int, np.broadcast_to(own.ravel(), shape[dim])))
    return None


def find(
    plates: Sequence[Axis], terms: Iterable[tuple[str, tuple[Axis, ...], Mapping[int, Place]]]
) -> set[tuple[str, Axis]]:
    """Terms, by where they come from, with the plates of which they see several elements.

    Args:
        plates: by their numbers.
        terms: where they come from, their axes and where the elements of plates lie in them.
    """
    return {
        (what, plate)
        for what, axes, of in terms
        for number, plate in enumerate(plates)
        if plate in axes
        and not is_within(
            of.get(number, NOTHING), along(axes.index(plate), range(1, plate.size + 1))
        )
    }


def is_within(place: Place, most: Along) -> bool:
    """Whether each entry of an array is made of no more than the element that is at most to be there."""
    return together([place, most]) == most


Joined = frozenset[tuple[str, Axis]]
"""Terms, by where they come from, and the plates of which they see several elements."""


@dataclass(frozen=True)
class Met:
    """A log density that a dry run met.

    Attributes:
        what: where it comes from.
        plates: in which it is.
        upstream: labels of the sites on which it depends.
        draw: label of the site, if it is that of a draw, under the program that drew it.
        inside: the sequential plates in whose body it is, and in which iteration of each.
    """

    what: str
    plates: frozenset[Axis]
    upstream: frozenset[str]
    draw: str = ""
    inside: frozenset[tuple[Axis, int]] = frozenset()


def looked_at(
    apart: frozenset[Axis],
    met: Sequence[Met],
    find: Callable[[Sequence[Axis]], set[tuple[str, Axis]]],
) -> tuple[Joined, tuple[str, ...]]:
    """Terms that see several elements of plates, and what `explain` says of what could not be found out.

    Args:
        apart: the plates whose elements are told apart.
        met: every log density.
        find: looks at plates.
    """
    in_turn = frozenset(_across(met) if any(not a.order for a in apart) else ())
    plates = sorted((a for a in apart if a.order), key=lambda a: a.key)
    if not plates:
        return in_turn, ()
    try:
        return in_turn | _with_those_below(find(plates), met), ()
    except Exception:  # the program may refuse what it is given here
        names = ", ".join(repr(a.name) for a in plates)
        note = (
            f"it could not be found out whether elements of plates {names} see each other's values"
        )
        return in_turn | {(m.what, a) for m in met for a in m.plates & apart}, (note,)


def _across(every: Sequence[Met]) -> Iterator[tuple[str, Axis]]:
    """Terms in one iteration of a sequential plate that depend on sites of another."""
    iterations = {met.what: met.inside for met in every if met.inside}
    inside = {met.draw: iterations.get(met.what, ()) for met in every if met.draw}
    for met in every:
        own = dict(met.inside)
        for label in met.upstream:
            for plate, iteration in inside.get(label, ()):
                if own.get(plate, iteration) != iteration:
                    yield met.what, plate


def _with_those_below(mixed: set[tuple[str, Axis]], every: Sequence[Met]) -> Joined:
    """These terms; and where a site is drawn given several elements, all that is made of it: its elements are no longer
    those of the plate. So it is if the site is outside the plate."""
    joined, plates_of = set(mixed), {m.draw: m.plates for m in every if m.draw}
    for i, met in enumerate(every):
        if not met.draw:
            continue
        lost = {a for k in met.upstream for a in plates_of.get(k, ()) if a not in met.plates}
        later = every[i + 1 :]
        followed = any(met.draw in m.upstream for m in later)
        above = {met.draw} if followed else met.upstream
        below = [m for m in later if above & m.upstream]
        for plate in lost | {a for what, a in mixed if what == met.what}:
            joined |= {(m.what, plate) for m in below if plate in m.plates}
    return frozenset(joined)


def in_words(joined: Joined) -> Iterator[str]:
    """What `explain` says of such terms."""
    for what, plate in sorted(joined, key=lambda item: (item[0], item[1].key)):
        yield f"{what}: elements of plate {plate.name!r} see each other's values, so it is one term over the plate"
