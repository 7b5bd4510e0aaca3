"""The cost algebra: sums of terms, each with its plates and the sites that it depends on.

A `Term` holds the value that the program computed (`base`) and, for each site with alternatives, the
value that it would have if one element of that site took an alternative (`alternatives`). Linear
operations keep terms apart. A nonlinear one sums its terms over the plates that they do not share,
and carries each alternative through by swapping one element at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from vi_kit._errors import ObjectiveError, message
from vi_kit._named import PLATE, SLOT, Array, Axis, Named, combine, ordered, total, union
from vi_kit.backend import current
from vi_kit.unfold import unfold, with_elements

if TYPE_CHECKING:
    from vi_kit.estimators.base import Estimator


@dataclass(eq=False)
class Site:
    """One latent sample statement of one simulation, with all its independent elements.

    Attributes:
        name: as in the program. Two simulations of a program give two sites of one name.
        order: position among the sites of the run.
        axes: its plates and replicate axes; one element of the site per index.
        estimator: the one chosen for it.
        log_q: log density of its value, neither scaled nor masked (nats).
        world: axis of its support, if its value is all of the support.
        slots: axis of the alternatives to its drawn value.
        coefficients: weights of the alternatives, of value zero and with a gradient.
        chosen: the world drawn for each element, once one had to be drawn.
        elements: its elements as sites of their own, once they had to be told apart.
    """

    name: str
    order: int
    axes: tuple[Axis, ...]
    estimator: Estimator
    log_q: Term | None = None
    world: Axis | None = None
    slots: Axis | None = None
    coefficients: Term | None = None
    chosen: Term | None = field(default=None, repr=False)
    elements: dict[tuple[int, ...], Site] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Site({self.name!r})"


@dataclass(frozen=True, eq=False)
class Term:
    """A summand of a cost.

    Attributes:
        base: its value; plates and closed replicate axes that it has are summed at the very end.
        alternatives: per site, the value when one element of the site takes an alternative: axes of
            `base`, the site's `slots`, and an index over each of the site's axes that was reduced.
        slopes: per site with held parameters, the derivative of its alternative by the log density of
            that element of the site; zero where there is none.
        upstream: the sites on which it depends and whose estimators have yet to act on it.
        weight: scalar factor of `base` and `alternatives`.
        pending: plates whose subsampling scale is still to be applied.
        drawn: sites whose worlds were replaced by a draw from them.
        held: sites whose draw is to be taken as a constant.
        group: the parameters that ascend this term: `"model"`, `"guide"`, or all (`None`).
        label: where it comes from, for error messages.
    """

    base: Named
    alternatives: dict[Site, Named] = field(default_factory=dict)
    slopes: dict[Site, Named] = field(default_factory=dict)
    upstream: frozenset[Site] = frozenset()
    weight: Any = 1.0
    pending: frozenset[Axis] = frozenset()
    drawn: frozenset[Site] = frozenset()
    held: frozenset[Site] = frozenset()
    group: str | None = None
    label: str = ""

    def scaled(self, named: Named, scales: Iterable[Axis]) -> Named:
        """`named` times the weight and the pending scales among `scales`."""
        factor = self.weight
        for axis in self.pending.intersection(scales):
            factor = factor * axis.scale
        return (
            named.scaled(factor)
            if isinstance(factor, float)
            else Named(named.array * factor, named.axes)
        )


def stopped(named: Named) -> Named:
    return Named(current().backend.stop_gradient(named.array), named.axes)


def lift(fn: Callable[..., Named], *terms: Term) -> tuple[Named, dict[Site, Named]]:
    """Apply a function to the bases, and for each site to the values that its alternatives give."""
    sites = {s: None for t in terms for s in t.alternatives}
    return fn(*(t.base for t in terms)), {
        s: fn(*(t.alternatives.get(s, t.base) for t in terms)) for s in sites
    }


def contract_world(site: Site, weights: Term, term: Term) -> Term:
    """Replace a world axis by the sum over it, each world times its weight."""
    assert site.world is not None
    world = site.world

    def weighted_sum(q: Named, value: Named) -> Named:
        xp = array_namespace(q.array)
        axes = union(q.axes, value.axes)
        p, v = q.aligned(axes), value.aligned(axes)
        v = xp.where(p == 0, xp.zeros_like(v), v)  # 0 * inf is 0: the world does not happen
        return Named(p * v, axes).sum([world])

    if site in term.held:
        weights = held_fixed(weights)
    base, alternatives = lift(weighted_sum, weights, term)
    return replace(
        term,
        base=base,
        alternatives=alternatives,
        slopes={s: weighted_sum(weights.base, slope) for s, slope in term.slopes.items()},
        upstream=(term.upstream | weights.upstream) - {site},
        held=term.held | weights.held,
    )


def held_fixed(term: Term) -> Term:
    """The term as a constant: no gradient through its value, nor through what it depends on."""
    held = term.held | term.upstream
    return replace(term, base=stopped(term.base), alternatives={}, slopes={}, held=held)


def choose(site: Site, before: Sequence[Site]) -> Term:
    """Draw one world of an enumerated site, as a one-hot array: the same draw whenever it is asked for.

    One uniform number per element serves all worlds and alternatives of the sites before it, so
    that what does not depend on them stays the same.
    """
    if site.chosen is None:
        assert site.world is not None and site.log_q is not None
        world, log_q = site.world, settle(site.log_q, before)
        backend = current().backend
        shape = tuple(a.size for a in site.axes)
        noise = Named(backend.uniform(shape, like=log_q.base.array), site.axes)

        def one_hot(log_q: Named) -> Named:
            axes = union(log_q.axes, noise.axes)
            dim = axes.index(world)
            lq, u = log_q.aligned(axes), noise.aligned(axes)
            xp = array_namespace(lq)
            cdf = xp.cumulative_sum(xp.exp(backend.stop_gradient(lq)), axis=dim)
            index = xp.sum(cdf <= u, axis=dim, keepdims=True)
            index = xp.clip(index, max=world.size - 1)  # rounding may leave the last cdf below one
            values = Named(xp.arange(world.size, device=device(lq)), (world,))
            return Named(values.aligned(axes) == index, axes)

        base, alternatives = lift(one_hot, log_q)
        site.chosen = Term(base, alternatives, upstream=log_q.upstream, drawn=log_q.drawn)
    return site.chosen


def settle(term: Term, sites: Iterable[Site]) -> Term:
    """Replace the worlds of `sites` by a draw, and keep the worlds as alternatives to it."""
    sites = [s for s in sites if s.world is not None]
    for i, site in enumerate(sites):
        world, slots = site.world, site.slots
        assert world is not None and slots is not None
        if not any(world in n.axes for n in (term.base, *term.alternatives.values())):
            continue
        chosen = choose(site, sites[:i])
        if site in term.held:
            chosen = replace(chosen, alternatives={}, held=chosen.upstream)

        def pick(one_hot: Named, value: Named, world: Axis = world) -> Named:
            if world not in value.axes:
                return value
            axes = union(one_hot.axes, value.axes)
            h, v = one_hot.aligned(axes), value.aligned(axes)
            xp = array_namespace(v)
            return Named(xp.where(h, v, xp.zeros_like(v)), axes).sum([world])

        base, alternatives = lift(pick, chosen, term)
        if site not in term.held and world in term.base.axes:
            alternatives[site] = stopped(term.base.renamed(world, slots))
        term = replace(
            term,
            base=base,
            alternatives=alternatives,
            slopes={s: pick(chosen.base, slope) for s, slope in term.slopes.items()},
            upstream=term.upstream | chosen.upstream,
            held=term.held | chosen.held,
            drawn=term.drawn | {site},
        )
    return term


def merge(terms: Iterable[Term]) -> list[Term]:
    """Add up terms that agree in everything but their values."""
    groups: dict[Any, list[Term]] = {}
    for t in terms:
        key = (
            t.base.axes,
            t.pending,
            t.upstream,
            t.drawn,
            t.held,
            t.group,
            frozenset(t.alternatives),
            frozenset(t.slopes),
        )
        groups.setdefault(key, []).append(t)
    return [group[0] if len(group) == 1 else _added(group) for group in groups.values()]


def _added(group: Sequence[Term]) -> Term:
    """The sum of terms, with the largest of their weights left outside."""
    numbers = [t.weight for t in group if isinstance(t.weight, float | int)]
    common = max(numbers, key=abs) if len(numbers) == len(group) else 1.0
    common = common or 1.0
    parts = [replace(t, weight=t.weight / common) for t in group]
    alternatives = {
        s: total(t.scaled(t.alternatives[s], ()) for t in parts) for s in group[0].alternatives
    }
    slopes = {s: total(t.scaled(t.slopes[s], ()) for t in parts) for s in group[0].slopes}
    base = total(t.scaled(t.base, ()) for t in parts)
    return replace(group[0], base=base, alternatives=alternatives, slopes=slopes, weight=common)


class Cost:
    """A random number that an objective program computes: a sum of terms, in nats.

    Adding, subtracting and scaling keep the terms apart. `apply` is for everything else.
    """

    def __init__(self, terms: Iterable[Term]):
        self.terms = tuple(terms)

    def __add__(self, other: Cost | float) -> Cost:
        if not isinstance(other, Cost):
            if isinstance(other, int | float) and other == 0:
                return self  # so that the built-in sum() works
            raise ObjectiveError(
                message(
                    "only costs can be added to a cost",
                    got=f"{type(other).__name__}",
                    expected="a Cost, from log_density, Draw.log_density or a reduction of iid",
                    fix="multiply a cost by the number, or leave the constant out",
                )
            )
        return Cost(self.terms + other.terms)

    __radd__ = __add__

    def __neg__(self) -> Cost:
        return self * -1.0

    def __sub__(self, other: Cost) -> Cost:
        return self + (-other)

    def __mul__(self, factor: Any) -> Cost:
        if isinstance(factor, Cost):
            return apply(lambda x, y: x * y, self, factor)
        if getattr(factor, "ndim", 0) != 0:
            raise ObjectiveError(
                message(
                    "a cost can be scaled by a number, not by an array",
                    got=f"an array of shape {tuple(factor.shape)}",
                    expected="a float or an array without dims",
                    fix="scale sites by their plates with the scale handler of your library",
                )
            )
        return Cost(replace(t, weight=t.weight * factor) for t in self.terms)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Cost:
        return self * (1.0 / divisor)


@dataclass(frozen=True)
class Reduction:
    """A function along the replicate axis.

    Attributes:
        fn: takes arrays of shape `(num_replicates, *rest)`, returns one of shape `(*rest,)`.
    """

    fn: Callable[..., Array]

    def __call__(self, *arrays: Array) -> Array:
        return self.fn(*arrays)

    def swap_one(self, base: Sequence[Array], other: Sequence[Array]) -> Array:
        """At index k of dim 0: the value when entry k of `base` is replaced by entry k of `other`.

        Evaluates `fn` on all k at once; the model is not run again. Subclasses do it in linear time.
        """
        arrays = []
        for x, y in zip(base, other, strict=True):
            xp = array_namespace(x, y)
            n = x.shape[0]
            swapped = xp.reshape(
                xp.eye(n, dtype=xp.bool, device=device(x)), (n, n, *(1,) * (x.ndim - 1))
            )
            arrays.append(xp.where(swapped, y[None], x[:, None]))
        return self.fn(*arrays)


def shared_plates(terms: Iterable[Term]) -> frozenset[Axis]:
    """The plates that all terms have."""
    plates = [frozenset(a for a in t.base.axes if a.kind == PLATE) for t in terms]
    return frozenset.intersection(*plates) if plates else frozenset()


def kept_plates(costs: Sequence[Cost], names: Sequence[str] | None) -> frozenset[Axis]:
    """The plates over which a nonlinear function is taken element by element.

    Raises:
        ObjectiveError: a plate of `names` that some term does not have.
    """
    shared = shared_plates(t for c in costs for t in c.terms)
    if names is None:
        return shared
    wrong = sorted(set(names) - {a.name for a in shared})
    if wrong:
        lacking = sorted(
            {
                t.label
                for c in costs
                for t in c.terms
                if not set(wrong) <= {a.name for a in t.base.axes}
            }
        )
        raise ObjectiveError(
            message(
                f"plates={list(names)}: not every term is inside {', '.join(map(repr, wrong))}",
                got=f"terms outside: {', '.join(lacking) or 'all'}",
                expected=f"a subset of the shared plates {sorted(a.name for a in shared)}",
                fix="leave plates out (all shared plates) or name shared plates only",
            )
        )
    return frozenset(a for a in shared if a.name in names)


def apply(
    fn: Callable[..., Array] | Reduction,
    *costs: Cost,
    over: Axis | None = None,
    plates: Sequence[str] | None = None,
) -> Cost:
    """A nonlinear function of costs, taken per element of the plates that all terms share.

    Args:
        fn: elementwise on arrays, or a `Reduction` if `over` is given.
        costs: its arguments; the terms of each are summed first.
        over: replicate axis to reduce.
        plates: names of plates to keep instead of all shared ones; `[]` sums over every plate.
    """
    run = current()
    keep = kept_plates(costs, plates) | run.open_replicates
    summed = {
        a
        for c in costs
        for t in c.terms
        for n in (t.base, *t.alternatives.values())
        for a in n.axes
        if a.kind < SLOT and a not in keep and a != over
    }
    run.note_nonlinear(summed)
    run.refuse_half_held(t for c in costs for t in c.terms)
    reduced = summed | ({over} if over else set())
    local = [s for s in run.sites if s.world is not None and reduced.intersection(s.axes)]
    costs = tuple(Cost(merge(c.terms)) for c in costs)
    exact = unfold(costs, local, summed, over)
    if exact is not None:
        terms = [replace(t, upstream=with_elements(t.upstream)) for c in costs for t in c.terms]
        arguments = [(named, {}, {}) for named in exact]
    else:
        settled = [merge(settle(t, local) for t in c.terms) for c in costs]
        terms = [t for ts in settled for t in ts]
        arguments = [_collected(ts, summed, over) for ts in settled]
    reduction = fn if isinstance(fn, Reduction) else Reduction(fn)

    run.refuse_several_varied({s: None for _, alts, _ in arguments for s in alts})
    base = _evaluate(reduction, [b for b, _, _ in arguments], over)
    constants = [stopped(b) for b, _, _ in arguments]
    alternatives: dict[Site, Named] = {}
    slopes: dict[Site, Named] = {}
    for site in {s: None for _, alts, _ in arguments for s in alts}:
        others = [a.get(site, b) for b, (_, a, _) in zip(constants, arguments, strict=True)]
        swap_in = constants if over in site.axes else None
        if site.estimator.holds_params:
            tangents = [slope.get(site) for _, _, slope in arguments]
            alternatives[site], slopes[site] = _pushed(reduction, others, tangents, over, swap_in)
        else:
            alternatives[site] = stopped(_evaluate(reduction, others, over, swap_in))
    live = {s for t in terms for s in t.upstream - t.held}
    return Cost(
        [
            Term(
                base,
                alternatives,
                slopes,
                upstream=frozenset(s for t in terms for s in t.upstream),
                pending=frozenset(a for a in keep if a.kind == PLATE),
                drawn=frozenset(s for t in terms for s in t.drawn),
                held=frozenset(s for t in terms for s in t.held if s not in live),
                label=getattr(reduction.fn, "__name__", "apply"),
            )
        ]
    )


def _collected(
    terms: Sequence[Term], summed: set[Axis], over: Axis | None
) -> tuple[Named, dict[Site, Named], dict[Site, Named]]:
    """Sum the terms, over `summed` too; the sum when one element of a site is swapped; and its slopes."""
    reduced = summed | ({over} if over else set())
    parts = [t.scaled(t.base.sum(summed), summed) for t in terms]
    swaps: dict[Site, list[Named]] = {}
    slopes: dict[Site, list[Named]] = {}
    for i, t in enumerate(terms):
        own = dict(t.alternatives)
        for site in t.upstream - own.keys() - t.held:
            other = site.estimator.alternative(site, stopped(t.base), reduced)
            if other is not None:
                own[site] = other
        for site, other in own.items():
            if site.estimator.holds_params:
                _check_elements(site, t)
            local = [a for a in site.axes if a in summed and a in t.base.axes]
            pieces = [other.sum(summed - set(site.axes))]
            if local:  # the other elements of these plates stay as they are
                pieces.append(stopped(t.base.sum(summed - set(local)).excluding_sum(local)))
            row = swaps.setdefault(site, [stopped(p) for p in parts])
            row[i] = t.scaled(total(pieces), summed)
        for site, slope in t.slopes.items():
            slopes.setdefault(site, []).append(t.scaled(slope.sum(summed - set(site.axes)), summed))
    rows = [{s: total(row) for s, row in group.items()} for group in (swaps, slopes)]
    return total(parts), rows[0], rows[1]


def _check_elements(site: Site, term: Term) -> None:
    """Refuse a term that sees several elements of a site at once, where each is varied alone."""
    missing = [a.name for a in site.axes if a.kind == PLATE and a not in term.base.axes]
    if not missing:
        return
    estimator = type(site.estimator).__name__
    text = message(
        f"site {site.name!r}: {estimator}() cannot serve {term.label}, which is outside plate"
        f" {', '.join(map(repr, missing))} of the site, inside a nonlinear function",
        got=f"{term.label} depends on all elements of {site.name!r} together",
        expected="terms inside the site's plates, or an estimator of single draws",
        fix=f'estimators={{"{site.name}": vi.Reparam()}}',
    )
    current().refuse(text)


def _pushed(
    reduction: Reduction,
    values: Sequence[Named],
    tangents: Sequence[Named | None],
    over: Axis | None,
    constants: Sequence[Named] | None,
) -> tuple[Named, Named]:
    """`_evaluate`, and its derivative along `tangents`."""
    axes = union(*(n.axes for n in (*values, *(t for t in tangents if t is not None))))
    full = [v.broadcast(axes) for v in values]
    along = [
        array_namespace(v.array).zeros_like(v.array) if t is None else t.broadcast(axes).array
        for v, t in zip(full, tangents, strict=True)
    ]
    out: list[Named] = []

    def fn(*arrays: Array) -> Array:
        operands = [Named(a, axes) for a in arrays]
        out[:] = [_evaluate(reduction, operands, over, constants)]
        return out[0].array

    value, slope = current().backend.jvp(fn, [v.array for v in full], along)
    return Named(value, out[0].axes), Named(slope, out[0].axes)


def _evaluate(
    reduction: Reduction,
    values: Sequence[Named],
    over: Axis | None,
    constants: Sequence[Named] | None = None,
) -> Named:
    """Apply a function to arrays; with `constants`, to them with one replicate of `values` swapped in."""
    if over is None:
        return combine(reduction.fn, *values)
    axes = union(*(n.axes for n in (*values, *(constants or ()))), [over])
    dim = axes.index(over)
    rest = axes[:dim] + axes[dim + 1 :]
    order = (dim, *(i for i in range(len(axes)) if i != dim))

    def rows(operands: Sequence[Named]) -> list[Array]:
        return [
            array_namespace(n.array).permute_dims(n.broadcast([over]).aligned(axes), order)
            for n in operands
        ]

    if constants is None:
        return Named(reduction(*rows(values)), rest)
    return ordered(reduction.swap_one(rows(constants), rows(values)), (over, *rest))


# Functions of terms that estimators use to act on the cost downstream of their site.


def downstream(terms: Sequence[Term], site: Site, values: Callable[[Term], Named]) -> Named:
    """What each element of a site is worth, as a constant: the values of the terms, summed over other axes."""
    return stopped(own_sum(terms, site, values))


def own_sum(terms: Sequence[Term], site: Site, values: Callable[[Term], Named]) -> Named:
    """The values of the terms for each element of a site, summed over other axes."""

    def part(t: Term) -> Named:
        named = values(t)
        others = [a for a in named.axes if a.kind < SLOT and a not in site.axes]
        return t.scaled(named.sum(others), t.pending)

    return total(part(t) for t in terms)


def unit(terms: Sequence[Term]) -> float:
    """The factor by which a mean over replicates or a subsampled plate scales what a site is worth."""
    factors = []
    for t in terms:
        if isinstance(t.weight, float | int) and t.weight != 0.0:
            scales = [a.scale for a in t.pending]
            factors.append(abs(t.weight) * math.prod(scales))
    return max(factors, default=1.0)


def matched(coefficients: Term, site: Site, drawn: frozenset[Site]) -> Named:
    """Coefficients of a site in the worlds that were drawn for the sites before it."""
    before = sorted((s for s in drawn if s is not site), key=lambda s: s.order)
    return settle(coefficients, before).base


def gradient_term(coefficient: Named, worth: Named | None, like: Term) -> Term:
    """A term of value zero whose gradient is the coefficient's, times `worth`."""
    product = coefficient
    if worth is not None:
        product = combine(lambda c, w: c * w, coefficient, worth)
    product = product.sum([a for a in product.axes if a.kind == SLOT])
    worlds = frozenset(
        s for s in current().sites if s.world is not None and s.world in product.axes
    )
    return Term(product, upstream=worlds, drawn=like.drawn, group=like.group, label=like.label)


def grouped(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms that may share one gradient term."""
    groups: dict[Any, list[Term]] = {}
    for t in terms:
        groups.setdefault((t.group, t.drawn), []).append(t)
    return list(groups.values())
