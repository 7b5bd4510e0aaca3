"""What happens at the sample statements of a program, the same for every library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vi_kit.base.errors import EstimatorError, ObjectiveError, message
from vi_kit.base.named import PLATE, Array
from vi_kit.base.protocols import Distribution
from vi_kit.base.supports import moves
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Term
from vi_kit.engine.density import LogDensity
from vi_kit.engine.drawing import draw, draw_inside
from vi_kit.engine.run import Run
from vi_kit.language.programs import Draw, Factor, Program, Start, Statement, is_composite


def is_copy(message: Any) -> bool:
    """Whether a message of either library is about what an intervention (`do`) leaves of a latent site, on which
    nothing depends; what it leaves of an observed one is a term."""
    return message.get("_intervener_id") is not None and not message["is_observed"]


GIVEN = "_vi_kit_given"
"""Notes in the annotations of a site that its value was given, for `vi.check_unbiased`."""


def is_given(message: Any) -> bool:
    """Whether a message of either library is about a latent site whose value a handler has put there (`substitute`,
    `replay`)."""
    return message["value"] is not None and not message["is_observed"]


class AtDraw:
    """What readings have in common that give a program the values of a draw of another one."""

    run: Run
    program: Program
    draw: Draw

    def given(self, statement: Statement) -> Array:
        """The value that the draw has for a site of this program."""
        name, depth = statement.name, self.run.plan.max_plate_nesting
        value = self.draw.replayed(name, held=self.program.held)
        return realigned(value, self.draw.details[name], statement, depth)

    def agrees(self, statement: Statement, value: Array) -> bool:
        """Compare plates, shapes and supports of a site in two programs, usually model and guide."""
        name, theirs = statement.name, self.draw.details[statement.name]
        own, other = self.program.role, self.draw.program.role
        depth = self.run.plan.max_plate_nesting
        events = [tuple(s.dist.event_shape) for s in (statement, theirs)]
        is_delta = theirs.dist.name == "Delta"  # a guide may join sites and split them
        same = events[0] == events[1] if is_delta else False
        if not same and _whole_shape(statement, depth) != _whole_shape(theirs, depth):
            apart = "plates" if events[0] == events[1] else "event shape"
            shapes: list[Any] = [_plates_of(s) for s in (statement, theirs)]
            if shapes[0] == shapes[1]:
                shapes = [_plates_of(s, dims=True) for s in (statement, theirs)]
            shapes = shapes if apart == "plates" else events
            self.problem(
                f"site {name!r}: {own} and {other} disagree about its {apart}",
                got=f"{own} {shapes[0]}, {other} {shapes[1]}",
                expected="values of one shape, all dims of plates and events taken together",
                fix="plates of the same dims and sizes, and .to_event(n) alike in both",
            )
        elif not is_delta and not self._same_plates(statement, theirs):
            plates = [_plates_of(s) for s in (statement, theirs)]
            self.problem(
                f"site {name!r}: {own} and {other} disagree about its plates",
                got=f"{own} {plates[0]}, {other} {plates[1]}, with subsampling",
                expected="the same plates, with the same names, where there are minibatches",
                fix="give the plates one name in both",
            )
        elif not statement.dist.covers(theirs.dist, self.run.backend.untracked(value)):
            self.problem(
                f"site {name!r}: the {other} draws values outside the {own}'s support",
                got=f"{own} {statement.dist.support_name}, {other} {theirs.dist.support_name}",
                expected=f"a {other} whose support lies in the {own}'s",
                fix=f"a {other} distribution on {statement.dist.support_name}",
            )
        elif (moving := self._moves(statement)) is not None:
            self.problem(
                f"site {name!r}: the objective goes by the density of the {own} at draws of its own that are"
                f" held, which {moving}",
                got=f"{statement.dist.name}, whose support depends on parameters",
                expected="a support that stays where it is, or an objective that differentiates through the draws",
                fix="vi.elbo() with Reparam() at the site",
            )
        else:
            return True
        return False

    def _moves(self, statement: Statement) -> str | None:
        """Why the density at a draw is not all of a gradient, for a draw that is taken as a constant."""
        own = self.program.fn is self.draw.program.fn and not self.program.held
        return moves(statement.dist) if own and self.draw.held else None

    def _same_plates(self, statement: Statement, theirs: Statement) -> bool:
        """Pair off the plates of a site in two programs by their dims; `False` if one that the other lacks is
        subsampled."""
        mine, other = ({a.order: a for a in s.axes if a.kind == PLATE} for s in (statement, theirs))
        alike = len(statement.dist.event_shape) == len(theirs.dist.event_shape)
        for order in mine.keys() | other.keys():
            a, b = mine.get(order), other.get(order)
            if a != b and any(self.run.scale(x) != 1.0 for x in (a, b) if x is not None):
                return False
            if a is not None and b is not None and alike:
                self.run.note_same_plate(self.program.role, a, b)
        return True

    def problem(self, headline: str, **parts: str) -> None:
        self.run.refuse(message(headline, **parts), of_estimator=False)


@dataclass(eq=False)
class Simulation:
    """Offers every latent site of a program to its estimator."""

    run: Run
    program: Program
    terms: list[Term] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    values: dict[str, Array] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    inside: dict[str, Site] = field(default_factory=dict)
    details: dict[str, Statement] = field(default_factory=dict)
    factors: dict[str, Factor] = field(default_factory=dict)

    def latent(self, statement: Statement) -> Array | None:
        """The value of a latent site."""
        name = statement.name
        self._refuse_factor(statement)
        value, site = draw(self.run, statement, self.program.role)
        self.values[name], self.sites[name], self.details[name] = value, site, statement
        return statement.dist.shown(value)

    def latent_inside(self, statement: Statement) -> Array | None:
        """The value of a latent site in the body of a library's control flow, which may be traced more
        than once; `None` for the library's own reparameterised one."""
        name = statement.name
        again = self.inside.get(name)
        value, site = draw_inside(self.run, statement, self.program.role, again)
        self.inside[name], self.details[name] = site, statement
        return value

    def came_out(self, name: str, value: Array) -> None:
        """Note the value of a site after the control flow in whose body it is."""
        self.values[name], self.sites[name] = value, self.inside.pop(name)

    def _refuse_factor(self, statement: Statement) -> None:
        """In a joint simulation: a factor, which says nothing of what to draw."""
        if statement.dist.name == "Unit":
            self.run.refuse(
                message(
                    f"{self.program.role} factor {statement.name!r}: one cannot draw from a program with factors",
                    got="an unnormalised log density",
                    expected="sample statements only, where data are simulated",
                    fix="an observed sample statement instead of the factor",
                ),
                of_estimator=False,
            )

    def record(self, made: LogDensity) -> None:
        """Note a log density."""
        name, axes = made.name, made.axes
        what = self.program.what(name)
        _refuse_second(self, name)
        if made.masks and self.program.role == "guide":
            self.run.note_masks("guide", name, made.masks)
        site = self.sites.get(name)
        if site is not None:
            self.run.note_density(site, self.details[name].dist, made.plain)
        if site is not None and site.scored:
            site.log_q = self.run.term(
                made.plain, axes, what, constants=self.constants, own=site, counts=False
            )
            if site.estimator.holds_params:
                untracked = self.run.backend.untracked(made.factor())
                values = self.run.named(untracked, axes, site.log_q.upstream, what)
                self.factors[name] = Factor(values, made.number)
        own = site if made.number is not None else None
        term = _term(self, made, drawn_here=own, constants=self.constants)
        if site is not None and not site.scored:
            self.run.note_term(what, axes, term.upstream - {site}, site, frozenset())
        self.terms.append(term)

    @property
    def constants(self) -> frozenset[Site]:
        """Sites whose draws are constants."""
        return self.program.constants

    def draws(self, name: str) -> bool:
        """Whether the value of a latent site is made here."""
        return True

    def sums(self, statement: Statement) -> str:
        """See `Replay.sums`."""
        return ""

    def is_own_delta(self, statement: Statement) -> bool:
        """See `Replay.is_own_delta`."""
        return False

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        """Whether the program is run up to the latent site of this name, and no further."""
        return False

    def wants(self, name: str) -> bool:
        """Whether the log density of a statement is asked for."""
        return True

    def leaves_out(self, name: str) -> bool:
        """Whether the copy that an intervention leaves of a site is no term."""
        return False

    def takes_given(self, name: str) -> bool:
        """Whether a site is one of the draw though its value is given."""
        return self.program.role == "guide"

    def relaxes(self, name: str) -> bool:
        """Whether the value of a site may lie outside its support."""
        return name in self.sites and _relaxes(self.run, self.sites[name])

    def drawn_from(self, name: str) -> tuple[Site, Distribution, bool] | None:
        """The site of a name whose value is known by its moments, its distribution, and whether that is this
        program's."""
        if name not in self.sites or self.sites[name].label not in self.run.plan.analytic:
            return None
        return self.sites[name], self.details[name].dist, True

    def site(self, name: str) -> Site | None:
        """The site of a name, if it is latent."""
        return self.sites.get(name) or self.inside.get(name)

    def result(self) -> Draw:
        cost = Cost(self.terms)
        return Draw(self.program, self.values, dict(self.sites), cost, self.details, self.factors)


