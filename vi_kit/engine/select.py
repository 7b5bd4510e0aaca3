"""Which estimator a site gets: by pattern, by its `infer` annotation, or by the default rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.layouts import Closed, Layout, Single, is_support
from vi_kit.base.named import REPLICATE, Axis
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import kept_name
from vi_kit.estimators import (
    Analytic,
    Annealed,
    Enumerate,
    Estimator,
    MeasureValued,
    Policy,
    Reparam,
    Score,
)
from vi_kit.estimators.baselines import Constant, LeaveOneOut, MovingAverage

UNCONSTRAINED = "_unconstrained"
"""How Pyro's guides name what they draw for a site; the site itself is a Delta at a function of it."""

DEFAULT_MAX_WORLDS = 64
"""The default rule enumerates while no term depends on more joint values than this."""

MAX_SUMMED = 65536
"""Of joint values that are summed at once where sites are summed out of a density."""

MAX_VALUES_IN_TURN = 16
"""How many values such a site may have where each takes a run of the program."""


Given = Estimator | Policy
"""What a user gives for the sites of a pattern."""


@dataclass(frozen=True)
class Choice:
    """An estimator, the rule that chose it, and why."""

    estimator: Estimator
    rule: str
    why: str
    kind: tuple[Any, ...] = ()
    """Of the distribution for which it was made."""
    layout: Layout = field(default_factory=Single)
    """Of the value of the site."""

    @cached_property
    def acting(self) -> Estimator:
        """What draws the values of the site and contracts its terms: itself, or one that it falls back on."""
        fallback = self.estimator.fallback if isinstance(self.estimator, Analytic) else None
        return self.estimator if fallback is None else fallback

    @property
    def is_closed(self) -> bool:
        """Whether moments are carried, be it besides a draw of what it falls back on."""
        return isinstance(self.layout, Closed) or self.acting is not self.estimator


def as_chosen(estimator: Estimator) -> Estimator:
    return estimator


SUMMED_OUT = "summed out"


