"""The seam between the neutral core and a library: one small protocol, implemented once per library."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vi_kit._errors import ObjectiveError

if TYPE_CHECKING:
    from vi_kit._named import Array, Axis
    from vi_kit.cost import Site, Term
    from vi_kit.programs import Draw, Program
    from vi_kit.run import Run


Push = Callable[["Array"], "Array"]
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
        kind: see `vi_kit.expectations.start`.
        arrays: likewise.
        push: maps elements of which these are the moments to values of the distribution.
        is_whole: whether its values are whole numbers.
    """

    kind: str
    arrays: tuple[Array, ...]
    push: Push
    is_whole: bool = False


class Backend(Protocol):
    """Arrays, randomness, state and the running of programs, for one library."""

    name: str
    replicates_broadcast: bool
    """Whether `replicated` can draw copies along a dim; else `map_copies` runs them apart."""

    structure_varies: bool
    """Whether a program may branch on the values that it draws, so that its sites differ from run to run."""

    maps_values: bool
    """Whether a program sees one value of a site that has several, by `worlds` and `alternatives`; else they are
    dims of the value that it sees."""

    def worlds(self, values: Array, site: Site) -> Array:
        """One of the values in front, as far as a program sees it."""
        ...

    def alternatives(self, value: Array, others: Array, site: Site) -> Array:
        """What was drawn, as far as a program sees it; the others are in front."""
        ...

    def each(self, fn: Callable[[Array], Array], value: Any) -> Any:
        """An elementwise function of a value of a draw."""
        ...

    def plain(self, value: Any) -> Array:
        """A value of a draw as an array, for the objective program itself."""
        ...

    def session(self, run: Run) -> AbstractContextManager[None]:
        """Everything that must be entered before an objective program is run."""
        ...

    def stop_gradient(self, array: Array) -> Array: ...
    def alias(self, array: Array) -> Array:
        """The same array as another object, with its gradient: transforms of a library may remember by identity
        what they were given, and what they made of it."""
        ...

    def may_need_gradient(self, array: Array) -> bool: ...
    def logsumexp(self, array: Array, axis: int) -> Array: ...
    def cumulative_logsumexp(self, array: Array, axis: int) -> Array: ...
    def jvp(
        self, fn: Callable[..., Array], primals: list[Array], tangents: list[Array]
    ) -> tuple[Array, Array]:
        """The value of a function and its derivative along `tangents`; both can be differentiated."""
        ...

    def zero(self) -> Array:
        """The number 0, as an array without dims."""
        ...

    def uniform(self, shape: tuple[int, ...], like: Array) -> Array: ...
    def standard_gamma(self, concentration: Array) -> Array:
        """One draw for each concentration, of rate one, without gradient."""
        ...

    def lgamma(self, array: Array) -> Array: ...
    def polygamma(self, order: int, array: Array) -> Array: ...
    def until_accepted(self, propose: Callable[[], tuple[Array, Array]]) -> Array:
        """The first value of each element that was accepted; `propose` makes values, without gradient, and says
        which are. There is no bound on the number of rounds."""
        ...

    def may_hold(self, condition: Array) -> bool:
        """Whether a condition is true of all elements, as far as that is known by now."""
        ...

    def replicated(self, run: Run, axis: Axis) -> AbstractContextManager[None]:
        """Every sample statement inside draws independent copies along `axis`."""
        ...

    def map_copies(
        self, run: Run, once: Callable[[], list[Array]], num_copies: int
    ) -> list[Array] | None:
        """Call `once` for each copy with noise of its own; or once for all, and return its arrays with one more dim in
        front."""
        ...

    def merge_copies(self, kept: Mapping[Site, Site]) -> None:
        """Take note of which site stands for each site of the copies."""
        ...

    def track(self, value: Array, site: Site) -> Array:
        """Mark a value as depending on a site."""
        ...

    def untracked(self, value: Array) -> Array: ...
    def random(self, moments: Moments, site: Site, sample: Array | None) -> Array:
        """A value of which the moments are known, and what it is where a sample is asked for."""
        ...

    def expectation(self, array: Array, key: Hashable) -> Array:
        """The expectation of a term over values that are random, or what it is for their samples, as the plan says.
        `key` names the term, as for `upstream`."""
        ...

    def upstream(self, run: Run, value: Array, key: Hashable) -> frozenset[Site]:
        """The sites on which a value depends, as far as they are tracked. `key` names the value: the same
        in every run of a program."""
        ...

    def params_of(self, role: str) -> dict[Hashable, str]:
        """Names of the parameters that the programs of a role (`"model"`, `"guide"`) used so far, by what
        tells them apart."""
        ...

    def spoilt_params(self) -> list[str]:
        """Names of parameters in use that are not numbers, as far as that can be known."""
        ...

    def simulate(self, run: Run, program: Program) -> Draw: ...
    def log_density(self, run: Run, program: Program, draw: Draw) -> Any: ...
    def evaluate(self, run: Run, draw: Draw, fn: Callable[..., Array]) -> Term:
        """The term that a function of a draw makes."""
        ...

    def predict(self, name: str, network: Any, inputs: Any, *, held: bool = False) -> Array | None:
        """What a network makes of inputs; its parameters are registered under a name. `None` if there is
        nowhere to keep them.

        Args:
            name: of the network.
            network: a module of the library, or a program that registers its parameters itself.
            inputs: what it gets.
            held: whether its parameters are constants.
        """
        ...

    def parameter(self, name: str, start: Array) -> Array:
        """A parameter of an estimator's own: `start` at first, and for good if there is nowhere to keep it."""
        ...

    def get_state(self, key: str) -> Array | None: ...
    def set_state(self, key: str, value: Array) -> None: ...


_current: ContextVar[Run] = ContextVar("vi_kit_run")


def current() -> Run:
    """The run whose objective program is being executed.

    Raises:
        ObjectiveError: a word of the language was used outside an objective program.
    """
    try:
        return _current.get()
    except LookupError:
        raise ObjectiveError(
            "simulate, log_density, iid and their results only have a meaning inside an objective"
            " program that a Loss runs; decorate it with @vi.objective and give it to Loss"
        ) from None
