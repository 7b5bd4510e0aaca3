"""Which estimator a site gets: by pattern, by its `infer` annotation, or by the default rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from vi_kit._errors import EstimatorError, message
from vi_kit._named import REPLICATE
from vi_kit.baselines import LeaveOneOut, MovingAverage
from vi_kit.estimators import Enumerate, Estimator, Reparam, Score

if TYPE_CHECKING:
    from vi_kit._named import Axis
    from vi_kit.backend import Distribution

DEFAULT_MAX_WORLDS = 64
"""The default rule enumerates while no term depends on more joint values than this."""


@dataclass(frozen=True)
class Choice:
    """An estimator, the rule that chose it, and why."""

    estimator: Estimator
    rule: str
    why: str


@dataclass(frozen=True)
class Selection:
    """Estimators by pattern of site names (`fnmatch`); the first pattern that matches wins.

    Attributes:
        patterns: as the user gave them.
        resolved: choices already made, by site name.
        sampled: sites that the default rule must not enumerate, since too many joint values meet.
    """

    patterns: tuple[tuple[str, Estimator], ...] = ()
    sampled: frozenset[str] = field(default_factory=frozenset)
    resolved: Mapping[str, Choice] = field(default_factory=dict)

    @classmethod
    def of(cls, estimators: Mapping[str, Estimator] | Estimator | None) -> Selection:
        """From what a user gives to `Loss`; one estimator alone stands for every site.

        Raises:
            EstimatorError: a value is not an estimator (or is a class instead of a value).
        """
        if estimators is None:
            return cls()
        if isinstance(estimators, Estimator):
            estimators = {"*": estimators}
        for pattern, estimator in estimators.items():
            if not isinstance(estimator, Estimator):
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
        return cls(tuple(estimators.items()))

    def choose(
        self,
        name: str,
        dist: Distribution,
        axes: Sequence[Axis],
        infer: Mapping[str, Any],
        may_enumerate: bool = True,
    ) -> Choice:
        """The estimator of one site: pattern, then annotation, then default."""
        if name in self.resolved:
            return self.resolved[name]
        if dist.name == "Delta":
            return Choice(Reparam(), "default", "a Delta is a differentiable value")
        for pattern, estimator in self.patterns:
            if fnmatchcase(name, pattern):
                return Choice(estimator, f"pattern {pattern!r}", "you said so")
        if "estimator" in infer:
            return Choice(infer["estimator"], "infer", "annotated at the sample statement")
        if dist.has_rsample:
            return Choice(Reparam(), "default", f"{dist.name} has a reparameterised sampler")
        size = dist.support_size()
        may_enumerate = may_enumerate and name not in self.sampled
        if size is not None and size <= DEFAULT_MAX_WORLDS and may_enumerate:
            return Choice(
                Enumerate(DEFAULT_MAX_WORLDS),
                "default",
                f"{size} values, at most {DEFAULT_MAX_WORLDS}",
            )
        many = any(a.kind == REPLICATE and a.size > 1 for a in axes)
        why = "no reparameterised sampler; " + (
            "support is not finite"
            if size is None
            else f"over {DEFAULT_MAX_WORLDS} joint values"
            if name in self.sampled or size > DEFAULT_MAX_WORLDS
            else "inside control flow"
        )
        return Choice(Score(LeaveOneOut() if many else MovingAverage()), "default", why)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Patterns that match none of `names`."""
        names = list(names)
        return [p for p, _ in self.patterns if not any(fnmatchcase(n, p) for n in names)]
