"""Posteriors as programs: draws in proportion to an unnormalised density, with an estimate of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.costs.cost import Cost, apply
from vi_kit.language.marginal import mapped_part, refuse_varied, with_others
from vi_kit.language.programs import Draw, Program, draw_of, is_composite, log_density_of, session
from vi_kit.language.replicates import Replicates, iid


class Sampler(Protocol):
    """How one draws from an unnormalised density.

    Attributes:
        part: what its proposal is to the program, as roles say it.
        draws_one: whether each draw is one value.
        proposal: a program with the same sites.
    """

    part: ClassVar[str]
    draws_one: ClassVar[bool]

    @property
    def proposal(self) -> Callable[..., Any]: ...

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Sampler:
        """The same with another proposal."""
        ...

    def declare(self) -> None:
        """Declare parameters of its own, in a plain run of the program."""
        ...

    def simulate(self, program: Program, model: Program) -> Draw: ...
    def at(self, program: Program, model: Program, draw: Draw) -> Cost: ...


def proposal_of(sampler: Sampler, program: Program) -> Program:
    """The proposal of a posterior, as a program with the same arguments."""
    return replace(program, fn=sampler.proposal, role=f"{program.role} {sampler.part}", summed=())


@dataclass(frozen=True)
class SIR:
    r"""Sampling importance resampling: one of several draws of a proposal, in proportion to their weights.

    The draw is $x = x_I$ of $x_1, \dots, x_n \sim q$ with $P(I = i) \propto w_i = p(x_i) / q(x_i)$, and its density is
    estimated by $p(x) / (\frac1n \sum_i w_i)$, whose reciprocal is unbiased. All $n$ values are carried on, each with
    its weight, so that there is no noise of the choice, and the gradient goes through the weights.
    Sites of the proposal need single draws (`Reparam`, `Score`), which the default rule gives them.
    With `vi.elbo()` the bound is that of `vi.iwae(n)` with the proposal as its guide, draw by draw.

    Args:
        proposal: a program with the model's sites; a marginal or a posterior by `AIS` may be one.
        num_particles: n, at least 1.

    References:
        Rubin 1988, Using the SIR Algorithm to Simulate Posterior Distributions. Cremer et al. 2017, Reinterpreting
        Importance-Weighted Autoencoders.
    """

    part: ClassVar[str] = "particle"
    draws_one: ClassVar[bool] = False
    proposal: Callable[..., Any]
    num_particles: int

    def __post_init__(self) -> None:
        whole_number("SIR", "num_particles", self.num_particles)
        check_proposal(
            "SIR(guide, num_particles=10)",
            self.proposal,
            "whose draws are several values",
            lambda p: not isinstance(p, Normalized) or p.algorithm.draws_one,
        )

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> SIR:
        return replace(self, proposal=fn(self.proposal))

    def declare(self) -> None:
        """There are none."""

    def simulate(self, program: Program, model: Program) -> Draw:
        run, draws = session(), list[Draw]()
        axis = run.new_replicate_axis(self.num_particles)

        def once() -> tuple[Cost, ...]:
            draw = draw_of(proposal_of(self, program))
            refuse_varied(proposal_of(self, program), draw)
            draws.append(draw)
            return log_density_of(model, draw) - draw.density, *run.values_of(draw)

        log_weights, *values = run.replicate(once, axis)
        total = Replicates((log_weights,), axis).log_mean_exp()
        draw = run.chosen(program, draws[0], axis, log_weights, values)
        return replace(draw, density=log_density_of(model, draw) - total)

    def at(self, program: Program, model: Program, draw: Draw) -> Cost:
        proposal, log_p = proposal_of(self, program), log_density_of(model, draw)
        own = log_p - log_density_of(proposal, draw)
        if self.num_particles == 1:
            return log_p - own

        def once() -> Cost:
            other = draw_of(proposal)
            refuse_varied(proposal, other)
            return log_density_of(model, other) - other.density

        others = iid(once, self.num_particles - 1).log_mean_exp()
        return log_p - apply(with_others(self.num_particles), own, others)


def check_proposal(
    example: str, proposal: Any, why: str, takes: Callable[[Any], bool] = lambda _: False
) -> None:
    """Refuse what an algorithm cannot take for a proposal.

    Args:
        example: a call of the algorithm.
        proposal: what it was given.
        why: what is wrong with a posterior or a marginal.
        takes: which of these it takes all the same.
    """
    algorithm = example.split("(")[0]
    if not callable(proposal):
        raise ObjectiveError(
            message(
                f"{algorithm}: the proposal is no program",
                got=repr(proposal),
                expected="a function with sample statements",
                fix=f"vi.{example}",
            )
        )
    if is_composite(proposal) and not takes(proposal):
        inside = type(getattr(proposal, "algorithm", proposal)).__name__
        kind = "posterior" if isinstance(proposal, Normalized) else "marginal"
        raise ObjectiveError(
            message(
                f"{algorithm}: the proposal is a {kind} by {inside} itself, {why}",
                got=f"vi.{'normalize' if kind == 'posterior' else kind}(...) as a proposal",
                expected="a function with sample statements",
                fix=f"one algorithm alone, with more particles or steps, as vi.{example}; or around it"
                " vi.SIR(proposal, num_particles), which takes marginals and posteriors by AIS",
            )
        )


@dataclass(frozen=True, eq=False)
class Normalized:
    """The posterior of a model, as a program. See `normalize`."""

    fn: Callable[..., Any]
    algorithm: Sampler
    is_composite = True

    @property
    def __name__(self) -> str:
        return f"posterior of {getattr(self.fn, '__name__', type(self.fn).__name__)}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The proposal."""
        self.algorithm.declare()
        return self.algorithm.proposal(*args, **kwargs)

    def simulate(self, program: Program) -> Draw:
        return self.algorithm.simulate(program, self._model(program))

    def log_density(self, program: Program, draw: Draw) -> Cost:
        return self.algorithm.at(program, self._model(program), draw)

    def mapped(
        self, fn: Callable[[Callable[..., Any], str], Callable[..., Any]], role: str
    ) -> Normalized:
        """See `Marginal.mapped`."""

        part = f"{role} {self.algorithm.part}"
        algorithm = self.algorithm.mapped(lambda p: mapped_part(p, fn, part))
        return replace(self, algorithm=algorithm)

    def _model(self, program: Program) -> Program:
        return replace(
            program, fn=self.fn, role="model target", summed=("", *session().marginalized)
        )


