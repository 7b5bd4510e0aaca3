"""One execution of an objective program: where axes are placed, sites recorded and terms made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from vi_kit.base.context import _current, current
from vi_kit.base.errors import EstimatorError, ObjectiveError, message
from vi_kit.base.named import (
    PLATE,
    REPLICATE,
    SLOT,
    WORLD,
    Array,
    Axis,
    Named,
    from_layout,
)
from vi_kit.base.protocols import Distribution
from vi_kit.costs.contract import contract
from vi_kit.costs.copies import OF_A_SITE, Copy, merged
from vi_kit.costs.cost import Cost
from vi_kit.costs.eliminate import eliminated
from vi_kit.costs.nonlinear import shared_plates
from vi_kit.costs.terms import Nonlinear, Site, Term, Varied, kept_name
from vi_kit.engine.backend import Backend
from vi_kit.engine.chains import gradients, of_elements, single
from vi_kit.engine.particles import chosen, filtered, first_left, resampled, values_of, with_first
from vi_kit.engine.plan import Plan, Replan, SlotKey, shared_slots
from vi_kit.engine.refusals import (
    reason_against,
    refuse_half_held,
    refuse_joined,
    refuse_varied,
    unable,
)
from vi_kit.engine.select import MAX_SUMMED, Choice
from vi_kit.estimators.base import estimator_of
from vi_kit.estimators.memory import Learned
from vi_kit.language.programs import Draw, Program, Resampling, Start, Statement, Swarm

STEP_KEY = "vi_kit.step"
"""Under which name the number of steps is kept."""


class Run:
    """State of one execution of an objective program; `vi_kit.engine.dry_run` has those that find out what to plan.

    Args:
        backend: the library.
        plan: what is known about the program.
        with_gradient: whether state (moving averages) advances.
        learning: whether what estimators learn by minimising the variance is differentiated.
    """

    max_world_dims: ClassVar[int] = 40
    """Dims for the supports of enumerated sites; further sites use those again that no term has had for longest."""

    def __init__(
        self,
        backend: Backend[Run],
        plan: Plan,
        *,
        with_gradient: bool = True,
        learning: bool = False,
    ):
        self.backend = backend
        self.plan = plan
        self.with_gradient = with_gradient
        self.learning = learning
        self.sites: list[Site] = []
        self.terms: list[Term] = []
        self.new_state: dict[str, Array] = {}
        self.own_losses: list[Array] = []
        self.learns = False
        self.shortened = False
        """Whether there were fewer replicates than the objective has."""
        self.variant = 0
        self.is_aside = False
        self.salts: Mapping[str, Any] = {}
        """See `Settings`."""
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.apart: frozenset[Axis] = frozenset()
        self.uneven: set[Axis] = set()
        """Replicates that differ in the plates that all their terms share."""
        self.subsamples: dict[tuple[str, int], Any] = {}
        self.scales: dict[Axis, float] = {}
        self.repeated: set[str] = set()
        self.open_replicates: frozenset[Axis] = frozenset()
        self.slot_axis = Axis(SLOT, -1, "slots", plan.num_slots)
        self.slot_dim = -1 - plan.max_plate_nesting
        self.slots: dict[Site, range] = {}
        self.slot_keys: dict[Site, SlotKey] = {}
        self.seen_together: set[frozenset[SlotKey]] = set()
        """Sites with alternatives on which one array depends."""
        self.chosen_of: dict[Axis, Axis] = {}
        """The worlds that replicates have become, of which one is chosen."""
        self.numbers: dict[Axis, Any] = {}
        """Of the copy that is being made, along replicate axes that are apart."""
        self.varied: dict[Site, Varied] = {}
        self.varied_in_nonlinear: set[Site] = set()
        self.in_nonlinear: set[Site] = set()
        self.next_slot = 1
        self.num_sites = 0
        self.by_order: dict[int, Site] = {}
        self.opened: Site
        """Whose value is being made."""
        self.num_terms = 0
        self.deepest_dim = 0
        """Of the plates that were met, counted from the right."""
        self.dims: dict[Axis, int] = {}
        self._used: dict[int, None] = {}
        """Dims of worlds, in the order in which they were last in a term."""
        self._is_reused = False
        """Whether worlds of several sites have one dim."""
        self.placed_dims = 0
        self._replicates = 0
        self._free_dim = self.slot_dim
        if plan.num_slots > 1 and not backend.maps_values:
            self.place(self.slot_axis)

    # Execution

    def execute(
        self, objective: Callable[[Program, Program], Any], model: Program, guide: Program
    ) -> dict[str | None, Named]:
        """Run an objective program and contract its sites; scalars by group of parameters."""
        self.arguments = (model.args, model.kwargs)
        token = _current.set(self)
        try:
            return self.result(objective(model, guide))
        finally:
            _current.reset(token)

    def result(self, cost: Cost) -> dict[str | None, Named]:
        """What is made of the cost of the objective."""
        if self.next_slot != self.plan.num_slots:
            raise Replan
        return contract(cost, self.sites)

    def forget(self) -> None:
        """Let go of all arrays: what is traced may not outlive its trace."""
        self.terms.clear()
        self.subsamples.clear()
        for site in self.sites:
            for name in OF_A_SITE:
                setattr(site, name, None)

    def one_name(self, role: str, axes: Iterable[Axis]) -> tuple[Axis, ...]:
        """Axes of a program, its plates under the names that they have in the programs before it."""
        axes = tuple(axes)
        self.note_plates(role, axes)
        others = self.plan.plates
        if not others:
            return axes
        return tuple(replace(a, name=others.get((role, a), a).name) for a in axes)

    @property
    def tries_out(self) -> bool:
        """Whether it is yet to be found out whether programs can be run so, on fewer replicates than there are."""
        return self.backend.replicates_broadcast and not self.plan.settled

    @property
    def marginalized(self) -> tuple[str, ...]:
        return self.plan.selection.marginalize

    @property
    def plate_nesting(self) -> int:
        return self.plan.max_plate_nesting

    @property
    def has_front(self) -> bool:
        """Whether programs are run with dims in front of their own, or one after the other because of them."""
        return self.placed_dims > 0 or bool(self.plan.in_turn)

    # What is below it asks for

    def before_nonlinear(self, function: Nonlinear) -> None:
        if function.in_turn:
            refuse_joined(self, function.terms)
        refuse_half_held(self, function.terms)

    def after_nonlinear(self, varied: Iterable[Site], live: Iterable[Site]) -> None:
        refuse_varied(self, varied)
        self.in_nonlinear.update(live)

    def simulate(self, program: Program) -> Draw:
        return self.backend.simulate(self, program)

    def conditioned(self, program: Program, draw: Draw, only: str = "") -> Draw:
        return self.backend.conditioned(self, program, draw, only)

    def log_density(self, program: Program, draw: Draw) -> Cost:
        return self.backend.log_density(self, program, draw)

    def advanced(self, program: Program, draw: Draw, before: frozenset[str]) -> tuple[Cost, str]:
        return self.backend.advanced(self, program, draw, before)

    def coordinates(self, program: Program, draw: Draw) -> Draw:
        return single(self, self.backend.unbounded(self, program, draw, finds=True))

    def from_coordinates(self, program: Program, draw: Draw) -> Draw:
        return self.backend.unbounded(self, program, draw, finds=False)

    def gradients(
        self, fn: Callable[[list[Array]], Sequence[Cost]], values: list[Array], num: int
    ) -> list[list[Array]]:
        return gradients(self, fn, values, num)

    def of_elements(self, array: Array, statement: Statement, what: str) -> Cost:
        return of_elements(self, array, statement, what)

    def parameters(
        self, program: Program, starts: Mapping[str, Start], like: Array
    ) -> dict[str, Array]:
        return self.backend.parameters(self, program, starts, like)

    def values_of(self, draw: Draw) -> tuple[Cost, ...]:
        return values_of(self, draw)

    def chosen(
        self,
        program: Program,
        draw: Draw,
        axis: Axis,
        log_weights: Cost,
        values: Sequence[Cost],
    ) -> Draw:
        draw, world = chosen(self, program, draw, axis, log_weights, values)
        if world is not None:
            self.chosen_of[axis] = world
        return draw

    def resampled(
        self,
        program: Program,
        swarm: Swarm,
        into: Axis | None,
        how: Resampling,
        *,
        keeps_first: bool = False,
    ) -> tuple[Draw, Cost]:
        return resampled(self, program, swarm, into, how, keeps_first=keeps_first)

    def filtered(
        self,
        program: Program,
        target: Program,
        given: Draw,
        weight: Cost,
        axis: Axis,
        how: Resampling,
        first: Draw | None,
    ) -> tuple[Draw, Cost, Cost, frozenset[str]]:
        return filtered(self, program, target, given, weight, axis, how, first)

    def with_first(self, swarm: Swarm, draw: Draw, log_weight: Cost) -> Swarm:
        return with_first(self, swarm, draw, log_weight)

    def first_left(self, swarm: Swarm, how: Resampling) -> Cost:
        return first_left(self, swarm, how)

    def number(self, axis: Axis, like: Array) -> Named:
        """Which replicate it is, of those along an axis, on the device of an array."""
        xp, on = array_namespace(like), device(like)
        if axis in self.dims:
            return Named(xp.arange(axis.size, device=on), (axis,))
        return Named(xp.asarray(self.numbers[axis], device=on))

    def note_particles(self, site: Site) -> None:
        """Give a site that says which replicate it is its worlds."""
        site.world = Axis(WORLD, site.order, f"worlds of {site.name}", site.layout.size)
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", site.layout.size)
        if not self.backend.maps_values:
            self.place(site.world)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Programs that are run inside are not of the objective: all is as before when they are done."""
        numbers = ("num_sites", "num_terms", "next_slot", "placed_dims", "_replicates", "_free_dim")
        kept = {name: getattr(self, name) for name in (*numbers, "is_aside")}
        kept |= {
            name: getattr(self, name).copy()
            for name in ("sites", "terms", "by_order", "slots", "dims", "subsamples", "repeated")
        }
        self.is_aside = True
        try:
            with self.backend.aside():
                yield
        finally:
            vars(self).update(kept)

    def evaluate(self, draw: Draw, fn: Callable[..., Array]) -> Cost:
        return Cost([self.backend.evaluate(self, draw, fn)])

    def constant(self, value: Any) -> Any:
        return self.backend.stop_gradient(value)

    def state_of(self, term: Term, needed: int, met: int) -> int:
        return self.plan.states.get(term.label, met)

    # What differs in a dry run

    @property
    def is_dry(self) -> bool:
        """See `Session.is_dry`."""
        return False

    def open(self, site: Site, statement: Statement, choice: Choice) -> None:
        """Look over the choice for a new site."""
        if self.plan.selection.resolved.get(site.label) is not choice:  # the structure changes
            reason = reason_against(site, statement.dist, choice.estimator, self.apart)
            if reason:
                raise EstimatorError(unable(site, statement.dist, choice, reason))
        if site.tracked and not self.plan.tracked:
            raise Replan

    def plain_value(
        self, site: Site, dist: Distribution, choice: Choice | None, inside: bool = False
    ) -> Array | None:
        """What is sampled at a site instead of what its estimator makes."""
        return None

    def replayed(self, reading: Any, statement: Statement, value: Array) -> Array | None:
        """The value of a draw at a statement of another program; `None` if it cannot be that."""
        return value

    def all_at_once(self, site: Site) -> bool:
        """Whether all elements of a site change together."""
        return site.world is not None or site in self.slots

    def has_several(self, site: Site) -> bool:
        """Whether a site is enumerated."""
        return site.world is not None

    def num_values(self, site: Site) -> int:
        """How many values a site has at once."""
        return 1 if site.world is None else site.world.size

    def is_followed(self, site: Site) -> bool:
        """Whether it is known what depends on a site."""
        return site.tracked or site.world is not None

    def is_sampled_instead(self, site: Site, why: str) -> bool:
        """Whether the default rule gives a site another estimator."""
        return False

    @property
    def expands(self) -> bool:
        """Whether sites have several values."""
        return self.plan.expands

    @property
    def ignores_supports(self) -> bool:
        """Whether values may lie anywhere."""
        return False

    @property
    def finds_leaves(self) -> bool:
        """Whether it is found out what a program trains."""
        return False

    def may_draw_more(self, role: str) -> bool:
        """Whether the programs of a role may draw something besides their sites."""
        return role in self.plan.noisy

    def missed_leaves(self, text: str) -> None:
        """Plan anew, since something was trained that was not known of."""
        raise Replan(text)

    def takes_form(self, key: Any, value: Any) -> bool:
        """Whether the form of a term is noted, and a sample will do for it."""
        return False

    def refuse_random_given(self, reading: Any, auxiliary: str) -> None: ...
    def check_subsample(
        self, role: str, plate: tuple[str, int], indices: Any, shared: Any, same: Any
    ) -> None: ...
    def note_problem(self, text: str, *, of_estimator: bool) -> None: ...
    def note_method(self, text: str) -> None: ...
    def note_plates(self, role: str, axes: Iterable[Axis]) -> None: ...
    def note_same_plate(self, role: str, own: Axis, other: Axis) -> None: ...
    def note_replicates(self, axes: Iterable[Axis]) -> None: ...
    def note_log_prob(self, what: str, log_prob: Array, held: bool) -> None: ...
    def note_density(self, site: Site, dist: Distribution, log_prob: Array) -> None: ...
    def note_upstream(self, known: frozenset[Site], all_before: Callable[[], Any]) -> None: ...
    def note_masks(self, role: str, name: str, masks: tuple[Any, ...]) -> None: ...
    def note_observed(self, role: str, name: str) -> None: ...
    def note_noise(self, role: str) -> None: ...
    def note_sum(self, rule: str) -> None: ...
    def note_leaves(self, role: str, leaves: dict[str, Any]) -> None: ...
    def note_term(
        self,
        what: str,
        axes: Sequence[Axis],
        upstream: Iterable[Site],
        own: Site | None,
        inside: frozenset[tuple[Axis, int]],
    ) -> None: ...

    # Replicates

    def new_replicate_axis(self, size: int, chunk: int | None = None) -> Axis:
        self._replicates += 1
        if chunk is not None and self.tries_out:
            size, self.shortened = chunk, True
        return Axis(REPLICATE, self._replicates, f"iid_{self._replicates}", size)

    def replicate(
        self,
        fn: Callable[[], Any],
        axis: Axis,
        *,
        together: bool = False,
        chunk: int | None = None,
    ) -> tuple[Cost, ...]:
        """See `Session.replicate`."""
        opened, apart = self.open_replicates, self.apart
        self.note_replicates((*opened, *apart, axis))
        dims, free = dict(self.dims), self._free_dim
        try:
            if not (self.plan.vectorize and self.backend.replicates_broadcast):
                self.apart = apart | {axis}
                return self.copies(fn, axis, together, chunk)
            part = axis if chunk is None else replace(axis, size=chunk)

            def in_front() -> tuple[Cost, ...]:
                self.open_replicates = opened | {part}
                with self.backend.replicated(self, part):
                    return costs_of(fn())

            if part == axis:
                return in_front()
            return self.copies(in_front, axis, together, chunk, part)
        finally:
            self.open_replicates, self.apart = opened, apart
            self.dims, self._free_dim = dims, free

    def copies(
        self,
        fn: Callable[[], Any],
        axis: Axis,
        together: bool,
        chunk: int | None = None,
        part: Axis | None = None,
    ) -> tuple[Cost, ...]:
        """Run `fn` apart for each copy, and bring what the copies made under the axis.

        Args:
            fn: makes one copy, or those along `part`.
            axis: of all copies.
            together: see `Session.replicate`; likewise `chunk`.
            part: the axis that copies of one call have, which is a part of the other.
        """
        start, dims, first_term = len(self.sites), dict(self.dims), len(self.terms)
        counts = (self.num_sites, self.num_terms, self.next_slot, self._replicates, self._free_dim)
        copies: list[Copy] = []
        num_sites, is_again = self.num_sites, False

        def once(number: Any) -> list[Array]:
            nonlocal num_sites
            self.numbers[axis] = number
            del self.sites[start:]
            self.dims = dict(dims)
            self.num_sites, self.num_terms, self.next_slot, self._replicates, self._free_dim = (
                counts
            )
            copy = Copy.of(costs_of(fn()), self.sites[start:])
            del self.numbers[axis]  # what is traced may not outlive its trace
            num_sites = max(num_sites, self.num_sites)  # sites that were summed out are gone
            if chunk is not None and not self.backend.maps_values:
                self.terms[first_term:] = filter(_is_spoilt, self.terms[first_term:])
            arrays = copy.arrays()
            if not is_again:  # for the gradient
                copies.append(copy.hollow() if self.backend.maps_values else copy)
            return arrays

        arrays = self.backend.map_copies(self, once, axis, together, chunk)
        is_again = True
        costs, kept = merged(copies if arrays is None else copies[:1], arrays, axis, part)
        self.sites[start:] = dict.fromkeys(kept.values())
        self.num_sites = max([num_sites, *(s.order + 1 for s in kept.values())])
        self.backend.merge_copies(kept)
        for same in zip(*(c.costs for c in copies), strict=True):
            if len({shared_plates(c.terms) for c in same}) > 1:
                self.uneven.add(axis)
        return costs

    def place(self, axis: Axis) -> int:
        """Reserve a dim, left of all others, for an axis."""
        worlds = set[int]()
        if axis.kind == WORLD and len(self.dims) >= self.max_world_dims:
            worlds = {d for a, d in self.dims.items() if a.kind == WORLD}
        if len(worlds) >= self.max_world_dims:
            if not (self.plan.tracked or self.plan.scoped):
                raise Replan
            in_scope = self._in_scope() if self.plan.scoped else ()
            taken = {self.dims.get(s.world) for s in in_scope if s.world}
            before = [d for d in self._used if d in worlds]
            dim = next((d for d in before if d not in taken), before[0])
            self._is_reused = True
        else:
            dim = self._free_dim
            self._free_dim -= 1
        self.placed_dims += 1
        self.dims[axis] = dim
        self._note_use([axis])
        return dim

    def _note_use(self, axes: Iterable[Axis]) -> None:
        for dim in (self.dims[a] for a in axes if a.kind == WORLD):
            self._used.pop(dim, None)
            self._used[dim] = None

    def _in_scope(self) -> Iterable[Site]:
        in_scope = self.backend.in_scope(self)
        return self.sites if in_scope is None else in_scope

    def claim_slots(self, site: Site, num: int) -> None:
        """Give a site the slots for its alternatives."""
        key, starts = (site.order, site.label), self.plan.slot_starts
        if key not in starts and starts:
            raise Replan
        start = starts.get(key, self.next_slot)
        self.slots[site], self.slot_keys[site] = range(start, start + num), key
        self.next_slot = max(self.next_slot, start + num)
        if self.next_slot > self.plan.num_slots:
            raise Replan

    def note_together(self, sites: Sequence[Site]) -> None:
        """Note sites with alternatives on which one array depends: they may not have the same slots."""
        self.seen_together.add(frozenset(self.slot_keys[s] for s in sites))
        if len({i for s in sites for i in self.slots[s]}) < sum(len(self.slots[s]) for s in sites):
            raise Replan

    def with_shared_slots(self) -> Plan:
        """The plan, with the same slots for sites on which no array depends together."""
        nums = {self.slot_keys[s]: len(slots) for s, slots in self.slots.items()}
        starts = shared_slots(nums, self.seen_together)
        most = max((start + nums[key] for key, start in starts.items()), default=1)
        return replace(self.plan, slot_starts=starts, num_slots=most)

    def layout(
        self, plates: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> dict[int, Axis]:
        """Which axis lies at which dim of an array that depends on the sites `upstream`."""
        layout = {-a.order: a for a in plates if a.kind == PLATE}
        if self.slots:
            self.note_together([s for s in upstream if s in self.slots])
        placed = self.dims
        if self._is_reused:  # of the axes that have one dim that of a site which it sees
            if self.plan.scoped:
                upstream = self._in_scope()
            others = (self.slot_axis, *self.open_replicates)
            seen = (*others, *(s.world for s in upstream))
            placed = {a: placed[a] for a in seen if a in placed}
        for axis, dim in placed.items():
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
        raise (EstimatorError if of_estimator else ObjectiveError)(text)

    def scale(self, axis: Axis) -> float:
        """The factor on a sum over an axis: that of the program that knows it for a minibatch."""
        return self.scales.get(axis, 1.0)

    def share_subsample(
        self, role: str, plate: tuple[str, int], indices: Any, same: Callable[[Any, Any], bool]
    ) -> None:
        """Note the minibatch of a plate, which all programs share that have the plate.

        Args:
            role: of the program.
            plate: its name and full size.
            indices: of the minibatch.
            same: compares two minibatches.
        """
        shared = self.subsamples.setdefault(plate, indices)
        self.check_subsample(role, plate, indices, shared, same)

    def expanded(self, value: Array, axes: Iterable[Axis], event_ndim: int) -> Array:
        """A value that has all the plates of its site, at full size."""
        plates = {a.order: a.size for a in axes if a.kind == PLATE}
        shape = list(value.shape)
        missing = max(plates, default=0) + event_ndim - len(shape)
        shape = [1] * missing + shape
        for order, size in plates.items():
            shape[-order - event_ndim] = size
        return array_namespace(value).broadcast_to(value, tuple(shape))

    def without_summed(self, terms: Sequence[Term], sites: Sequence[Site]) -> list[Term]:
        """Log densities with sites summed out, which are then no sites of the run, nor their worlds axes of it."""
        terms = eliminated(
            terms,
            sites,
            max_worlds=MAX_SUMMED,
            num_values=self.num_values,
            scale_of=self.scale,
        )
        self.sites = [s for s in self.sites if s not in sites]
        worlds = {s.world for s in sites}
        self.dims = {axis: dim for axis, dim in self.dims.items() if axis not in worlds}
        self._free_dim = min([self.slot_dim, *(d - 1 for d in self.dims.values())])
        return terms

    # Terms

    def named(
        self, array: Array, axes: Sequence[Axis], upstream: Iterable[Site], what: str
    ) -> Named:
        """Name the dims of an array that the program made at a site inside `axes`."""
        layout = self.layout(axes, upstream, what)
        try:
            named = from_layout(array, layout, axes)
            self._note_use(named.axes)
            return named
        except ValueError as error:
            plates = f"dims of the plates {[a.name for a in axes if a.kind == PLATE]}"
            text = message(
                f"{what}: a batch dim of its log density is in no plate",
                got=str(error),
                expected=f"{plates} only",
                fix="declare the dim by a plate, or make it an event dim with .to_event(1)",
            )
            if self.placed_dims:
                text = message(
                    f"{what}: replicates, or values of a site, are not where they were in its log density",
                    got=str(error),
                    expected=f"{plates}, and the others left of them, as a drawn value has them left of its plates",
                    fix="operations that keep what is in front of plates, such as (x * w).sum(-1) for w @ x.T",
                )
            raise ObjectiveError(text) from None

    def term(
        self,
        log_prob: Array,
        axes: Sequence[Axis],
        what: str,
        *,
        held: bool = False,
        constants: frozenset[Site] = frozenset(),
        own: Site | None = None,
        counts: bool = True,
        statement: str = "",
        known: frozenset[Site] | None = None,
        drawn_here: Site | None = None,
        inside: frozenset[tuple[Axis, int]] = frozenset(),
        unscaled: bool = True,
    ) -> Term:
        """A term from log densities.

        Args:
            log_prob: with dims as in the program (nats).
            axes: plates and replicate axes of the statement.
            what: for error messages.
            held: whether the draw on which it depends is a constant.
            constants: sites whose draws are, if not all.
            own: for a site's own density: the site, which is not upstream of it.
            counts: whether it is a term of the objective, to be searched if the loss is not finite.
            statement: name of the sample statement.
            known: the sites on which it depends, if they are known already.
            drawn_here: see `Term.own`.
            inside: see `Term.inside`.
            unscaled: whether nothing but its plates scales it.
        """
        closed = False
        if self.plan.analytic and known is None:
            key = (self.num_terms, what) if counts else None
            closed = key in self.plan.closed
            log_prob = self.backend.expectation(log_prob, key)
        if known is None:
            if counts:
                self.note_log_prob(what, log_prob, held)
            known = self.backend.upstream(self, log_prob, ("term", self.num_terms, what))
            self.num_terms += 1
            if closed:
                known = frozenset(s for s in known if s.label not in self.plan.analytic)
                drawn_here = None
        named = self.named(self.backend.untracked(log_prob), axes, known, what)
        upstream = known - {own}
        self.note_term(what, axes, upstream, own, inside)
        in_all = {a for term, a in self.plan.joined if term == what}
        joined = in_all.intersection(axes) if counts else set[Axis]()
        if joined:
            named, drawn_here = named.sum(joined), None
        alternatives: dict[Site, Named] = {}
        if self.slot_axis in named.axes:
            for site, slots in self.slots.items():
                if site in upstream and not held and site not in constants:
                    alternatives[site] = _slice(named, self.slot_axis, slots, site.slots)
            named = named.index(self.slot_axis, 0)
        upstream |= {self.by_order[a.order] for a in named.axes if a.kind == WORLD}
        self._check_reach(upstream, [a for a in axes if a not in joined], what)
        plates = [a for a in (*axes, *dict(inside)) if a.kind == PLATE]
        scaled = [a for a in plates if a.scale != 1.0]
        self.scales.update((a, a.scale) for a in scaled)
        term = Term(
            named,
            alternatives,
            upstream=upstream,
            pending=frozenset(plates if unscaled else scaled),
            inside=frozenset(i for i in inside if i[0] not in in_all) if in_all else inside,
            held=upstream if held else upstream & constants,
            label=what,
            statement=statement,
            own=drawn_here,
        )
        if counts:
            self.terms.append(term)
        return term

    def step(self, like: Array) -> Array:
        """Number of gradients taken so far, for schedules."""
        state = self.backend.get_state(STEP_KEY)
        xp = array_namespace(like)
        if state is None:  # made of nothing that was drawn
            state = xp.zeros((), dtype=like.dtype, device=device(like))
        state = self.backend.stop_gradient(state)
        if self.with_gradient:
            self.new_state[STEP_KEY] = state + 1.0
        return state

    def parameter(self, site: Site, name: str, like: Array) -> Array:
        """A number in `Estimator.memory` of a site: a constant, but while it is being learned."""
        self.learns = True
        kept = estimator_of(site).memory[name]
        assert isinstance(kept, Learned)
        xp = array_namespace(like)
        start = xp.full((), kept.start, dtype=like.dtype, device=device(like))
        value = self.backend.parameter(kept_name(name, site.label), start)
        return value if self.learning else self.backend.stop_gradient(value)

    def predict(self, site: Site, network: Any, inputs: Array) -> Array | None:
        """The values of a network that is learned like `parameter`; `None` if there is nowhere to keep it."""
        self.learns = True
        name = kept_name("network", site.label)
        return self.backend.predict(name, network, inputs, held=not self.learning)

    def depends_on_draws(self, array: Array) -> bool:
        """Whether provenance leads from an array to a site, as far as sites are tracked."""
        known = self.backend.upstream(self, array, ("weight", self.num_terms))
        self.num_terms += 1
        return bool(known)

    def within(
        self, array: Array, axes: Collection[Axis], what: str
    ) -> tuple[Array, tuple[Axis, ...]]:
        """An array that a function of drawn values returned, and which axes it has.

        Args:
            array: with dims as in the program.
            axes: plates and replicate axes that it may have.
            what: for error messages.
        """
        shape = tuple(array.shape)
        present = [
            a
            for a in axes
            if a.kind != PLATE or (a.order <= len(shape) and shape[-a.order] == a.size)
        ]
        lost = [a for a in axes if a.kind == PLATE and a.order > len(shape)]
        unclear = [a for a in present if a.kind == PLATE and a.size in {b.size for b in lost}]
        if unclear:  # which of two plates of one size was summed over: neither is told apart
            if any(self.scale(a) != 1.0 for a in (*unclear, *lost)):
                self.refuse(
                    message(
                        f"{what} has fewer dims than there are plates, which are of one size",
                        got=f"shape {shape}, within plates {sorted(a.name for a in (*unclear, *lost))}",
                        expected="a dim of size one for each plate that was summed over, since one is subsampled",
                        fix=".sum(..., keepdims=True)",
                    ),
                    of_estimator=False,
                )
            dims = tuple(-a.order for a in present if a.kind == PLATE)
            array = array_namespace(array).sum(array, axis=dims)
            present = [a for a in present if a.kind != PLATE]
        return array, tuple(present)

    def _check_reach(self, upstream: Iterable[Site], axes: Sequence[Axis], what: str) -> None:
        """Refuse terms outside the plate of a site whose elements all change at once."""
        in_plates = [s for s in upstream if s.axes and self.all_at_once(s)]
        for site in sorted(in_plates, key=lambda s: s.order):
            missing = [a.name for a in site.axes if a.kind == PLATE and a not in axes]
            if not missing or self.is_sampled_instead(
                site, f"{what} sees all its elements at once"
            ):
                continue
            estimator = type(site.estimator).__name__
            names = ", ".join(map(repr, missing))
            where = f"which is outside plate {names} of the site"
            if any(joined == what and a.name in missing for joined, a in self.plan.joined):
                where = f"in which elements of plate {names} see each other's values"
            if site.summed:
                self.refuse(
                    message(
                        f"site {site.name!r} cannot be summed out of {what}, {where}",
                        got=f"{what} depends on all elements of {site.name!r} together",
                        expected="what depends on an element inside the plate",
                        fix=f"{site.name!r} in the guide too",
                    )
                )
                continue
            text = message(
                f"site {site.name!r}: {estimator}() cannot serve {what}, {where}",
                got=f"{what} depends on {site.name!r} and is one for all its elements",
                expected="terms inside the site's plates, or an estimator of single draws",
                fix=f'estimators={{"{site.name}": vi.Score()}}',
            )
            self.refuse(text)

    def first_not_finite(self) -> str | None:
        """The first statement whose log density is not finite."""
        for term in self.terms:
            xp = array_namespace(term.base.array)
            wrong = ~xp.isfinite(term.base.array)
            if bool(xp.any(wrong)):
                at = xp.nonzero(wrong) if wrong.ndim else ()
                return term.label + _where(at, term.base.axes)
        return None


def costs_of(result: Any) -> tuple[Cost, ...]:
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


def _is_spoilt(term: Term) -> bool:
    xp = array_namespace(term.base.array)
    return not bool(xp.all(xp.isfinite(term.base.array)))


def _slice(named: Named, axis: Axis, slots: range, new: Axis | None) -> Named:
    assert new is not None
    dim = named.axes.index(axis)
    part = named.array[(slice(None),) * dim + (slice(slots.start, slots.stop),)]
    return Named(part, named.axes).renamed(axis, new)


def _where(indices: Sequence[Array], axes: Sequence[Axis]) -> str:
    """At which values of enumerated sites, and which elements of plates, something was found; not if at all."""
    parts = []
    for index, axis in zip(indices, axes, strict=True):
        at = sorted({int(i) for i in index})
        if axis.kind not in (WORLD, PLATE) or len(at) == axis.size:
            continue
        shown = ", ".join(map(str, at[:5])) + ", ..." * (len(at) > 5)
        name = axis.name.removeprefix("worlds of ")
        parts.append(
            f"value {shown} of site {name!r}"
            if axis.kind == WORLD
            else f"{shown} of plate {name!r}"
        )
    return f" (at {'; '.join(parts)})" if parts else ""


def running() -> Run:
    """The run whose objective program is being executed."""
    run = current()
    assert isinstance(run, Run)
    return run
