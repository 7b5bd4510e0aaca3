"""Steps of Markov chains towards bridging densities, and the reverse steps, without corrections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from array_api_compat import array_namespace

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.base.named import Array

Arrays = list[Array]
"""One for each site that moves."""

Slopes = tuple[Arrays, Arrays]
"""The derivatives of the log densities of proposal and target."""

Numbers = float | tuple[float, ...]


def _like(number: Array, array: Array, fn: Callable[[Array], Array] = lambda x: x) -> Array:
    """A function of a number, in the dtype of an array."""
    return array_namespace(array).astype(fn(number), array.dtype)


def _positive(where: str, sizes: Any) -> Numbers:
    """A positive number, or several.

    Raises:
        ObjectiveError: they are not.
    """
    is_one = isinstance(sizes, int | float)
    try:
        found = (float(sizes),) if is_one else tuple(map(float, sizes))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0.0 < s < math.inf for s in found):
        raise ObjectiveError(
            message(
                f"{where}: step_size takes positive numbers",
                got=f"step_size={sizes!r}",
                expected="one, or one for each step",
                fix="step_size=0.01",
            )
        )
    return found[0] if is_one else found


@dataclass(frozen=True, eq=False)
class State:
    """Where a chain is.

    Attributes:
        at: coordinates without bounds.
        momenta: of each; `None` for a kernel without.
        slopes: at these coordinates.
    """

    at: Arrays
    momenta: Arrays | None
    slopes: Slopes


@dataclass(frozen=True, eq=False)
class Bridge:
    """A bridging density, and the step towards it.

    Attributes:
        slopes_at: of proposal and target, at coordinates.
        beta: the power of the target; that of the proposal is `1 - beta`.
        step_size: of the step.
        damping: see `Hamiltonian`.
    """

    slopes_at: Callable[[Arrays], Slopes]
    beta: Array
    step_size: Array
    damping: Array

    def force(self, slopes: Slopes) -> Arrays:
        """The derivative of its log density."""
        mixed = []
        for q, p in zip(*slopes, strict=True):
            beta = _like(self.beta, q)
            mixed.append((1.0 - beta) * q + beta * p)
        return mixed


class Kernel(Protocol):
    """A step of a chain, made of standard Normal noise, and the reverse step that it would be made by.

    Attributes:
        step_size: one, or one for each step.
        damping: of momenta.
        has_momenta: whether it has such.
        num_gradients: how many a step takes.
    """

    @property
    def step_size(self) -> Numbers: ...
    @property
    def damping(self) -> float: ...
    @property
    def has_momenta(self) -> bool: ...
    @property
    def num_gradients(self) -> int: ...

    def step(
        self, bridge: Bridge, state: State, noise: Arrays, *, back: bool
    ) -> tuple[State, Arrays]:
        """Take a step.

        Args:
            bridge: to which density.
            state: before it.
            noise: standard Normal.
            back: whether it is one of the reverse chain.

        Returns:
            The state after it, and the noise by which a step in the other direction would lead back.
        """
        ...


@dataclass(frozen=True)
class Langevin:
    r"""Unadjusted Langevin steps: $u' = u + h \nabla \log \pi_k(u) + \sqrt{2 h}\, \epsilon$.

    The reverse kernel is the same step towards the same bridging density, from the other end.

    Args:
        step_size: h, one positive number or one for each step, in squared units of the coordinates.

    Example:
        >>> Langevin(step_size=0.01)
        Langevin(step_size=0.01)

    References:
        Thin et al. 2021, Monte Carlo Variational Auto-Encoders.
    """

    step_size: Numbers = 0.01
    damping: float = field(default=0.0, init=False, repr=False)
    has_momenta: bool = field(default=False, init=False, repr=False)
    num_gradients: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", _positive("Langevin", self.step_size))

    def step(
        self, bridge: Bridge, state: State, noise: Arrays, *, back: bool
    ) -> tuple[State, Arrays]:
        del back  # both directions have one form
        h, after, returned = bridge.step_size, [], []
        before = bridge.force(state.slopes)
        for u, slope, e in zip(state.at, before, noise, strict=True):
            after.append(u + _like(h, u) * slope + _like(h, u, lambda h: (2.0 * h) ** 0.5) * e)
        slopes = bridge.slopes_at(after)
        for u, v, slope in zip(state.at, after, bridge.force(slopes), strict=True):
            gap = u - v - _like(h, u) * slope
            returned.append(gap / _like(h, u, lambda h: (2.0 * h) ** 0.5))
        return State(after, None, slopes), returned


@dataclass(frozen=True)
class Hamiltonian:
    r"""Uncorrected Hamiltonian steps: momenta are refreshed in part, $\rho' = \gamma \rho + \sqrt{1 - \gamma^2}\,
    \epsilon$, then leapfrog steps follow the bridging density, without a correction by acceptance.

    Args:
        step_size: of a leapfrog step, one positive number or one for each step of the chain, in units of the
            coordinates.
        num_leapfrog: leapfrog steps for each refreshment.
        damping: $\gamma$, which part of the momenta is kept, at least 0 and below 1. With 0 they are drawn anew each
            time, and it is not learned.

    Example:
        >>> Hamiltonian(step_size=0.1, num_leapfrog=2)
        Hamiltonian(step_size=0.1, num_leapfrog=2, damping=0.5)

    References:
        Geffner and Domke 2021, MCMC Variational Inference via Uncorrected Hamiltonian Annealing. Zhang et al. 2021,
        Differentiable Annealed Importance Sampling and the Perils of Gradient Noise.
    """

    step_size: Numbers = 0.1
    num_leapfrog: int = 1
    damping: float = 0.5
    has_momenta: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", _positive("Hamiltonian", self.step_size))
        whole_number("Hamiltonian", "num_leapfrog", self.num_leapfrog)
        if not (isinstance(self.damping, int | float) and 0.0 <= self.damping < 1.0):
            raise ObjectiveError(
                message(
                    "Hamiltonian: damping is which part of the momenta is kept",
                    got=f"damping={self.damping!r}",
                    expected="a number of at least 0 and below 1",
                    fix="damping=0.5",
                )
            )

    @property
    def num_gradients(self) -> int:
        return self.num_leapfrog

    def step(
        self, bridge: Bridge, state: State, noise: Arrays, *, back: bool
    ) -> tuple[State, Arrays]:
        if back:
            moved = self._leapfrog(bridge, state, -1.0)
            assert moved.momenta is not None
            momenta, returned = self._refreshed(bridge, moved.momenta, noise)
            return replace(moved, momenta=momenta), returned
        assert state.momenta is not None
        momenta, returned = self._refreshed(bridge, state.momenta, noise)
        return self._leapfrog(bridge, replace(state, momenta=momenta), 1.0), returned

    def _refreshed(self, bridge: Bridge, momenta: Arrays, noise: Arrays) -> tuple[Arrays, Arrays]:
        """New momenta, and the noise by which these would become the old ones."""
        after, returned = [], []
        for m, e in zip(momenta, noise, strict=True):
            kept = _like(bridge.damping, m)
            fresh = _like(bridge.damping, m, lambda d: (1.0 - d**2) ** 0.5)
            after.append(kept * m + fresh * e)
            returned.append((m - kept * after[-1]) / fresh)
        return after, returned

    def _leapfrog(self, bridge: Bridge, state: State, sign: float) -> State:
        """Along the momenta, or against them."""
        assert state.momenta is not None
        at, momenta, slopes = state.at, state.momenta, state.slopes
        sizes = [_like(bridge.step_size, u, lambda h: sign * h) for u in at]
        for _ in range(self.num_leapfrog):
            momenta = _moved(momenta, sizes, bridge.force(slopes), 0.5)
            at = _moved(at, sizes, momenta, 1.0)
            slopes = bridge.slopes_at(at)
            momenta = _moved(momenta, sizes, bridge.force(slopes), 0.5)
        return State(at, momenta, slopes)


def _moved(arrays: Arrays, sizes: Arrays, along: Arrays, part: float) -> Arrays:
    return [x + part * h * y for x, h, y in zip(arrays, sizes, along, strict=True)]
