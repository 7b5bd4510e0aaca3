"""What an estimator is: `expand` makes a site's value, `contract` removes what it added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, cast

from vi_kit.base.context import current
from vi_kit.base.named import Array, Axis, Named
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import CostContext, Site, Term


@dataclass(frozen=True, eq=False)
class Expansion:
    """What `Estimator.expand` hands back.

    Attributes:
        value: drawn value, shape `(*batch, *event)`; for worlds, all their values, with one more dim in
            front, and ones for the batch dims where it is the support.
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
            parameters but none through the noise (nats); for estimators that say `scores_noise`.
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

    tracked: ClassVar[bool] = True
    """Whether it must be known which terms depend on the site. Not needed where a world axis shows it."""

    pathwise: ClassVar[bool] = False
    """Whether the site's value has a gradient, through its sampler, which is the whole of it."""

    constant_value: ClassVar[bool] = False
    """Whether the value that it draws has no gradient at all, but for `Expansion.has_path`. Then that of the site's own
    log density has mean zero given the draws before, and is left out where the cost is linear in it."""

    is_support: ClassVar[bool] = False
    """Whether the site's value is its whole support, which depends on nothing."""

    holds_params: ClassVar[bool] = False
    """Whether its site's log density in a simulation is taken with the program's parameters held fixed. The
    alternatives to a term are then its values with parameters held and one element of the site live."""

    scores_noise: ClassVar[bool] = False
    """Whether its value has a gradient, and is made of noise whose density depends on the parameters
    (`Expansion.log_noise`), so that there is a score term too."""

    has_path: ClassVar[bool] = False
    """Whether the worlds that it makes have gradients of their own, and not by their weights only."""

    carries_moments: ClassVar[bool] = False
    """Whether it has no draws: the site's value is its moments, which the operations of the program carry on."""

    biased = False
    """Whether the user accepted a bias that it may have."""

    relaxes: ClassVar[bool] = False
    """Whether its values may lie outside the support, which is then not checked."""

    live_alternatives: ClassVar[bool] = False
    """Whether the alternatives to the drawn value are differentiated, and not only compared with it."""

    def state_shape(self, plates: Sequence[int]) -> tuple[int, ...] | None:
        """Shape of what is kept per site from step to step; `None` for nothing. See `Baseline.state_shape`."""
        del plates
        return None

    def num_worlds(self, dist: Distribution) -> int:
        """By how much the site multiplies the number of times that the model is evaluated."""
        del dist
        return 1

    def num_slots(self, dist: Distribution) -> int:
        """How many alternatives to the drawn value the model is evaluated on, besides it."""
        del dist
        return 0

    @property
    def parameters(self) -> Mapping[str, float]:
        """Names and first values of numbers that are learned, each site its own, by minimising the variance
        (`Run.parameter`)."""
        return {}

    def networks(
        self, dist: Distribution, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Sequence[tuple[Any, Array]]:
        """Networks with parameters of their own, each with an input, from the arguments of a step."""
        del dist, args, kwargs
        return ()

    @property
    def variants(self) -> tuple[Estimator, Estimator]:
        """Itself twice, or two others, of whose estimates of the objective a mixture is taken."""
        return self, self

    @property
    def acting(self) -> Estimator:
        """What draws the values of its sites and contracts their terms: itself, or one that it falls back on."""
        return self

    @property
    def needs_continuity(self) -> bool:
        """Whether it is biased if a cost jumps in the value of its site, and refused for it."""
        is_path = self.pathwise or self.scores_noise
        return is_path and not self.biased and not self.carries_moments

    @property
    def needs_step(self) -> bool:
        """Whether it asks for the number of steps so far (`Run.step`)."""
        return False

    @property
    def keeps_state(self) -> bool:
        """Whether something of its own is kept from step to step."""
        return self.needs_step or bool(self.parameters) or self.state_shape(()) is not None

    def max_degree(self, dist: Distribution) -> int | None:
        """Up to which degree it is exact for terms that are polynomials in the elements of the site, if it is
        refused for others; `None` if it may be given any cost."""
        del dist
        return None

    def for_degree(self, degree: int) -> Estimator | None:
        """One like it with that `max_degree` or a larger one, if there is one."""
        del degree
        return None

    def degree_one(self, dist: Distribution, zero: Array) -> Array:
        """A value of the site whose elements have `zero` added, to find by it the degrees of terms, or jumps. For
        estimators with a `max_degree` or `live_alternatives`."""
        raise NotImplementedError

    def second_rule(self) -> Estimator:
        """Itself, or for a biased rule another one to compare it with."""
        return self

    @abstractmethod
    def reason_against(self, dist: Distribution) -> str | None:
        """Why the estimator cannot handle the distribution; `None` if it can."""

    @abstractmethod
    def expand(self, dist: Distribution) -> Expansion:
        """Make the site's value, and what `contract` will need."""

    @abstractmethod
    def contract(self, site: Site, terms: Sequence[Term]) -> list[Term]:
        """Turn the terms that depend on the site into terms that do not.

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
        """One of `Estimator.parameters` of a site: a constant, but while it is being learned."""
        ...

    def predict(self, site: Site, network: Any, inputs: Array) -> Array | None:
        """The values of a network that is learned like `parameter`; `None` if there is nowhere to keep it."""
        ...


def estimator_context() -> EstimatorContext:
    return cast(EstimatorContext, current())
