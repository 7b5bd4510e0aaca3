"""Programs of which some sites are integrated out: their densities are known, or estimated without bias.

A marginal program is one wherever a model or guide can stand. It is written in the words of the language, so that every
site inside keeps its estimator, and a gradient through an estimated density is one of a program like any other.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, Self

from array_api_compat import array_namespace

from vi_kit.base.errors import EstimatorError, ObjectiveError, message, whole_number
from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost, apply
from vi_kit.language.programs import (
    Draw,
    Program,
    Simulated,
    draw_of,
    is_composite,
    log_density_of,
    session,
)
from vi_kit.language.replicates import iid


class Algorithm(Protocol):
    """How sites are integrated out of a density.

    Attributes:
        proposals: the programs that draw them, given what is kept.
    """

    @property
    def proposals(self) -> tuple[Callable[..., Any], ...]: ...

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Algorithm:
        """The same with other proposals."""
        ...

    def drawn(self, program: Program, draw: Draw, kept: Draw) -> Cost:
        """The log density of the kept sites of a draw from the program itself (nats).

        Args:
            program: with all its sites.
            draw: from it.
            kept: the part of the draw whose density is wanted.
        """
        ...

    def at(self, program: Program, draw: Draw) -> Cost:
        """The log density of values that something else has drawn (nats)."""
        ...


@dataclass(frozen=True)
class Exact:
    """Sum the other sites out exactly.

    Variable elimination along the values of each finite site, from the last to the first and from the innermost plate
    outwards: a chain of T sites of K values takes T K^2. Sums are taken in log space.

    Raises:
        ObjectiveError: a site has no finite support.
        EstimatorError: more than 65536 joint values would have to be held at once, plates cross, or a minibatch
            would stand under a logarithm.

    Example:
        >>> Exact()
        Exact()

    References:
        Obermeyer et al. 2019, Tensor Variable Elimination for Plated Factor Graphs.
    """

    proposals: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Exact:
        del fn
        return self

    def drawn(self, program: Program, draw: Draw, kept: Draw) -> Cost:
        del draw
        return self.at(program, kept)

    def at(self, program: Program, draw: Draw) -> Cost:
        inside = getattr(program.fn, "algorithm", self)
        if is_composite(program.fn) and not isinstance(inside, Exact):
            raise ObjectiveError(
                message(
                    f"Exact: the density of the {program.role} is estimated, and the reciprocal of a sum of estimates"
                    " is biased",
                    got=f"{type(inside).__name__} inside Exact",
                    expected="Exact inside, or ImportanceSampling outside",
                    fix="vi.ImportanceSampling(num_particles, proposal)",
                )
            )
        return log_density_of(replace(program, summed=("*",)), draw)


@dataclass(frozen=True)
class ImportanceSampling:
    r"""Integrate the other sites out by importance sampling.

    At values that something else has drawn the density is $\frac1n \sum_i p(x, r_i) / m(r_i \mid x)$ with
    $r_i \sim m$, whose mean is $p(x)$. At a draw of the program's own, $r_1$ is what it has drawn and the others come
    from m, so that the mean of the *reciprocal* is $1 / p(x)$ (conditional importance sampling). A bound stays one
    either way: in a guide, as in a model.

    Args:
        num_particles: n, at least 1.
        proposal: m, a program that draws the other sites. It is called with the kept values (a dict by name), then the
            arguments of the step; its parameters are trained with those of the program. Left out, the program's own
            distribution of these sites given what was sampled before them.

    Example:
        A guide that is a network of noise: the bound of semi-implicit VI with particles of its own distribution; with a
        learned reverse program that of hierarchical VI and of auxiliary deep generative models (one particle), or of
        IWHVI (several).

        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.5))
        ...     pyro.sample("x", dist.Normal(z**2, 0.8), obs=torch.tensor(1.7))
        >>> def guide():
        ...     u = pyro.sample("u", dist.Normal(0.0, 1.0))
        ...     pyro.sample("z", dist.Normal(1.5 * torch.tanh(2 * u), 0.5))
        >>> def reverse(kept):
        ...     pyro.sample("u", dist.Normal(0.6 * kept["z"], 0.8))
        >>> def bound(algorithm):
        ...     return -Loss(num_samples=2000).loss(model, vi.marginal(guide, ["z"], algorithm))
        >>> bound(vi.ImportanceSampling(2)) < bound(vi.ImportanceSampling(20))
        True
        >>> bound(vi.ImportanceSampling(1, reverse)) < bound(vi.ImportanceSampling(20, reverse))
        True

    References:
        Ranganath et al. 2016, Hierarchical Variational Models. Yin and Zhou 2018, Semi-Implicit Variational Inference.
        Maaløe et al. 2016, Auxiliary Deep Generative Models. Sobolev and Vetrov 2019, Importance Weighted
        Hierarchical Variational Inference. Becker et al. 2024, Probabilistic Programming with Programmable Variational
        Inference.
    """

    num_particles: int
    proposal: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        whole_number("ImportanceSampling", "num_particles", self.num_particles)
        if self.proposal is not None and not callable(self.proposal):
            raise ObjectiveError(
                message(
                    "ImportanceSampling: the proposal is no program",
                    got=repr(self.proposal),
                    expected="a function with sample statements, or vi.marginal(...)",
                    fix="def proposal(kept, *args): ...",
                )
            )
        if inspect.isfunction(self.proposal) and not inspect.signature(self.proposal).parameters:
            raise ObjectiveError(
                message(
                    f"ImportanceSampling: the proposal {self.proposal.__name__!r} takes no arguments",
                    got=f"def {self.proposal.__name__}()",
                    expected="the kept values, a dict by name, then the arguments of the step",
                    fix=f"def {self.proposal.__name__}(kept, *args): ...",
                )
            )

    @property
    def proposals(self) -> tuple[Callable[..., Any], ...]:
        return () if self.proposal is None else (self.proposal,)

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> ImportanceSampling:
        return self if self.proposal is None else replace(self, proposal=fn(self.proposal))

    def drawn(self, program: Program, draw: Draw, kept: Draw) -> Cost:
        rest = draw.restricted(draw.keys() - kept.keys())
        others = None
        if self.num_particles > 1:
            weight = functools.partial(self._weight, program, kept, _own_names(rest))
            others = iid(weight, self.num_particles - 1).log_mean_exp()
        if self.proposal is None:
            own = Cost(t for t in draw.density.terms if t.statement not in rest)
        else:
            own = draw.density - log_density_of(self._given(program, kept), rest)
        if others is None:
            return own
        return apply(with_others(self.num_particles), own, others)

    def at(self, program: Program, draw: Draw) -> Cost:
        draw = as_constant(draw) if draw.held else draw
        return iid(lambda: self._weight(program, draw), self.num_particles).log_mean_exp()

    def _weight(self, program: Program, kept: Draw, names: set[str] | None = None) -> Cost:
        if self.proposal is None and is_composite(program.fn):
            raise ObjectiveError(
                message(
                    f"ImportanceSampling over sites of a {program.role} that is a marginal or a posterior itself",
                    got="no proposal, and a program that cannot be run given some of its sites",
                    expected="a proposal for them",
                    fix="vi.ImportanceSampling(num_particles, proposal)",
                )
            )
        if self.proposal is None:
            own = replace(program, role=f"{program.role} proposal")
            rest = session().conditioned(own, kept)
            return rest.log_likelihood
        rest = draw_of(self._given(program, kept))
        refuse_varied(program, rest)
        if names is not None and _own_names(rest) != names:
            raise ObjectiveError(
                message(
                    f"{program.role} proposal: it must draw the sites that are not kept, and no others",
                    got=f"{sorted(_own_names(rest))}",
                    expected=f"{sorted(names)}",
                    fix="their names in the proposal",
                )
            )
        return log_density_of(program, kept.joined(rest)) - rest.density

    def _given(self, program: Program, kept: Draw) -> Program:
        """The proposal, with the kept values as its first argument."""
        values, simulated = {}, list(program.simulated)
        nesting = session().plate_nesting
        for name, statement in kept.details.items():
            values[name] = value = kept.replayed(name, held=program.held)
            shape = statement.shape_alone(nesting)
            simulated.append(Simulated(value, len(statement.dist.event_shape), shape))
        return replace(
            program,
            fn=self.proposal,
            args=(values, *program.args),
            role=f"{program.role} proposal",
            summed=(),
            simulated=tuple(simulated),
            constants=program.constants | kept.constants,
        )


def _own_names(draw: Draw) -> set[str]:
    """The sites of a draw, but for those that only serve to make others."""
    return {name for name in draw if not draw.details[name].infer.get("is_auxiliary")}


def with_others(num_particles: int) -> Callable[[Array, Array], Array]:
    """The log of a mean, of one log weight and the log of the mean of the others."""

    def log_mean(own: Array, others: Array) -> Array:
        xp = array_namespace(own)
        n = xp.zeros_like(own) + num_particles
        return xp.logaddexp(own, others + xp.log(n - 1)) - xp.log(n)

    return log_mean


def mapped_part(
    part: Callable[..., Any], fn: Callable[[Callable[..., Any], str], Callable[..., Any]], role: str
) -> Callable[..., Any]:
    """What `Marginal.mapped` makes of one callable, which may be such a program itself."""
    mapped = getattr(part, "mapped", None) if is_composite(part) else None
    return fn(part, role) if mapped is None else mapped(fn, role)


PLAIN_RUNS: list[Callable[[Marginal, Any, Any], tuple[Any] | None]] = []
"""Of each library that has to see the proposals when a program is run by itself."""


@dataclass(frozen=True, eq=False)
class Marginal:
    """A program of which some sites are kept, and the others integrated out. See `marginal`."""

    fn: Callable[..., Any]
    keep: tuple[str, ...]
    algorithm: Algorithm
    is_composite = True

    @property
    def __name__(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program itself, with all its sites."""
        for run in PLAIN_RUNS:
            result = run(self, args, kwargs)
            if result is not None:
                return result[0]
        return self.fn(*args, **kwargs)

    def mapped(
        self, fn: Callable[[Callable[..., Any], str], Callable[..., Any]], role: str
    ) -> Self:
        """The same of other callables.

        Args:
            fn: from the program or a proposal, and its role, to the one in its place.
            role: of the program.
        """

        algorithm = self.algorithm.mapped(lambda p: mapped_part(p, fn, f"{role} proposal"))
        return replace(self, fn=mapped_part(self.fn, fn, role), algorithm=algorithm)

    def kept_of(self, names: Iterable[str]) -> list[str]:
        """Those of some names that are kept."""
        return [n for n in names if any(fnmatchcase(n, p) for p in self.keep)]

    def simulate(self, program: Program) -> Draw:
        own = replace(program, fn=self.fn)
        draw = draw_of(own)
        names = self.kept_of(draw)
        missing = [p for p in self.keep if not any(fnmatchcase(n, p) for n in draw)]
        if missing:
            raise ObjectiveError(
                message(
                    f"marginal: the {program.role} has no latent site {', '.join(map(repr, missing))} to keep",
                    got=f"latent sites {sorted(draw)}",
                    expected="names or patterns of latent sites that the other program has too",
                    fix=f"keep=[...] with some of {sorted(draw)}",
                )
            )
        refuse_varied(program, draw)
        names = {*names, *draw.data}
        others = tuple(site for name, site in draw.sites.items() if name not in names)
        others = (*draw.others, *others)
        kept = draw.restricted(names, program=program, others=others, drawn_with=None)
        return replace(kept, density=self.algorithm.drawn(own, draw, kept))

    def log_density(self, program: Program, draw: Draw) -> Cost:
        refuse_varied(program, draw)
        return self.algorithm.at(replace(program, fn=self.fn), draw)