@dataclass(eq=False)
class Conditioned(Simulation, AtDraw):
    """Offers the latent sites of a program to their estimators, but for those that a draw has: these are given."""

    draw: Draw = field(kw_only=True)
    only: str = ""
    names: set[str] = field(default_factory=set)

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        """See `Simulation.stops_at`: at others, where only one is to be drawn, and what it is made of."""
        if not self.only or name in self.draw or name in self.sites or name == self.only:
            return False
        return self.only in self.sites or not is_auxiliary

    def wants(self, name: str) -> bool:
        """See `Simulation.wants`."""
        return not self.only or name not in self.draw

    @property
    def constants(self) -> frozenset[Site]:
        """See `Simulation.constants`."""
        return self.program.constants | self.draw.constants

    def latent(self, statement: Statement) -> Array | None:
        """The value of a latent site; `None` if it has to be sampled, so that a dry run can go on."""
        if self.draws(statement.name):
            return super().latent(statement)
        self.names.add(statement.name)
        return self.run.replayed(self, statement, self.given(statement))

    def latent_inside(self, statement: Statement) -> Array | None:
        """See `Simulation.latent_inside`."""
        if self.only in self.sites:
            raise Stop
        if self.only:
            raise _many_steps(self.program, statement.name)
        return super().latent_inside(statement)

    def draws(self, name: str) -> bool:
        """See `Simulation.draws`."""
        return name not in self.draw

    def takes_given(self, name: str) -> bool:
        """See `Simulation.takes_given`."""
        given = self.draw.details.get(name)
        return super().takes_given(name) if given is None else given.is_given

    def relaxes(self, name: str) -> bool:
        """See `Simulation.relaxes`."""
        given = self.draw.sites.get(name)
        return super().relaxes(name) if given is None else _relaxes(self.run, given)

    def result(self) -> Draw:
        """The draw of the other sites, once every site of the one that is given was met."""
        for name in self.draw.keys() - self.names:
            self.problem(
                f"{self.program.role}: there is no latent site {name!r}, whose value is given",
                got=f"latent sites {sorted(self.names | self.values.keys())}",
                expected="all sites of the draw",
                fix=f"sample({name!r}, ...) in the {self.program.role}",
            )
        return super().result()


