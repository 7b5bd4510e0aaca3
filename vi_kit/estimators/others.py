"""What a baseline may see: what the other elements of a site are worth, and never its own draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.named import (
    PLATE,
    REPLICATE,
    Array,
    Axis,
    Named,
    combine,
    from_layout,
    total,
    union,
)
from vi_kit.costs.terms import Site
from vi_kit.estimators.base import estimator_context

HIDDEN = "not this one of "
"""In front of the name of an axis: the element whose draw is not seen, where that is another axis than that of the
elements looked at."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One number for each element of a site, made of nothing that its draw has entered.

    Numbers and others of its kind can be added, subtracted, multiplied and divided; there are no reductions over
    elements but those of `Others`, which leave out the right one.
    """

    _named: Named

    def __add__(self, other: Seen | float) -> Seen:
        return self._with(other, lambda x, y: x + y)

    def __sub__(self, other: Seen | float) -> Seen:
        return self._with(other, lambda x, y: x - y)

    def __mul__(self, other: Seen | float) -> Seen:
        return self._with(other, lambda x, y: x * y)

    def __truediv__(self, other: Seen | float) -> Seen:
        return self._with(other, lambda x, y: x / y)

    def __neg__(self) -> Seen:
        return self * -1.0

    __radd__, __rmul__ = __add__, __mul__

    def _with(self, other: Seen | float, fn: Callable[[Array, Array], Array]) -> Seen:
        if isinstance(other, Seen):
            return Seen(combine(fn, self._named, other._named))
        return Seen(Named(fn(self._named.array, other), self._named.axes))


@dataclass(frozen=True, eq=False)
class Others:
    """What the elements of a site are worth (nats), as seen by a baseline: for each element what the *others* are
    worth, as if in one replicate and with all the data; without gradient.

    All that is computed for one element is computed without its draw: also what the others are worth less a
    baseline. So sums and products of baselines do not see it either.

    Attributes:
        axes: plates and replicate axes of the site along which one may look, the innermost plate last.
    """

    axes: tuple[Axis, ...]
    _site: Site
    _costs: tuple[Named, ...]
    _less: tuple[Named, ...] = ()
    _lessons: list[tuple[Callable[[Named], None], tuple[Named, ...]]] | None = None

    @property
    def name(self) -> str:
        """Of the site."""
        return self._site.name

    @property
    def label(self) -> str:
        """The name of the site, told apart from that of a site of the guide and of the first variant."""
        return self._site.label

    @property
    def plates(self) -> tuple[Axis, ...]:
        """Of the site, the innermost last."""
        return tuple(a for a in self._site.axes if a.kind == PLATE)

    @property
    def replicates(self) -> Axis | None:
        """The innermost replicate axis along which there are others: a nonlinear function mixes those that it
        reduces, which makes one number of them all."""
        axes = {a for cost in self._costs for a in cost.axes if a.kind == REPLICATE and a.size > 1}
        return max(axes.intersection(self.axes), key=lambda a: a.order, default=None)

    @property
    def like(self) -> Array:
        """Some array of the dtype of the costs, on their device; its values tell nothing."""
        array = self._costs[0].array
        return array_namespace(array).zeros_like(array)

    def mean(self, axis: Axis) -> Seen | None:
        """The mean over the others along one of `axes`; `None` if there are none.

        Only what each element is worth by itself counts: costs outside a plate see all its elements, and are left
        out of a mean over the plate.
        """
        summed = self._sum(axis)
        return None if summed is None else Seen(summed.scaled(1.0 / (axis.size - 1)))

    def fit(self, baseline: Seen) -> Seen:
        """The factor of a baseline that fits the other replicates best, by least squares over all their elements;
        one where there are no other replicates."""
        axis, named = self.replicates, baseline._named
        xp = array_namespace(named.array)
        if axis is None:
            return Seen(Named(xp.ones_like(xp.sum(named.array))))

        def pooled(named: Named) -> Named:
            return named.sum(a for a in named.axes if not a.name.startswith(HIDDEN))

        product = self._sum(axis, named)
        assert product is not None
        elements = union(*(cost.axes for cost in self._costs if axis in cost.axes))
        square = (named * named).broadcast(elements)
        above, below = pooled(product), pooled(_others(square, axis))
        safe = xp.where(below.array > 0, below.array, xp.ones_like(below.array))
        return Seen(combine(lambda x, y: x / y, above, Named(safe, below.axes)))

    def constant(self, number: Array | float) -> Seen:
        """The same number for all elements: one that no draw of this step has entered."""
        return Seen(Named(array_namespace(self.like).zeros_like(self.like.sum()) + number))

    def per_plate(self, values: Array) -> Seen:
        """Numbers that no draw of this step has entered, shape `(*plates)`, dims of size one allowed.

        Raises:
            ValueError: they have a dim in no plate of the site, or of another size.
        """
        layout = {-a.order: a for a in self.plates}
        sizes = dict(zip(range(-values.ndim, 0), values.shape, strict=True))
        if any(n != 1 and (d not in layout or layout[d].size != n) for d, n in sizes.items()):
            raise ValueError(f"shape {tuple(values.shape)}")
        return Seen(from_layout(values, layout))

    def parameter(self, name: str) -> Array:
        """A number in `Baseline.memory`: a constant, but while it is being learned."""
        return estimator_context().parameter(self._site, name, self.like)

    def learn(self, lesson: Callable[[Named], None]) -> None:
        """Call a function, once nothing more can be subtracted in this step, with what each element is worth, its
        own draw included, less the baselines before this one: for what is subtracted in later steps."""
        if self._lessons is not None:
            self._lessons.append((lesson, self._less))

    def less(self, baseline: Seen) -> Others:
        """The same, of what is left by a baseline."""
        return replace(self, _less=(*self._less, baseline._named))

    def _sum(self, axis: Axis, times: Named | None = None) -> Named | None:
        """For each index of an axis of the site the sum over all others, of what an element is worth times a
        number; `None` where that is not known."""
        own = [cost for cost in self._costs if axis in cost.axes]
        if axis.size < 2 or not own:
            return None

        def product(named: Named) -> Named:
            return named if times is None else named * times

        parts = [_others(product(cost), axis) for cost in own]
        return total(parts + [_others(product(n), axis).scaled(-1.0) for n in self._less])


def hidden(axis: Axis) -> Axis:
    """The axis of the element that is not seen, where those along `axis` are looked at."""
    return replace(axis, name=HIDDEN + axis.name)


def _others(named: Named, axis: Axis) -> Named:
    """The sum over all indices of `axis` but one: that of its hidden axis."""
    own = hidden(axis)
    if axis not in named.axes:
        return named.scaled(axis.size - 1.0)
    if own not in named.axes:
        return named.excluding_sum([axis]).renamed(axis, own)
    return _where_same(named, axis, keep_same=False).sum([axis])


def _where_same(named: Named, axis: Axis, *, keep_same: bool) -> Named:
    """With zeros where the index of an axis and of its hidden one differ, or do not."""
    xp = array_namespace(named.array)
    same = xp.eye(axis.size, dtype=xp.bool, device=device(named.array))
    mask = Named(same, union([axis, hidden(axis)])).aligned(named.axes)
    mask = mask if keep_same else xp.logical_not(mask)
    return Named(xp.where(mask, named.array, xp.zeros_like(named.array)), named.axes)


def of_own(seen: Seen, axes: Iterable[Axis]) -> Named:
    """What a baseline says of each element itself."""
    named = seen._named
    for axis in axes:
        if hidden(axis) in named.axes:
            if axis in named.axes:
                named = _where_same(named, axis, keep_same=True).sum([axis])
            named = named.renamed(hidden(axis), axis)
    return named


def asked(
    site: Site,
    costs: Sequence[Named],
    question: Callable[[Others], Seen | None],
    among: Iterable[Axis] | None = None,
) -> Named | None:
    """What a baseline says of each element of a site, which cannot have seen the element's draw.

    Args:
        site: its `axes` are its plates and replicate axes.
        costs: what its elements are worth, in parts; axes among `site.axes` and the worlds of sites before it.
        question: the baseline's answer.
        among: the axes along which it may look at others; all of the site if left out.
    """
    axes = site.axes if among is None else tuple(a for a in site.axes if a in set(among))
    lessons = [] if current().with_gradient else None
    seen = question(Others(axes, site, tuple(costs), _lessons=lessons))
    for lesson, less in lessons or ():
        left = [of_own(Seen(n.scaled(-1.0)), site.axes) for n in less]
        lesson(total([*costs, *left]))
    return None if seen is None else of_own(seen, site.axes)
