"""Distributions of any library, as estimators see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vi_kit.base.named import Array

Push = Callable[[Array], Array]
"""Maps elements, of any dtype that holds them, to a value of the distribution."""


class Distribution(Protocol):
    """What estimators may ask of a distribution, the same words for every library.

    Arrays have shape `(*batch, *event)`; `log_prob` returns `(*batch,)`.
    """

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    has_rsample: bool
    has_partial_rsample: bool
    """Whether the library's own sampler has a path, and noise whose density has a score."""
    is_straight_through: bool
    """Whether its path is that of another value, so that a gradient along it is biased."""
    hides_elements: bool
    """Whether the program masks elements of its events, so that its log density is not a multiple of `log_prob`."""

    @property
    def is_continuous(self) -> bool: ...
    def sample(self) -> Array: ...
    def rsample(self) -> Array: ...
    def one_of_many(self, number: Any, far: Callable[[], Array]) -> Array:
        """A value like others, which have other numbers; `far` makes a continuous one."""
        ...

    def shown(self, value: Array) -> Array:
        """What a program sees of a value that was drawn; `log_prob` may be asked of either."""
        ...

    def partial_rsample(self) -> tuple[Array, Array]:
        """A value with a gradient, and the log density of the noise from which it was made."""
        ...

    def log_prob(self, value: Array) -> Array: ...

    def covers(self, other: Any, value: Array) -> bool:
        """Whether the values of `other`, of which `value` is one, lie in this support."""
        ...

    def contains(self, value: Array) -> Array | None:
        """Whether values lie in the support; `None` where nobody can say."""
        ...

    @property
    def support_name(self) -> str: ...

    def support_edges(self) -> list[Array]:
        """The bounds of its values that are not constant."""
        ...

    def coordinates(self) -> Any | None:
        """A map of the library's, from all of a space to the support: called on coordinates, with `inv` and
        `log_abs_det_jacobian(coordinates, value)`; `None` if the support is all of a space itself.

        Raises:
            NotImplementedError: there is none.
        """
        ...

    def support_size(self) -> int | None:
        """Number of values of one event, `None` when it is not finite."""
        ...

    def support(self) -> Array:
        """All values of one event, shape `(support_size, *batch or ones, *event)`."""
        ...

    def support_probs(self) -> Array | None:
        """Probabilities of the values of `support`, shape `(support_size, *batch)`, where they are parameters;
        `None` if they are those of the log density."""
        ...

    def elementary(self, params: tuple[str, ...] = ()) -> Elementary | None:
        """The independent scalars that this distribution is made of, `None` if it is not. `params` names the
        parameters of a family that vi_kit does not know."""
        ...

    def moments(self) -> Moments | None:
        """What is known of its values, `None` if mean and variance are not."""
        ...

    def mixture(self) -> Mixture | None:
        """The components of which this distribution is a mixture, `None` if it is none."""
        ...

    def gaussian(self) -> tuple[Array, Array, Push] | None:
        """Mean, shape `(*batch, size)`, and Cholesky factor of a MultivariateNormal, and an invertible map of its
        elements; `None` if it is none."""
        ...


@dataclass(frozen=True, eq=False)
class Elementary:
    """A distribution as independent scalar elements of one family, then an invertible map.

    Attributes:
        family: class name without the parametrisation (`"Bernoulli"`, `"Normal"`).
        params: shape `(*batch, *event)` with gradient; a Categorical's `probs` and a Dirichlet's
            `concentration`, whose elements are vectors, have one more dim, last.
        event_ndim: number of event dims.
        sample: draws elements, shape `(*batch, *event)`, without gradient.
        log_prob: log density of elements, of the same shape (nats).
        push: maps elements, of any dtype that holds them, to a value of the distribution.
        by_probs: whether its parameters are probabilities (or made of nothing else), and not logits, by which the
            gradient at a probability of zero is zero.
        push_has_params: whether that may have parameters of its own, and so a gradient.
    """

    family: str
    params: dict[str, Array]
    event_ndim: int
    sample: Callable[[], Array]
    log_prob: Callable[[Array], Array]
    push: Push
    push_has_params: bool
    by_probs: bool


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of K components of one family.

    Attributes:
        log_weights: shape `(*batch, K)`.
        event_ndim: number of event dims of a component: 0 or 1.
        cdf: from values of shape `(*batch, D)` to the distribution function of each component's elements, shape
            `(*batch, K, D)`; D is 1 without event dims.
        log_prob: likewise, their log densities.
        reason_against: says why the components have no distribution function with a gradient, `None` if they have.
    """

    log_weights: Array
    event_ndim: int
    cdf: Callable[[Array], Array]
    log_prob: Callable[[Array], Array]
    reason_against: Callable[[], str | None]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the values of a distribution.

    Attributes:
        kind: see `vi_kit.analysis.expectations.start`.
        arrays: likewise.
        push: maps elements of which these are the moments to values of the distribution.
        is_whole: whether its values are whole numbers.
    """

    kind: str
    arrays: tuple[Array, ...]
    push: Push
    is_whole: bool = False