@dataclass(eq=False)
class Replay(AtDraw):
    """Evaluates a program at the values of a draw, and sums out sites that the draw lacks."""

    run: Run
    program: Program
    draw: Draw
    terms: list[Term] = field(default_factory=list)
    scales: list[float | Array] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    missing: dict[str, Statement] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    details: dict[str, Statement] = field(default_factory=dict)

    def latent(self, statement: Statement) -> Array | None:
        """The value of a latent site; `None` if it has to be sampled, so that a dry run can go on."""
        name = statement.name
        if name not in self.draw:
            if asked := self.program.sums(name, statement.infer):
                self.run.note_sum(asked)
            if rule := self.sums(statement):
                value, site = draw(self.run, statement, self.program.role, rule)
                self.values[name], self.sites[name], self.details[name] = value, site, statement
                return statement.dist.shown(value)
            self.missing[name] = statement
            return None
        value = self.given(statement)
        if self.is_own_delta(statement):
            value = self.draw.deltas[name] = statement.dist.rsample()
        self.names.add(name)
        return self.run.replayed(self, statement, value)

    def sums(self, statement: Statement) -> str:
        """By which rule a site that the draw lacks is summed out; empty if it is not."""
        rule = self.program.sums(statement.name, statement.infer)
        return rule if statement.dist.support_size() is not None else ""

    def draws(self, name: str) -> bool:
        """See `Simulation.draws`."""
        return name not in self.draw

    def is_own_delta(self, statement: Statement) -> bool:
        """Whether a value is to be computed again, with parameters held, by the program that drew it."""
        own = self.program.held and self.program.fn is self.draw.program.fn
        return (
            own
            and bool(self.draw.factors)
            and not self.draw.held
            and statement.dist.name == "Delta"
        )

    def record(self, made: LogDensity) -> None:
        """Note a log density."""
        _refuse_second(self, made.name)
        by = self.draw.program
        is_of_guide = made.name in self.names and by.role == "guide" and not is_composite(by.fn)
        if made.masks and is_of_guide and self.draw.details[made.name].dist.name != "Delta":
            self.run.note_masks(self.program.role, made.name, made.masks)
        made = made.unmasked() if made.name in self.sites else made
        held, constants = self.draw.held, self.program.constants | self.draw.constants
        self.terms.append(_term(self, made, held=held, constants=constants))
        self.scales.append(made.scale)

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        """See `Simulation.stops_at`."""
        return False

    def wants(self, name: str) -> bool:
        """See `Simulation.wants`."""
        return True

    def leaves_out(self, name: str) -> bool:
        """See `Simulation.leaves_out`."""
        return name not in self.draw

    def takes_given(self, name: str) -> bool:
        """See `Simulation.takes_given`."""
        return name in self.draw.details and self.draw.details[name].is_given

    def relaxes(self, name: str) -> bool:
        """See `Simulation.relaxes`."""
        return name in self.draw.sites and _relaxes(self.run, self.draw.sites[name])

    def drawn_from(self, name: str) -> tuple[Site, Distribution, bool] | None:
        """See `Simulation.drawn_from`."""
        sites, details = self.draw.sites, self.draw.details
        if name not in sites or sites[name].label not in self.run.plan.analytic:
            return None
        if self.draw.held:  # a known expectation would have the gradient of the draw
            return None
        return sites[name], details[name].dist, False

    def site(self, name: str) -> Site | None:
        """See `Simulation.site`."""
        return self.draw.sites.get(name) or self.sites.get(name)

    def result(self) -> Cost:
        """The log density, once every site of the draw was met."""
        drawn_by = self.draw.program.role
        if self.missing:
            names, many = ", ".join(map(repr, self.missing)), len(self.missing) > 1
            sites, them = ("sites", "them") if many else ("site", "it")
            endless = [
                n
                for n, s in self.missing.items()
                if self.program.sums(n, s.infer) and s.dist.support_size() is None
            ]
            details = self.draw.details
            auxiliary = {n for n in details if details[n].infer.get("is_auxiliary")}
            self.problem(
                f"{self.program.role} {sites} {names} {'are' if many else 'is'} not in the draw",
                got=f"latent sites of the draw: {sorted(self.draw.keys() - auxiliary)}",
                expected=f"{drawn_by} {sites} of the same name",
                fix=f"add {names} to the {drawn_by}"
                + (
                    f"; {', '.join(map(repr, endless))} cannot be summed out, since the support is not finite, or not"
                    " the same for all elements"
                    + "; vi.ImportanceSampling(num_particles) in the place of vi.Exact()"
                    * ("*" in self.program.summed)
                    if endless
                    else f", or condition the {self.program.role} on {them}"
                    + _finite_of(self.missing)
                ),
            )
        for name in self.draw.keys() - self.names - self.draw.data.keys():
            if self.draw.details[name].infer.get("is_auxiliary"):
                self.run.refuse_random_given(self, name)
                continue
            self.problem(
                f"{drawn_by} site {name!r} is not a latent site of the {self.program.role}",
                got=f"latent sites of the {self.program.role}: {sorted(self.names)}",
                expected=f"every {drawn_by} site in the {self.program.role}, or marked as auxiliary and made by a Delta"
                f" into sites of the {self.program.role}",
                fix=f"sample({name!r}, ...) in the proposal"
                if self.program.role.endswith(" proposal")
                else f"vi.marginal({self.draw.program.role}, keep=[...], algorithm) with the sites of the"
                f" {self.program.role}; or sample({name!r}, ...) in the {self.program.role} too, given its other sites;"
                f" where a Delta makes one of it, sample({name!r}, ..., infer={{'is_auxiliary': True}})",
            )
        if not self.sites:
            return Cost(self.terms)
        terms = map(self._unscaled, self.terms, self.scales)
        return Cost(self.run.without_summed(list(terms), list(self.sites.values())))

    def _unscaled(self, term: Term, scale: float | Array) -> Term:
        """The same term, its scale (but for that of plates) as its weight."""
        if isinstance(scale, int | float) and scale == 1.0:
            return term
        if term.upstream.isdisjoint(self.sites.values()):
            return term
        if not isinstance(scale, int | float) or scale <= 0.0:
            self.problem(
                f"{term.label} depends on a site that is summed out, and has a scale that is no positive number",
                got=f"{scale!r}",
                expected="a number, the same for all that depends on the site",
                fix="the scale handler around the whole model, or the site in the guide too",
            )
            return term
        parts = {
            name: {s: n.scaled(1.0 / scale) for s, n in getattr(term, name).items()}
            for name in ("alternatives", "slopes")
        }
        return term.changed(base=term.base.scaled(1.0 / scale), weight=float(scale), **parts)


