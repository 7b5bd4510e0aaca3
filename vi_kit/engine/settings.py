"""What a loss was given, checked, and what it does the same way for every library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vi_kit.base.errors import EstimatorError, NotFiniteError, ObjectiveError, message, whole_number
from vi_kit.base.named import Named
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site
from vi_kit.engine.run import Run, running
from vi_kit.engine.select import Given, Selection
from vi_kit.language.programs import Program
from vi_kit.language.words import Objective, iid
from vi_kit.objectives import elbo

SETTINGS = (
    "objective",
    "estimators",
    "num_samples",
    "max_plate_nesting",
    "vectorize",
    "marginalize",
)
"""Of a `Loss`."""


@dataclass(frozen=True)
class Settings:
    """The settings of a `Loss`.

    Attributes:
        objective: what is maximised or minimised.
        estimators: as the user gave them.
        num_samples: independent estimates that are averaged.
        max_plate_nesting: dims reserved for plates, `None` to find out.
        vectorize: whether replicates are drawn in one pass; `None` to find out.
        selection: the estimators by pattern, and the sites that are summed out of the model.
        salts: by label of a site, what its random numbers are made of besides the generator; none but for
            `gradient_variance`.
    """

    objective: Objective
    estimators: Mapping[str, Given] | Given | None
    num_samples: int
    max_plate_nesting: int | None
    vectorize: bool | None
    selection: Selection
    salts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        objective: Objective | None,
        estimators: Mapping[str, Given] | Given | None,
        num_samples: int,
        max_plate_nesting: int | None,
        vectorize: bool | None,
        marginalize: Sequence[str] = (),
    ) -> Settings:
        """Check what a user gave.

        Raises:
            ObjectiveError: not an objective, fewer than one sample, or patterns that are no text.
            EstimatorError: not estimators.
        """
        objective = elbo() if objective is None else objective
        if not isinstance(objective, Objective):
            raise ObjectiveError(
                message(
                    "the first argument of Loss is not an objective",
                    got=repr(objective),
                    expected="an Objective, such as vi.elbo() or vi.iwae(num_particles=5)",
                    fix="call it with its settings, or decorate your program with @vi.objective",
                )
            )
        num_samples = whole_number("Loss", "num_samples", num_samples)
        marginalize = (marginalize,) if isinstance(marginalize, str) else tuple(marginalize)
        if not all(isinstance(p, str) and p for p in marginalize):
            raise ObjectiveError(
                message(
                    "Loss: marginalize takes names or patterns of sites of the model",
                    got=repr(list(marginalize)),
                    expected="text, such as 'z' or 'z_*'",
                    fix="marginalize=['z']",
                )
            )
        selection = replace(Selection.of(estimators), marginalize=marginalize)
        return cls(objective, estimators, num_samples, max_plate_nesting, vectorize, selection)

    def describe(self) -> str:
        """As the call that makes it."""
        parts = [repr(self.objective)]
        if self.estimators is not None:
            parts.append(f"estimators={self.estimators!r}")
        if self.num_samples != 1:
            parts.append(f"num_samples={self.num_samples}")
        if self.selection.marginalize:
            parts.append(f"marginalize={list(self.selection.marginalize)}")
        return f"Loss({', '.join(parts)})"

    @property
    def sign(self) -> float:
        """What makes a loss of the objective."""
        return -1.0 if self.objective.maximised else 1.0

    def averaged(self, model: Program, guide: Program) -> Cost:
        """The objective program, averaged over `num_samples` replicates; a mixture of two such, if estimators are
        annealed."""

        def once() -> Cost:
            if self.num_samples == 1:
                return self.objective(model, guide)
            return iid(lambda: self.objective(model, guide), self.num_samples).mean()

        schedule, run, first = self.selection.schedule, running(), once()
        if schedule is None or not first.terms:
            return first
        run.variant = 1
        second, run.variant = once(), 0
        weight = schedule(run.step(first.terms[0].base.array))
        return first * weight + second * (1.0 - weight)

    def execute(self, run: Run, model: Program, guide: Program) -> dict[str | None, Named]:
        """Run the objective; an error that comes of parameters that are not numbers names them, and one that comes of
        values between those of a support names their site."""
        try:
            with run.backend.session(run):
                return run.execute(self.averaged, model, guide)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            spoilt = run.backend.spoilt_params()
            if spoilt:
                raise not_numbers(spoilt, None) from error
            relaxed = [s for s in run.sites if s.layout.leaves_support]
            if relaxed and isinstance(error, IndexError | TypeError):
                raise _no_values_between(relaxed, error) from error
            raise


def _no_values_between(sites: Sequence[Site], error: Exception) -> EstimatorError:
    """The error about a program that cannot be run between the values of a support."""
    texts = [
        message(
            f"site {site.name!r}: the program cannot be run at the values of {type(site.estimator).__name__}(), which"
            " lie between those of its support",
            got=str(error).splitlines()[0],
            expected="arithmetic with the value, where the program has it as an index or a key",
            fix=f'table[0] * (1 - z) + table[1] * z; or estimators={{"{site.name}": vi.Enumerate()}}',
        )
        for site in sites
    ]
    return EstimatorError("\n".join(texts))


def not_numbers(params: Sequence[str], where: str | None) -> NotFiniteError:
    """The error about a gradient that is not a number, at a statement, or about parameters that one has spoilt."""
    names = ", ".join(map(repr, params))
    found = f"the gradient of parameter {names} is not a number"
    if where is None:
        found = f"parameter {names} is not a number"
    return NotFiniteError(
        message(
            found,
            got=f"a gradient through {where}" if where else "nan, after a step whose gradient was",
            expected="a finite gradient: it is 0 * inf where the log density is finite and its derivative is not",
            fix="keep arguments off the edge of their range (0 under log, sqrt or a rate), before any where",
        )
    )


def not_finite(value: float, where: str | None, spoilt: Sequence[str] = ()) -> NotFiniteError:
    """The error about a loss that is not finite, with the first statement whose log density is not."""
    if spoilt:
        return not_numbers(spoilt, None)
    return NotFiniteError(
        message(
            f"the loss is {value}"
            + (f": the log density of {where} is not finite" if where else ""),
            got=where or "finite log densities, so the objective itself overflows",
            expected="a finite loss; no gradient was taken and no parameter was changed",
            fix="check the data, the parameters and the supports at this site",
        )
    )
