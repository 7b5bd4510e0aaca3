"""What an objective is: a program with settings, and what these may be."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vi_kit.base.errors import ObjectiveError, message, refuse_settings, whole_number
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program


@dataclass(frozen=True)
class SettingRange:
    """What a setting may be: `beta: Annotated[float, SettingRange(0.0, 1.0)]` in the signature of a program.

    Attributes:
        low: smallest value.
        high: largest value.
        above: whether `low` itself is excluded.
    """

    low: float
    high: float
    above: bool = False

    def allows(self, value: Any) -> bool:
        if not isinstance(value, int | float) or value != value:
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    @property
    def example(self) -> float:
        if math.isinf(self.low):
            return 0.5
        return self.low + min(self.high - self.low, 1.0) / 2

    def __str__(self) -> str:
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class SettingRule:
    """What a setting may be: `kl: Annotated[str, SettingRule(lambda v: v in ("a", "b"), "be 'a' or 'b'", "a")]`.

    Attributes:
        test: whether a value is allowed.
        text: what the value must do, for the error.
        example: a value that is allowed, as code.
    """

    test: Callable[[Any], bool]
    text: str
    example: str

    def allows(self, value: Any) -> bool:
        return bool(self.test(value))

    def __str__(self) -> str:
        return f"to {self.text}"


@dataclass(frozen=True)
class Objective:
    """An objective program with its settings: printable, equal by content.

    Call it on `model` and `guide` inside another program to use it as a part.

    Attributes:
        program: the function that the user wrote.
        settings: values of its keyword-only parameters.
        maximised: whether it is a bound to ascend, or a divergence to descend.
        factory: what makes it of its settings.
    """

    program: Callable[..., Cost]
    settings: tuple[tuple[str, Any], ...]
    maximised: bool
    factory: Callable[..., Objective] = field(repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the call that makes it: the name of a program is that of its factory."""
        return self.factory, tuple(value for _, value in self.settings)

    def __getattr__(self, name: str) -> Any:
        if name in LOSS_ATTRIBUTES:  # what NumPyro's SVI asks a loss for
            raise _not_a_loss(self)
        raise AttributeError(name)

    def __call__(self, model: Program, guide: Program) -> Cost:
        if not isinstance(model, Program):
            raise _not_a_loss(self)
        cost = self.program(model, guide, **dict(self.settings))
        if not isinstance(cost, Cost):
            raise ObjectiveError(
                message(
                    f"{self!r} must return one cost",
                    got=type(cost).__name__,
                    expected="a Cost, which is a scalar once its plates are summed",
                    fix="reduce an iid by .mean(), .sum(), .log_mean_exp(), .variance() or .reduce(fn)",
                )
            )
        return cost

    def __repr__(self) -> str:
        return f"{self.program.__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


LOSS_ATTRIBUTES = ("loss", "loss_with_mutable_state", "multi_sample_guide", "can_infer_discrete")


def _not_a_loss(objective: Objective) -> ObjectiveError:
    """The error about an objective that is used as a loss."""
    return ObjectiveError(
        message(
            f"{objective!r} is an objective and no loss",
            got="an objective where SVI expects a loss",
            expected="a Loss of the objective, from vi_kit.pyro or vi_kit.numpyro",
            fix=f"SVI(model, guide, optimizer, Loss(vi.{objective!r}))",
        )
    )


def objective(program: Callable[..., Cost]) -> Callable[..., Objective]:
    """Make an objective, to be maximised, of a program.

    Args:
        program: `program(model, guide, *, setting, ...)`, returns a `Cost`.

    Returns:
        A function of the settings that returns an `Objective`.

    Example:
        >>> @objective
        ... def my_elbo(model, guide, *, beta=1.0):
        ...     z = simulate(guide)
        ...     return log_density(model, z) - beta * z.log_density
        >>> my_elbo(beta=0.5)
        my_elbo(beta=0.5)
    """
    return _factory(program, maximised=True)


def divergence(program: Callable[..., Cost]) -> Callable[..., Objective]:
    """Make an objective, to be minimised, of a program. See `objective`."""
    return _factory(program, maximised=False)


def _factory(program: Callable[..., Cost], maximised: bool) -> Callable[..., Objective]:
    try:  # annotations are strings under `from __future__ import annotations`
        everything = inspect.signature(program, eval_str=True).parameters.values()
    except NameError:
        everything = inspect.signature(program).parameters.values()
    _check_form(program.__name__, list(everything))
    parameters = [p for p in everything if p.kind is p.KEYWORD_ONLY]
    parameters.sort(key=lambda p: p.default is not p.empty)
    annotations = {p.name: p.annotation for p in parameters}
    signature = inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters])

    @functools.wraps(program)
    def make(*args: Any, **kwargs: Any) -> Objective:
        refuse_settings(
            program.__name__,
            {k: v for k, v in kwargs.items() if k not in signature.parameters},
            signature.parameters,
        )
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            call = f"{program.__name__}({', '.join(signature.parameters)})"
            needed = [p for p in parameters if p.default is p.empty]
            fix = f"{program.__name__}({', '.join(f'{p.name}={_example(p)}' for p in needed)})"
            raise ObjectiveError(
                message(
                    f"{program.__name__}: {error}",
                    got=f"{len(args)} settings by position, {list(kwargs)} by name",
                    expected=call,
                    fix=f"vi.{fix}" if program.__module__.startswith("vi_kit") else fix,
                )
            ) from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name.startswith("num_"):
                bound.arguments[name] = whole_number(program.__name__, name, value)
            for requirement in getattr(annotations.get(name), "__metadata__", ()):
                if not requirement.allows(value):
                    raise ObjectiveError(
                        message(
                            f"{program.__name__}: {name} is out of range",
                            got=f"{name}={value!r}",
                            expected=f"{name} {requirement}",
                            fix=f"{name}={requirement.example}",
                        )
                    )
        return Objective(program, tuple(bound.arguments.items()), maximised, make)

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def _example(parameter: inspect.Parameter) -> str:
    """A value that a setting may have, as code."""
    allowed = getattr(parameter.annotation, "__metadata__", ())
    if allowed:
        return str(allowed[0].example)
    return "10" if parameter.name.startswith("num_") else "0.5"


def _check_form(name: str, parameters: Sequence[inspect.Parameter]) -> None:
    """A program takes `model` and `guide` by position, and its settings by keyword only."""
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) != 2:
        raise ObjectiveError(
            message(
                f"{name}: an objective program takes model and guide, and settings by keyword only",
                got=f"{name}({', '.join(map(str, parameters))})",
                expected="two positional parameters; settings after a *",
                fix=f"def {name}(model, guide, *, {', '.join(positional[2:]) or 'num_particles'})",
            )
        )
