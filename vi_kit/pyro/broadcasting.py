"""Whether a program computes for each replicate, world and alternative what it would compute for that one alone.

These are dims in front of the program's own, and a program as people write it (`z.sum()`, `z[0]`, `W @ z`) may mix
or misplace them without an error. So in the first run with a plan it is followed of what at each index every entry is
made; and each program is run again by itself, at one index of all that was in front: with plain values, of the
program's own shapes, on which it may depend, too. Every log density must come out the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch.distributions import TransformedDistribution

from vi_kit.analysis.blocked import settled
from vi_kit.analysis.mixing import NOTHING, NOWHERE, along, is_within
from vi_kit.base.context import _current
from vi_kit.base.errors import BackendError, EstimatorError, ViKitError, message
from vi_kit.base.layouts import Gradient
from vi_kit.base.named import PLATE, REPLICATE, SLOT, WORLD, Axis, Named, from_layout
from vi_kit.costs.terms import Site, Term
from vi_kit.engine.density import LogDensity
from vi_kit.engine.drawing import by_moments
from vi_kit.engine.run import Run
from vi_kit.engine.statements import Replay, Simulation, realigned
from vi_kit.language.programs import Statement
from vi_kit.pyro.backend import PyroBackend
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.pyro.expectations import Random
from vi_kit.pyro.front import (
    InPlaceOf,
    Position,
    Recorded,
    Uneven,
    at,
    fitted,
    in_words,
    saved_bytes,
    with_one_of_each,
)
from vi_kit.pyro.mixing import Mixing
from vi_kit.pyro.noise import noise_states


@dataclass(frozen=True)
class Mismatch:
    """What a program computes otherwise by itself.

    Attributes:
        text: for people.
        is_certain: whether it is one: a program that is random besides its sites cannot be compared.
    """

    text: str
    is_certain: bool = True


SAVED_BY_STATEMENT = 2**18
"""How many bytes each statement of a program has to save for the gradient of alternatives that are only compared, for
these to be worth a run of their own."""


def checked(
    run: Run, recorded: list[Recorded], backend: PyroBackend
) -> tuple[Mismatch | None, frozenset[tuple[str, int]]]:
    """What a program computes otherwise by itself, `None` if nothing; and `Plan.compared`.

    Args:
        run: that was recorded.
        recorded: its programs.
        backend: a new one.
    """
    compared: set[tuple[str, int]] = set()
    for one in recorded:
        for term in one.reading.terms:
            lost = _lost(term, one)
            if lost is not None:
                text = f"{term.label} depends on {lost} and is the same for all its values"
                return Mismatch(text), frozenset()
    known: dict[Site, tuple[Any, torch.Tensor]] = {}
    for one in reversed({r.key: r for r in reversed(recorded)}.values()):
        if any(axis.size > 1 for axis in one.dims):
            with saved_bytes() as saved:
                found = _Solo(run, one, known).run_alone(backend)
            if found is not None:
                return found, frozenset()
            others = math.prod(a.size for a in one.dims if a.kind != SLOT)
            for_slots = one.saved - others * saved()
            is_worth = for_slots > SAVED_BY_STATEMENT * len(one.reading.terms)
            if run.plan.only_compares and is_worth and _is_differentiated(run, one):
                compared.add((one.reading.program.role, one.num_terms))
    reader = getattr(run.backend, "reader", None)
    try:
        found = None if reader is None else _seen_together(run, reader)
    except Exception as error:  # what cannot be followed may do anything
        found = Mismatch(in_words(error))
    return found, frozenset(compared)


def _is_differentiated(run: Run, one: Recorded) -> bool:
    """Whether the densities of a program have a gradient in the objective. Those of draws without a path have none
    where the cost is linear in them."""
    if not isinstance(one.reading, Simulation) or run.in_nonlinear:
        return True
    sites = one.reading.sites.values()
    return any(s.estimator.gradient is not Gradient.NONE or s.has_path for s in sites)


def _lost(term: Term, one: Recorded) -> str | None:
    """A site on which a term depends and of which it has no axis: a reduction over its replicates or worlds."""
    for site in sorted(term.upstream, key=lambda s: s.order):
        axes = [a for a in (*site.axes, site.world) if a in one.dims and a.size > 1]
        if any(a not in term.base.axes for a in axes):
            return repr(site.name)
    return None


def _seen_together(run: Run, reader: Mixing) -> Mismatch | None:
    """The first term that may be made of several replicates, worlds or alternatives at once."""
    slots: dict[Axis, tuple[Axis | None, range]] = {run.slot_axis: (None, range(1))}
    for term in run.terms:
        chosen = {a: (w, range(w.size)) for a, w in run.chosen_of.items() if w in term.base.axes}
        parts = [(term.base, slots | chosen)]
        for site, named in term.alternatives.items():
            parts.append((named, {run.slot_axis: (site.slots, run.slots[site])}))
        for named, in_slots in parts:
            places = reader.places(named.array)
            for axis, number in reader.numbers.items():
                own, elements = in_slots.get(axis, (axis, range(axis.size)))
                dim = named.axes.index(own) if own in named.axes else NOWHERE
                is_there = dim != NOWHERE or axis in in_slots
                most = along(dim, (i + 1 for i in elements)) if is_there else NOTHING
                if not is_within(places.get(number, NOTHING), most):
                    return _mixed(term, axis, reader.told.get(number), reader.unknown.get(number))
    return None


def _mixed(term: Term, axis: Axis, told: str | None, unknown: str | None) -> Mismatch:
    of_site = f"values of site {axis.name.removeprefix('worlds of ')!r}"
    what = {REPLICATE: "replicates", WORLD: of_site}.get(axis.kind, "alternatives")
    if told is not None:
        return Mismatch(f"at {told} the program is told something of several {what} at once", False)
    if unknown is not None:
        return Mismatch(f"torch's {unknown} may mix {what}", False)
    return Mismatch(f"{term.label} is made of several {what} at once")


def refused(run: Run, reason: str, error: Exception | None) -> Exception:
    """The error about a program that cannot be run at one value of its sites after the other either."""
    sites = [s for s in run.sites if s.world is not None or s in run.slots]
    if isinstance(error, Uneven) and not sites:
        return EstimatorError(
            message(
                "a program that does not broadcast cannot be run at one value of its sites after the other",
                got=reason,
                expected="sites of single draws: Reparam() or Score()",
                fix="another estimator for the site it names, or operations that keep what is in front of plates",
            )
        )
    if not sites or isinstance(error, ViKitError):
        return error or BackendError(reason)
    names = ", ".join(repr(s.name) for s in sites[:5]) + f" and {len(sites) - 5} more" * (
        len(sites) > 5
    )
    return EstimatorError(
        message(
            f"site{'s' * (len(sites) > 1)} {names}: the program cannot be run at each of the values of"
            f" {' and '.join(sorted({type(s.estimator).__name__ + '()' for s in sites}))}",
            got=reason,
            expected="a program that has the same statements at every value, or an estimator of single draws",
            fix="estimators={" + ", ".join(f'"{s.name}": vi.Score()' for s in sites[:5]) + "}",
        )
    )


class _CannotBeAlone(Exception):
    """A value cannot be made again for a program alone."""


class _Solo(InPlaceOf):
    """A reading of a program alone, at one index of what was in front when it was recorded."""

    def __init__(
        self,
        was: Run,
        recorded: Recorded,
        known: dict[Site, tuple[Any, torch.Tensor]],
    ):
        super().__init__(recorded.reading)
        self.was, self.known = was, known
        self.program = self.reading.program
        self.nesting = was.plan.max_plate_nesting
        self.dims, self.num_terms = recorded.dims, recorded.num_terms
        draw = recorded.draw
        # what is held is not compared with its alternatives, and another draw's alternatives are none of this one
        slot = was.plan.num_slots - 1
        own = any(slot in was.slots.get(site, ()) for site in draw.sites.values())
        self.slot = slot if not draw.held and (own or self.program.simulated) else 0
        self.position: Position = lambda dim, size: (
            self.slot if dim == was.slot_dim and was.plan.num_slots > 1 else size - 1
        )
        self.program = with_one_of_each(self.program, lambda _: self.position, self.nesting)
        self.run = Run(was.backend, replace(was.plan, num_slots=1, tracked=False))
        self.run.subsamples = dict(was.subsamples)
        self.terms = list(self.reading.terms)
        self.text: str | None = None

    def run_alone(self, backend: PyroBackend) -> Mismatch | None:
        """Run it; what differs, if something does."""
        self.run.backend = backend
        token, before = _current.set(self.run), noise_states()
        try:
            with torch.enable_grad(), backend.session(self.run):
                backend.once(self)
        except _CannotBeAlone as error:
            return Mismatch(str(error), False)
        except Exception as error:
            return Mismatch(f"the {self.program.role} alone: {in_words(error)}")
        finally:
            _current.reset(token)
        if not all(map(torch.equal, before, noise_states())):
            return Mismatch(f"the {self.program.role} is random besides its sites", False)
        if self.terms:
            self._note(f"{self.terms[0].label} is not met in the {self.program.role} alone")
        return None if self.text is None else Mismatch(self.text)

    # What a reading does

    def latent(self, statement: Statement) -> torch.Tensor:
        """The value that the site had at this index."""
        original, name = self.reading, statement.name
        simulated = original.draws(name)
        value: Any = original.values[name] if simulated else original.draw.by_name[name]
        if not simulated and not isinstance(value, Random):
            depth = self.was.plan.max_plate_nesting
            value = realigned(value, original.draw.details[name], statement, depth)
        if isinstance(value, Random):
            site = original.site(name)
            if site.label not in self.was.plan.analytic:
                raise _CannotBeAlone(f"the value of site {name!r} has moments and noise")
            if not simulated and site in self.known:
                return self.known[site][1]
            sample = None if value.sample is None else self._own(value.sample(), statement)
            random = by_moments(self.run, site, statement.dist, sample)
            self.known[site] = statement.dist, random
            return random
        own = self._own(value, statement)
        if not simulated:
            return original.draw.details[name].dist.shown(own)
        made = None
        if statement.dist.name == "Delta":
            made = statement.dist.rsample()
        else:
            made = self._pushed(statement, original.details[name].dist, value)
        if made is None:
            return statement.dist.shown(own)
        self._compare(f"site {name!r}", made, own, torch.zeros(()))
        return made

    def record(self, made: LogDensity) -> None:
        """Compare a log density with what it was."""
        name, what = made.name, self.program.what(made.name)
        if isinstance(self.reading, Replay) and name in self.reading.sites:
            made = made.unmasked()
        density = made.density
        axes = tuple(a for a in made.axes if a.kind == PLATE)
        drawn = self.reading.sites.get(name) if isinstance(self.reading, Simulation) else None
        self.num_terms += drawn is not None and drawn.scored  # `Site.log_q` is a term, too
        if isinstance(density, Random):
            closed = (self.num_terms, what) in self.was.plan.closed
            density = settled(density.value, density.sample, closed)
        self.num_terms += 1
        if not self.terms or self.terms[0].label != what:
            self._note(f"{what} is met in the {self.program.role} alone only")
            return
        term = self.terms.pop(0)
        try:
            own = from_layout(density, {-a.order: a for a in axes}, axes)
        except ValueError:
            self._note(f"{what} alone has a batch dim in no plate")
            return
        own = own.sum(a for a in axes if (what, a) in self.was.plan.joined)
        whole = self._in_slot(term)
        spread = _spread(detach_provenance(whole.array), whole.axes)
        for axis in [a for a in whole.axes if a.kind != PLATE]:
            whole = whole.index(axis, self.position(self.dims[axis], axis.size))
        if set(own.axes) - set(whole.axes):
            whole = whole.broadcast(own.axes)
        if set(whole.axes) - set(own.axes):
            own = own.broadcast(whole.axes)
        self._compare(what, own.array, whole.array, spread)

    def drawn_from(self, name: str) -> Any:
        drawn = super().drawn_from(name)
        if drawn is None or drawn[0] not in self.known:
            return drawn
        return drawn[0], self.known[drawn[0]][0], drawn[2]

    # How it is done

    def _own(self, value: torch.Tensor, statement: Statement) -> torch.Tensor:
        value = detach_provenance(value).detach()
        value = at(value, self.position, self.nesting, len(statement.dist.event_shape))
        return fitted(value, statement.shape_alone(self.nesting))

    def _pushed(
        self, statement: Statement, drawn_from: Any, value: torch.Tensor
    ) -> torch.Tensor | None:
        """The value of a transformed distribution made anew, where the transforms remember of what the value was
        made: some cannot be inverted."""
        assert isinstance(statement.dist, PyroDistribution)
        own, was, x = statement.dist.fn, drawn_from.fn, detach_provenance(value)
        if not isinstance(was, TransformedDistribution):
            return None
        for transform in reversed(was.transforms):
            before, after = getattr(transform, "_cached_x_y", (None, None))
            if before is None or after is not x:
                return None
            x = before
        made = self._own(x, statement)
        for transform in own.transforms:
            made = transform(made)
        return made

    def _in_slot(self, term: Term) -> Named:
        """What a term was where one site took an alternative, or none did."""
        for site, slots in self.was.slots.items():
            if self.slot in slots and site in term.alternatives:
                assert site.slots is not None
                return term.alternatives[site].index(site.slots, self.slot - slots.start)
        return term.base

    def _compare(
        self, what: str, own: torch.Tensor, whole: torch.Tensor, spread: torch.Tensor
    ) -> None:
        own, whole = torch.broadcast_tensors(detach_provenance(own), detach_provenance(whole))
        if bool(_agree(own.detach(), whole.detach(), spread.detach()).all()):
            return
        sums = own.sum().item(), whole.sum().item()
        self._note(f"{what} has {sums[0]:.6g} alone and {sums[1]:.6g} in one pass with others")

    def _note(self, text: str) -> None:
        self.text = self.text or text


def _spread(array: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    """By how much an array changes with what is in front."""
    dims = tuple(i for i, a in enumerate(axes) if a.kind != PLATE)
    array = array.detach()
    return array.amax(dims) - array.amin(dims) if dims else torch.zeros_like(array)


def _agree(x: torch.Tensor, y: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Whether numbers are the same up to rounding. Where they change much with what is in front, a larger error is
    still rounding: what is mixed up is as far off as they change."""
    same = (x == y) | (x.isnan() & y.isnan())
    if not x.is_floating_point():
        return same
    size, eps = torch.maximum(x.abs(), y.abs()) + 1.0, torch.finfo(x.dtype).eps
    error, spread = (x - y).abs(), torch.nan_to_num(spread, 0.0, 0.0, 0.0)
    return same | (error <= 100 * eps * size) | (error <= (1e4 * eps * size).minimum(spread / 100))
