"""Nonlinear functions of costs, with every alternative carried through one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import PLATE, SLOT, Array, Axis, Named, combine, ordered, total, union
from vi_kit.costs.terms import Nonlinear, Site, Term, cost_context, merge, stopped
from vi_kit.costs.unfold import unfold, with_elements
from vi_kit.costs.worlds import happening, settle


@dataclass(frozen=True)
class Reduction:
    """A function along the replicate axis.

    Attributes:
        fn: takes arrays of shape `(num_replicates, *rest)`, returns one of shape `(*rest,)`.
    """

    fn: Callable[..., Array]

    def __call__(self, *arrays: Array) -> Array:
        return _of_shape([a.shape[1:] for a in arrays], self.fn(*arrays), self.fn)

    def elementwise(self, *arrays: Array) -> Array:
        """The function, where there is nothing to reduce."""
        return _of_shape([a.shape for a in arrays], self.fn(*arrays), self.fn)

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
        return self(*arrays)


def _of_shape(shapes: Sequence[tuple[int, ...]], result: Array, fn: Callable) -> Array:
    """What a user's function returned, which must have the shape to which the given ones broadcast."""
    wanted = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    shape = getattr(result, "shape", None)
    if shape is not None and tuple(shape) == wanted:
        return result
    if shape is not None and len(shape) == len(wanted):
        if all(n in (1, m) for n, m in zip(shape, wanted, strict=True)):
            return array_namespace(result).broadcast_to(result, wanted)
    name = getattr(fn, "__name__", "fn")
    raise ObjectiveError(
        message(
            f"function {name!r} of costs returned what is not an array of the right shape",
            got=type(result).__name__ if shape is None else f"shape {tuple(shape)}",
            expected=f"an array of shape {wanted}: along dim 0 reduced, where there are replicates, and"
            " the other dims kept",
            fix="reduce with axis=0, by functions of vi.array_namespace(array)",
        )
    )


def shared_plates(terms: Iterable[Term]) -> frozenset[Axis]:
    """The plates that all terms have, along a dim or one element after the other."""
    plates = [
        frozenset(a for a in (*t.base.axes, *(a for a, _ in t.inside)) if a.kind == PLATE)
        for t in terms
    ]
    return frozenset.intersection(*plates) if plates else frozenset()


def kept_plates(rows: Sequence[Sequence[Term]], names: Sequence[str] | None) -> frozenset[Axis]:
    """The plates over which a nonlinear function is taken element by element.

    Raises:
        ObjectiveError: a plate of `names` that some term does not have.
    """
    shared = shared_plates(t for row in rows for t in row)
    if names is None:
        return shared
    wrong = sorted(set(names) - {a.name for a in shared})
    if wrong:
        lacking = sorted(
            {
                t.label
                for row in rows
                for t in row
                if not set(wrong) <= {a.name for a in shared_plates([t])}
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


def applied(
    fn: Callable[..., Array] | Reduction,
    rows: Sequence[Sequence[Term]],
    over: Axis | None,
    plates: Sequence[str] | None,
) -> list[Term]:
    """A nonlinear function of costs, given by their terms; see `vi_kit.costs.cost.apply`."""
    reduction = fn if isinstance(fn, Reduction) else Reduction(fn)
    if plates is None and over in cost_context().uneven:
        raise ObjectiveError(
            message(
                "a nonlinear function of replicates: they differ in the plates that all their terms share",
                got="replicates of which some have a term outside a plate that holds all terms of others",
                expected="an element of the same plates in every replicate, or one bound over everything",
                fix="an objective of your own with .log_mean_exp(plates=[])",
            )
        )
    keep = kept_plates(rows, plates)
    elements = _iterations(rows, keep)
    terms: list[Term] = []
    for inside, own in elements.items():
        # plates inside the body may be others in each iteration
        kept = kept_plates(own, None) if plates is None else keep
        terms.append(_applied(reduction, own, over, kept, inside, len(elements) > 1))
    return terms


def _iterations(
    rows: Sequence[Sequence[Term]], keep: frozenset[Axis]
) -> dict[frozenset[tuple[Axis, int]], list[list[Term]]]:
    """The terms of each iteration of the sequential plates that are kept."""
    found: dict[frozenset[tuple[Axis, int]], list[list[Term]]] = {}
    for i, row in enumerate(rows):
        for t in row:
            inside = frozenset((a, at) for a, at in t.inside if a in keep)
            found.setdefault(inside, [[] for _ in rows])[i].append(t)
    for group in found.values():
        like = next(t.base for row in group for t in row)
        nothing = Named(array_namespace(like.array).zeros_like(like.array), like.axes)
        for row in group:
            row[:] = row or [Term(nothing)]
    return found


def _applied(
    reduction: Reduction,
    rows: Sequence[Sequence[Term]],
    over: Axis | None,
    plates: frozenset[Axis],
    inside: frozenset[tuple[Axis, int]],
    in_turn: bool,
) -> Term:
    """A nonlinear function of costs per element of `plates`; `inside` are the iterations in which they are."""
    run = cost_context()
    keep = plates | run.open_replicates
    every = [t for row in rows for t in row]
    summed = {
        a
        for t in every
        for n in (t.base, *t.alternatives.values())
        for a in (*n.axes, *(a for a, _ in t.inside), *t.pending)
        if a.kind < SLOT and a not in keep and a != over
    }
    name = getattr(reduction.fn, "__name__", "apply").lstrip("_")
    run.before_nonlinear(Nonlinear(name, every, plates, over, summed, in_turn))
    reduced = summed | ({over} if over else set())
    local = [s for s in run.sites if s.axes and s.world and not reduced.isdisjoint(s.axes)]
    nothing = Term(Named(run.backend.zero()))
    merged = [merge(row) or [nothing] for row in rows]
    rows = [[happening(t, local) for t in row] for row in merged]
    exact = unfold(rows, local, summed, over)
    if exact is not None:
        terms = [t.changed(upstream=with_elements(t.upstream)) for row in rows for t in row]
        arguments = [(named, {}, {}) for named in exact]
    else:
        settled = [merge(settle(t, local) for t in row) for row in rows]
        terms = [t for row in settled for t in row]
        arguments = [_collected(row, summed, over) for row in settled]

    varied = {s: None for _, alts, _ in arguments for s in alts}
    live = {s for t in terms for s in t.upstream - t.held}
    run.after_nonlinear(varied, live)
    base = _evaluate(reduction, [b for b, _, _ in arguments], over)
    constants = [stopped(b) for b, _, _ in arguments]
    alternatives: dict[Site, Named] = {}
    slopes: dict[Site, Named] = {}
    for site in varied:
        others = [a.get(site, b) for b, (_, a, _) in zip(constants, arguments, strict=True)]
        swap_in = constants if over in site.axes else None
        if site.estimator.holds_params:
            tangents = [slope.get(site) for _, _, slope in arguments]
            alternatives[site], slopes[site] = _pushed(reduction, others, tangents, over, swap_in)
        else:
            other = _evaluate(reduction, others, over, swap_in)
            alternatives[site] = other if site.is_live else stopped(other)
    return Term(
        base,
        alternatives,
        slopes,
        upstream=frozenset(s for t in terms for s in t.upstream),
        pending=frozenset(a for a in keep if a.kind == PLATE),
        inside=inside,
        drawn=frozenset(s for t in terms for s in t.drawn),
        held=frozenset(s for t in terms for s in t.held if s not in live),
        label=name,
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
        return combine(reduction.elementwise, *values)
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
