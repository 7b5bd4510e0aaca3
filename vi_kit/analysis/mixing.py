"""Whether elements of a plate see each other's values inside it, as with `z.roll(1)` or batch normalisation.

A plate says that they do not, and estimators credit an element with its own terms only, or take all elements at one of
their values at once. So the operations of the program are read: along which dim of an array the elements of a plate
lie. A term in which several of them have met counts as one over the plate.

Where the operations leave it open, it is tested: every site in the plate has one of two values, or some of its
elements have one and the rest the other. A log density must then be, for each element, what it is where all elements
have the value of this one. Several pairs of values are tried, and every two elements are parted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

from vi_kit.analysis.degrees import DegreeProbe
from vi_kit.base.named import Array, Axis
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.estimators import Estimator

Key = TypeVar("Key", bound=Hashable)

SEVERAL = -1
"""In the place of a dim: several elements have met in one entry of the array."""

UNCLEAR = -2
"""In the place of a dim: it is not known where the elements lie."""

Places = Mapping[int, int]
"""By the number of each plate of whose elements an array is made, the dim along which they lie, `SEVERAL`, or
`UNCLEAR`."""


def common(dims: Iterable[int | None]) -> int:
    """The dim of what is made entry by entry of arrays that have these."""
    found = {dim for dim in dims if dim is not None}
    for lost in (SEVERAL, UNCLEAR):
        if lost in found:
            return lost
    return found.pop() if len(found) == 1 else SEVERAL


def joined(places: Sequence[Mapping[Key, int]]) -> Mapping[Key, int]:
    """Of what is made entry by entry of several arrays, or is one of them."""
    keys = {key: None for of in places for key in of}
    return {key: common(of.get(key) for of in places) for key in keys}


@dataclass(frozen=True)
class Mixing:
    """Terms, by where they come from, with a plate.

    Attributes:
        found: those that see several of its elements.
        assumed: those of which only tests say that they do not.
    """

    found: frozenset[tuple[str, Axis]]
    assumed: frozenset[tuple[str, Axis]] = frozenset()


def read(
    plates: Sequence[Axis],
    terms: Iterable[tuple[str, tuple[Axis, ...], Places]],
    test: Callable[[Sequence[Axis], set[tuple[str, Axis]]], set[tuple[str, Axis]]],
) -> Mixing:
    """What is known of terms from where the elements of plates lie in them.

    Args:
        plates: by their numbers.
        terms: where they come from, their axes and what is read of them.
        test: finds which of some terms see several elements of some plates, where that was not read.
    """
    found, unclear = set(), set()
    for what, axes, of in terms:
        for number, plate in enumerate(plates):
            own = axes.index(plate) if plate in axes else None
            dim = of.get(number, own)
            if own is not None and dim != own:
                (unclear if dim == UNCLEAR else found).add((what, plate))
    unclear -= found
    if unclear:
        met = test([plate for plate in plates if any(plate == of for _, of in unclear)], unclear)
        found, unclear = found | met, unclear - met
    return Mixing(frozenset(found), frozenset(unclear))


Joined = frozenset[tuple[str, Axis]]
"""Terms, by where they come from, and the plates of which they see several elements."""

AWAY = (0.0, 1.0, 6.0, -2.5, 2.0, -1.0, 12.0)
"""How far from draws values of continuous sites are, by their number, in steps as far as draws are apart."""


@dataclass(eq=False)
class MixingProbe(DegreeProbe):
    """What makes a dry run one in which elements of plates have one of two values.

    Attributes:
        seconds: by plate, which elements have the second value.
        two_values: of a site, from its label and distribution.
    """

    seconds: Mapping[Axis, Array] = field(kw_only=True)
    two_values: Callable[[str, Any], tuple[Array, Array]] = field(kw_only=True)

    def value(self, site: Site, dist: Distribution, estimator: Estimator) -> Array:
        del estimator
        if dist.name == "Delta":
            return dist.rsample()
        value, other = self.two_values(site.label, dist)
        for axis in site.axes:
            if axis in self.seconds:
                second = self.seconds[axis]
                xp = array_namespace(second)
                trailing = axis.order - 1 + len(dist.event_shape)
                second = xp.reshape(second, (axis.size, *(1,) * trailing))
                value = array_namespace(value).where(second, other, value)
        return value

    def drawn(self, label: str, dist: Distribution, log_prob: Array) -> None:
        del label, dist, log_prob


def parts(size: int, number: int) -> list[np.ndarray]:
    """Parts of a plate: of the first values such that every two elements are told apart, of others one at random."""
    elements = np.arange(size)
    if number:
        rng = np.random.default_rng(number)
        return [rng.permutation(elements) < max(1, size // 2)]
    by_digit = [(elements >> digit) % 2 == 1 for digit in range((size - 1).bit_length())]
    # one of both halves is in no order; and there are conditions on how many have a value
    return [*by_digit, ~by_digit[0], elements < 1, elements < 2]


@dataclass(frozen=True)
class Outcome:
    """A term of such a run.

    Attributes:
        what: where it comes from.
        axes: of the array, all plates.
        array: its elements.
    """

    what: str
    axes: tuple[Axis, ...]
    array: np.ndarray


def find_mixed(
    plates: Sequence[Axis],
    run: Callable[[int, Mapping[Axis, np.ndarray]], Sequence[Outcome]],
    num_values: int,
    suspects: set[tuple[str, Axis]],
) -> set[tuple[str, Axis]]:
    """Which terms see several elements of which plates.

    Args:
        plates: to be tested, one after the other.
        run: the terms at the value of a number, where these elements have the next one.
        num_values: how many values there are; a comparison may come out the same for two of them.
        suspects: those of which it is not known.
    """
    found: set[tuple[str, Axis]] = set()
    for number in range(num_values - 1):
        if suspects <= found:
            break
        firsts = run(number, {})
        for plate in plates:
            seconds = run(number, {plate: np.ones(plate.size, bool)})
            for part in parts(plate.size, number):
                mixed = run(number, {plate: part})
                runs = [[t for t in r if plate in t.axes] for r in (firsts, seconds, mixed)]
                if not _alike(firsts, seconds, mixed):  # a program that takes another way sees all
                    found |= {(t.what, plate) for terms in runs for t in terms}
                    break
                for one, other, both in zip(*runs, strict=True):
                    if not _is_made_of(both, plate, part, one, other):
                        found.add((both.what, plate))
    return found & suspects


def _is_made_of(
    both: Outcome, plate: Axis, second: np.ndarray, one: Outcome, other: Outcome
) -> bool:
    """Whether each element of a term is what it is where all elements have the value of this one."""
    trailing = both.array.ndim - both.axes.index(plate) - 1
    chosen = np.reshape(second, (plate.size, *(1,) * trailing))
    return _same(both.array, np.where(chosen, other.array, one.array))


def _alike(*runs: Sequence[Outcome]) -> bool:
    kinds = [[(t.what, t.axes, t.array.shape) for t in terms] for terms in runs]
    return all(kind == kinds[0] for kind in kinds)


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether numbers are the same up to rounding."""
    with np.errstate(invalid="ignore"):
        error = 100 * np.finfo(x.dtype).eps * (1.0 + np.maximum(np.abs(x), np.abs(y)))
        close = np.abs(x - y) <= error
    return bool((close | (x == y) | (np.isnan(x) & np.isnan(y))).all())