def as_constant(draw: Draw) -> Draw:
    """A draw that is held, to be joined with others that are not."""
    run, why = session(), "its draw is held, and a density at it estimated"
    several = sorted(
        site.name
        for site in (*draw.sites.values(), *draw.others)
        if run.has_several(site) and not run.is_sampled_instead(site, why)
    )
    if several:
        run.refuse(
            message(
                f"marginal: a draw that is held has several values at sites {several}",
                got="a site that is enumerated, and other sites that are drawn given it",
                expected="single draws",
                fix="estimators={" + ", ".join(f'"{n}": vi.Score()' for n in several) + "}",
            )
        )
    values = {name: run.constant(value) for name, value in draw.by_name.items()}
    constants = frozenset((*draw.sites.values(), *draw.others))
    return replace(draw, by_name=values, held=False, constants=constants)


def refuse_varied(program: Program, draw: Draw) -> None:
    """Refuse estimators that vary a draw by its density, in the place of which there is an estimate."""
    names = sorted(draw.factors)
    if names:
        raise EstimatorError(
            message(
                f"{program.role} sites {names}: their estimator varies a draw by its density, and that of a marginal"
                " program or a posterior is estimated",
                got=f"{type(draw.sites[names[0]].estimator).__name__}() at {names}",
                expected="Reparam()",
                fix=f'estimators={{"{names[0]}": vi.Reparam()}}',
            )
        )


