"""Whether elements of a plate see each other's values inside it, as with `z.roll(1)` or batch normalisation.

A plate says that they do not, and estimators credit an element with its own terms only, or take all elements at one of
their values at once. So it is tested: every site in the plate has one of two values, or some of its elements have one
and the rest the other. A log density must then be, for each element, what it is where all elements have the value of
this one. Where it is not, the term counts as one over the plate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace

from vi_kit._named import Array, Axis
from vi_kit.degrees import DegreeProbe

if TYPE_CHECKING:
    from vi_kit.backend import Distribution
    from vi_kit.cost import Site
    from vi_kit.estimators import Estimator
    from vi_kit.plan import Plan

Two = tuple[Array, Array]

Joined = frozenset[tuple[str, Axis]]
"""Terms, by where they come from, and the plates of which they see several elements."""


@dataclass(eq=False)
class MixingProbe(DegreeProbe):
    """What makes a dry run one in which elements of plates have one of two values.

    Attributes:
        seconds: by plate, which elements have the second value.
        known: the two values of a site, from its label and what makes them.
    """

    seconds: Mapping[Axis, Array] = field(kw_only=True)
    known: Callable[[str, Callable[[], Two]], Two] = field(kw_only=True)

    def value(self, site: Site, dist: Distribution, estimator: Estimator) -> Array:
        del estimator
        if dist.name == "Delta":
            return dist.rsample()
        value, other = self.known(site.label, dist.two_values)
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


def some_of(size: int) -> np.ndarray:
    """Elements that part every division of `size` elements into groups of one size: as many as a prime number says of
    which it is no multiple."""
    primes = (n for n in range(size // 2, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))
    count = next((n for n in primes if size % n), 1)
    chosen = np.random.default_rng(0).permutation(size)[:count]
    return np.isin(np.arange(size), chosen)


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
    plates: Sequence[Axis], run: Callable[[Mapping[Axis, np.ndarray]], Sequence[Outcome]]
) -> set[tuple[str, Axis]]:
    """Which terms see several elements of which plates.

    Args:
        plates: to be tested, one after the other.
        run: the terms, where these elements have their second value.
    """
    found: set[tuple[str, Axis]] = set()
    firsts = run({})
    for plate in plates:
        chosen = some_of(plate.size)
        seconds = run({plate: np.ones_like(chosen)})
        for second in (chosen, ~chosen):  # one of them is in no order
            mixed = run({plate: second})
            if not _alike(firsts, seconds, mixed):  # a program that takes another way sees all
                found |= {(t.what, plate) for t in (*firsts, *seconds, *mixed) if plate in t.axes}
                break
            of_plate = (o for o in zip(firsts, seconds, mixed, strict=True) if plate in o[0].axes)
            found |= {
                (both.what, plate)
                for one, other, both in of_plate
                if not _is_made_of(both, plate, second, one, other)
            }
    return found


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


def tested(
    plan: Plan, find: Callable[[Sequence[Axis]], set[tuple[str, Axis]]]
) -> tuple[Joined, tuple[str, ...]]:
    """Terms that see several elements of plates, and what `explain` says if it could not be found out.

    Args:
        plan: of the program.
        find: looks at plates; see `find_mixed`.
    """
    plates = sorted(plan.apart, key=lambda a: a.key)
    try:
        return _with_those_below(find(plates) if plates else set(), plan), ()
    except Exception:  # the program may refuse values that were not drawn
        names = ", ".join(repr(a.name) for a in plates)
        return frozenset(), (f"assumed: elements of plates {names} do not see each other's values",)


def _with_those_below(mixed: set[tuple[str, Axis]], plan: Plan) -> Joined:
    """These terms; and where a site is drawn given several elements, all that is made of it and of them: its elements
    are no longer those of the plate."""
    joined = set(mixed)
    for i, met in enumerate(plan.met):
        if met.is_draw:
            for plate in (a for what, a in mixed if what == met.what):
                below = (m for m in plan.met[i:] if met.upstream & m.upstream)
                joined |= {(m.what, plate) for m in below if plate in m.plates}
    return frozenset(joined)


def in_words(joined: Joined) -> Iterator[str]:
    """What `explain` says of such terms."""
    for what, plate in sorted(joined, key=lambda item: (item[0], item[1].key)):
        yield f"{what}: elements of plate {plate.name!r} see each other's values, so it is one term over the plate"
