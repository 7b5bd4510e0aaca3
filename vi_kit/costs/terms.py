"""Summands of costs, each with its plates and the sites that it depends on.

A `Term` holds the value that the program computed (`base`) and, for each site with alternatives, the
value that it would have if one element of that site took an alternative (`alternatives`). Linear
operations keep terms apart. A nonlinear one sums its terms over the plates that they do not share,
and carries each alternative through by swapping one element at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

from vi_kit.base.context import Context, current
from vi_kit.base.layouts import Alternatives, Closed, Gradient, Layout, Single, Worlds
from vi_kit.base.named import Axis, Named, total
from vi_kit.base.value import value


class Acting(Protocol):
    """What the algebra asks of a site's estimator; see `vi_kit.estimators.Estimator`."""

    gradient: ClassVar[Gradient]
    holds_params: ClassVar[bool]

    def contract(self, downstream: Any) -> Sequence[Term]: ...
    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None: ...


@dataclass(eq=False)
class Site:
    """One latent sample statement of one simulation, with all its independent elements.

    Attributes:
        name: as in the program. Two simulations of a program give two sites of one name.
        order: position among the sites of the run.
        axes: its plates and replicate axes; one element of the site per index.
        estimator: the one chosen for it.
        layout: how many values it has, as its estimator says.
        role: of the program that sampled it: `"model"`, `"guide"` or `"reference"`.
        variant: of the estimate that it is a part of.
        log_q: log density of its value, neither scaled nor masked (nats); `None` if it is not `scored`.
        world: axis of its worlds, if its value is several at once, such as all of its support.
        weights: of the worlds, where they are not their probabilities.
        slots: axis of the alternatives to its drawn value.
        coefficients: weights of the alternatives, of value zero and with a gradient.
        control: a control variate for what its elements are worth (nats).
        log_noise: log density of the noise from which its value was made, where that depends on parameters.
        has_path: whether its value has a gradient although its estimator draws it without.
        chosen: the world drawn for each element, once one had to be drawn.
        elements: its elements as sites of their own, once they had to be told apart.
        summed: whether it is summed out of the density of its program, and no site of the objective.
        label: its name, told apart from those of other roles and variants.
    """

    name: str
    order: int
    axes: tuple[Axis, ...]
    estimator: Acting
    layout: Layout = field(default_factory=Single)
    role: str = "guide"
    variant: int = 0
    log_q: Term | None = None
    world: Axis | None = None
    weights: Term | None = None
    slots: Axis | None = None
    coefficients: Term | None = None
    control: Term | None = None
    log_noise: Term | None = None
    has_path: bool = False
    chosen: Term | None = field(default=None, repr=False)
    elements: dict[tuple[int, ...], Site] = field(default_factory=dict, repr=False)
    summed: bool = False
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = label_of(self.name, self.role, self.variant, self.summed)

    @property
    def tracked(self) -> bool:
        """Whether it must be known which terms depend on it."""
        return is_tracked(self.estimator, self.layout)

    @property
    def scored(self) -> bool:
        """Whether the log density of its value is asked for: not where all of the gradient is in the value."""
        is_path = self.estimator.gradient is Gradient.PATH and not self.estimator.holds_params
        return not is_path or isinstance(self.layout, Worlds)

    @property
    def is_live(self) -> bool:
        """Whether alternatives to its value are differentiated, and not only compared with it."""
        return isinstance(self.layout, Alternatives) and self.layout.are_live

    def max_worlds(self, otherwise: float) -> float:
        """See `Worlds.max_worlds`; and what it is if that says nothing."""
        most = self.layout.max_worlds if isinstance(self.layout, Worlds) else None
        return otherwise if most is None else most

    def __repr__(self) -> str:
        return f"Site({self.name!r})"


def is_tracked(estimator: Acting, layout: Layout) -> bool:
    """Whether it must be known which terms depend on a site. It need not be where a world axis shows it, or where the
    gradient finds its way through the value."""
    if isinstance(layout, (Worlds, Closed)):
        return False
    return estimator.gradient is not Gradient.PATH or estimator.holds_params


def label_of(name: str, role: str, variant: int = 0, summed: bool = False) -> str:
    """The name of a site, told apart from that of a site of the guide and of the first variant, and from one drawn."""
    marks = [role] * (role != "guide") + ["second estimator"] * variant + ["summed"] * summed
    return f"{name} ({', '.join(marks)})" if marks else name


def kept_name(what: str, label: str) -> str:
    """Under which name something is kept with the parameters for a site's estimator."""
    return f"vi_kit.{what}.{label}"


