"""What a run offers to the layers below it, and which run it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import ObjectiveError
from vi_kit.base.named import Array, Axis


class Arrays(Protocol):
    """Arrays, randomness and what is kept from step to step, for one library."""

    name: str

    maps_values: bool
    """Whether a program sees one value of a site that has several, by `worlds` and `alternatives`; else they are
    dims of the value that it sees."""

    def stop_gradient(self, array: Array) -> Array: ...

    def untracked(self, value: Array) -> Array:
        """The same array, of which it is not followed where it comes from."""
        ...

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

    def constants(self, values: np.ndarray, like: Array) -> Array:
        """Numbers that the host knows, on the device of an array; the host does not wait until they are there."""
        ...

    def uniform(self, shape: tuple[int, ...], like: Array) -> Array: ...

    def standard_normal(self, shape: tuple[int, ...], like: Array) -> Array: ...

    def gradients(
        self, fn: Callable[[list[Array]], Sequence[Array]], values: list[Array], num: int
    ) -> list[list[Array]]:
        """Of each of the `num` numbers that a function makes of arrays the derivatives by these arrays, which can be
        differentiated again."""
        ...

    def loop(
        self, step: Callable[[Any, Any], tuple[Any, list[Array]]], carry: Any, xs: list[Array]
    ) -> tuple[Any, list[Array]]:
        """Take steps, each with one part of the arrays `xs`, along their first dim.

        Returns:
            What the last step handed on, and what all steps made, along a dim in front.
        """
        ...

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

    def each(self, fn: Callable[[Array], Array], value: Any) -> Any:
        """An elementwise function of a value of a draw."""
        ...

    def plain(self, value: Any) -> Array:
        """A value of a draw as an array, for the objective program itself."""
        ...

    def get_state(self, key: str) -> Array | None: ...

    def set_state(self, key: str, value: Array) -> None: ...


class Context(Protocol):
    """The run whose objective program is being executed, as far as arrays with axes go."""

    @property
    def backend(self) -> Arrays: ...
    @property
    def open_replicates(self) -> frozenset[Axis]:
        """Replicate axes along which copies are being drawn."""
        ...

    @property
    def with_gradient(self) -> bool:
        """Whether what is kept from step to step advances."""
        ...

    def scale(self, axis: Axis) -> float:
        """The factor on a sum over an axis."""
        ...

    def depends_on_draws(self, array: Array) -> bool:
        """Whether provenance leads from an array to a site, as far as sites are tracked."""
        ...

    def step(self, like: Array) -> Array:
        """Number of gradients taken so far, for schedules."""
        ...

    def refuse(self, text: str, *, of_estimator: bool = True) -> None:
        """Raise an error about an estimator or a program, in a dry run once all are known."""
        ...


_current: ContextVar[Context] = ContextVar("vi_kit_run")


def current() -> Context:
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
