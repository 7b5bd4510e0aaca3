"""What an estimator is: `expand` makes a site's value, `contract` removes what it added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, cast

from vi_kit.base.context import current
from vi_kit.base.demands import Continuous, Demand
from vi_kit.base.layouts import Gradient, Layout, Single
from vi_kit.base.named import Array, Axis, Named
from vi_kit.base.protocols import Distribution, Moments
from vi_kit.base.value import value
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import CostContext, Site, Term
from vi_kit.estimators.memory import Memory


@value()
class Expansion:
    """What `Estimator.expand` hands back.

    Attributes:
        value: drawn value, shape `(*batch, *event)`; for worlds, all their values, with one more dim in
            front, and ones for the batch dims where it is the support; `None` where moments stand for it.
        is_worlds: whether `value` has several worlds in front.
        weights: of the worlds, shape `(num_worlds, *batch)`, where they are not the probabilities of the
            values: what the expectation weights them with, and its gradient.
        first_is_drawn: whether the first world is a draw, for a nonlinear function that needs one; if not,
            one is drawn by the weights.
        alternatives: values to compare with the drawn one, shape `(num_slots, *batch, *event)`.
        coefficients: their weights, shape `(num_slots, *batch)`: of value zero, with a gradient.
        control: a control variate for the cost, shape `(num, *batch)`: as many values as the estimator needs, as if
            in one replicate and with all the data (nats).
        has_path: whether `value` has a gradient, through a map with parameters that its elements go through.
        log_noise: log density of the noise from which `value` was made, shape `(*batch)`, with a gradient by the
            parameters but none through the noise (nats).
        moments: in the place of a value.
    """

    value: Array
    is_worlds: bool = False
    weights: Array | None = None
    first_is_drawn: bool = False
    alternatives: Array | None = None
    coefficients: Array | None = None
    control: Array | None = None
    has_path: bool = False
    log_noise: Array | None = None
    moments: Moments | None = None


def lacks_sampler(dist: Distribution) -> str | None:
    """Why a distribution has no pathwise gradient; `None` if it has one."""
    if dist.is_straight_through:
        return (
            f"is biased: {dist.name} rounds its value and passes on the gradient of what it rounded"
        )
    return None if dist.has_rsample else f"needs a reparameterised sampler; {dist.name} has none"


def reason_against_categorical(dist: Distribution, least: int) -> str | None:
    """Why a distribution is not one Categorical of at least so many values; `None` if it is."""
    elements, size = dist.elementary(), dist.support_size()
    if elements is None or elements.family != "Categorical":
        return f"needs a Categorical; {dist.name} is none"
    if elements.event_ndim:
        return "needs one Categorical per element of its plates, not an event of several"
    if size is None or size < least:
        return f"needs at least {least} values; {dist.name} has {size}"
    return None


def shown(estimator: Any) -> str:
    """An estimator as the call that makes it, with `biased` where that was said."""
    own = [f.name for f in fields(estimator) if f.repr or (f.name == "biased" and estimator.biased)]
    return f"{type(estimator).__name__}({', '.join(f'{n}={getattr(estimator, n)!r}' for n in own)})"


class Estimator(ABC):
    """A way to differentiate the expected value of a cost through one sample site.

    Subclass it to write your own: a frozen dataclass with `reason_against`, `expand` and `contract`.
    """

    gradient: ClassVar[Gradient] = Gradient.PART
    """Where the gradient of the site's value is, but for `Expansion.has_path`."""

    holds_params: ClassVar[bool] = False
    """Whether its site's log density in a simulation is taken with the program's parameters held fixed. The
    alternatives to a term are then its values with parameters held and one element of the site live."""

    biased = False
    """Whether the user accepted a bias that it may have."""

    @property
    def memory(self) -> Memory:
        """What it keeps from step to step."""
        return {}

    def layout(self, dist: Distribution) -> Layout:
        """How many values a site has, also where `reason_against` has something against its distribution."""
        del dist
        return Single()

    def demand(self, dist: Distribution) -> Demand | None:
        """What it asks of the cost; `None` if it may be given any."""
        del dist
        return None if self.gradient is Gradient.NONE or self.biased else Continuous()

    @abstractmethod
    def reason_against(self, dist: Distribution) -> str | None:
        """Why the estimator cannot handle the distribution; `None` if it can."""

    @abstractmethod
    def expand(self, dist: Distribution) -> Expansion:
        """Make the site's value, and what `contract` will need."""

    @abstractmethod
    def contract(self, downstream: Downstream) -> Sequence[Term]:
        """Turn the terms that depend on a site into terms that do not.

        Value and gradient of their sum must be unbiased given all that was sampled before.
        """

    def alternative(self, site: Site, value: Named, reduced: set[Axis]) -> Named | None:
        """What a value that depends on the site is replaced by, when a nonlinear function of it is
        compared with one that does not depend on the site. `None` if there is no such comparison."""
        del site, value, reduced
        return None

    def unmet_need(self, axes: Sequence[Axis]) -> str | None:
        """Why the estimator cannot work on a site with these plates and replicate axes."""
        del axes
        return None


class Policy(ABC):
    """What is given in the place of an estimator, and chooses between two."""

    @property
    @abstractmethod
    def variants(self) -> tuple[Estimator, Estimator]:
        """Those of whose estimates of the objective a mixture is taken."""


def estimator_of(site: Site) -> Estimator:
    """The one chosen for it, in full."""
    return cast(Estimator, site.estimator)


class EstimatorContext(CostContext, Protocol):
    """What a run offers to estimators and baselines."""

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of the step."""
        ...

    @property
    def opened(self) -> Site:
        """Whose value is being made."""
        ...

    @property
    def learning(self) -> bool:
        """Whether what estimators learn by minimising the variance is differentiated."""
        ...

    @property
    def new_state(self) -> dict[str, Array]:
        """What is kept for the next step, by name."""
        ...

    @property
    def own_losses(self) -> list[Array]:
        """By which estimators and baselines train what they have."""
        ...

    def parameter(self, site: Site, name: str, like: Array) -> Array:
        """A number in `Estimator.memory` of a site: a constant, but while it is being learned."""
        ...

    def predict(self, site: Site, network: Any, inputs: Array) -> Array | None:
        """The values of a network that is learned like `parameter`; `None` if there is nowhere to keep it."""
        ...


def estimator_context() -> EstimatorContext:
    return cast(EstimatorContext, current())