@dataclass(frozen=True)
class Met:
    """A log density that a dry run met.

    Attributes:
        what: where it comes from.
        plates: in which it is.
        upstream: labels of the sites on which it depends.
        draw: label of the site, if it is that of a draw, under the program that drew it.
    """

    what: str
    plates: frozenset[Axis]
    upstream: frozenset[str]
    draw: str = ""


def looked_at(
    apart: frozenset[Axis], met: Sequence[Met], find: Callable[[Sequence[Axis]], Mixing]
) -> tuple[Joined, tuple[str, ...]]:
    """Terms that see several elements of plates, and what `explain` says of what could not be found out.

    Args:
        apart: the plates whose elements are told apart.
        met: every log density.
        find: looks at plates.
    """
    plates = sorted(apart, key=lambda a: a.key)
    if not plates:
        return frozenset(), ()
    try:
        mixing = find(plates)
    except Exception:  # the program may refuse values that were not drawn
        names = ", ".join(repr(a.name) for a in plates)
        note = (
            f"it could not be found out whether elements of plates {names} see each other's values"
        )
        return frozenset((m.what, plate) for m in met for plate in m.plates & apart), (note,)
    assumed = sorted(mixing.assumed, key=lambda item: (item[0], item[1].key))
    notes = [
        f"assumed: {what} has one element of plate {plate.name!r} at a time, as it had where it was tested"
        for what, plate in assumed
    ]
    return _with_those_below(mixing.found, met), tuple(notes)


def _with_those_below(mixed: Joined, every: Sequence[Met]) -> Joined:
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
