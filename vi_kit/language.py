"""The words in which objectives are written.

An objective program takes `model` and `guide` and returns a `Cost`. It is run once per gradient; the
estimators of the sites turn what it returned into an unbiased gradient of its expected value.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from array_api_compat import array_namespace

from vi_kit._errors import ObjectiveError, message
from vi_kit._named import Array, Axis, exclusive_scan
from vi_kit.backend import current
from vi_kit.cost import Cost, held_fixed
from vi_kit.nonlinear import Reduction, apply
from vi_kit.programs import Draw, Program
from vi_kit.varied import held_densities, vary, with_alternatives

T = TypeVar("T")


def simulate(program: Program) -> Draw:
    """Run a program and draw its latent sites, each by the estimator chosen for it.

    Returns:
        The draw; its `log_density` includes the program's observed sites and factors.
    """
    run = current()
    draw = run.backend.simulate(run, program)
    return vary(draw) if draw.factors else draw


def log_density(program: Program, draw: Draw) -> Cost:
    """Log density of a program at the values of a draw, observed sites and factors included (nats).

    Raises:
        ObjectiveError: the program has a latent site that the draw lacks, or the other way round.
    """
    run = current()
    cost = run.backend.log_density(run, program, draw)
    if draw.held or draw.varied is None:
        return cost
    return with_alternatives(cost, draw, held_densities(program, draw, cost))


def uncondition(program: Program) -> Program:
    """The program with its observed sites drawn too: simulated data, as by the library's `uncondition` handler.

    Its draws have the observed sites among their values. It may not contain factors.
    """
    return replace(program, joint=True)


def given(program: Program, draw: Draw) -> Program:
    """The program with simulated data in the place of the data.

    Args:
        program: usually the guide.
        draw: from an unconditioned program. Wherever what one of its sites observed is an argument, alone
            or inside a list, tuple or dict of arguments, `program` gets the simulated value.

    Raises:
        ObjectiveError: what a site observed is not an argument.
    """
    run, simulated = current(), {}
    for name, observed in draw.data.items():
        value = run.backend.stop_gradient(draw[name]) if draw.held else draw[name]
        if getattr(observed, "dtype", value.dtype) != value.dtype:
            value = array_namespace(value).astype(value, observed.dtype)
        simulated[id(observed)] = (name, value)
    found: set[str] = set()

    def replaced(argument: Any) -> Any:
        if id(argument) in simulated:
            name, value = simulated[id(argument)]
            found.add(name)
            return value
        if isinstance(argument, dict):
            return {k: replaced(v) for k, v in argument.items()}
        if type(argument) in (list, tuple):
            return type(argument)(map(replaced, argument))
        return argument

    args, kwargs = replaced(program.args), replaced(program.kwargs)
    for name in sorted(draw.data.keys() - found):
        run.refuse(
            message(
                f"{draw.program.role} site {name!r}: what it observes is not an argument of its own",
                got=f"arguments {[type(a).__name__ for a in (*program.args, *program.kwargs.values())]}",
                expected=f"the array that {name!r} observes, so that the {program.role} can be given"
                " simulated data",
                fix=f"sample({name!r}, ..., obs=x) with x just as it was given to the step",
            ),
            of_estimator=False,
        )
    return replace(program, args=args, kwargs=kwargs)


def stop_gradient(x: T) -> T:
    """Take a cost, a draw or a program as a constant.

    For a *program* its parameters are held fixed, in its draws and in its densities. For a *draw*
    its values are constants: neither the path through the sampler nor the score of the draw counts.
    For a *cost* both hold.
    """
    if isinstance(x, Program | Draw):
        return replace(x, held=True)  # type: ignore[return-value]
    if isinstance(x, Cost):
        return Cost(map(held_fixed, x.terms))  # type: ignore[return-value]
    raise ObjectiveError(
        message(
            "stop_gradient takes a cost, a draw or a program",
            got=type(x).__name__,
            expected="a Cost, what simulate returned, or the model or guide of the program",
            fix="for an array use your library's own (detach, jax.lax.stop_gradient)",
        )
    )


def split_gradients(*, model: Cost, guide: Cost) -> Cost:
    """Let the model's parameters ascend one cost and the guide's another.

    The value reported is that of the `model` cost. Draws that both share are made once.

    Raises:
        ObjectiveError: a parameter that model and guide share (when the loss is first used).

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better (PIWAE).
    """
    return Cost(
        [
            replace(t, group=group)
            for group, c in (("model", model), ("guide", guide))
            for t in c.terms
        ]
    )


def iid(fn: Callable[[], Any], num_replicates: int) -> Replicates:
    """Independent copies of a computation.

    Args:
        fn: returns a cost, or a tuple of costs for `Replicates.reduce`.
        num_replicates: number of copies, at least 1.

    Returns:
        The copies, to be reduced by one of the methods. They nest.

    Raises:
        ObjectiveError: fewer than one copy, or `fn` returns something else.
    """
    if not isinstance(num_replicates, int) or num_replicates < 1:
        raise _count_error("iid", "num_replicates", num_replicates)
    run = current()
    axis = run.new_replicate_axis(num_replicates)
    return Replicates(run.replicate(fn, axis), axis)


class Replicates:
    """What `iid` returns: costs along a replicate axis, to be reduced to one cost.

    A nonlinear reduction is taken per element of the plates that *all* terms share (a bound per
    datapoint), and summed over them; the other plates are summed inside. `plates` overrides this with
    an explicit list of names, `[]` for one bound over everything.
    """

    def __init__(self, costs: tuple[Cost, ...], axis: Axis):
        self.costs = costs
        self.axis = axis

    def sum(self) -> Cost:
        """Sum over replicates."""
        return self._linear(per_copy=1.0, constant=float(self.axis.size))

    def mean(self) -> Cost:
        """Mean over replicates."""
        return self._linear(per_copy=1.0 / self.axis.size, constant=1.0)

    def _linear(self, per_copy: float, constant: float) -> Cost:
        (cost,) = self._single("mean and sum take")
        return Cost(
            replace(t, weight=t.weight * (per_copy if self.axis in t.base.axes else constant))
            for t in cost.terms
        )

    def log_mean_exp(self, plates: Sequence[str] | None = None) -> Cost:
        """Log of the mean of exponentials over replicates."""
        return apply(
            LogMeanExp(), *self._single("log_mean_exp takes"), over=self.axis, plates=plates
        )

    def variance(self, plates: Sequence[str] | None = None) -> Cost:
        """Unbiased sample variance over replicates (divisor n - 1).

        Raises:
            ObjectiveError: fewer than two replicates.
        """
        if self.axis.size < 2:
            raise _count_error("variance", "num_replicates", self.axis.size, least=2)
        costs = self._single("variance takes")
        return apply(Reduction(_variance), *costs, over=self.axis, plates=plates)

    def reduce(self, fn: Callable[..., Array], plates: Sequence[str] | None = None) -> Cost:
        """Any function along the replicate axis.

        Args:
            fn: takes one array of shape `(num_replicates, *rest)` per cost that the function given to
                `iid` returned, and returns one of shape `(*rest,)`. It must be permutation-free in
                `rest` and differentiable.
            plates: as for the class.
        """
        return apply(Reduction(fn), *self.costs, over=self.axis, plates=plates)

    def _single(self, what: str) -> tuple[Cost]:
        if len(self.costs) != 1:
            raise ObjectiveError(
                message(
                    f"{what} one cost",
                    got=f"{len(self.costs)} costs from the function given to iid",
                    expected="one",
                    fix="use .reduce(fn), which gets one array per cost",
                )
            )
        return (self.costs[0],)


@dataclass(frozen=True)
class Range:
    """What a setting may be: `beta: Annotated[float, Range(0.0, 1.0)]` in the signature of a program.

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
        return self.low + 1.0 if math.isinf(self.high) else (self.low + self.high) / 2

    def __str__(self) -> str:
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"


