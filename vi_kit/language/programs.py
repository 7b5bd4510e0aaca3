"""Programs with the arguments of a step, and draws from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, cast

from vi_kit.base.context import current
from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import PLATE, Array, Axis, Named
from vi_kit.base.protocols import Distribution
from vi_kit.base.value import value
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import CostContext, Site, Term
from vi_kit.estimators.base import Estimator


@dataclass(frozen=True, eq=False)
class Simulated:
    """Data that a program drew, in the place of data.

    Attributes:
        value: with replicates in front, where these are dims.
        event_ndim: of the site that drew it.
        shape: of the data in whose place it is.
    """

    value: Any
    event_ndim: int
    shape: tuple[int, ...]


@value()
class Program:
    """A model or guide with the arguments of this step.

    Attributes:
        fn: the user's callable.
        args: positional arguments, data included.
        kwargs: keyword arguments.
        role: `"model"`, `"guide"` or `"reference"`; `"function"` of drawn values.
        held: whether its parameters are to be taken as constants.
        joint: whether its observed sites are to be drawn too.
        simulated: those of its arguments that are simulated data.
        summed: patterns of the sites that its density is a sum over, where a draw lacks them; `""` among them stands
            for those that are marked by `infer={"enumerate": ...}`.
        constants: sites whose values, among its arguments, are constants.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    role: str
    held: bool = False
    joint: bool = False
    simulated: tuple[Simulated, ...] = ()
    summed: tuple[str, ...] = ()
    constants: frozenset[Site] = frozenset()

    def sums(self, name: str, infer: Mapping[str, Any]) -> str:
        """By which rule its density is a sum over the values of a site; empty if it is not."""
        for pattern in self.summed:
            if pattern and fnmatchcase(name, pattern):
                return f"marginalize {pattern!r}"
        return "infer" if "" in self.summed and infer.get("enumerate") else ""

    @property
    def owner(self) -> str:
        """The role of the program to which it belongs: its parameters are those of that one."""
        return self.role.split(" ")[0]

    def what(self, name: str) -> str:
        """How one of its statements is called in messages."""
        return f"{self.role} {name!r}" if self.role == "function" else f"{self.role} site {name!r}"

    def noise_key(self) -> Any:
        """Of what it draws besides its sites: the same wherever the program is run again at one draw."""
        run = session()
        return id(self.fn), run.apart, run.open_replicates

    def running(self, fn: Callable[..., Any]) -> Program:
        """Another program with the same arguments, for instance one to draw from."""
        return replace(self, fn=fn, role="reference")