def _term(reading: Simulation | Replay, made: LogDensity, **others: Any) -> Term:
    """The term of a log density."""
    return reading.run.term(
        made.density,
        made.axes,
        reading.program.what(made.name),
        statement=made.name,
        inside=made.inside,
        unscaled=made.unscaled,
        **others,
    )


def _finite_of(missing: Mapping[str, Statement]) -> str:
    """What more can be done about sites that only one program has."""
    finite = [n for n, s in missing.items() if s.dist.support_size() is not None]
    return f", or sum them out: Loss(..., marginalize={finite})" if finite else ""


def _refuse_second(reading: Simulation | Replay, name: str) -> None:
    """Refuse a second statement of one name: its value would take the place of the first one's."""
    if name in reading.recorded:
        reading.run.refuse(
            message(
                f"{reading.program.role} site {name!r}: two sample statements have this name",
                got=f"{name!r} twice in one run of the {reading.program.role}",
                expected="one name per sample statement",
                fix=f'names such as f"{name}_{{i}}" in a loop',
            ),
            of_estimator=False,
        )
    reading.recorded.add(name)


def check_parameter(name: str, start: Any, kept: Any) -> None:
    """Refuse a parameter of which a value is kept that has another shape than the start given in this call.

    Raises:
        ObjectiveError: it has. A start that is one number may stand for any shape.
    """
    given, shape = (tuple(getattr(x, "shape", ())) for x in (start, kept))
    if given and given != shape:
        raise ObjectiveError(
            message(
                f"parameter {name!r}: the value that is kept has another shape than the start given in this call",
                got=f"shape {shape} kept, shape {given} given",
                expected="one shape in all calls: with a parameter per row those of the rows that were fitted",
                fix="a guide that computes it from the data, or parameters of another name for other rows",
            )
        )


