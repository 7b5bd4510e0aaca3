"""Particle filters: posteriors of models whose data come one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from vi_kit.base.errors import EstimatorError, ObjectiveError, message, whole_number
from vi_kit.base.layouts import Gradient
from vi_kit.base.protocols import Distribution
from vi_kit.costs.cost import Cost, apply
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.nonlinear import shared_plates
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.score import Score
from vi_kit.language.marginal import as_constant, refuse_varied, with_others
from vi_kit.language.normalize import Normalized, check_proposal, proposal_of
from vi_kit.language.programs import (
    Draw,
    Program,
    Resampling,
    Swarm,
    draw_of,
    is_composite,
    log_density_of,
    session,
)
from vi_kit.language.replicates import Replicates


@dataclass(frozen=True)
class Dropped(Estimator):
    """A draw as a constant: the gradient of its probabilities is left out, which is a bias."""

    gradient: ClassVar[Gradient] = Gradient.PATH
    biased: bool = field(default=True, kw_only=True)

    def reason_against(self, dist: Distribution) -> str | None:
        del dist
        return None

    def expand(self, dist: Distribution) -> Expansion:
        return Expansion(dist.sample())

    def contract(self, downstream: Downstream) -> Sequence[Term]:
        return downstream.terms


@dataclass(frozen=True, eq=False)
class Resampled:
    """A proposal, with what becomes of its draws."""

    fn: Callable[..., Any]
    how: Resampling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


@dataclass(frozen=True)
class SMC:
    r"""Sequential Monte Carlo: a particle filter, whose draw is one of the particles at its end.

    The model is taken step by step: a step is one latent site, or several, up to the data that come before the next
    one. In each, n particles are drawn on by the proposal, weighted by $w_t^i$, what the model's density has gained
    over the proposal's, and resampled in proportion. The draw's density is estimated by
    $p(x) / \prod_t \frac1n \sum_i w_t^i$, whose reciprocal is unbiased; at values drawn by something else, by
    conditional SMC. With `vi.elbo()` the bound is that of FIVO, which unlike `vi.iwae(n)` stays tight for long series.

    The numbers of the particles taken are sites (`ancestor of z_2`), drawn independently (multinomial resampling).
    Plates that everything is inside of, such as one of several series, are resampled for each element. In NumPyro the
    latent sites may be in the body of a `scan`, in the model and in the proposal over the same steps; a step is
    the whole body then, elements of plates are resampled together there, and all ancestors are one site (`ancestor of
    z`), whose score is noisier.
    Sites of the proposal need single draws (`Reparam`, `Score`), which the default rule gives them.

    Args:
        proposal: a program with the model's sites, in the model's order. It may look at all the data.
        num_particles: n, at least 1.
        resample: the estimator of the ancestors; left out, `Score`, with a moving average as its baseline where one can
            be kept.
        ess_threshold: particles are resampled where the effective sample size falls below this share of n; 1 for
            always. At less, whether they are jumps in the values of continuous sites, which is refused unless `biased`.
        biased: whether the gradient of what resampling does is left out, as is usual: much less noise, at the price of
            a bias. The bound itself has none.

    Example:
        >>> # vi.normalize(model, vi.SMC(proposal, num_particles=32, biased=True))

    References:
        Maddison et al. 2017, Filtering Variational Objectives. Naesseth et al. 2018, Variational Sequential Monte
        Carlo.
        Le et al. 2018, Auto-Encoding Sequential Monte Carlo. Andrieu, Doucet and Holenstein 2010, Particle Markov
        Chain Monte Carlo Methods (conditional SMC).
    """

    part: ClassVar[str] = "filter"
    draws_one: ClassVar[bool] = False
    proposal: Callable[..., Any]
    num_particles: int
    resample: Score | None = None
    ess_threshold: float = field(default=1.0, kw_only=True)
    biased: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        whole_number("SMC", "num_particles", self.num_particles)
        check_proposal(
            "SMC(proposal, num_particles=10)",
            self.proposal,
            "which has no steps",
            lambda p: not isinstance(p, Normalized),
        )
        if not isinstance(self.biased, bool):
            raise ObjectiveError(
                message(
                    "SMC: biased is True or False",
                    got=f"biased={self.biased!r}",
                    expected="a bool",
                    fix="biased=True",
                )
            )
        if not isinstance(self.resample, Score | None):
            raise ObjectiveError(
                message(
                    "SMC: resample is the estimator of which particles are taken, and must score their probabilities",
                    got=repr(self.resample),
                    expected="vi.Score(baseline)",
                    fix="resample=vi.Score(vi.MovingAverage()), or biased=True to leave that gradient out",
                )
            )
        is_number = isinstance(self.ess_threshold, int | float)
        if not is_number or not 0.0 <= self.ess_threshold <= 1.0:
            raise ObjectiveError(
                message(
                    "SMC: ess_threshold is a share of the number of particles",
                    got=repr(self.ess_threshold),
                    expected="a number from 0 (never resample) to 1 (always)",
                    fix="ess_threshold=0.5",
                )
            )

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> SMC:
        return replace(self, proposal=fn(Resampled(self.proposal, self._how)))

    def declare(self) -> None:
        """There are none."""

    def simulate(self, program: Program, model: Program) -> Draw:
        self._check(model)
        if self.num_particles == 1:
            return replace(draw_of(proposal_of(self, program)), program=program)
        swarm, evidence = self._opened(model), Cost(())
        while swarm.following:
            if swarm.following in session().repeated:
                swarm = self._all_steps(program, model, swarm)
            else:
                swarm = self._step(program, model, swarm, self.num_particles)
            evidence = evidence + swarm.evidence + self._mean(swarm)
        how = Resampling(Dropped() if self.biased else None, 1.0, held=self.biased)
        draw, _ = session().resampled(program, swarm, None, how)
        _, more = session().advanced(proposal_of(self, program), draw, frozenset(draw))
        if more:
            raise _not_of_the_model(more, draw)
        return replace(draw, density=log_density_of(model, draw) - evidence)

    def at(self, program: Program, model: Program, draw: Draw) -> Cost:
        self._check(model)
        proposal = proposal_of(self, program)
        if self.num_particles == 1:
            return log_density_of(proposal, draw)
        run, evidence, swarm = session(), Cost(()), self._opened(model)
        draw = as_constant(draw) if draw.held else draw
        while swarm.following:
            if swarm.following in run.repeated:
                swarm = self._all_steps(program, model, swarm, first=draw)
                evidence = evidence + swarm.evidence + self._mean(swarm)
                continue
            others = self._step(program, model, swarm, self.num_particles - 1)
            own = draw.restricted([n for n in draw if n in others.draw])
            drawn = frozenset(swarm.draw)
            log_p, _ = run.advanced(model, own, swarm.met)
            log_q, _ = run.advanced(proposal, own, drawn)
            unmet = own.keys() - drawn - {t.statement for t in log_q.terms}
            if unmet:
                raise _unknown_density(sorted(unmet))
            log_weight = log_p - log_q
            if drawn:
                log_weight = log_weight + run.first_left(swarm, self._how)
            others_mean = self._mean(others)
            evidence = evidence + apply(
                with_others(self.num_particles), log_weight, others_mean, plates=_names(others)
            )
            swarm = run.with_first(others, own, log_weight)
        return log_density_of(model, draw) - evidence

    def _opened(self, model: Program) -> Swarm:
        """The particles before the first latent site: one, with the data that come before it."""
        given = _nothing(model)
        log_p, following = session().advanced(model, given, frozenset())
        if not following:
            raise _without_sites(model)
        axis = session().new_replicate_axis(1)
        return Swarm(given, axis, log_p, (), frozenset(), frozenset(), following, True, Cost(()))

    def _step(self, program: Program, model: Program, before: Swarm, size: int) -> Swarm:
        """The particles after one more step."""
        run, proposal = session(), proposal_of(self, program)
        axis = run.new_replicate_axis(size)
        made: list[Swarm] = []

        def once() -> tuple[Cost, ...]:
            given, weight = _nothing(proposal), Cost(())
            if before.draw:
                self._check_jumps(before.draw)
                given, weight = run.resampled(proposal, before, axis, self._how)
            met, following, has_data = before.met, before.following, False
            while following and following not in run.repeated and not has_data:
                drawn = run.conditioned(proposal, given, only=following)
                refuse_varied(proposal, drawn)
                if following not in drawn:
                    raise _other_order(following, given)
                given = replace(given.joined(drawn), others=given.others)
                log_p, following = run.advanced(model, given, met)
                weight = weight + log_p - drawn.density
                new = {t.statement for t in log_p.terms}
                met, has_data = met | new, not new <= given.keys()
            made.append(
                replace(before, draw=given, met=met, following=following, has_data=has_data)
            )
            return weight, *run.values_of(given)

        log_weights, *values = run.replicate(once, axis)
        plates = frozenset(a for a in shared_plates(log_weights.terms) if a.order)
        return replace(
            made[0],
            axis=axis,
            log_weights=log_weights,
            values=tuple(values),
            plates=plates & before.plates if before.draw else plates,
            evidence=Cost(()),
        )

    def _all_steps(
        self, program: Program, model: Program, before: Swarm, first: Draw | None = None
    ) -> Swarm:
        """The particles after all steps that a library takes by itself.

        Args:
            program: the posterior.
            model: its target.
            before: the particles before.
            first: what the first of them is; `None` if it is drawn.
        """
        run, proposal = session(), proposal_of(self, program)
        axis = run.new_replicate_axis(self.num_particles)
        made: list[Swarm] = []

        def once() -> tuple[Cost, ...]:
            given, weight = replace(before.draw, program=proposal), before.log_weights
            if before.draw:
                how = self._how if before.has_data else replace(self._how, ess_threshold=0.0)
                given, weight = run.resampled(
                    proposal, before, axis, how, keeps_first=first is not None
                )
            drawn, earlier, last, new = run.filtered(
                proposal, model, given, weight, axis, self._how, first
            )
            if not new:
                raise _other_order(before.following, given)
            refuse_varied(proposal, drawn)
            self._check_jumps(drawn)
            met = before.met | new | {t.statement for t in before.log_weights.terms}
            after, following = run.advanced(model, drawn, met)
            met |= {t.statement for t in after.terms}
            made.append(replace(before, draw=drawn, met=met, following=following, has_data=True))
            return earlier, last + after, *run.values_of(drawn)

        earlier, log_weights, *values = run.replicate(once, axis, together=True)
        return _after_steps(
            replace(made[0], axis=axis, log_weights=log_weights, values=tuple(values)), earlier
        )

    @property
    def _how(self) -> Resampling:
        estimator = Dropped() if self.biased else self.resample
        return Resampling(estimator, self.ess_threshold, held=self.biased)

    def _mean(self, swarm: Swarm) -> Cost:
        return Replicates((swarm.log_weights,), swarm.axis).log_mean_exp(_names(swarm))

    def _check_jumps(self, draw: Draw) -> None:
        """Refuse resampling at times that parameters move, for values that lie on a continuum."""
        dists = {n: d.dist for n, d in draw.details.items()}
        names = sorted(n for n, d in dists.items() if d.is_continuous and d.name != "Delta")
        if names and self.ess_threshold < 1.0 and not self.biased:
            raise EstimatorError(
                message(
                    f"SMC: whether particles are resampled is a jump in the values of {names}, of which no estimator"
                    " has the gradient",
                    got=f"ess_threshold={self.ess_threshold}",
                    expected="ess_threshold=1.0, or discrete sites only",
                    fix="ess_threshold=1.0, or biased=True to accept it",
                )
            )

    def _check(self, model: Program) -> None:
        if is_composite(model.fn):
            raise ObjectiveError(
                message(
                    "SMC: the model is no program of sample statements, and has no steps",
                    got=f"{type(model.fn).__name__} as a model",
                    expected="a program whose latent sites and data come in turn",
                    fix="vi.SIR(proposal, num_particles)",
                )
            )


def _nothing(program: Program) -> Draw:
    """A draw without sites."""
    return Draw(program, {}, {}, Cost(()), {})


def _after_steps(swarm: Swarm, earlier: Cost) -> Swarm:
    """Particles that have taken steps together, with the log weights in all but the last.

    The axis along which they end is not that of their sites: any of them may descend from any draw."""
    axis = session().new_replicate_axis(swarm.axis.size)

    def moved(cost: Cost) -> Cost:
        return Cost(replace(t, base=t.base.renamed(swarm.axis, axis)) for t in cost.terms)

    details = {
        n: replace(d, axes=tuple(axis if a == swarm.axis else a for a in d.axes))
        for n, d in swarm.draw.details.items()
    }
    steps = [a.name for t in earlier.terms for a in t.pending]
    return replace(
        swarm,
        draw=replace(swarm.draw, details=details),
        axis=axis,
        log_weights=moved(swarm.log_weights),
        values=tuple(map(moved, swarm.values)),
        plates=frozenset(),
        evidence=Replicates((moved(earlier),), axis).log_mean_exp(steps) if steps else earlier,
    )


def _names(swarm: Swarm) -> list[str]:
    return [a.name for a in swarm.plates]


def _without_sites(model: Program) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"SMC: the {model.role} has no latent sites",
            got="data only",
            expected="latent sites to draw",
            fix="the model without vi.normalize",
        )
    )


def _not_of_the_model(name: str, draw: Draw) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"SMC: proposal site {name!r} is not a latent site of the model",
            got=f"latent sites of the model: {sorted(draw)}",
            expected="the model's latent sites in the model's order, and no others",
            fix="vi.marginal(proposal, keep=[...], algorithm) in vi.SIR(...), or the proposal without it",
        )
    )


def _unknown_density(names: list[str]) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"SMC: the proposal's density of sites {names} at a draw of another program is not known",
            got="a proposal that makes them of auxiliary sites, or draws them in another order",
            expected="a proposal with sample statements of these sites",
            fix="dist.TransformedDistribution or a Normal in the place of an autoguide; or vi.elbo()",
        )
    )


def _other_order(following: str, given: Draw) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"SMC: the proposal does not draw {following!r} next",
            got=f"another latent site before it, or none of this name, after {sorted(given)}",
            expected="the model's latent sites in the model's order, those with enumerate marks among them",
            fix="a proposal with the model's order; or vi.SIR(proposal, num_particles), to which the order is nothing",
        )
    )