def marginal(
    program: Callable[..., Any] | Program,
    keep: Sequence[str],
    algorithm: Algorithm,
) -> Any:
    """A program with some of its latent sites integrated out.

    It can stand wherever a model or guide can: in `SVI(model, vi.marginal(guide, ...), ...)`, as the `model` of a loss,
    inside an objective program, and inside another marginal. Called by itself it runs with all its sites.

    Args:
        program: a model or guide, or one that an objective program was given.
        keep: names or patterns (`fnmatch`) of the latent sites that are kept; a guide keeps those that its model has.
        algorithm: `Exact()`, or `ImportanceSampling(num_particles, proposal)`.

    Returns:
        A program of the kind that was given.

    Raises:
        ObjectiveError: at the first step, if the program lacks a site to keep, or the proposal one of the others.

    Example:
        >>> import vi_kit as vi
        >>> # a guide whose `x` is drawn given an auxiliary `u`
        >>> # vi.marginal(guide, keep=["x"], algorithm=vi.ImportanceSampling(5, proposal=guess_u))

    References:
        Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if not keep or not all(isinstance(p, str) and p for p in keep):
        raise ObjectiveError(
            message(
                "marginal: keep takes names or patterns of sites",
                got=repr(list(keep)),
                expected="at least one",
                fix='keep=["z"]',
            )
        )
    if not all(callable(getattr(algorithm, name, None)) for name in ("drawn", "at")):
        raise ObjectiveError(
            message(
                "marginal: no algorithm",
                got=repr(algorithm),
                expected="vi.Exact() or vi.ImportanceSampling(num_particles)",
                fix="algorithm=vi.Exact()",
            )
        )
    if isinstance(program, Program):
        return replace(program, fn=Marginal(program.fn, keep, algorithm))
    return Marginal(program, keep, algorithm)