def check_starts(starts: Mapping[str, Start], kept: Mapping[str, Any]) -> None:
    """Refuse parameters of an algorithm of which values are kept that have other shapes than its settings ask for.

    Raises:
        ObjectiveError: there are such.
    """
    for name, start in starts.items():
        given = np.shape(start.value)
        shape = tuple(getattr(kept[name], "shape", ())) if name in kept else given
        if given != shape:
            raise ObjectiveError(
                message(
                    f"parameter {name!r}: the value that is kept is that of an algorithm with other settings",
                    got=f"shape {shape} kept, shape {given} by the settings",
                    expected="the number of steps, and of step sizes, with which it was trained",
                    fix='parameters that start anew (pyro.clear_param_store(), svi.init), or prefix="another" to keep'
                    " both",
                )
            )


def outside_support(role: str, name: str, dist: Distribution, error: ValueError) -> ObjectiveError:
    """The error about an observed value that its distribution cannot have."""
    return ObjectiveError(
        message(
            f"{role} site {name!r}: what it observes is not in the support of {dist.name}",
            got=str(error).splitlines()[-1],
            expected=f"values in {dist.support_name}; nan is in none",
            fix="for missing data a number in the place of nan, under a mask that leaves it out",
        )
    )


def no_density(name: str, dist: Distribution, site: Site | None, why: str) -> EstimatorError:
    """The error about a distribution that cannot say what the density of a value given to it is."""
    estimator = "a program" if site is None else f"{type(site.estimator).__name__}()"
    return EstimatorError(
        message(
            f"site {name!r}: {estimator} needs the density of a value given, and {dist.name} knows it for its own"
            " draws only",
            got=why,
            expected="Reparam(), with which the library keeps what it computed in drawing; or a flow with an inverse",
            fix=f'estimators={{"{name}": vi.Reparam()}}, and an objective that holds neither draws nor parameters',
        )
    )


