"""Alternatives that are compared with what was drawn, and not differentiated: a program is run at what was drawn, and
once more, with its parameters held, at all the alternatives in front.

The axis of the alternatives has size one in the first run, and what was drawn is not among them in the second; what
the two made is brought together at each statement, so that the reading that they serve sees one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance

from vi_kit.costs.terms import Site
from vi_kit.engine.density import LogDensity
from vi_kit.engine.drawing import claim, expanded, open_site, placed
from vi_kit.estimators.base import Expansion
from vi_kit.language.programs import Program, Statement, with_replaced
from vi_kit.pyro.front import InPlaceOf, Runner, Uneven, dims_of
from vi_kit.pyro.noise import Noise, buffers_kept, noise_states, set_noise


class Compared(InPlaceOf):
    """The two runs of one program, which serve one reading of it.

    Args:
        backend: that runs it.
        reading: what a single run with alternatives in front would serve.
        noise: what the program draws besides its sites, the same in both runs; `None` if nothing.
    """

    def __init__(self, backend: Runner, reading: Any, noise: Noise | None):
        super().__init__(reading)
        self.backend, self.noise = backend, noise
        self.run = reading.run
        self.is_held = False
        self.drawn: dict[str, tuple[Site, Expansion, torch.Tensor]] = {}
        self.deltas: dict[str, torch.Tensor] = {}
        self.records: dict[tuple[str, int], LogDensity] = {}
        self.others: dict[tuple[str, int], LogDensity] = {}

    def execute(self) -> None:
        """Run the program twice, and hand what it made to the reading."""
        leaked = self.backend.leaked
        self.program = self._with_part(self.reading.program)
        self.backend.once(self, self.noise)
        later = self.backend.leaked
        self.is_held = True
        self.states = [] if self.noise is None else noise_states()
        self.program = replace(self._with_part(self.reading.program), held=True)
        noise = None if self.noise is None else Noise(self.noise.before, again=True)
        with buffers_kept():
            self.backend.once(self, noise)
        if self.noise is not None:
            set_noise(self.states)
        if self.records.keys() != self.others.keys():
            names = {name for name, _ in self.records.keys() ^ self.others.keys()}
            raise Uneven(f"statements {sorted(names)} are met at some values only")
        self.backend.leaked = leaked
        for key, made in self.records.items():
            self.reading.record(self._together(made, self.others[key]))
        self.backend.leaked = later

    # What a reading does

    def latent(self, statement: Statement) -> torch.Tensor:
        """The value of a latent site: what was drawn, or the alternatives."""
        ndim = len(statement.dist.event_shape)
        if self.reading.draws(statement.name):
            return statement.dist.shown(self._part(self._drawn(statement), ndim))
        if self.reading.is_own_delta(statement):
            self.reading.names.add(statement.name)
            return self._own_delta(statement, ndim)
        return self._part(self.reading.latent(statement), ndim)

    def record(self, made: LogDensity) -> None:
        """Note a log density."""
        found = self.others if self.is_held else self.records
        key = (made.name, sum(name == made.name for name, _ in found))
        known = self.backend.leaked
        if known and not self.is_held:  # what comes before a leak does not depend on it
            density, plain = (track_provenance(x, known) for x in (made.density, made.plain))
            made = made._replace(density=density, plain=plain)
        found[key] = made

    # How it is done

    def _drawn(self, statement: Statement) -> torch.Tensor:
        """The value of a site that is drawn here, with all alternatives as far as they are known."""
        name, dist, reading = statement.name, statement.dist, self.reading
        ndim = len(dist.event_shape)
        if not self.is_held:
            rule = reading.sums(statement)
            site, _ = open_site(self.run, statement, self.program.role, summed=rule)
            reading.sites[name], reading.details[name] = site, statement
            expansion = expanded(self.run, site, dist)
            claim(self.run, site, expansion)
            if known := self.backend.leaked:
                expansion = _each(expansion, lambda _, x: track_provenance(x, known))
            value = placed(self.run, site, expansion, ndim)
            self.drawn[name] = site, expansion, value
        elif name not in self.drawn:
            raise Uneven(f"site {name!r} is met at some values only")
        else:
            site, expansion, value = self.drawn[name]
            if any(other.order < site.order for other in self.run.slots):
                value = self._with_others(statement, site, expansion, value)
                self.drawn[name] = site, expansion, value
        reading.values[name] = value
        return value

    def _with_others(
        self, statement: Statement, site: Site, expansion: Expansion, value: torch.Tensor
    ) -> torch.Tensor:
        """The value of a site with what is drawn where sites before it take an alternative."""
        known, ndim = get_provenance(value), len(statement.dist.event_shape)
        if self.backend.tracking and known.isdisjoint(s for s in self.run.slots if s is not site):
            return value
        with self._own_noise():
            self.run.opened = site
            others = expanded(self.run, site, statement.dist)
        made = _each(
            expansion,
            lambda part, x: self._joined(x, getattr(others, part), *dims_of(part, expansion, ndim)),
        )
        return placed(self.run, site, made, ndim)

    def _own_delta(self, statement: Statement, event_ndim: int) -> torch.Tensor:
        name, value = statement.name, statement.dist.rsample()
        if self.is_held:
            self.reading.draw.deltas[name] = self._joined(self.deltas[name], value, 0, event_ndim)
        else:
            self.reading.draw.deltas[name] = self.deltas[name] = value
        return value

    @contextmanager
    def _own_noise(self) -> Iterator[None]:
        """Draws of the second run are of numbers that no other draw has, also where the noise besides them is that of
        the first."""
        if self.noise is None:
            yield
            return
        kept = noise_states()
        set_noise(self.states)
        yield
        self.states = noise_states()
        set_noise(kept)

    def _together(self, made: LogDensity, others: LogDensity) -> LogDensity:
        return made._replace(
            density=self._joined(made.density, others.density, 0, 0),
            plain=self._joined(made.plain, others.plain, 0, 0),
            factor=lambda: self._joined(made.factor(), others.factor(), 0, 0),
        )

    def _joined(
        self, drawn: torch.Tensor, others: torch.Tensor, num_lead: int, event_ndim: int
    ) -> torch.Tensor:
        """What was made in the two runs along one axis, if it depends on a site with alternatives."""
        known = get_provenance(drawn)
        if self.backend.tracking and known.isdisjoint(self.run.slots):
            return drawn
        pieces = [detach_provenance(drawn), others.detach()]
        ndim = event_ndim - self.run.slot_dim
        ndim = max(ndim, *(p.ndim - num_lead for p in pieces)) + num_lead
        pieces = [
            p.reshape((*p.shape[:num_lead], *[1] * (ndim - p.ndim), *p.shape[num_lead:]))
            for p in pieces
        ]
        dim, sizes = ndim + self.run.slot_dim - event_ndim, (1, self.run.plan.num_slots - 1)
        shape = list(torch.broadcast_shapes(*(p.narrow(dim, 0, 1).shape for p in pieces)))
        shapes = ((*shape[:dim], size, *shape[dim + 1 :]) for size in sizes)
        pieces = [p.expand(s) for p, s in zip(pieces, shapes, strict=True)]
        together = torch.cat(pieces, dim)
        return track_provenance(together, known) if known else together

    def _part(self, value: torch.Tensor, event_ndim: int) -> torch.Tensor:
        """A value for the run that is made: another tensor than for the other, since transforms remember those that
        they made."""
        known, value = get_provenance(value), detach_provenance(value)
        dim = value.ndim + self.run.slot_dim - event_ndim
        has_slots = dim >= 0 and value.shape[dim] > 1
        if self.is_held:  # on what it depends has been found in the first run
            known, value = frozenset[Site](), value.detach()
        if has_slots:
            size = value.shape[dim]
            value = value.narrow(dim, 1, size - 1) if self.is_held else value.narrow(dim, 0, 1)
        else:
            value = value.view_as(value)
        return track_provenance(value, known) if known else value

    def _with_part(self, program: Program) -> Program:
        """A program with its simulated data as in this run."""
        simulated = {id(s.value): s for s in program.simulated}

        def part(argument: Any) -> Any:
            if id(argument) not in simulated:
                return argument
            return self._part(argument, simulated[id(argument)].event_ndim)

        args, kwargs = (with_replaced(a, part) for a in (program.args, program.kwargs))
        return replace(program, args=args, kwargs=kwargs)


def _each(expansion: Expansion, fn: Any) -> Expansion:
    """An expansion with a function of each of its arrays."""
    found = {f.name: getattr(expansion, f.name) for f in fields(Expansion)}
    return replace(expansion, **{n: fn(n, x) for n, x in found.items() if torch.is_tensor(x)})
