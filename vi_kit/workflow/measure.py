"""Losses side by side: how much their gradients vary, and what one takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.base.errors import ViKitError
from vi_kit.engine.variance import Measured, warm_up
from vi_kit.estimators import Estimator

BATCH = 20
"""Gradients that are timed as one."""
BUDGETS = ("variance x time", "variance", "time")
COSTS = ("seconds", "evaluations")

Estimators = Mapping[str, Estimator]
"""By site."""


@dataclass(frozen=True)
class Measurement:
    """Of one loss.

    Attributes:
        variance: of one gradient, summed over the coordinates of all parameters.
        variance_error: its standard error, as the fourth moments say.
        seconds: of one gradient, the least over batches that took turns with those of the others: what else a machine
            does only adds to it.
        seconds_error: how far a quarter of the batches stayed below.
        evaluations: of the model, for one gradient.
        num_draws: of the gradient.
        cost: what counts as time: `"seconds"` or `"evaluations"`.
    """

    variance: float
    variance_error: float
    seconds: float
    seconds_error: float
    evaluations: int
    num_draws: int
    cost: str = "seconds"

    @property
    def time(self) -> tuple[float, float]:
        """What counts as time, and its standard error."""
        if self.cost == "evaluations":
            return float(self.evaluations), 0.0
        return self.seconds, self.seconds_error

    @property
    def product(self) -> float:
        """Variance x time: the variance that is left after a unit of time."""
        return self.score("variance x time")[0]

    @property
    def product_error(self) -> float:
        return self.score("variance x time")[1]

    def score(self, budget: str) -> tuple[float, float]:
        """What is to be small, and its standard error."""
        time, time_error = self.time
        if budget == "time":
            return time, time_error
        if budget == "variance":
            return self.variance, self.variance_error
        error = math.hypot(time * self.variance_error, self.variance * time_error)
        return self.variance * time, error


@dataclass
class Runner:
    """A loss whose gradients are drawn in batches.

    Attributes:
        estimators: by site.
        sample: makes a batch from a seed.
        evaluations: of the model, for one gradient.
        rounding: relative size of rounding errors; less variance than they make is none.
        cost: see `Measurement`.
        seed: of the next batch.
    """

    estimators: Estimators
    sample: Callable[[int], tuple[np.ndarray, float]]
    evaluations: int
    rounding: float
    cost: str
    seed: int
    centre: Any = None
    total: Any = None
    squares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def next(self) -> tuple[np.ndarray, float]:
        self.seed += 1
        return self.sample(self.seed)

    def warm(self, num_draws: int) -> None:
        """Compile, and let what is kept from step to step find its values."""
        for _ in range(1 + math.ceil(num_draws / BATCH)):
            draws, _ = self.next()
        self.centre = draws.mean(axis=0)
        self.total = np.zeros_like(self.centre)

    def again(self, seed: int) -> None:
        """Forget what was measured; draw from another seed."""
        self.seed, self.total = seed, np.zeros_like(self.centre)
        self.squares, self.seconds = [], []

    def take(self) -> None:
        """One batch."""
        draws, seconds = self.next()
        off = draws - self.centre
        self.total = self.total + off.sum(axis=0)
        self.squares += list((off**2).sum(axis=1))
        self.seconds.append(seconds)

    @property
    def num_draws(self) -> int:
        return len(self.squares)

    def measured(self) -> Measurement:
        num, squares, seconds = self.num_draws, np.array(self.squares), np.array(self.seconds)
        mean = self.total / num
        variance = (squares.sum() - num * (mean @ mean)) / (num - 1)
        error = squares.std(ddof=1) / math.sqrt(num)
        size = np.linalg.norm(self.centre + mean)
        if variance <= (self.rounding * size + self.rounding**2) ** 2:
            variance = error = 0.0
        least, quarter = (float(np.quantile(seconds, q)) for q in (0.0, 0.25))
        return Measurement(
            max(0.0, float(variance)),
            float(error),
            least,
            quarter - least,
            self.evaluations,
            num,
            self.cost,
        )


@dataclass
class Bench:
    """Where selections of estimators are measured, each made once.

    Attributes:
        loss: whose objective and settings they have.
        replay: of the programs.
        seed: of all draws.
        clock: for seconds.
        cost: see `Measurement`.
    """

    loss: Any
    replay: Measured
    seed: int
    clock: Callable[[], float]
    cost: str
    kept: dict[str, Runner | str] = field(default_factory=dict)

    def runner(self, estimators: Estimators) -> Runner | str:
        """A selection that is ready to be drawn from, or why it cannot be."""
        key = repr(sorted(estimators.items()))
        if key not in self.kept:
            self.kept[key] = self._made(estimators)
        return self.kept[key]

    def _made(self, estimators: Estimators) -> Runner | str:
        loss = self.loss.with_estimators(escaped(estimators))
        try:
            plan, sample = self.replay.prepared(loss, BATCH, self.clock)
            rounding, evaluations, seed = self.replay.rounding, plan.evaluations, 10_000 * self.seed
            runner = Runner(estimators, sample, evaluations, rounding, self.cost, seed)
            runner.warm(warm_up(plan))
        except ViKitError as error:
            return in_words(error)
        except Exception as error:  # what a program does not stand is said of the estimator
            text = str(error).split("\n")[0]
            return f"fails: {type(error).__name__}: {text}"
        return runner if np.isfinite(runner.centre).all() else "has a gradient that is not finite"


def race(runners: Sequence[Runner], num_draws: int) -> None:
    """Draw from all in turn, until each has so many draws."""
    rounds = 0
    while True:
        short = [r for r in runners if r.num_draws < num_draws]
        if not short:
            return
        first = rounds % len(short)
        for runner in (*short[first:], *short[:first]):
            runner.take()
        rounds += 1


def escaped(estimators: Estimators) -> dict[str, Estimator]:
    """Names of sites as patterns that match themselves only."""
    return {
        "".join(f"[{c}]" if c in "*?[" else c for c in name): estimator
        for name, estimator in estimators.items()
    }


def in_words(error: Exception) -> str:
    """An error about an estimator at a site, without the site and the estimator."""
    line = next(iter(str(error).split("\n")), "")
    _, mark, reason = line.partition("() ")
    return reason if mark and line.startswith("site ") else line


def names_of(labels: Iterable[str]) -> list[str]:
    """Names of sites, by which patterns know them."""
    return list(dict.fromkeys(label.split(" (")[0] for label in labels))