def with_replaced(arguments: Any, replacement: Callable[[Any], Any]) -> Any:
    """Arguments of a step with replacements for those alone or inside a list, tuple or dict of arguments."""
    if isinstance(arguments, dict):
        return {k: with_replaced(v, replacement) for k, v in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(with_replaced(a, replacement) for a in arguments)
    return replacement(arguments)


@value()
class Statement:
    """A sample statement as a library met it.

    Attributes:
        name: of the site.
        dist: its distribution, expanded to its plates.
        axes: its plates and replicate axes.
        infer: its annotations.
        is_given: whether a handler of the library has put its value there, of which `dist` is a Delta.
        algorithm: what draws the site, where that is no program.
    """

    name: str
    dist: Distribution
    axes: tuple[Axis, ...]
    infer: Mapping[str, Any]
    is_given: bool = False
    algorithm: Resampling | None = None

    def shape_alone(self, nesting: int) -> tuple[int, ...]:
        """Of one value in the program by itself, with nothing in front of the dims of plates (`nesting`)."""
        batch = tuple(self.dist.batch_shape)
        if len(batch) > nesting:
            own = max((a.order for a in self.axes if a.kind == PLATE), default=0)
            batch = batch[len(batch) - own :]
        return (*batch, *self.dist.event_shape)


@value()
class Draw(Mapping[str, Any]):
    """Values of the latent sites of one simulation, by name.

    Attributes:
        program: what was simulated.
        by_name: the values, as they were drawn.
        sites: the sites by name; observed sites are not among them.
        density: log density of the draw under the program that made it, as the draw was made (nats).
        details: what the backend needs to know of each site.
        factors: by which scale and mask multiply a site's log density, where its estimator asks for that.
        varied: the site that stands for all those in `factors`, which nonlinear functions vary together.
        deltas: values of sites with a Delta, with the program's parameters held.
        held: whether the values are to be taken as constants.
        followed: whether a dry run follows what depends on which site, whatever their estimators.
        others: sites that are integrated out, on which the values depend.
        constants: sites whose values, among these, are constants.
        drawn_with: the auxiliary values of a program that has such, by which it draws these and knows their density.
    """

    program: Program
    by_name: dict[str, Any]
    sites: dict[str, Site]
    density: Cost
    details: dict[str, Statement]
    factors: dict[str, Factor] = field(default_factory=dict)
    varied: Site | None = None
    deltas: dict[str, Any] = field(default_factory=dict)
    noise: dict[Any, Any] = field(default_factory=dict)
    held: bool = False
    followed: bool = False
    others: tuple[Site, ...] = ()
    constants: frozenset[Site] = frozenset()
    drawn_with: Any = None

    @property
    def log_density(self) -> Cost:
        """Log density of the draw under the program that made it (nats). Of a draw that is held it is
        evaluated anew, as a function of the parameters only."""
        if not self.held:
            return self.density
        return log_density_of(self.program, self)

    @property
    def log_likelihood(self) -> Cost:
        """The part of `log_density` that observed sites and factors contribute (nats)."""
        refuse_composite(self.program, "the log likelihood of a draw")
        return Cost(t for t in self.log_density.terms if t.statement not in self)

    @property
    def data(self) -> dict[str, Any]:
        """What the sites observed that were drawn all the same, by name."""
        found = {n: d.infer for n, d in self.details.items()}
        return {n: infer["obs"] for n, infer in found.items() if infer.get("was_observed")}

    def restricted(self, names: Collection[str], **changes: Any) -> Draw:
        """The values of some of its sites."""
        parts = {
            part: {n: x for n, x in getattr(self, part).items() if n in names}
            for part in ("by_name", "sites", "details", "deltas")
        }
        return replace(self, **parts, **changes)

    def joined(self, other: Draw) -> Draw:
        """The values of both, as one draw of no program in particular."""
        parts = {
            part: {**getattr(self, part), **getattr(other, part)}
            for part in ("by_name", "sites", "details", "deltas")
        }
        return replace(self, **parts, density=Cost(()), noise={})

    def replayed(self, name: str, *, held: bool = False) -> Any:
        """A value for other programs and functions: a constant, if the draw is held.

        Args:
            name: of the site.
            held: whether the parameters of whatever gets it are constants.
        """
        run, value = session(), self.by_name[name]
        if self.held:
            value = run.constant(value)
        elif held != self.program.held:
            # what transforms remember of a value holds for parameters that are alike live or held
            value = run.backend.alias(value)
        return self._shown(name, value)

    def _shown(self, name: str, value: Any) -> Any:
        return self.details[name].dist.shown(value)

    def __getitem__(self, name: str) -> Any:
        return current().backend.plain(self._shown(name, self.by_name[name]))

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __iter__(self) -> Any:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@dataclass(frozen=True)
class Start:
    """Of a parameter that an algorithm has.

    Attributes:
        value: at first: a number, or several.
        constraint: what it stays: `"positive"`, `"unit_interval"`, or `"simplex"`.
    """

    value: float | tuple[float, ...]
    constraint: str


@dataclass(frozen=True, eq=False)
class Factor:
    """By what scale and mask multiply a log density.

    Attributes:
        values: for each element of the site.
        number: the one number that all of them are, `None` if that is not known.
    """

    values: Named
    number: float | None


@dataclass(frozen=True, eq=False)
class Swarm:
    """Draws of the sites that a program has sampled so far, with weights.

    Attributes:
        draw: one of the draws, or what stands for all of them.
        axis: of the draws.
        log_weights: of each (nats).
        values: of each, as costs.
        plates: whose elements are weighted apart.
        met: the statements of the target so far.
        following: its next latent site; empty if it has ended.
        has_data: whether the weights have changed by data since the last site was sampled.
        evidence: the log of the estimated evidence up to these weights (nats), where several steps were taken.
    """

    draw: Draw
    axis: Axis
    log_weights: Cost
    values: tuple[Cost, ...]
    plates: frozenset[Axis]
    met: frozenset[str]
    following: str
    has_data: bool
    evidence: Cost


THE_DRAW = "the draw"
"""For what the last one is taken."""


def ancestor_of(name: str) -> str:
    """The site that says which draw is taken before the next latent site is sampled."""
    return f"ancestor of {name}"


@dataclass(frozen=True)
class Resampling:
    """How draws are resampled.

    Attributes:
        estimator: of the site that says which draw is taken; `None` for the default.
        ess_threshold: below which share of the number of draws the effective sample size must fall; 1 for always.
        held: whether the weights by which one is taken are constants.
    """

    estimator: Estimator | None
    ess_threshold: float
    held: bool


class Session(CostContext, Protocol):
    """What a run offers to the language."""

    @property
    def apart(self) -> frozenset[Axis]:
        """Replicate axes whose copies are drawn one after the other, or by a map of the library."""
        ...

    @property
    def marginalized(self) -> tuple[str, ...]:
        """Patterns of sites that are summed out of the model."""
        ...

    @property
    def is_dry(self) -> bool:
        """Whether it is only found out how values depend on each other; one step of many that are alike will do."""
        ...

    def has_several(self, site: Site) -> bool:
        """Whether a site is enumerated."""
        ...

    def is_sampled_instead(self, site: Site, why: str) -> bool:
        """Whether the default rule gives a site another estimator."""
        ...

    @property
    def plate_nesting(self) -> int:
        """How many dims plates take."""
        ...

    @property
    def repeated(self) -> set[str]:
        """Sites that stand for several statements, one after the other."""
        ...

    def simulate(self, program: Program) -> Draw: ...
    def conditioned(self, program: Program, draw: Draw, only: str = "") -> Draw:
        """A draw of the sites that another draw lacks, given those that it has.

        Args:
            program: to draw from.
            draw: what is given.
            only: the one that is to be drawn; the program is run no further than to others.
        """
        ...

    def advanced(self, program: Program, draw: Draw, before: frozenset[str]) -> tuple[Cost, str]:
        """The log density of a program at the values of a draw up to the first latent site that the draw lacks (nats),
        and the name of that site, empty if the program has ended.

        Args:
            program: to be evaluated.
            draw: the values.
            before: statements of which the log density is not asked for.
        """
        ...

    def log_density(self, program: Program, draw: Draw) -> Cost: ...
    def coordinates(self, program: Program, draw: Draw) -> Draw:
        """A draw in coordinates without bounds, and its log density by these (nats): terms without a statement are
        those of the coordinates.

        Args:
            program: that has the sites; it says what their supports are.
            draw: of all its sites but those that others determine.
        """
        ...

    def from_coordinates(self, program: Program, draw: Draw) -> Draw:
        """A draw of all sites of a program from one in coordinates, with the same density."""
        ...

    def gradients(
        self, fn: Callable[[list[Array]], Sequence[Cost]], values: list[Array], num: int
    ) -> list[list[Array]]:
        """The derivatives of `num` costs by arrays; they are no costs of the objective.

        Args:
            fn: from the arrays to the costs.
            values: at which, each for itself in all that is in front of its own dims.
            num: of costs.
        """
        ...

    def of_elements(self, array: Array, statement: Statement, what: str) -> Cost:
        """A cost for each element of a site.

        Args:
            array: with the dims of its distribution, and more of the event (nats).
            statement: where it is sampled.
            what: for messages.
        """
        ...

    def parameters(
        self, program: Program, starts: Mapping[str, Start], like: Array
    ) -> dict[str, Array]:
        """See `vi_kit.engine.backend.Backend.parameters`."""
        ...

    def evaluate(self, draw: Draw, fn: Callable[..., Array]) -> Cost:
        """The cost that a function of a draw makes."""
        ...

    def values_of(self, draw: Draw) -> tuple[Cost, ...]:
        """The values of a draw as costs, which come out of replicates like them."""
        ...

    def chosen(
        self,
        program: Program,
        draw: Draw,
        axis: Axis,
        log_weights: Cost,
        values: Sequence[Cost],
    ) -> Draw:
        """One of several draws, in proportion to their weights.

        Args:
            program: whose draw it is.
            draw: one of the replicates, or what stands for all of them.
            axis: of the replicates.
            log_weights: of each (nats), for each element of the plates that its terms share.
            values: by `values_of`.
        """
        ...

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
        """Inside replicates: draws of sites that a library samples in steps of its own, resampled before each.

        Args:
            program: from which they are drawn.
            target: the program that weighs them.
            given: what was drawn before.
            weight: of each then (nats).
            axis: of the replicates.
            how: by what estimator, and when.
            first: what the first of them is; `None` if it is drawn.

        Returns:
            What was drawn, with what was given; the log weights (nats) in all steps but the last, along an axis of
            their own, and in the last; and the statements of the target in the steps: none if the program does not
            sample there.
        """
        ...

    def resampled(
        self,
        program: Program,
        swarm: Swarm,
        into: Axis | None,
        how: Resampling,
        *,
        keeps_first: bool = False,
    ) -> tuple[Draw, Cost]:
        """Inside replicates: for each of them one of several draws, in proportion to their weights.

        Args:
            program: whose draws they are.
            swarm: the draws.
            into: the axis of the replicates; `None` for one draw of all.
            how: by what estimator, and when.
            keeps_first: whether the first of them is the first.

        Returns:
            The draw, and the log of the weight that it still has (nats).
        """
        ...

    def first_left(self, swarm: Swarm, how: Resampling) -> Cost:
        """The log of the weight that the first draw, which is kept, still has once others are resampled (nats)."""
        ...

    def with_first(self, swarm: Swarm, draw: Draw, log_weight: Cost) -> Swarm:
        """Several draws and one more, in front."""
        ...

    def constant(self, value: Any) -> Any:
        """A value of a draw, without gradient."""
        ...

    def state_of(self, term: Term, needed: int, met: int) -> int:
        """After how many of the guide's sites all is drawn that a term of the model needs.

        Args:
            term: of the model.
            needed: by the sites on which it depends, as far as they are followed.
            met: how many of them the model has met before it.
        """
        ...

    def note_method(self, text: str) -> None:
        """Note what `explain` is to say of how a program is drawn."""
        ...

    def new_replicate_axis(self, size: int, chunk: int | None = None) -> Axis:
        """An axis for copies, of which so many are made at a time. One chunk is all of them as long as it is not known
        how programs are run."""
        ...

    def replicate(
        self,
        fn: Callable[[], Any],
        axis: Axis,
        *,
        together: bool = False,
        chunk: int | None = None,
    ) -> tuple[Cost, ...]:
        """Run `fn` for all copies along `axis`: costs, as a tuple.

        Args:
            fn: makes them.
            axis: of the copies.
            together: whether they see each other, and cannot be made one after the other.
            chunk: how many are in memory at a time; `None` for all.
        """
        ...


class Composite(Protocol):
    """What stands in the place of a user's callable where draws and densities are made of those of other programs."""

    is_composite: bool

    def simulate(self, program: Program) -> Draw: ...
    def log_density(self, program: Program, draw: Draw) -> Cost: ...


def is_composite(fn: Any) -> bool:
    """Whether a callable is such a program."""
    return getattr(type(fn), "is_composite", False) is True


def refuse_composite(program: Program, what: str) -> None:
    """Refuse what needs the density of each site, of a program whose density is known or estimated as a whole."""
    if is_composite(program.fn):
        raise ObjectiveError(
            message(
                f"{what} needs the density of each site, and that of the {program.role} is one number for all",
                got=f"a {type(program.fn).__name__} program",
                expected="a program of sample statements",
                fix="another objective, such as vi.elbo() or vi.iwae(num_particles=5)",
            )
        )


def draw_of(program: Program) -> Draw:
    """A draw of the latent sites of a program."""
    if is_composite(program.fn):
        return cast(Composite, program.fn).simulate(program)
    return session().simulate(program)


def log_density_of(program: Program, draw: Draw) -> Cost:
    """The log density of a program at the values of a draw (nats)."""
    if is_composite(program.fn):
        return cast(Composite, program.fn).log_density(program, draw)
    return session().log_density(program, draw)


def session() -> Session:
    return cast(Session, current())


def classes_told(**programs: Any) -> list[str]:
    """Texts about programs, by role, that are classes in the place of what is made of them."""
    return [
        message(
            f"the {role} is a class",
            got=f"{role}={fn.__name__}",
            expected="a function, or an object that can be called",
            fix=f"{fn.__name__}({'model' * (role == 'guide')})",
        )
        for role, fn in programs.items()
        if isinstance(fn, type)
    ]
