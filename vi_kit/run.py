"""One execution of an objective program: where axes are placed, sites recorded and terms made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from array_api_compat import array_namespace, device

from vi_kit._errors import EstimatorError, ObjectiveError, message
from vi_kit._named import (
    PLATE,
    REPLICATE,
    SLOT,
    WORLD,
    Array,
    Axis,
    Named,
    combine,
    from_layout,
)
from vi_kit.backend import Backend, Distribution, _current
from vi_kit.checks import refuse_draws_below_held
from vi_kit.copies import Copy, merged
from vi_kit.cost import Cost, Site, Term, label, stopped
from vi_kit.estimators import Enumerate, Estimator, Expansion, MeasureValued, Reparam, Score
from vi_kit.plan import Findings, Plan, Replan, Row
from vi_kit.select import Choice
from vi_kit.transform import contract

if TYPE_CHECKING:
    from vi_kit.programs import Program
    from vi_kit.statements import Statement
    from vi_kit.varied import Varied


STEP_KEY = "vi_kit.step"
"""Under which name the number of steps is kept."""

ALTERNATIVES: tuple[Estimator, ...] = (Reparam(), Enumerate(), MeasureValued(), Score())
"""What an error about a site suggests, in this order, as far as they can handle it."""


class Run:
    """State of one execution of an objective program.

    Args:
        backend: the library.
        plan: what is known about the program.
        findings: makes it a dry run, in which every site is plainly sampled and problems are noted.
        with_gradient: whether state (moving averages) advances.
    """

    max_world_dims: ClassVar[int] = 40
    """Dims for the supports of enumerated sites; further sites use them again, from the oldest on."""

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        *,
        findings: Findings | None = None,
        with_gradient: bool = True,
    ):
        self.backend = backend
        self.plan = plan
        self.findings = findings
        self.with_gradient = with_gradient
        self.sites: list[Site] = []
        self.terms: list[Term] = []
        self.new_state: dict[str, Array] = {}
        self.own_losses: list[Array] = []
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.apart: frozenset[Axis] = frozenset()
        self.subsamples: dict[str, Any] = {}
        self.sequential: set[str] = set()
        self.open_replicates: frozenset[Axis] = frozenset()
        self.slot_axis = Axis(SLOT, -1, "slots", plan.num_slots)
        self.slot_dim = -1 - plan.max_plate_nesting
        self.slots: dict[Site, range] = {}
        self.varied: dict[Site, Varied] = {}
        self.varied_in_nonlinear: set[Site] = set()
        self.next_slot = 1
        self.num_sites = 0
        self.by_order: dict[int, Site] = {}
        self.num_terms = 0
        self.dims: dict[Axis, int] = {}
        self.placed_dims = 0
        self._replicates = 0
        self._free_dim = self.slot_dim
        if plan.num_slots > 1:
            self.place(self.slot_axis)

    # Execution

    def execute(
        self, objective: Callable[[Program, Program], Any], model: Program, guide: Program
    ) -> dict[str | None, Named]:
        """Run an objective program and contract its sites; scalars by group of parameters."""
        self.arguments = (model.args, model.kwargs)
        token = _current.set(self)
        try:
            cost = objective(model, guide)
            if self.findings is not None:
                refuse_draws_below_held(self)
                self.findings.split = any(t.group is not None for t in cost.terms)
                return {}
            if self.next_slot != self.plan.num_slots:
                raise Replan
            return contract(cost, self.sites)
        finally:
            _current.reset(token)

    # Replicates

    def new_replicate_axis(self, size: int) -> Axis:
        self._replicates += 1
        return Axis(REPLICATE, self._replicates, f"iid_{self._replicates}", size)

    def replicate(self, fn: Callable[[], Any], axis: Axis) -> tuple[Cost, ...]:
        """Run `fn` for all copies along `axis`: costs, as a tuple."""
        opened, apart = self.open_replicates, self.apart
        dims, free = dict(self.dims), self._free_dim
        try:
            if self.plan.vectorize and self.backend.replicates_broadcast:
                self.open_replicates = opened | {axis}
                with self.backend.replicated(self, axis):
                    return _costs(fn())
            self.apart = apart | {axis}
            return _costs(fn()) if self.findings is not None else self._copies(fn, axis)
        finally:
            self.open_replicates, self.apart = opened, apart
            self.dims, self._free_dim = dims, free

    def _copies(self, fn: Callable[[], Any], axis: Axis) -> tuple[Cost, ...]:
        """Run `fn` apart for each copy, and bring what the copies made under the axis."""
        start, dims = len(self.sites), dict(self.dims)
        counts = (self.num_sites, self.num_terms, self.next_slot, self._replicates, self._free_dim)
        copies: list[Copy] = []

        def once() -> list[Array]:
            del self.sites[start:]
            self.dims = dict(dims)
            self.num_sites, self.num_terms, self.next_slot, self._replicates, self._free_dim = (
                counts
            )
            copies.append(Copy.of(_costs(fn()), self.sites[start:]))
            return copies[-1].arrays()

        arrays = self.backend.map_copies(self, once, axis.size)
        self.sites[start:] = copies[0].sites
        return merged(copies, arrays, axis)

    def place(self, axis: Axis) -> int:
        """Reserve a dim, left of all others, for an axis."""
        worlds = [d for a, d in self.dims.items() if a.kind == WORLD]
        if axis.kind == WORLD and len(worlds) >= self.max_world_dims:
            if not self.plan.tracked:
                raise Replan
            dim = worlds[len(worlds) % self.max_world_dims]
        else:
            dim = self._free_dim
            self._free_dim -= 1
        self.placed_dims += 1
        self.dims[axis] = dim
        return dim

    def layout(
        self, plates: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> dict[int, Axis]:
        """Which axis lies at which dim of an array that depends on the sites `upstream`."""
        layout = {-a.order: a for a in plates if a.kind == PLATE}
        shared = len(self.dims) > len(set(self.dims.values()))
        seen = {s.world for s in upstream}
        for axis, dim in self.dims.items():
            if shared and axis.kind == WORLD and axis not in seen:
                continue
            if dim in layout:
                raise EstimatorError(
                    message(
                        f"{what} depends on more than {self.max_world_dims} enumerated sites, or on sites as"
                        " far apart",
                        got=f"{layout[dim].name} and {axis.name}",
                        expected=f"terms that span at most {self.max_world_dims} successive enumerated sites",
                        fix="another estimator for some of the sites",
                    )
                )
            layout[dim] = axis
        return layout

    def refuse(self, text: str, *, of_estimator: bool = True) -> None:
        """Raise an error about an estimator or a program, in a dry run once all are known."""
        if self.findings is None:
            raise (EstimatorError if of_estimator else ObjectiveError)(text)
        self.findings.problem(text, of_estimator=of_estimator)

    # Sites

    def draw(self, statement: Statement, role: str) -> tuple[Array, Site]:
        """Offer a latent site to its estimator.

        Args:
            statement: where it is sampled.
            role: of the program.

        Returns:
            The value for the program, and the site.
        """
        site, choice = self._open(statement, role)
        dist = statement.dist
        if self.findings is not None:
            return self._try(site, dist, choice), site
        expansion = site.estimator.expand(dist)
        made = 0 if expansion.alternatives is None else expansion.alternatives.shape[0]
        if made != self.plan.slots_of.get(site.label, made):
            raise self._other_number(site, made)
        event_ndim = len(dist.event_shape)
        if expansion.is_worlds:
            return self.backend.track(self._worlds(site, expansion, event_ndim), site), site
        upstream: Iterable[Site] = ()
        if self.plan.num_slots > 1:  # only slots ask for it, and it is not free
            upstream = self.backend.upstream(self, expansion.value, ("site", site.order, site.name))
        if expansion.alternatives is not None:
            value = self._alternatives(site, expansion, event_ndim, upstream)
        else:
            value = self._aligned_slots(expansion.value, event_ndim, upstream)
        return (self.backend.track(value, site) if site.estimator.tracked else value), site

    def draw_inside(
        self, statement: Statement, role: str, again: Site | None
    ) -> tuple[Array | None, Site]:
        """Like `draw`, inside the control flow of a library: only single draws are possible there.

        Args:
            statement: where it is sampled.
            role: of the program.
            again: the site, if the body of the control flow is traced once more.

        Returns:
            The value, or `None` for the library's own reparameterised one; and the site.
        """
        site, choice, dist = again, None, statement.dist
        if site is None:
            site, choice = self._open(statement, role, inside=True)
        if self.findings is not None:
            choice = choice or self.findings.choices[site.label]
            return self._try(site, dist, choice, inside=True), site
        if not site.estimator.tracked:
            return None, site
        return self.backend.track(site.estimator.expand(dist).value, site), site

    def _open(self, statement: Statement, role: str, inside: bool = False) -> tuple[Site, Choice]:
        """Choose the estimator of a site."""
        axes = tuple(sorted(statement.axes, key=lambda a: a.key, reverse=True))
        name, dist = statement.name, statement.dist
        why = "inside control flow" if inside else ""
        if role != "guide":
            why = f"a draw from the {role}"
        choice = self.plan.selection.choose(
            name, label(name, role), dist, (*axes, *self.apart), statement.infer, why
        )
        site = Site(name, self.num_sites, axes, choice.estimator, role)
        self.num_sites += 1
        self.sites.append(site)
        self.by_order[site.order] = site
        if self.findings is None:
            if (
                site.label not in self.plan.selection.resolved
            ):  # the structure changes from run to run
                reason = self._reason_against(site, dist)
                if reason:
                    raise EstimatorError(self._refusal(site, dist, choice, reason))
            if site.estimator.tracked and not self.plan.tracked:
                raise Replan
        return site, choice

    def _reason_against(self, site: Site, dist: Distribution) -> str | None:
        estimator = site.estimator
        return estimator.reason_against(dist) or estimator.unmet_need((*site.axes, *self.apart))

    def _refusal(
        self, site: Site, dist: Distribution, choice: Choice, reason: str, inside: bool = False
    ) -> str:
        """The text of the error about a site that its estimator cannot handle."""
        name = type(site.estimator).__name__
        others = [e for e in ALTERNATIVES if e.reason_against(dist) is None]
        if inside:
            others = [e for e in others if e.num_worlds(dist) + e.num_slots(dist) == 1]
        others = [type(e).__name__ for e in others if type(e).__name__ != name] or [name]
        expected = " or ".join(f"{other}()" for other in others)
        fix = f'estimators={{"{site.name}": vi.{others[0]}()}}'
        if "replicates" in reason:
            expected, fix = "num_samples >= 2, or another baseline", "num_samples=2"
        if "max_worlds" in reason:
            fix += f", or vi.Enumerate(max_worlds={dist.support_size()})"
        return message(
            f"site {site.name!r}: {name}() {reason}",
            got=f"{site.estimator!r}, from {choice.rule}",
            expected=expected,
            fix=fix,
        )

    def _try(self, site: Site, dist: Distribution, choice: Choice, inside: bool = False) -> Array:
        """Dry run: check the choice, note it, and sample plainly."""
        findings, estimator = self.findings, choice.estimator
        assert findings is not None
        reason = self._reason_against(site, dist)
        if reason is None and estimator.num_worlds(dist) + estimator.num_slots(dist) > 1:
            if inside:
                reason = "needs several values at once, which a scan or cond cannot hold"
            elif self._undeclared(site, dist):
                reason = "needs each of its batch dims in a plate, or made event dims by .to_event"
        if reason:
            text = self._refusal(site, dist, choice, reason, inside)
            findings.problem(text, of_estimator=True)
        else:
            findings.slots_of[site.label] = estimator.num_slots(dist)
            findings.num_slots += findings.slots_of[site.label]
            findings.sizes[site] = estimator.num_worlds(dist)
            if estimator.num_worlds(dist) > 1 or estimator.num_slots(dist) > 0:
                findings.all_at_once.add(site)
        findings.choices[site.label] = choice
        findings.names.add(site.name)
        plates = ", ".join(a.name for a in site.axes if a.kind == PLATE)
        event = f" {tuple(dist.event_shape)}" if dist.event_shape else ""
        findings.rows[site.label] = Row(
            site.label, dist.name + event, plates or "-", repr(estimator), choice.rule, choice.why
        )
        pathwise = estimator.pathwise and dist.has_rsample and not reason
        try:
            value = dist.rsample() if pathwise else dist.sample()
        except NotImplementedError:
            findings.problem(
                message(
                    f"{site.role} site {site.name!r}: one cannot draw from {dist.name}",
                    got=f"{dist.name}, which has no sampler",
                    expected=f"a {site.role} that can be simulated",
                    fix="an objective that draws from the guide only, or another distribution",
                ),
                of_estimator=False,
            )
            findings.raise_if_any()
            raise
        self.backend.upstream(self, value, ("site", site.order, site.name))
        if pathwise and not estimator.tracked:
            return value
        if estimator.is_support:
            value = self.backend.untracked(value)
        return self.backend.track(value, site)

    def _undeclared(self, site: Site, dist: Distribution) -> list[int]:
        """Batch dims of a distribution that are in no plate."""
        known = {-d for d in self.dims.values()} | {a.order for a in site.axes if a.kind == PLATE}
        sizes = reversed(dist.batch_shape)
        return [d for d, size in enumerate(sizes, 1) if size > 1 and d not in known]

    def _worlds(self, site: Site, expansion: Expansion, event_ndim: int) -> Array:
        """Put the worlds of a site along an axis of their own."""
        size = expansion.value.shape[0]
        key = ("site", site.order, site.name)
        upstream: frozenset[Site] = frozenset()
        if expansion.weights is not None:
            upstream = self.backend.upstream(self, expansion.weights, key)
        site.world = Axis(WORLD, site.order, f"worlds of {site.name}", size)
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", size)
        dim = self.place(site.world)
        value = _spread(expansion.value, dim, event_ndim)
        if expansion.weights is None:
            return value
        weights = self._aligned_slots(_spread(expansion.weights, dim, 0), 0, upstream)
        what = f"site {site.name!r}"
        site.weights = self.term(weights, site.axes, what, own=site, counts=False, known=upstream)
        if expansion.first_is_drawn:
            order = array_namespace(weights).arange(size, device=device(weights))
            site.chosen = Term(Named(order == 0, (site.world,)))
        return self._aligned_slots(value, event_ndim, upstream)

    def _alternatives(
        self, site: Site, expansion: Expansion, event_ndim: int, upstream: Iterable[Site]
    ) -> Array:
        """Put the drawn value and its alternatives along the slot axis."""
        assert expansion.alternatives is not None and expansion.coefficients is not None
        num, n, start = expansion.alternatives.shape[0], self.plan.num_slots, self.next_slot
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", num)
        self.slots[site] = range(start, start + num)
        self.next_slot += num
        if self.next_slot > n:
            raise Replan
        coefficients = self._first_slot(expansion.coefficients, 0, lead=1)
        layout = self.layout(site.axes, upstream, f"site {site.name!r}")
        coefficients = self.backend.untracked(coefficients)
        layout[-coefficients.ndim] = site.slots
        named = from_layout(coefficients, layout, (*site.axes, site.slots))
        site.coefficients = Term(combine(lambda c, held: c - held, named, stopped(named)))
        value = self._padded(expansion.value, event_ndim)
        xp = array_namespace(value)
        dim = value.ndim + self.slot_dim - event_ndim
        others = self._first_slot(expansion.alternatives, event_ndim, lead=1)
        others = xp.reshape(
            others, (num, *(1,) * (value.ndim - others.ndim + 1), *others.shape[1:])
        )
        others = xp.moveaxis(xp.squeeze(others, axis=dim + 1), 0, dim)
        base = value[(slice(None),) * dim + (slice(0, 1),)]
        pieces = [value[(slice(None),) * dim + (slice(0, start),)]] if value.shape[dim] > 1 else []
        if not pieces:
            pieces.append(_repeated(base, dim, start))
        pieces.append(others)
        if n > self.next_slot:
            pieces.append(_repeated(base, dim, n - self.next_slot))
        return xp.concat(pieces, axis=dim)

    def _other_number(self, site: Site, made: int) -> EstimatorError:
        """The error about an estimator that makes another number of alternatives than it said it would."""
        name = type(site.estimator).__name__
        return EstimatorError(
            message(
                f"site {site.name!r}: {name}.expand and {name}.num_slots disagree",
                got=f"{made} alternatives",
                expected=f"{self.plan.slots_of[site.label]}, which is what num_slots returned",
                fix="return from num_slots how many alternatives expand makes",
            )
        )

    def _aligned_slots(self, value: Array, event_ndim: int, upstream: Iterable[Site]) -> Array:
        """Where a drawn value is drawn once per slot, keep the draw of slot 0 wherever nothing upstream
        of it differs from slot 0."""
        n = self.plan.num_slots
        if n == 1:
            return value
        dim = value.ndim + self.slot_dim - event_ndim
        if dim < 0 or value.shape[dim] == 1:
            return value
        own = {i for site, slots in self.slots.items() if site in upstream for i in slots}
        xp = array_namespace(value)
        differs = xp.asarray([i in own for i in range(n)], device=device(value))
        differs = xp.reshape(differs, (n, *(1,) * (value.ndim - dim - 1)))
        return xp.where(differs, value, value[(slice(None),) * dim + (slice(0, 1),)])

    def _padded(self, value: Array, event_ndim: int) -> Array:
        need = -self.slot_dim + event_ndim
        if value.ndim >= need:
            return value
        shape = (1,) * (need - value.ndim) + tuple(value.shape)
        return array_namespace(value).reshape(value, shape)

    def expanded(self, value: Array, axes: Iterable[Axis], event_ndim: int) -> Array:
        """A value that has all the plates of its site, at full size."""
        plates = {a.order: a.size for a in axes if a.kind == PLATE}
        shape = list(value.shape)
        missing = max(plates, default=0) + event_ndim - len(shape)
        shape = [1] * missing + shape
        for order, size in plates.items():
            shape[-order - event_ndim] = size
        return array_namespace(value).broadcast_to(value, tuple(shape))

    def _first_slot(self, array: Array, event_ndim: int, lead: int) -> Array:
        """Values in slot 0, with a dim of size one kept; `lead` dims in front are not batch dims."""
        dim = array.ndim + self.slot_dim - event_ndim
        if dim < lead:
            if event_ndim == 0:
                return array
            pad = (1,) * (lead - dim)
            return array_namespace(array).reshape(
                array, (*array.shape[:lead], *pad, *array.shape[lead:])
            )
        return array[(slice(None),) * dim + (slice(0, 1),)]

    # Terms

    def named(
        self, array: Array, axes: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> Named:
        """Name the dims of an array that the program made at a site inside `axes`."""
        layout = self.layout(axes, upstream, what)
        try:
            return from_layout(array, layout, axes)
        except ValueError as error:
            raise ObjectiveError(
                message(
                    f"{what}: a batch dim of its log density is in no plate",
                    got=str(error),
                    expected=f"dims of the plates {[a.name for a in axes if a.kind == PLATE]} only",
                    fix="declare the dim by a plate, or make it an event dim with .to_event(1)",
                )
            ) from None

    def term(
        self,
        log_prob: Array,
        axes: Sequence[Axis],
        what: str,
        *,
        held: bool = False,
        own: Site | None = None,
        counts: bool = True,
        statement: str = "",
        known: frozenset[Site] | None = None,
    ) -> Term:
        """A term from log densities.

        Args:
            log_prob: with dims as in the program (nats).
            axes: plates and replicate axes of the statement.
            what: for error messages.
            held: whether the draw on which it depends is a constant.
            own: for a site's own density: the site, which is not upstream of it.
            counts: whether it is a term of the objective, to be searched if the loss is not finite.
            statement: name of the sample statement.
            known: the sites on which it depends, if they are known already.
        """
        if known is None:
            known = self.backend.upstream(self, log_prob, ("term", self.num_terms, what))
            self.num_terms += 1
        named = self.named(self.backend.untracked(log_prob), axes, known, what)
        upstream = known - {own}
        alternatives: dict[Site, Named] = {}
        if self.slot_axis in named.axes:
            for site, slots in self.slots.items():
                if site in upstream and not held:
                    alternatives[site] = _slice(named, self.slot_axis, slots, site.slots)
            named = named.index(self.slot_axis, 0)
        worlds = {s for s in self.sites if s.world is not None and s.world in named.axes}
        upstream = frozenset(upstream | worlds)
        if self.findings is not None:
            self._check_reach(upstream, axes, what)
        else:
            self._check_reach({s for s in upstream if s.world or s in self.slots}, axes, what)
        term = Term(
            named,
            alternatives,
            upstream=upstream,
            pending=frozenset(a for a in axes if a.kind == PLATE and a.scale != 1.0),
            held=upstream if held else frozenset(),
            label=what,
            statement=statement,
        )
        if counts:
            self.terms.append(term)
        return term

    def step(self, like: Array) -> Array:
        """Number of gradients taken so far, for schedules."""
        state = self.backend.get_state(STEP_KEY)
        xp = array_namespace(like)
        state = xp.zeros_like(xp.sum(like)) if state is None else state
        state = self.backend.stop_gradient(state)
        if self.with_gradient:
            self.new_state[STEP_KEY] = state + 1.0
        return state

    def depends_on_draws(self, array: Array) -> bool:
        """Whether provenance leads from an array to a site, as far as sites are tracked."""
        known = self.backend.upstream(self, array, ("weight", self.num_terms))
        self.num_terms += 1
        return bool(known)

    def value(self, array: Array, axes: Iterable[Axis], what: str, *, held: bool) -> Term:
        """A term from an array that a function of drawn values returned.

        Args:
            array: with dims as in the program.
            axes: plates and replicate axes that it may have.
            what: for error messages.
            held: whether the draw on which it depends is a constant.
        """
        shape = tuple(array.shape)
        present = [a for a in axes if a.kind != PLATE or shape[-a.order :][:1] == (a.size,)]
        return self.term(array, present, what, held=held)

    def _check_reach(self, upstream: Iterable[Site], axes: Sequence[Axis], what: str) -> None:
        """Refuse terms outside the plate of a site whose elements all change at once."""
        enumerated = []
        for site in sorted(upstream, key=lambda s: s.order):
            if self.findings is None:
                all_at_once = site.world is not None or site in self.slots
            else:
                all_at_once = site in self.findings.all_at_once
                if self.findings.sizes.get(site, 1) > 1:
                    enumerated.append(site)
            missing = [a.name for a in site.axes if a.kind == PLATE and a not in axes]
            if not (all_at_once and missing):
                continue
            estimator = type(site.estimator).__name__
            text = message(
                f"site {site.name!r}: {estimator}() cannot serve {what}, which is outside plate"
                f" {', '.join(map(repr, missing))} of the site",
                got=f"{what} depends on {site.name!r} and sees all its elements at once",
                expected="terms inside the site's plates, or an estimator of single draws",
                fix=f'estimators={{"{site.name}": vi.Score()}}',
            )
            self.refuse(text)
        if enumerated:
            assert self.findings is not None
            worlds = math.prod(self.findings.sizes[s] for s in enumerated)
            bounds = [getattr(s.estimator, "max_worlds", math.inf) for s in enumerated]
            if worlds > max(bounds):
                self.findings.over_bound = (what, worlds, tuple(enumerated))

    def first_not_finite(self) -> str | None:
        """The first statement whose log density is not finite."""
        for term in self.terms:
            xp = array_namespace(term.base.array)
            if not bool(xp.all(xp.isfinite(term.base.array))):
                return term.label
        return None


def _costs(result: Any) -> tuple[Cost, ...]:
    """What the function given to `iid` returned."""
    costs = result if isinstance(result, tuple) else (result,)
    bad = [type(c).__name__ for c in costs if not isinstance(c, Cost)]
    if bad:
        raise ObjectiveError(
            message(
                "the function given to iid must return costs",
                got=", ".join(bad),
                expected="a Cost or a tuple of them",
                fix="reduce an inner iid (.mean(), .log_mean_exp()) before returning it",
            )
        )
    return costs


def _spread(values: Array, dim: int, event_ndim: int) -> Array:
    """Values whose dim in front is brought to `dim`, counted from the right of the batch dims."""
    batch = tuple(values.shape)[1 : values.ndim - event_ndim]
    ones = (1,) * (-dim - 1 - len(batch))
    return array_namespace(values).reshape(values, (values.shape[0], *ones, *values.shape[1:]))


def _repeated(base: Array, dim: int, times: int) -> Array:
    shape = list(base.shape)
    shape[dim] = times
    return array_namespace(base).broadcast_to(base, tuple(shape))


def _slice(named: Named, axis: Axis, slots: range, new: Axis | None) -> Named:
    assert new is not None
    dim = named.axes.index(axis)
    part = named.array[(slice(None),) * dim + (slice(slots.start, slots.stop),)]
    return Named(part, named.axes).renamed(axis, new)