@value()
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
        inside: the sequential plates in whose body its statement stands, and in which iteration of each.
        drawn: sites whose worlds were replaced by a draw from them.
        held: sites whose draw is to be taken as a constant.
        group: the parameters that ascend this term: `"model"`, `"guide"`, or all (`None`).
        label: where it comes from, for error messages.
        statement: name of the sample statement whose log density it is.
        own: the site, if it is that of a value under the distribution from which it was drawn, times a number.
    """

    base: Named
    alternatives: dict[Site, Named] = field(default_factory=dict)
    slopes: dict[Site, Named] = field(default_factory=dict)
    upstream: frozenset[Site] = frozenset()
    weight: Any = 1.0
    pending: frozenset[Axis] = frozenset()
    inside: frozenset[tuple[Axis, int]] = frozenset()
    drawn: frozenset[Site] = frozenset()
    held: frozenset[Site] = frozenset()
    group: str | None = None
    label: str = ""
    statement: str = ""
    own: Site | None = None

    def scaled(self, named: Named, scales: Iterable[Axis]) -> Named:
        """`named` times the weight and the pending scales among `scales`."""
        factor = self.weight
        for axis in self.pending.intersection(scales):
            factor = factor * current().scale(axis)
        return times(named, factor)

    def changed(self, **attributes: Any) -> Term:
        """A copy with other attributes. `dataclasses.replace` sets all the others anew, and there are many terms."""
        copy = object.__new__(Term)
        vars(copy).update(vars(self))
        vars(copy).update(attributes)
        return copy


def times(named: Named, factor: Any) -> Named:
    """An array times a number, or an array without dims."""
    if isinstance(factor, float):
        return named.scaled(factor)
    return Named(named.array * factor, named.axes)


def stopped(named: Named) -> Named:
    return Named(current().backend.stop_gradient(named.array), named.axes)


def centred(named: Named) -> Named:
    """Less its value: what is left counts by its gradient only."""
    return Named(named.array - stopped(named).array, named.axes)


def lift(fn: Callable[..., Named], *terms: Term) -> tuple[Named, dict[Site, Named]]:
    """Apply a function to the bases, and for each site to the values that its alternatives give."""
    sites = {s: None for t in terms for s in t.alternatives}
    return fn(*(t.base for t in terms)), {
        s: fn(*(t.alternatives.get(s, t.base) for t in terms)) for s in sites
    }


def held_fixed(term: Term) -> Term:
    """The term as a constant: no gradient through its value, nor through what it depends on."""
    held = term.held | term.upstream
    return term.changed(base=stopped(term.base), alternatives={}, slopes={}, held=held)


def merge(terms: Iterable[Term]) -> list[Term]:
    """Add up terms that agree in everything but their values."""
    groups: dict[Any, list[Term]] = {}
    scale = current().scale
    for t in terms:
        key = (
            t.base.axes,
            frozenset(a for a in t.pending if scale(a) != 1.0),
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
    shares = [t.weight / common for t in group]

    def summed(parts: Iterable[Named]) -> Named:
        alike: dict[Any, tuple[Any, list[Named]]] = {}
        for share, part in zip(shares, parts, strict=True):
            key = share if isinstance(share, float | int) else id(share)
            alike.setdefault(key, (share, []))[1].append(part)
        return total(times(total(added), share) for share, added in alike.values())

    return group[0].changed(
        base=summed(t.base for t in group),
        alternatives={s: summed(t.alternatives[s] for t in group) for s in group[0].alternatives},
        slopes={s: summed(t.slopes[s] for t in group) for s in group[0].slopes},
        weight=common,
        own=None,
    )


@dataclass(frozen=True, eq=False)
class Varied:
    """What one site stands for that is varied inside nonlinear functions.

    Attributes:
        sites: of one simulation, varied together.
        apart: names of the others of that simulation whose values have a gradient.
        uniform: whether their log densities are all scaled alike.
    """

    sites: tuple[Site, ...]
    apart: tuple[str, ...]
    uniform: bool


class CostContext(Context, Protocol):
    """What a run offers to costs."""

    @property
    def sites(self) -> list[Site]:
        """In the order in which they were sampled."""
        ...

    @property
    def uneven(self) -> set[Axis]:
        """Replicates that differ in the plates that all their terms share."""
        ...

    @property
    def varied(self) -> dict[Site, Varied]:
        """What sites stand for whose estimator holds parameters."""
        ...

    def before_nonlinear(self, function: Nonlinear) -> None:
        """Called before a nonlinear function of costs, which may be refused."""
        ...

    def after_nonlinear(self, varied: Iterable[Site], live: Iterable[Site]) -> None:
        """Called after one, with the sites that were varied in it and those on which it depends."""
        ...


def cost_context() -> CostContext:
    return cast(CostContext, current())


@dataclass(frozen=True)
class Nonlinear:
    """A nonlinear function of costs, for each element of plates.

    Attributes:
        name: of the function.
        terms: of its arguments.
        plates: that are kept.
        over: the replicate axis that it reduces.
        summed: axes that are summed before it is applied.
        in_turn: whether it is taken for each iteration of a sequential plate.
    """

    name: str
    terms: Sequence[Term]
    plates: frozenset[Axis]
    over: Axis | None
    summed: set[Axis]
    in_turn: bool
