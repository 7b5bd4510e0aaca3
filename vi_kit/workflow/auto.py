"""Estimators chosen by measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vi_kit.base.errors import EstimatorError, ObjectiveError, message, whole_number
from vi_kit.estimators import Estimator
from vi_kit.workflow.measure import BATCH, BUDGETS, Bench, Measurement, Runner, escaped, race
from vi_kit.workflow.profile import (
    Profile,
    Row,
    benched,
    contenders,
    matching,
    not_tried,
    rows_from,
)
from vi_kit.workflow.shelf import shelf, short

MAX_SWEEPS = 4
"""Over all sites; each but the last has changed something."""
PRECISION = 0.04
"""Relative standard error to which those are measured that may be the best."""
MAX_TIMES = 16
"""How many times as many draws that may take."""
SAME = 1.1
"""Times as much as the best, which is no reason for what is less simple."""
NUM_FINALISTS = 4
"""Selections that are measured once more, besides what the loss had chosen."""
HELD_OUT = 100_000
"""How far the seeds of the last measurement are from those before."""


@dataclass(frozen=True)
class Joint:
    """A selection for all sites, measured on draws that had no part in choosing it."""

    estimators: Mapping[str, Estimator]
    measured: Measurement
    chosen: bool = False

    def __repr__(self) -> str:
        m = self.measured
        own = ", ".join(f"{name}: {short(e)}" for name, e in self.estimators.items())
        numbers = f"{m.variance:.4g} +- {m.variance_error:.1g}, {1e3 * m.seconds:.3g} ms, {m.evaluations} evaluations"
        product = f"variance x time {m.product:.3g} +- {m.product_error:.1g}"
        return f"{'chosen  ' if self.chosen else '        '}{own}: variance {numbers}; {product}"


class Chosen(dict[str, Estimator]):
    """Estimators by site, as `Loss(estimators=...)` takes them, and how they were found.

    Attributes:
        profile: of each site at the end of the search, the other sites as chosen by then.
        held_out: the choice, the runners-up and what the loss had chosen, on fresh draws.
        budget: what was to be small.
        sweeps: over all sites.
    """

    profile: Profile
    held_out: tuple[Joint, ...]
    budget: str
    sweeps: int

    @property
    def measured(self) -> Measurement:
        """Of the choice, on fresh draws."""
        return next(joint.measured for joint in self.held_out if joint.chosen)

    def report(self) -> str:
        """How it was chosen, as text."""
        head = f"chosen by {self.budget} in {self.sweeps} sweep(s); on fresh draws:"
        return "\n".join([head, *map(repr, self.held_out), "", repr(self.profile)])


def auto(
    *programs: Any,
    budget: str = "variance x time",
    biased: bool = False,
    num_draws: int = 200,
    seed: int = 0,
    params: Any = None,
    sites: str = "*",
    candidates: Sequence[Estimator] | None = None,
    cost: str = "seconds",
    clock: Callable[[], float] = time.perf_counter,
    **kwargs: Any,
) -> Chosen:
    """An estimator for each latent site, chosen by measuring gradients at the present parameters.

    One site after the other takes the estimator that is best while all others stay, until no single change is better:
    once from what the loss chose, and once from the least variance at each site. What may be the best is measured
    more precisely. Then the choice, the runners-up and what the loss had chosen are measured side by side on fresh
    draws, and the best of these is returned. Differences below two standard errors and a tenth go to fewer
    evaluations of the model, then to the simpler estimator. A choice that only several changes at once would reach
    may be missed. At other parameters another choice may be best: ask again after some training.

    Args:
        *programs: a loss, a model, a guide and their arguments, as for `vi.profile_estimators`.
        budget: what is to be small: `"variance x time"` (of the mean of as many gradients as a unit of time allows),
            `"variance"` (of one gradient) or `"time"`.
        biased: whether estimators with biased gradients may be chosen.
        num_draws: gradients of each contender, at first.
        seed: of the draws.
        params: NumPyro: values of the parameters, if not those that the programs start with.
        sites: a pattern of the sites to choose for.
        candidates: estimators to choose from, besides what the loss chose; the whole shelf if left out.
        cost: what counts as time: `"seconds"`, or `"evaluations"` of the model.
        clock: for seconds.
        **kwargs: of model and guide.

    Returns:
        A dict of estimators by site, with `.held_out`, `.profile` and `.report()`.

    Raises:
        ObjectiveError: no such budget or cost; or as for `vi.profile_estimators`.
        EstimatorError: the loss's own estimators are refused.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.5))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        >>> vi.auto(model, guide, budget="variance", num_draws=20, candidates=[vi.Score()])
        {'z': Enumerate(max_worlds=64)}
    """
    if budget not in BUDGETS:
        raise ObjectiveError(
            message(
                "auto: no such budget",
                got=repr(budget),
                expected=" or ".join(map(repr, BUDGETS)),
                fix=f"budget={BUDGETS[0]!r}",
            )
        )
    num_draws = max(BATCH, whole_number("auto", "num_draws", num_draws, least=2))
    bench, given = benched("auto", programs, kwargs, params, seed, cost, clock)
    search = Search(bench, budget, biased, num_draws, candidates)
    start = search.allowed(given)
    names = matching("auto", given, sites)
    rows, sweeps, chosen = search.best_end(start, names)
    joints = search.final(chosen, start, names)
    best = next(joint for joint in joints if joint.chosen)
    found = Chosen(escaped(best.estimators))
    rows = [replace(row, chosen=row.estimator == best.estimators[row.site]) for row in rows]
    found.profile = Profile(tuple(rows), repr(bench.loss), not_tried(candidates))
    found.held_out, found.budget, found.sweeps = joints, budget, sweeps
    return found


@dataclass
class Search:
    """Coordinate descent over sites.

    Attributes:
        bench: where selections are measured.
        budget: what is to be small.
        biased: whether the gradient may be biased.
        num_draws: of each contender, at first.
        candidates: see `auto`.
    """

    bench: Bench
    budget: str
    biased: bool
    num_draws: int
    candidates: Sequence[Estimator] | None

    def allowed(self, given: Mapping[str, Estimator]) -> dict[str, Estimator]:
        """What the loss chose, which must be usable."""
        runner = self.bench.runner(given)
        if isinstance(runner, str):
            raise EstimatorError(
                message(
                    "auto: the loss's own estimators cannot be used here",
                    got=runner,
                    expected="a loss whose first step works",
                    fix="other estimators for the loss",
                )
            )
        return dict(given)

    def best_end(
        self, start: Mapping[str, Estimator], names: Sequence[str]
    ) -> tuple[list[Row], int, dict[str, Estimator]]:
        """Of the descents from what the loss chose, and from what has the least variance at each site: where one site
        makes all the variance, less at another one alone is not worth its time, and less at both may be."""
        ends = [self.descended(start, names)]
        if len(names) > 1 and self.budget == "variance x time":
            ends.append(self.descended(self.least_variance(start, names), names))
        made = [self.bench.runner(chosen) for *_, chosen in ends]
        runners = [r for r in made if isinstance(r, Runner)]
        return ends[made.index(self.best(runners))]

    def least_variance(
        self, start: Mapping[str, Estimator], names: Sequence[str]
    ) -> dict[str, Estimator]:
        """Site after site the estimator of least variance."""
        chosen = dict(start)
        for site in names:
            found = contenders(self.bench, chosen, site, self.candidates)
            runners = [r for e, r in found.items() if isinstance(r, Runner) and self.may_be(e)]
            race(runners, self.num_draws)
            best = min(runners, key=lambda r: (r.measured().variance, r.evaluations))
            chosen[site] = best.estimators[site]
        return chosen

    def descended(
        self, start: Mapping[str, Estimator], names: Sequence[str]
    ) -> tuple[list[Row], int, dict[str, Estimator]]:
        """What was measured in the last sweep, their number, and the choice."""
        chosen, sweeps, rows = dict(start), 0, []
        while sweeps < MAX_SWEEPS:
            rows, before, sweeps = [], dict(chosen), sweeps + 1
            for site in names:
                found = contenders(self.bench, chosen, site, self.candidates)
                runners = [r for e, r in found.items() if isinstance(r, Runner) and self.may_be(e)]
                self.measure(runners)
                chosen[site] = self.best(runners).estimators[site]
                rows += rows_from(found, chosen, site)
            if chosen == before:
                break
        return rows, sweeps, chosen

    def may_be(self, estimator: Estimator) -> bool:
        return self.biased or not estimator.biased

    def measure(self, runners: Sequence[Runner], times: int = 1) -> None:
        """All to the first number of draws, then those that may be the best until they are known well."""
        num = times * self.num_draws
        race(runners, num)
        while num < MAX_TIMES * self.num_draws:
            close = self.close(runners)
            loose = [r for r in close if self.is_loose(r)]
            if len(close) < 2 or not loose:
                return
            num *= 2
            race(close, num)

    def is_loose(self, runner: Runner) -> bool:
        m = runner.measured()
        return m.variance_error > PRECISION * m.variance

    def close(self, runners: Sequence[Runner]) -> list[Runner]:
        """Those that measurements do not tell from the best."""
        scores = [r.measured().score(self.budget) for r in runners]
        least, its_error = min(scores)
        return [
            runner
            for runner, (score, error) in zip(runners, scores, strict=True)
            if score - least <= 2 * math.hypot(error, its_error)
        ]

    def best(self, runners: Sequence[Runner]) -> Runner:
        """The simplest of those that are about as good as the best."""
        order = {e: i for i, e in enumerate(shelf())}

        def effort(runner: Runner) -> tuple[int, int]:
            places = (order.get(e, len(order)) for e in runner.estimators.values())
            return runner.evaluations, sum(places)

        close = self.close(runners)
        scores = [r.measured().score(self.budget)[0] for r in close]
        same = [r for r, score in zip(close, scores, strict=True) if score <= SAME * min(scores)]
        return min(same, key=effort)

    def final(
        self, chosen: Mapping[str, Estimator], start: Mapping[str, Estimator], names: Sequence[str]
    ) -> tuple[Joint, ...]:
        """The choice, its runners-up and the start, on fresh draws; the best first."""
        others = [
            runner
            for site in names
            for e, runner in contenders(self.bench, chosen, site, self.candidates).items()
            if isinstance(runner, Runner) and self.may_be(e) and runner.num_draws
        ]
        others.sort(key=lambda r: r.measured().score(self.budget)[0])
        first = [self.bench.runner(chosen), self.bench.runner(start)]
        finalists: list[Runner] = []
        for runner in (*first, *others):
            is_known = any(runner is f for f in finalists) or len(finalists) > NUM_FINALISTS
            if isinstance(runner, Runner) and not is_known:
                finalists.append(runner)
        for runner in finalists:
            runner.again(runner.seed + HELD_OUT)
        eligible = [r for r in finalists if all(map(self.may_be, r.estimators.values()))]
        self.measure(finalists, times=2)
        best = self.best(eligible or finalists)
        finalists.sort(key=lambda r: (r is not best, r.measured().score(self.budget)[0]))
        return tuple(Joint(r.estimators, r.measured(), r is best) for r in finalists)
