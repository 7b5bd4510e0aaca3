"""Baselines: what `Score` subtracts from the cost. None of them can see the value that was drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from vi_kit.base.context import current
from vi_kit.base.errors import EstimatorError, ObjectiveError, Refusal, message
from vi_kit.base.named import PLATE, REPLICATE, Array, Axis, Named, from_layout
from vi_kit.costs.terms import kept_name
from vi_kit.estimators.base import estimator_context
from vi_kit.estimators.memory import Learned, Memory, Network, State
from vi_kit.estimators.others import Others, Seen


class Baseline(ABC):
    """Subclass it to write your own: a frozen dataclass with `subtracted`. Baselines can be added."""

    @property
    def memory(self) -> Memory:
        """What it keeps from step to step."""
        return {}

    def __add__(self, other: Baseline) -> SumOfBaselines:
        return SumOfBaselines((*_parts(self), *_parts(other)))

    def __radd__(self, other: Baseline) -> SumOfBaselines:
        return SumOfBaselines((*_parts(other), *_parts(self)))

    @abstractmethod
    def subtracted(self, others: Others) -> Seen | None:
        """The baseline for each element of a site.

        Args:
            others: what an element may see of the costs: what the others are worth.

        Returns:
            Made of what `others` gives by arithmetic, which is why it cannot depend on the element's own draw;
            `None` for nothing.
        """

    def alternative(self, others: Others) -> Seen | None:
        """What a cost is replaced by where a nonlinear function of it is compared with one that does not depend on
        the site; `None` if there is no such comparison.

        Args:
            others: likewise, along the axes that the function reduces.
        """
        del others
        return None

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        """Why the baseline cannot serve a site with these axes; `None` if it can."""
        del axes
        return None


def lacks_replicates(name: str) -> Refusal:
    """Why a baseline cannot serve a site that has one replicate only."""
    return Refusal(
        f"{name} needs at least 2 replicates of the site, and there is 1",
        expected="num_samples >= 2, or another baseline",
        fix="num_samples=2",
    )


def check_baseline(where: str, baseline: Any) -> None:
    """Refuse what is no baseline, such as the class of one.

    Raises:
        EstimatorError: it is none.
    """
    if isinstance(baseline, Baseline):
        return
    is_class = isinstance(baseline, type)
    fix = f"vi.{where}(vi.{baseline.__name__ if is_class else 'LeaveOneOut'}())"
    raise EstimatorError(
        message(
            f"{where}: its baseline is not one",
            got=f"the class {baseline.__name__}" if is_class else repr(baseline),
            expected="a value such as vi.LeaveOneOut() or vi.MovingAverage()",
            fix=fix,
        )
    )


@dataclass(frozen=True)
class Constant(Baseline):
    """One number for every element.

    Args:
        value: in the units of the cost (nats).
    """

    value: float = 0.0

    def subtracted(self, others: Others) -> Seen | None:
        return None if self.value == 0.0 else others.constant(self.value)


@dataclass(frozen=True)
class LearnedConstant(Baseline):
    r"""One number per site, learned by minimising the variance of the gradient.

    The best coefficient of the control variate $\nabla \log q$, for which the log-variance loss (and `LeaveOneOut`)
    take the mean cost of other draws. It is a parameter of the site: the optimiser of the step moves it against the
    gradient of the squared norm of the guide's gradient. In NumPyro it needs a place: give `SVI`
    `loss.with_state(guide)`.

    Args:
        value: at first, in the units of the cost (nats).

    References:
        Richter et al. 2020, VarGrad: A Low-Variance Gradient Estimator for Variational Inference.
    """

    value: float = 0.0

    @property
    def memory(self) -> Memory:
        return {"constant": Learned(self.value)}

    def subtracted(self, others: Others) -> Seen | None:
        return others.constant(others.parameter("constant"))


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """The mean of the other replicates of the innermost `iid` (or `num_samples`) around the site.

    On a mean of replicates this is RLOO. On a nonlinear function of them (`iwae`) the terms that
    depend on the site are replaced by their mean over the other replicates: VIMCO.

    References:
        Kool, van Hoof and Welling 2019; Mnih and Rezende 2016.
    """

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        if _innermost(axes) is None:
            return lacks_replicates("LeaveOneOut()")
        return None

    def alternative(self, others: Others) -> Seen | None:
        return self.subtracted(others)

    def subtracted(self, others: Others) -> Seen | None:
        axis = others.replicates
        return None if axis is None else others.mean(axis)


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """An exponential moving average of what the site was worth in earlier steps: one number per site, or per element.

    Kept apart from the parameters (Pyro: in `Loss.state`; NumPyro: in the mutable state, for which
    `Loss.with_state` makes room). Weighted so that it is an average of
    the steps so far from the first step on, and zero before it.

    Args:
        decay: weight of the past, in [0, 1).
        per_element: whether each element of the site's plates has an average of its own; they must not be
            subsampled, and keep their sizes.

    Raises:
        EstimatorError: with `per_element`, at the first step in which a plate has another size.
    """

    decay: float = 0.9
    per_element: bool = False

    @property
    def memory(self) -> Memory:
        return {"baseline": State(lambda plates: (2, *plates) if self.per_element else (2,))}

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        subsampled = [a.name for a in axes if a.kind == PLATE and a.scale != 1.0]
        if self.per_element and subsampled:
            return (
                f"MovingAverage(per_element=True) needs whole plates; {subsampled} are subsampled"
            )
        return None

    def subtracted(self, others: Others) -> Seen | None:
        run, xp = current(), array_namespace(others.like)
        key = kept_name("baseline", others.label)
        kept = others.plates if self.per_element else ()
        zeros = xp.zeros(
            tuple(a.size for a in kept), dtype=others.like.dtype, device=device(others.like)
        )
        state = run.backend.get_state(key)
        state = xp.stack([zeros, zeros]) if state is None else state
        if tuple(state.shape[1:]) != tuple(zeros.shape):
            raise EstimatorError(
                message(
                    f"site {others.name!r}: MovingAverage(per_element=True) keeps one average for each element of its"
                    " plates, whose sizes have changed",
                    got=f"sizes {tuple(zeros.shape)}, and averages for {tuple(state.shape[1:])}",
                    expected="the same elements in every step, not minibatches",
                    fix="vi.MovingAverage(), one average for all elements",
                )
            )
        past, weight = state[0], state[1]

        def learn(worth: Named) -> None:
            mean = _mean(worth.broadcast(kept), kept)
            new = self.decay * state + (1.0 - self.decay) * xp.stack([mean, xp.ones_like(mean)])
            estimator_context().new_state[key] = xp.where(xp.isfinite(mean), new, state)

        others.learn(learn)
        return others.per_plate(past / xp.where(weight > 0, weight, xp.ones_like(weight)))


@dataclass(frozen=True)
class NeuralBaseline(Baseline):
    """A function of the data, trained to predict what the site is worth (NVIL).

    It is trained by its own least squares in the same step and by the same optimiser, never by the
    objective. In NumPyro its parameters live with those of the guide: give `SVI` `loss.with_state(guide)`.

    Args:
        network: a torch, flax (linen or nnx) or equinox module; or a program that returns the predictions and
            registers its parameters in the words of the library. Predictions have shape `(*plates)` of the site,
            dims of size one allowed, or `(*plates, 1)`.
        inputs: `inputs(*args, **kwargs)` of the arguments of the step is what the network gets; if left out,
            the first argument.

    References:
        Mnih and Gregor 2014, Neural Variational Inference and Learning in Belief Networks.
    """

    network: Any
    inputs: Callable[..., Array] | None = None

    @property
    def memory(self) -> Memory:
        inputs = Network(self.network, lambda dist, args, kwargs: self.given(args, kwargs))
        return {"network": inputs}

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Array:
        """What the network gets in this step."""
        if self.inputs is not None:
            return self.inputs(*args, **kwargs)
        if not args:
            raise ObjectiveError(
                message(
                    "NeuralBaseline: the step has no positional argument for the network",
                    got=f"keyword arguments {sorted(kwargs)}",
                    expected="data as the first argument, or a function of the arguments",
                    fix="vi.NeuralBaseline(network, inputs=lambda *args, **kwargs: ...)",
                )
            )
        return args[0]

    def subtracted(self, others: Others) -> Seen | None:
        run = estimator_context()
        given = self.given(*run.arguments)
        values = run.backend.predict(kept_name("network", others.label), self.network, given)
        if values is None:
            return None
        if values.ndim == len(others.plates) + 1 and values.shape[-1] == 1:
            values = values[..., 0]
        try:
            prediction = others.per_plate(run.backend.stop_gradient(values))
        except ValueError as error:
            raise ObjectiveError(
                message(
                    f"site {others.name!r}: the predictions of its NeuralBaseline do not fit its plates",
                    got=str(error),
                    expected=f"dims of the plates {[(a.name, a.size) for a in others.plates]}",
                    fix="a network that returns one number per element of the site",
                )
            ) from None

        def learn(worth: Named) -> None:
            live = from_layout(values, {-a.order: a for a in others.plates})
            residual = worth - live
            run.own_losses.append(_mean(Named(0.5 * residual.array**2, residual.axes), ()))

        others.learn(learn)
        return prediction


@dataclass(frozen=True)
class SumOfBaselines(Baseline):
    """Baselines one after the other: each is given what the ones before it have left of the others.

    Example:
        >>> LeaveOneOut() + MovingAverage()
        SumOfBaselines(parts=(LeaveOneOut(), MovingAverage(decay=0.9, per_element=False)))
    """

    parts: tuple[Baseline, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, Baseline):
                is_number = isinstance(part, int | float)
                raise EstimatorError(
                    message(
                        "a sum of baselines: a part of it is none",
                        got=repr(part),
                        expected="baselines, such as vi.LeaveOneOut() + vi.Constant(1.0)",
                        fix=f"vi.Constant({part})" if is_number else "baselines only",
                    )
                )
        for what, kinds in (("state", State | Learned), ("network", Network)):
            kept = [p for p in self.parts if any(isinstance(m, kinds) for m in p.memory.values())]
            if len(kept) > 1:
                raise EstimatorError(
                    message(
                        f"a sum of baselines can keep one {what} per site",
                        got=f"{kept}",
                        expected="at most one moving average or learned constant, and one network",
                        fix=f"{kept[0]!r} alone",
                    )
                )

    @property
    def memory(self) -> Memory:
        return {name: kept for part in self.parts for name, kept in part.memory.items()}

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        needs = [part.unmet_need(axes) for part in self.parts]
        return next((need for need in needs if need is not None), None)

    def alternative(self, others: Others) -> Seen | None:
        found = [part.alternative(others) for part in self.parts]
        return next((f for f in found if f is not None), None)

    def subtracted(self, others: Others) -> Seen | None:
        total = None
        for part in self.parts:
            own = part.subtracted(others)
            if own is not None:
                others = others.less(own)
                total = own if total is None else total + own
        return total


@dataclass(frozen=True)
class ScaledBaseline(Baseline):
    """A baseline times the coefficient that fits it best, by least squares over the other replicates of the
    innermost `iid` (or `num_samples`): held out, so that it does not see the draw. Where a nonlinear function mixes
    these, nothing is known of them apart, and the coefficient is one.

    Args:
        baseline: one that does not mix replicates itself.

    Example:
        >>> ScaledBaseline(MovingAverage())
        ScaledBaseline(baseline=MovingAverage(decay=0.9, per_element=False))
    """

    baseline: Baseline

    def __post_init__(self) -> None:
        check_baseline("ScaledBaseline", self.baseline)
        if any(isinstance(part, LeaveOneOut | ScaledBaseline) for part in _parts(self.baseline)):
            raise EstimatorError(
                message(
                    "ScaledBaseline: the baseline must not mix replicates",
                    got=repr(self.baseline),
                    expected="Constant, MovingAverage, NeuralBaseline, or a sum of these",
                    fix="vi.ScaledBaseline(vi.MovingAverage()) + vi.LeaveOneOut()",
                )
            )

    @property
    def memory(self) -> Memory:
        return self.baseline.memory

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        if _innermost(axes) is None:
            return lacks_replicates("ScaledBaseline(...)")
        return self.baseline.unmet_need(axes)

    def subtracted(self, others: Others) -> Seen | None:
        own = self.baseline.subtracted(others)
        return None if own is None else others.fit(own) * own


def _parts(baseline: Baseline) -> tuple[Baseline, ...]:
    return baseline.parts if isinstance(baseline, SumOfBaselines) else (baseline,)


def _mean(named: Named, kept: tuple[Axis, ...]) -> Array:
    """The mean over all axes but the kept ones."""
    dims = tuple(i for i, a in enumerate(named.axes) if a not in kept)
    return array_namespace(named.array).mean(named.array, axis=dims) if dims else named.array


def _innermost(axes: Sequence[Axis]) -> Axis | None:
    replicates = [a for a in axes if a.kind == REPLICATE and a.size > 1]
    return max(replicates, key=lambda a: a.order, default=None)
