"""How much a gradient varies, by parameter and by latent site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vi_kit.engine.plan import Plan

WARM_UP = 50
"""Steps in which what is kept from step to step (moving averages) finds its values."""


Sampler = Callable[[int], tuple[np.ndarray, float]]
"""Makes gradients from a seed, shape `(batch, num_params)`, and says how many seconds one took."""


@dataclass(frozen=True)
class Moved:
    """Estimates of a loss and of its gradient near the present parameters, by the same random numbers wherever it is.

    Attributes:
        owners: the parameter to which each unconstrained coordinate belongs.
        at: of what is added to the coordinates, shape `(num_params,)`, the estimates, shape
            `(num_draws, 1 + num_params)`; not numbers where there are no such programs.
    """

    owners: Sequence[str]
    at: Callable[[np.ndarray], np.ndarray]


class Measured(Protocol):
    """A pair of programs whose gradients are drawn; parameters and state stay as they are."""

    @property
    def coordinates(self) -> Sequence[str]:
        """Names of the numbers by which gradients are taken."""
        ...

    @property
    def owners(self) -> Sequence[str]:
        """The parameter to which each belongs."""
        ...

    @property
    def rounding(self) -> float:
        """Relative size of the rounding errors of one number."""
        ...

    def plan(self, loss: Any) -> Plan:
        """Of a loss."""
        ...

    def redrawn(
        self, loss: Any, labels: Sequence[str], num_draws: int, warm_up: int, seed: int
    ) -> np.ndarray:
        """Gradients, and those in which the random numbers of one of some sites are drawn again, shape
        `(num_draws, 1 + len(labels), num_params)`; all of one draw have the same state."""
        ...

    def moved(self, loss: Any, num_draws: int, warm_up: int, seed: int) -> Moved:
        """Estimates at parameters nearby; some go before those that count."""
        ...

    def prepared(self, loss: Any, batch: int, clock: Callable[[], float]) -> tuple[Plan, Sampler]:
        """The plan, and gradients as steps make them, what is kept from step to step going on; the first call
        compiles."""
        ...


@dataclass(frozen=True)
class Part:
    """A variance, and the standard error with which it is known."""

    name: str
    variance: float
    error: float


@dataclass(frozen=True, repr=False)
class GradientVariance:
    """What `Loss.gradient_variance` found.

    Attributes:
        total: of the whole gradient.
        params: by parameter, summed over its coordinates.
        sites: by latent site, what its random numbers contribute to the total.
        num_draws: of the gradient.
    """

    total: Part
    params: tuple[Part, ...]
    sites: tuple[Part, ...]
    num_draws: int

    def __repr__(self) -> str:
        groups = {"parameter": self.params, "site (its noise alone)": self.sites}
        names = [self.total.name, *groups, *(p.name for own in groups.values() for p in own)]
        width = max(map(len, names))

        def line(part: Part) -> str:
            share = part.variance / self.total.variance if self.total.variance else 0.0
            return f"{part.name:{width}} {part.variance:11.4g} {part.error:9.2g} {share:7.1%}"

        text = [f"variance of the gradient, {self.num_draws} draws"]
        text += [f"{'':{width}} {'variance':>11} {'s.e.':>9} {'share':>7}", line(self.total)]
        for head, own in groups.items():
            text += [head, *map(line, own)] if own else []
        return "\n".join(text)


def variance_of(loss: Any, replay: Measured, num_draws: int, seed: int) -> GradientVariance:
    """See `CommonLoss.gradient_variance`."""
    plan = replay.plan(loss)
    labels = drawn_sites(plan)
    draws = replay.redrawn(loss, labels, num_draws, warm_up(plan), seed)
    owners = np.array(replay.owners, dtype=object)
    plain = draws[:, 0]
    # exactly zero where there is no noise, which a difference from the mean need not be
    off = plain - plain[0]
    squares = (off - off.mean(axis=0)) ** 2 * (num_draws / (num_draws - 1))
    names = list(dict.fromkeys(replay.owners))
    params = (mean_of(name, squares[:, owners == name].sum(axis=1)) for name in names)
    halves = ((draws[:, 1 + i] - plain) ** 2 / 2 for i in range(len(labels)))
    sites = (mean_of(k, own.sum(axis=1)) for k, own in zip(labels, halves, strict=True))
    total = mean_of("the gradient", squares.sum(axis=1))
    return GradientVariance(total, tuple(params), tuple(sites), num_draws)


def mean_of(name: str, numbers: np.ndarray) -> Part:
    """A variance from numbers of which it is the expectation."""
    error = numbers.std(ddof=1) / math.sqrt(len(numbers))
    return Part(name, float(numbers.mean()), float(error))


def drawn_sites(plan: Plan) -> list[str]:
    """Labels of the sites that are drawn, in the order of the programs."""
    resolved: Mapping[str, Any] = plan.selection.resolved
    rows: Iterable[str] = dict.fromkeys(row.site for row in plan.table)
    labels = [k for k in rows if k in resolved] + [k for k in resolved if k not in {*rows}]
    return [k for k in labels if resolved[k].kind[0] != "Delta"]


def warm_up(plan: Plan) -> int:
    """Steps that go before those that count."""
    keeps = any(choice.acting.memory for choice in plan.selection.resolved.values())
    return WARM_UP if keeps or plan.selection.schedule is not None else 0
