"""Baselines: what `Score` subtracts from the cost. None of them may see the value that was drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from array_api_compat import array_namespace

from vi_kit._errors import EstimatorError, ObjectiveError, message
from vi_kit._named import PLATE, REPLICATE, Array, Named, combine, from_layout, union
from vi_kit.backend import current
from vi_kit.cost import kept_name

if TYPE_CHECKING:
    from vi_kit._named import Axis
    from vi_kit.cost import Site


class Baseline(ABC):
    """Subclass it to write your own: a frozen dataclass with `subtracted`. Baselines can be added."""

    networks: ClassVar[tuple[NeuralBaseline, ...]] = ()
    """Those in it that have parameters."""

    @property
    def parameters(self) -> Mapping[str, float]:
        """See `Estimator.parameters`."""
        return {}

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...] | None:
        """Shape of the array that it keeps per site, zero at first, from step to step; `None` for none.

        Args:
            plates: sizes of the plates of the site, leftmost first.
        """
        del plates
        return None

    def __add__(self, other: Baseline) -> Sum:
        return Sum((*_parts(self), *_parts(other)))

    @abstractmethod
    def subtracted(self, site: Site, cost: Named) -> Named | None:
        """The baseline for each element of a site.

        Args:
            site: its `axes` are its plates and replicate axes.
            cost: what the elements of the site are worth (nats), as if in one replicate and with all the
                data; without gradient; axes among `site.axes` and the worlds of sites before it.

        Returns:
            Values of the same axes or fewer, which do not depend on the element's own draw.
        """

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        """See `Estimator.alternative`."""
        del site, value, reduced
        return None

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        """Why the baseline cannot serve a site with these axes; `None` if it can."""
        del axes
        return None


@dataclass(frozen=True)
class Constant(Baseline):
    """One number for every element.

    Args:
        value: in the units of the cost (nats).
    """

    value: float = 0.0

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        del site
        if self.value == 0.0:
            return None
        return Named(array_namespace(cost.array).zeros_like(cost.array) + self.value, cost.axes)


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
    def parameters(self) -> Mapping[str, float]:
        return {"constant": self.value}

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        return Named(current().parameter(site, "constant", cost.array))


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
            return "LeaveOneOut() needs at least 2 replicates of the site, and there is 1"
        return None

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        axis = _innermost(site.axes)
        if axis is None or axis not in reduced or axis not in value.axes:
            return None
        return value.excluding_sum([axis]).scaled(1.0 / (axis.size - 1))

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        return self.alternative(site, cost, set(site.axes))


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """An exponential moving average of what the site was worth in earlier steps: one number per site, or per element.

    Kept with the parameters (Pyro: the param store; NumPyro: the mutable state, for which
    `Loss.with_state` makes room) but not trained by the optimiser. Weighted so that it is an average of
    the steps so far from the first step on, and zero before it.

    Args:
        decay: weight of the past, in [0, 1).
        per_element: whether each element of the site's plates has an average of its own; they must not be
            subsampled.
    """

    decay: float = 0.9
    per_element: bool = False

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...]:
        return (2, *plates) if self.per_element else (2,)

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        subsampled = [a.name for a in axes if a.kind == PLATE and a.scale != 1.0]
        if self.per_element and subsampled:
            return (
                f"MovingAverage(per_element=True) needs whole plates; {subsampled} are subsampled"
            )
        return None

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        run = current()
        key = kept_name("baseline", site.name)
        state = run.backend.get_state(key)
        xp = array_namespace(cost.array)
        kept = tuple(a for a in site.axes if a.kind == PLATE) if self.per_element else ()
        mean = _mean(cost.broadcast(kept), kept)
        if state is None:
            state = xp.stack([xp.zeros_like(mean), xp.zeros_like(mean)])
        past, weight = state[0], state[1]
        if run.with_gradient:
            new = self.decay * state + (1.0 - self.decay) * xp.stack([mean, xp.ones_like(mean)])
            run.new_state[key] = xp.where(xp.isfinite(mean), new, state)
        return Named(past / xp.where(weight > 0, weight, xp.ones_like(weight)), kept)


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
    def networks(self) -> tuple[NeuralBaseline, ...]:  # type: ignore[override]
        return (self,)

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

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        run = current()
        given = self.given(*run.arguments)
        values = run.backend.predict(kept_name("network", site.name), self.network, given)
        if values is None:
            return None
        plates = [a for a in site.axes if a.kind == PLATE]
        if values.ndim == len(plates) + 1 and values.shape[-1] == 1:
            values = values[..., 0]
        layout = {-a.order: a for a in plates}
        sizes = dict(zip(range(-values.ndim, 0), values.shape, strict=True))
        if any(n != 1 and (d not in layout or layout[d].size != n) for d, n in sizes.items()):
            raise ObjectiveError(
                message(
                    f"site {site.name!r}: the predictions of its NeuralBaseline do not fit its plates",
                    got=f"shape {tuple(values.shape)}",
                    expected=f"dims of the plates {[(a.name, a.size) for a in plates]}",
                    fix="a network that returns one number per element of the site",
                )
            )
        prediction = from_layout(values, layout)
        if run.with_gradient:
            residual = combine(lambda c, b: c - b, cost, prediction)
            run.own_losses.append(_mean(Named(0.5 * residual.array**2, residual.axes), ()))
        return Named(run.backend.stop_gradient(prediction.array), prediction.axes)


@dataclass(frozen=True)
class Sum(Baseline):
    """Baselines one after the other: each is given what the ones before it have left.

    Example:
        >>> LeaveOneOut() + MovingAverage()
        Sum(parts=(LeaveOneOut(), MovingAverage(decay=0.9, per_element=False)))
    """

    parts: tuple[Baseline, ...]

    def __post_init__(self) -> None:
        stateful = [p for p in self.parts if p.state_shape(()) is not None or p.parameters]
        if len(stateful) > 1:
            raise EstimatorError(
                message(
                    "a sum of baselines can keep one state per site",
                    got=f"{stateful}",
                    expected="at most one moving average or learned constant",
                    fix=f"{stateful[0]!r} alone",
                )
            )

    @property
    def parameters(self) -> Mapping[str, float]:
        return {name: start for part in self.parts for name, start in part.parameters.items()}

    @property
    def networks(self) -> tuple[NeuralBaseline, ...]:  # type: ignore[override]
        return tuple(n for part in self.parts for n in part.networks)

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...] | None:
        shapes = [part.state_shape(plates) for part in self.parts]
        return next((shape for shape in shapes if shape is not None), None)

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        needs = [part.unmet_need(axes) for part in self.parts]
        return next((need for need in needs if need is not None), None)

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        found = [part.alternative(site, value, reduced) for part in self.parts]
        return next((f for f in found if f is not None), None)

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        total = None
        for part in self.parts:
            own = part.subtracted(site, cost)
            if own is not None:
                cost = combine(lambda c, b: c - b, cost, own)
                total = own if total is None else combine(lambda a, b: a + b, total, own)
        return total


@dataclass(frozen=True)
class Scaled(Baseline):
    """A baseline times the coefficient that fits it best, by least squares over the other replicates of the
    innermost `iid` (or `num_samples`): held out, so that it does not see the draw.

    Args:
        baseline: one that does not mix replicates itself.

    Example:
        >>> Scaled(MovingAverage())
        Scaled(baseline=MovingAverage(decay=0.9, per_element=False))
    """

    baseline: Baseline

    def __post_init__(self) -> None:
        if any(isinstance(part, LeaveOneOut | Scaled) for part in _parts(self.baseline)):
            raise EstimatorError(
                message(
                    "Scaled: the baseline must not mix replicates",
                    got=repr(self.baseline),
                    expected="Constant, MovingAverage, NeuralBaseline, or a sum of these",
                    fix="vi.Scaled(vi.MovingAverage()) + vi.LeaveOneOut()",
                )
            )

    @property
    def parameters(self) -> Mapping[str, float]:
        return self.baseline.parameters

    @property
    def networks(self) -> tuple[NeuralBaseline, ...]:  # type: ignore[override]
        return self.baseline.networks

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...] | None:
        return self.baseline.state_shape(plates)

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        if _innermost(axes) is None:
            return "Scaled(...) needs at least 2 replicates of the site, and there is 1"
        return self.baseline.unmet_need(axes)

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        axis, own = _innermost(site.axes), self.baseline.subtracted(site, cost)
        if own is None or axis is None:
            return own
        full = [n.broadcast(union(cost.axes, own.axes, [axis])) for n in (cost, own)]

        def others(x: Array, y: Array) -> Named:
            product = Named(x * y, full[0].axes)
            return product.sum(a for a in product.axes if a != axis).excluding_sum([axis])

        c, b = (n.array for n in full)
        above, below = others(c, b), others(b, b)
        xp = array_namespace(below.array)
        safe = xp.where(below.array > 0, below.array, xp.ones_like(below.array))
        return combine(lambda f, b: f * b, Named(above.array / safe, above.axes), own)


def _parts(baseline: Baseline) -> tuple[Baseline, ...]:
    return baseline.parts if isinstance(baseline, Sum) else (baseline,)


def _mean(named: Named, kept: tuple[Axis, ...]) -> Array:
    """The mean over all axes but the kept ones."""
    dims = tuple(i for i, a in enumerate(named.axes) if a not in kept)
    return array_namespace(named.array).mean(named.array, axis=dims) if dims else named.array


def _innermost(axes: Sequence[Axis]) -> Axis | None:
    replicates = [a for a in axes if a.kind == REPLICATE and a.size > 1]
    return max(replicates, key=lambda a: a.order, default=None)