def without_bias(program: Any) -> Any:
    """A posterior whose algorithm leaves no part of its gradient out, where one may; any other program as it is."""
    if isinstance(program, Normalized) and getattr(program.algorithm, "biased", False):
        algorithm: Any = program.algorithm
        return replace(program, algorithm=replace(algorithm, biased=False))
    return program


def normalize(model: Callable[..., Any] | Program, algorithm: Sampler) -> Any:
    """The posterior of a model, as a program whose density is estimated without bias.

    It can stand where a guide can: in `SVI(model, vi.normalize(model, ...), ...)`, or inside an objective program.
    Called by itself it runs the proposal.

    Args:
        model: a program with data, or one that an objective program was given.
        algorithm: `SIR(proposal, num_particles)`, or `SMC(proposal, num_particles)` where the data come one by one,
            or `AIS(proposal, num_steps, kernel)`.

    Returns:
        A program of the kind that was given.

    Example:
        >>> import vi_kit as vi
        >>> # SVI(model, vi.normalize(model, vi.SIR(guide, num_particles=10)), optimizer, Loss(vi.elbo()))

    References:
        Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.
    """
    if not all(callable(getattr(algorithm, name, None)) for name in ("simulate", "at")):
        raise ObjectiveError(
            message(
                "normalize: no algorithm",
                got=repr(algorithm),
                expected="vi.SIR(proposal, num_particles) or vi.SMC(proposal, num_particles)",
                fix="algorithm=vi.SIR(guide, num_particles=10)",
            )
        )
    if isinstance(model, Program):
        return replace(model, fn=Normalized(model.fn, algorithm), summed=())
    return Normalized(model, algorithm)