def _whole_shape(statement: Statement, depth: int) -> tuple[int, ...]:
    """Of one value of a site: all its elements, whether they are in plates or in events."""
    batch = tuple(statement.dist.batch_shape)[-depth:] if depth else ()
    shape = (*batch, *statement.dist.event_shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def realigned(value: Array, theirs: Statement, own: Statement, depth: int) -> Array:
    """A value of a site whose elements are in plates in one program and in events in the other: replicates and worlds
    are left of the plates in both."""
    dims = [depth + len(s.dist.event_shape) for s in (theirs, own)]
    if dims[0] == dims[1] or value.ndim <= dims[0]:
        return value
    shapes = [_whole_shape(s, depth) for s in (theirs, own)]
    full = [(1,) * (n - len(shape)) + shape for n, shape in zip(dims, shapes, strict=True)]
    front = tuple(value.shape)[: value.ndim - dims[0]]
    xp = array_namespace(value)
    return xp.reshape(xp.broadcast_to(value, (*front, *full[0])), (*front, *full[1]))


def _many_steps(program: Program, name: str) -> ObjectiveError:
    """The error about a site of which the values for all steps come at once, where steps are taken one by one."""
    return ObjectiveError(
        message(
            f"SMC: {program.role} site {name!r} is in the body of a scan or cond that cannot be taken step by step",
            got="a cond, or a scan in one of model and proposal only",
            expected="latent sites in the program itself, or in one scan of the model and one of the proposal",
            fix="jnp.where in the place of the cond; or vi.SIR(proposal, num_particles), which takes all steps as one",
        )
    )


class Stop(Exception):
    """A program has come to the latent site up to which it is run."""


@dataclass(eq=False)
class Advance(Replay):
    """Evaluates a program at the values of a draw up to the first latent site that the draw lacks.

    Attributes:
        before: statements of which the log density is not asked for.
        following: that site; empty if the program has ended.
        scan: the library's control flow in whose body it is, if it is in one.
    """

    before: frozenset[str] = frozenset()
    following: str = ""
    scan: Any = None

    def latent(self, statement: Statement) -> Array | None:
        """The value of a latent site."""
        if statement.name not in self.draw:
            raise _many_steps(self.program, statement.name)
        return super().latent(statement)

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        """See `Simulation.stops_at`."""
        if name not in self.draw and not self.following:
            self.following = name
        return name not in self.draw

    def wants(self, name: str) -> bool:
        """See `Simulation.wants`."""
        return name not in self.before

    def sums(self, statement: Statement) -> str:
        """See `Replay.sums`."""
        return ""

    def result(self) -> Cost:
        """The log density so far."""
        if not self.following:
            return super().result()
        return Cost(self.terms)


@dataclass(eq=False)
class Evaluation:
    """Makes a term of a function of the values of a draw.

    Attributes:
        run: in which it is made.
        draw: what the function is evaluated at.
        fn: see `vi_kit.language.words.evaluate`.
        program: itself, with the arguments of the step.
    """

    run: Run
    draw: Draw
    fn: Callable[..., Array]
    terms: list[Term] = field(default_factory=list)
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.program = replace(self.draw.program, fn=self, role="function")

    def execute(self, reading: Any) -> None:
        """Evaluate the function at the values that a reading has, and give it what comes out."""
        values, run = {}, reading.run
        for name, statement in self.draw.details.items():
            event_ndim = len(statement.dist.event_shape)
            values[name] = run.expanded(reading.latent(statement), statement.axes, event_ndim)
        axes = {a for d in self.draw.details.values() for a in d.axes}
        name = getattr(self.fn, "__name__", "of a draw")
        what = reading.program.what(name)
        found = self.fn(values, *reading.program.args, **reading.program.kwargs)
        array, present = run.within(_as_array(run, found, what), axes, what)
        ones = array_namespace(array).ones_like
        reading.record(LogDensity(name, present, array, array, lambda: ones(array)))

    def latent(self, statement: Statement) -> Array:
        """The value of a site of the draw."""
        return self.draw.replayed(statement.name)

    def draws(self, name: str) -> bool:
        """See `Simulation.draws`."""
        return False

    def is_own_delta(self, statement: Statement) -> bool:
        """See `Replay.is_own_delta`."""
        del statement
        return False

    def record(self, made: LogDensity) -> None:
        """Note what the function has returned."""
        what = self.program.what(made.name)
        self.terms.append(self.run.term(made.density, made.axes, what, held=self.draw.held))

    def result(self) -> Term:
        (term,) = self.terms
        return term


def _as_array(run: Run, value: Any, what: str) -> Array:
    """What a function of a draw has returned, as an array of the library.

    Raises:
        ObjectiveError: it is no number, and no array.
    """
    backend = run.backend
    if isinstance(value, bool | int | float):
        return backend.zero() + float(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return backend.constants(np.asarray(value), backend.zero())
    if not hasattr(value, "shape"):
        raise ObjectiveError(
            message(
                f"{what} has returned no array",
                got=f"{value!r:.80}, of type {type(value).__name__}",
                expected="a number, or an array with a dim for each plate that it is not summed over",
                fix='return what the values are worth: lambda values: -(values["z"] - 1.0) ** 2',
            )
        )
    return value


def _plates_of(statement: Statement, dims: bool = False) -> list[str]:
    """Names of the plates of a statement, and at which dims they are."""
    plates = [a for a in statement.axes if a.kind == PLATE]
    return sorted(f"{a.name} at dim {-a.order}" if dims else a.name for a in plates)


def _relaxes(run: Run, site: Site) -> bool:
    return site.layout.leaves_support or site.label in run.plan.analytic