@dataclass(frozen=True)
class Selection:
    """Estimators by pattern of site names (`fnmatch`); the first pattern that matches wins.

    Attributes:
        patterns: as the user gave them.
        resolved: choices already made, by site label. They stand while a site has a distribution of the same kind.
        kept: names of what is kept from step to step, `None` where anything can be. The default rule asks for nothing
            else.
        adapted: what stands for an estimator, once it is chosen.
        max_values: of a site that the default rule enumerates; 0 for none that was not met before.
        sampled: sites to which the default rule must give single draws, and why.
        marginalize: patterns of the model's sites to be summed out.
        seen: names of the sites of all programs so far, which patterns may be for.
        alone: sites that are somewhere drawn without replicates, which the default baseline would compare.
        jumps: sites which the default rule must not reparameterise, and why.
    """

    patterns: tuple[tuple[str, Given], ...] = ()
    marginalize: tuple[str, ...] = ()
    sampled: Mapping[str, str] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    jumps: Mapping[str, str] = field(default_factory=dict)
    resolved: Mapping[str, Choice] = field(default_factory=dict)
    kept: frozenset[str] | None = None
    max_values: int = DEFAULT_MAX_WORLDS
    adapted: Callable[[Estimator], Estimator] = as_chosen
    seen: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def of(cls, estimators: Mapping[str, Given] | Given | None) -> Selection:
        """From what a user gives to `Loss`; one estimator alone stands for every site.

        Raises:
            EstimatorError: a value is not an estimator (or is a class instead of a value).
        """
        if estimators is None:
            return cls()
        if not isinstance(estimators, Mapping):
            estimators = {"*": estimators}
        for pattern, estimator in estimators.items():
            if not isinstance(estimator, Estimator | Policy):
                name = getattr(estimator, "__name__", repr(estimator))
                raise EstimatorError(
                    message(
                        f"estimators[{pattern!r}] is not an estimator",
                        got=repr(estimator),
                        expected="a value such as vi.Reparam() or vi.Score()",
                        fix=f"estimators={{{pattern!r}: vi.{name}()}}"
                        if isinstance(estimator, type)
                        else f"estimators={{{pattern!r}: vi.Reparam()}}",
                    )
                )
        schedules = {e.schedule for e in estimators.values() if isinstance(e, Annealed)}
        if len(schedules) > 1:
            raise EstimatorError(
                message(
                    "the Annealed() estimators of one loss must share a schedule",
                    got=f"{len(schedules)} schedules",
                    expected="one function for all of them",
                    fix="schedule = ...; vi.Annealed(..., schedule) at each site",
                )
            )
        return cls(tuple(estimators.items()))

    @property
    def sums_out(self) -> bool:
        """Whether sites of the model are summed out, as far as the programs are known."""
        return any(choice.why == SUMMED_OUT for choice in self.resolved.values())

    @property
    def schedule(self) -> Callable[[Any], Any] | None:
        """How the two variants of an estimate are mixed, if there are two."""
        for _, estimator in self.patterns:
            if isinstance(estimator, Annealed):
                return estimator.schedule
        return None

    def choose(
        self,
        name: str,
        label: str,
        dist: Distribution,
        axes: Sequence[Axis],
        infer: Mapping[str, Any],
        not_enumerated: Callable[[], str],
        variant: int = 0,
    ) -> Choice:
        """The estimator of one site: pattern, then annotation, then default.

        Args:
            name: of the site, to be matched.
            label: the name by which choices are kept.
            dist: its distribution.
            axes: its plates and replicate axes.
            infer: its annotations.
            not_enumerated: says why the default rule must not enumerate the site, if so.
            variant: which of `Policy.variants`.
        """
        kind = (dist.name, dist.event_shape, dist.has_rsample, dist.has_partial_rsample)
        if label in self.resolved and self.resolved[label].kind == kind:
            return self.resolved[label]
        choice = self._choose(name, label, dist, axes, infer, not_enumerated(), variant)
        choice = replace(choice, kind=kind)
        choice = replace(choice, estimator=self.adapted(choice.estimator))
        return replace(choice, layout=choice.acting.layout(dist))

    def of_algorithm(
        self, label: str, dist: Distribution, axes: Sequence[Axis], given: Estimator | None
    ) -> Choice:
        """The choice for a site that an algorithm draws."""
        kind, why = (dist.name, dist.event_shape), "given with it"
        if label in self.resolved and self.resolved[label].kind == kind:
            return self.resolved[label]
        if given is None:
            others = LeaveOneOut() if self._is_many(label, axes) else Constant()
            given = Score(others + MovingAverage() if self._has_room(label) else others)
            why = f"{dist.name} has no reparameterised sampler"
        return Choice(given, "algorithm", why, kind, given.layout(dist))

    def _has_room(self, label: str) -> bool:
        """Whether a baseline of a site can be kept from step to step."""
        return self.kept is None or kept_name("baseline", label) in self.kept

    def _is_many(self, label: str, axes: Iterable[Axis]) -> bool:
        """Whether there are replicates of a site to be compared."""
        return label not in self.alone and any(a.kind == REPLICATE and a.size > 1 for a in axes)

    def summed(self, label: str, dist: Distribution, rule: str) -> Choice:
        """The choice for a site that is summed out of a density."""
        known = self.resolved.get(label)
        if known is not None and known.kind == (dist.name, dist.event_shape):
            return known
        estimator = Enumerate(MAX_SUMMED)
        kind = dist.name, dist.event_shape
        return Choice(estimator, rule, SUMMED_OUT, kind, estimator.layout(dist))

    def _choose(
        self,
        name: str,
        label: str,
        dist: Distribution,
        axes: Sequence[Axis],
        infer: Mapping[str, Any],
        not_enumerated: str,
        variant: int,
    ) -> Choice:
        if dist.name == "Delta":
            return Choice(Reparam(), "default", "a Delta is a differentiable value")
        names = (name, name.removesuffix(UNCONSTRAINED)) if infer.get("is_auxiliary") else (name,)
        for pattern, given in self.patterns:
            if any(fnmatchcase(n, pattern) for n in names):
                estimator = given.variants[variant] if isinstance(given, Policy) else given
                return Choice(estimator, f"pattern {pattern!r}", "you said so")
        if "estimator" in infer:
            if isinstance(infer["estimator"], Annealed):
                raise EstimatorError(
                    message(
                        f"site {name!r}: Annealed() changes the whole estimate, not one site's only",
                        got='infer={"estimator": Annealed(...)}',
                        expected="Annealed() among the estimators of Loss",
                        fix=f'Loss(objective, estimators={{"{name}": ...}})',
                    )
                )
            return Choice(infer["estimator"], "infer", "annotated at the sample statement")
        many = self._is_many(label, axes)
        kept = MovingAverage() if self._has_room(label) else Constant()
        score = Score(LeaveOneOut() if many else kept)
        if label in self.jumps:
            why, by_measures = self.jumps[label], MeasureValued()
            one_by_one = bool(not_enumerated) or label in self.sampled or bool(dist.event_shape)
            elements = dist.elementary()
            # the parameters of a transform move the value, by a path
            is_plain = elements is not None and elements.family == dist.name
            if is_plain and not one_by_one and by_measures.reason_against(dist) is None:
                return Choice(by_measures, "default", why)
            return Choice(score, "default", why)
        if dist.has_rsample:
            return Choice(Reparam(), "default", f"{dist.name} has a reparameterised sampler")
        size = dist.support_size()
        not_enumerated = not_enumerated or self.sampled.get(label, "")
        if (size or 0) > self.max_values:
            many = (
                f"over {self.max_values} joint values" if self.max_values else "not met in each run"
            )
            not_enumerated = not_enumerated or many
        if size is not None and not not_enumerated:
            return Choice(
                Enumerate(DEFAULT_MAX_WORLDS),
                "default",
                f"{size} values, at most {self.max_values}",
            )
        lacks = "biased sampler" if dist.is_straight_through else "no reparameterised sampler"
        why = f"{lacks}; {not_enumerated or 'support is not fixed and finite'}"
        return Choice(score, "default", why)

    def in_turn(self) -> Selection:
        """The same where each joint value takes a run of the program: the default rule enumerates fewer."""
        kept = {
            label: choice
            for label, choice in self.resolved.items()
            if choice.rule != "default" or not is_support(choice.layout)
        }
        return replace(self, max_values=MAX_VALUES_IN_TURN, resolved=kept)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Patterns that match none of `names`, nor of those of the programs before."""
        names = [*names, *self.seen]
        return [p for p, _ in self.patterns if not any(fnmatchcase(n, p) for n in names)]
