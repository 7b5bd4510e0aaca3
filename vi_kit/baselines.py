"""Baselines: what `Score` subtracts from the cost. None of them may see the value that was drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from array_api_compat import array_namespace

from vi_kit._named import REPLICATE, Named
from vi_kit.backend import current

if TYPE_CHECKING:
    from vi_kit._named import Axis
    from vi_kit.cost import Site


class Baseline(ABC):
    """Subclass it to write your own: a frozen dataclass with `subtracted`."""

    has_state: ClassVar[bool] = False
    """Whether it keeps an array of shape `(2,)` per site, zero at first, from step to step."""

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
    """An exponential moving average of what the site was worth in earlier steps, one number per site.

    Kept with the parameters (Pyro: the param store; NumPyro: the mutable state, for which
    `Loss.with_state` makes room) but not trained by the optimiser. Weighted so that it is an average of
    the steps so far from the first step on, and zero before it.

    Args:
        decay: weight of the past, in [0, 1).
    """

    decay: float = 0.9

    has_state: ClassVar[bool] = True

    def subtracted(self, site: Site, cost: Named) -> Named | None:
        run = current()
        key = state_key(site.name)
        state = run.backend.get_state(key)
        xp = array_namespace(cost.array)
        mean = xp.mean(cost.array)
        if state is None:
            state = xp.stack([xp.zeros_like(mean), xp.zeros_like(mean)])
        past, weight = state[0], state[1]
        if run.with_gradient:
            new = self.decay * state + (1.0 - self.decay) * xp.stack([mean, xp.ones_like(mean)])
            run.new_state[key] = xp.where(xp.isfinite(mean), new, state)
        return Named(past / xp.where(weight > 0, weight, xp.ones_like(weight)))


def state_key(name: str) -> str:
    """Under which name a baseline keeps its state for a site."""
    return f"vi_kit.baseline.{name}"


def _innermost(axes: Sequence[Axis]) -> Axis | None:
    replicates = [a for a in axes if a.kind == REPLICATE and a.size > 1]
    return max(replicates, key=lambda a: a.order, default=None)
