"""Worlds and alternatives one after the other, for programs that do not broadcast over dims in front of their own.

A program is run at one joint value of its sites after the other, and what the runs made is laid out along the axes
of those sites, as if one run had made it. A statement is taken once for each joint value of the sites on which it
depends, by provenance, and one run serves as many statements as it can: a chain of T sites of K values takes
about K^2 runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance

from vi_kit.costs.terms import Site
from vi_kit.engine.density import LogDensity
from vi_kit.engine.drawing import claim, expanded, open_site, placed
from vi_kit.engine.statements import Evaluation, Replay, Simulation, realigned
from vi_kit.estimators.base import Expansion
from vi_kit.language.programs import Statement
from vi_kit.pyro.front import InPlaceOf, Runner, Uneven, at, dims_of, fitted, with_one_of_each
from vi_kit.pyro.noise import Noise, noise_kept, noise_states, set_noise

SLOTS = None
"""The alternatives of all sites, among the sites of an `Index`."""

Index = dict[Site | None, int]
"""A joint value: which world of each site, and which of all the alternatives (0: none)."""


MOST_RUNS = 1024
"""How many joint values a statement may depend on, where the estimators of the sites set no bound."""


@dataclass(eq=False)
class Sheet:
    """What the runs made at one statement.

    Attributes:
        upstream: the sites on which it depends, as far as the runs have shown.
        made: the arrays, by joint value of all sites.
    """

    upstream: frozenset[Site] = frozenset()
    made: list[tuple[Index, dict[str, torch.Tensor]]] = field(default_factory=list)


class Turns(InPlaceOf):
    """The runs of one program, which serve one reading of it.

    Args:
        backend: that runs it.
        reading: what a single run with worlds and alternatives in front would serve.
        noise: what the program draws besides its sites, the same in all runs; `None` if nothing.
    """

    def __init__(
        self, backend: Runner, reading: Simulation | Replay | Evaluation, noise: Noise | None
    ):
        super().__init__(reading)
        self.backend, self.noise = backend, noise
        self.run, self.program = reading.run, reading.program
        self.done: list[Index] = []
        self.index: Index = {}
        self.is_held = False
        self.drawn: dict[str, tuple[Statement, Site, Sheet, list[torch.Tensor]]] = {}
        self.flags: dict[str, Expansion] = {}
        self.deltas: dict[str, Sheet] = {}
        self.records: dict[tuple[str, int], tuple[LogDensity, Sheet]] = {}
        self.met: list[tuple[str, int]] = []
        self.missing: dict[frozenset[Site], dict[Any, Index]] = {}

    def execute(self) -> None:
        """Run the program as often as needed, and hand what it made to the reading."""
        leaked, nesting = self.backend.leaked, self.run.plan.max_plate_nesting
        later, index = leaked, {}
        with _same_noise() as rewind:
            while index is not None:
                self.index, self.met = index, []
                self.is_held = self._only_compares(index)
                program = with_one_of_each(self.reading.program, self._position, nesting)
                self.program = replace(program, held=True) if self.is_held else program
                rewind()
                self.backend.leaked = leaked  # what comes before a leak does not depend on it
                noise = self.noise
                if noise is not None and self.done:
                    noise = Noise(noise.before, again=True)
                self.backend.once(self, noise)
                later |= self.backend.leaked
                if self.done and set(self.met) != set(self.records):
                    names = {name for name, _ in set(self.met) ^ set(self.records)}
                    raise Uneven(f"statements {sorted(names)} are met at some values only")
                self.done.append(self.index)
                index = self._next()
        self.backend.leaked = leaked
        self._hand_over()
        self.backend.leaked = later

    # What a reading does

    def latent(self, statement: Statement) -> torch.Tensor:
        """The value of a latent site at this joint value."""
        if self.reading.draws(statement.name):
            return self._drawn(statement)
        if self.reading.is_own_delta(statement):
            self.reading.names.add(statement.name)
            value = statement.dist.rsample()
            self._note(self.deltas.setdefault(statement.name, Sheet()), {"value": value})
            return value
        draw = self.reading.draw
        self.reading.latent(statement)  # it keeps account of the sites met
        value: Any = draw.by_name[statement.name]
        value = value.detach() if draw.held else value
        nesting = self.run.plan.max_plate_nesting
        value = realigned(value, draw.details[statement.name], statement, nesting)
        value = at(value, self._position(value), nesting, len(statement.dist.event_shape))
        value = self._as_held(fitted(value, statement.shape_alone(nesting)))
        return draw.details[statement.name].dist.shown(value)

    def record(self, made: LogDensity) -> None:
        """Note a log density at this joint value."""
        name = made.name
        key = (name, sum(other == name for other, _ in self.met))
        self.met.append(key)
        if self.done and key not in self.records:
            return  # an error once the run is over
        _, sheet = self.records.setdefault(key, (made, Sheet()))
        arrays: dict[str, Any] = {"density": made.density, "plain": made.plain}
        sites = getattr(self.reading, "sites", {})
        if name in sites and sites[name].estimator.holds_params:
            arrays["factor"] = made.factor()
        self._note(sheet, arrays)

    # Joint values

    def _drawn(self, statement: Statement) -> torch.Tensor:
        name, dist, reading = statement.name, statement.dist, self.reading
        if name not in self.drawn:
            if self.done:
                raise Uneven(f"site {name!r} is met at some values only")
            rule = reading.sums(statement)
            site, _ = open_site(self.run, statement, self.program.role, summed=rule)
            if site.label in self.run.plan.analytic:
                raise Uneven(
                    f"site {name!r} has moments, which are not taken one value after the other"
                )
            self.drawn[name] = (statement, site, Sheet(), [])
            reading.sites[name], reading.details[name] = site, statement
        _, site, sheet, noise = self.drawn[name]
        self.run.opened = site
        expansion = expanded(self.run, site, dist)
        if name not in self.flags:
            claim(self.run, site, expansion)
            self.flags[name] = expansion
            noise += noise_states()
        set_noise(noise)
        self._note(sheet, {n: a for n, a in vars(expansion).items() if torch.is_tensor(a)})
        made = self._made(sheet, self.index)
        if expansion.is_worlds:
            value = made["value"][self.index.setdefault(site, 0)]
        else:
            slots, slot = self.run.slots.get(site, range(0)), self.index.setdefault(SLOTS, 0)
            value = made["alternatives"][slot - slots.start] if slot in slots else made["value"]
        value = self._as_held(fitted(value, (*dist.batch_shape, *dist.event_shape)))
        value = track_provenance(value, sheet.upstream)
        varies = site.world is not None or site in self.run.slots
        value = self.backend.track(value, site) if varies or site.tracked else value
        return dist.shown(value)

    def _note(self, sheet: Sheet, arrays: dict[str, torch.Tensor]) -> None:
        sheet.upstream |= get_provenance(tuple(arrays.values())) | self.backend.leaked
        plain = {name: detach_provenance(self._as_held(array)) for name, array in arrays.items()}
        sheet.made.append((self.index, plain))

    def _only_compares(self, index: Index) -> bool:
        """Whether all that has a gradient was made at a joint value before."""
        worlds = [
            {s: i for s, i in one.items() if s is not SLOTS and i} for one in (index, *self.done)
        ]
        is_other = bool(index.get(SLOTS)) and self.run.plan.only_compares
        return is_other and worlds[0] in worlds[1:]

    def _as_held(self, array: torch.Tensor) -> torch.Tensor:
        """Without gradient, where it is of alternatives that are compared."""
        return array.detach() if self.is_held else array

    def _made(self, sheet: Sheet, index: Index) -> dict[str, torch.Tensor]:
        """What was made first at a joint value of the sites on which a statement depends."""
        wanted = self._within(sheet.upstream, index)
        return next(made for i, made in sheet.made if self._within(sheet.upstream, i) == wanted)

    def _within(self, sites: frozenset[Site], index: Index) -> Index:
        """A joint value of some sites only: alternatives of others do not count."""
        part: Index = {s: index.get(s, 0) for s in sites if s.world is not None}
        slot = index.get(SLOTS, 0)
        if any(slot in self.run.slots.get(s, ()) for s in sites):
            part[SLOTS] = slot
        return part

    def _next(self) -> Index | None:
        """A joint value for one more run: as many as possible of those that are missing at some statement."""
        groups = {sheet.upstream for _, sheet in self.records.values()}
        groups |= {sheet.upstream for _, _, sheet, _ in self.drawn.values()}
        groups = {g for g in groups if not any(g < other for other in groups)}
        self.missing = {g: self.missing.get(g) or self._all_missing(g) for g in groups}
        found: Index = {}
        for sites in sorted(groups, key=lambda g: sorted(s.order for s in g)):
            missing = self.missing[sites]
            missing.pop(_key(self._within(sites, self.done[-1])), None)
            for index in missing.values():
                joint = {**found, **index}
                if found.items() <= joint.items() and self._within(sites, joint) == index:
                    found = joint
                    break
        return found or None

    def _all_missing(self, sites: frozenset[Site]) -> dict[Any, Index]:
        """All joint values of some sites at which the program was not run yet."""
        ordered = sorted(sites, key=lambda s: s.order)
        worlds = {s: s.world.size for s in ordered if s.world is not None}
        bound = max((s.max_worlds(otherwise=MOST_RUNS) for s in worlds), default=1)
        if math.prod(worlds.values()) > bound:
            raise Uneven(f"a statement depends on {math.prod(worlds.values())} joint values")
        missing: dict[Any, Index] = {}
        for slot in [0, *(i for s in ordered for i in self.run.slots.get(s, ()))]:
            for values in itertools.product(*(range(n) for n in worlds.values())):
                index: Index = dict(zip(worlds, values, strict=True))
                index = {**index, SLOTS: slot} if slot else index
                missing[_key(index)] = index
        for index in self.done:
            missing.pop(_key(self._within(sites, index)), None)
        return missing

    def _position(self, value: torch.Tensor) -> Callable[[int, int], int]:
        dims = {
            self.run.dims[s.world]: self.index.get(s, 0)
            for s in get_provenance(value)
            if s.world is not None
        }
        if self.run.plan.num_slots > 1:
            dims[self.run.slot_dim] = self.index.get(SLOTS, 0)
        return lambda dim, size: dims[dim]

    # What the runs made, along axes

    def _hand_over(self) -> None:
        reading = self.reading
        for name, (statement, site, sheet, _) in self.drawn.items():
            ndim = len(statement.dist.event_shape)
            made = {
                f.name: self._along(sheet, f.name, *dims_of(f.name, self.flags[name], ndim))
                for f in fields(Expansion)
                if torch.is_tensor(getattr(self.flags[name], f.name))
            }
            expansion = replace(self.flags[name], **made)
            reading.values[name] = placed(self.run, site, expansion, ndim)
        for name, sheet in self.deltas.items():
            ndim = len(reading.draw.details[name].dist.event_shape)
            reading.draw.deltas[name] = self._along(sheet, "value", 0, ndim)
        for record, sheet in self.records.values():
            together = record._replace(
                density=self._along(sheet, "density", 0, 0),
                plain=self._along(sheet, "plain", 0, 0),
                factor=lambda sheet=sheet: self._along(sheet, "factor", 0, 0),
            )
            reading.record(together)

    def _along(self, sheet: Sheet, part: str, num_lead: int, event_ndim: int) -> torch.Tensor:
        """What the runs made at a statement, with dims for the sites on which it depends, left of the plates."""
        axes: list[tuple[Site | None, int, int]] = [
            (s, self.run.dims[s.world], s.world.size) for s in sheet.upstream if s.world is not None
        ]
        if any(s in self.run.slots for s in sheet.upstream):
            axes.append((SLOTS, self.run.slot_dim, self.run.plan.num_slots))
        axes.sort(key=lambda a: a[1])
        combinations = itertools.product(*(range(size) for _, _, size in axes))
        keys, made = [k for k, _, _ in axes], {}
        for index, parts in sheet.made:
            made.setdefault(_key(self._within(sheet.upstream, index)), parts[part])
        indices = (dict(zip(keys, values, strict=True)) for values in combinations)
        arrays = [made[_key(self._within(sheet.upstream, index))] for index in indices]
        nesting = self.run.plan.max_plate_nesting
        ndim = max(a.ndim for a in arrays) - num_lead - event_ndim
        arrays = [_padded(a, num_lead, ndim + event_ndim) for a in arrays]
        together = torch.stack(torch.broadcast_tensors(*arrays))
        lead, own = together.shape[1 : 1 + num_lead], together.shape[1 + num_lead :]
        if axes:
            sizes = [1] * (-axes[0][1] - nesting)
            for _, dim, size in axes:
                sizes[dim + nesting] = size
            own = (*[1] * (nesting - ndim), *own)
        else:
            sizes = []
        together = together.reshape((*(size for _, _, size in axes), *lead, *own))
        order = [*range(len(axes), len(axes) + num_lead), *range(len(axes))]
        order += range(len(order), together.ndim)
        together = together.permute(order).reshape((*lead, *sizes, *own))
        return track_provenance(together, sheet.upstream)


def _key(index: Index) -> frozenset[tuple[Site | None, int]]:
    return frozenset(index.items())


def _padded(array: torch.Tensor, num_lead: int, ndim: int) -> torch.Tensor:
    ones = [1] * (ndim + num_lead - array.ndim)
    return array.reshape((*array.shape[:num_lead], *ones, *array.shape[num_lead:]))


@contextmanager
def _same_noise() -> Iterator[Callable[[], None]]:
    """Gives a function that brings the generators to one and the same state, a fresh one."""
    seed = int(torch.randint(2**62, ()))
    with noise_kept():
        yield lambda: torch.manual_seed(seed) and None