class LogMeanExp(Reduction):
    """Log-mean-exp along dim 0; swapping one entry costs the same order as one evaluation."""

    def __init__(self) -> None:
        super().__init__(log_mean_exp)

    def swap_one(self, base: Sequence[Array], other: Sequence[Array]) -> Array:
        (x,), (y,), backend = base, other, current().backend
        xp = array_namespace(x)
        rest = exclusive_scan(
            x, lambda v: backend.cumulative_logsumexp(v, 0), xp.logaddexp, -float("inf")
        )
        top = backend.stop_gradient(xp.maximum(rest, y))
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
        both = xp.exp(rest - top) + xp.exp(
            y - top
        )  # unlike logaddexp, also fit to differentiate twice
        return xp.log(both) + top - xp.log(xp.zeros_like(y) + x.shape[0])


def log_mean_exp(x: Array) -> Array:
    """`log(mean(exp(x)))` along dim 0, shape `(*rest,)`."""
    xp = array_namespace(x)
    count = x.shape[0]
    if count == 1:
        return x[0]
    lse = current().backend.logsumexp(x, 0)
    return lse - xp.log(xp.zeros_like(lse) + count)


def _variance(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.var(x, axis=0, correction=1.0)


@dataclass(frozen=True)
class Objective:
    """An objective program with its settings: printable, equal by content.

    Call it on `model` and `guide` inside another program to use it as a part.

    Attributes:
        program: the function that the user wrote.
        settings: values of its keyword-only parameters.
        maximised: whether it is a bound to ascend, or a divergence to descend.
    """

    program: Callable[..., Cost]
    settings: tuple[tuple[str, Any], ...]
    maximised: bool

    def __call__(self, model: Program, guide: Program) -> Cost:
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
    parameters = [
        p for p in inspect.signature(program).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    parameters.sort(key=lambda p: p.default is not p.empty)
    annotations = {p.name: p.annotation for p in parameters}
    signature = inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters])

    @functools.wraps(program)
    def make(*args: Any, **kwargs: Any) -> Objective:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name.startswith("num_") and (not isinstance(value, int) or value < 1):
                raise _count_error(program.__name__, name, value)
            for requirement in getattr(annotations.get(name), "__metadata__", ()):
                if not requirement.allows(value):
                    raise ObjectiveError(
                        message(
                            f"{program.__name__}: {name} is out of range",
                            got=f"{name}={value!r}",
                            expected=f"{name} {requirement}",
                            fix=f"{name}={requirement.example!r}",
                        )
                    )
        return Objective(program, tuple(bound.arguments.items()), maximised)

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def _count_error(where: str, name: str, value: Any, least: int = 1) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"{where}: {name} must be a whole number of at least {least}",
            got=f"{name}={value!r}",
            expected=f"{name} >= {least}",
            fix=f"{name}={least}",
        )
    )
