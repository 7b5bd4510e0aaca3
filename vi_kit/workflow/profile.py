"""Every estimator that can serve a site, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from typing import Any

from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.engine.plan import Plan
from vi_kit.engine.variance import drawn_sites
from vi_kit.estimators import Enumerate, Estimator
from vi_kit.estimators.memory import Learned, Network
from vi_kit.workflow.libraries import of_programs
from vi_kit.workflow.measure import BATCH, COSTS, Bench, Measurement, Runner, names_of, race
from vi_kit.workflow.shelf import NOT_TRIED, shelf, short

HEAD = ("site", "estimator", "variance", "s.e.", "ms", "evals", "variance x time", "")


@dataclass(frozen=True)
class Row:
    """An estimator at a site.

    Attributes:
        site: its name.
        estimator: the estimator.
        measured: with the estimators of all other sites as the loss chose them; `None` if it was refused.
        refused: why.
        chosen: whether it is what the loss chose.
        note: what else is to be known of it.
    """

    site: str
    estimator: Estimator
    measured: Measurement | None = None
    refused: str = ""
    chosen: bool = False
    note: str = ""

    @property
    def biased(self) -> bool:
        """Whether its gradient is, by its own account."""
        return bool(self.estimator.biased)

    @property
    def marks(self) -> str:
        marks = ["chosen"] * self.chosen + ["BIASED"] * self.biased + [self.note] * bool(self.note)
        return ", ".join(marks)

    def cells(self) -> tuple[str, ...]:
        """As a row of a table under `HEAD`."""
        m, name = self.measured, short(self.estimator)
        if m is None:
            return (self.site, name, "refused", "", "", "", "", self.refused)
        numbers = (
            f"{m.variance:.4g}",
            f"{m.variance_error:.2g}",
            f"{1e3 * m.seconds:.3g}",
            f"{m.evaluations}",
            f"{m.product:.3g} +- {m.product_error:.1g}",
        )
        return (self.site, name, *numbers, self.marks)


@dataclass(frozen=True, repr=False)
class Profile:
    """What `vi.profile_estimators` found.

    Attributes:
        rows: by site, the best first; those that were refused last.
        loss: as text.
        not_tried: by name of a class why it was not.
    """

    rows: tuple[Row, ...]
    loss: str
    not_tried: Mapping[str, str]

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(row.site for row in self.rows))

    def of(self, site: str) -> tuple[Row, ...]:
        """The rows of a site that were measured, the best first."""
        return tuple(r for r in self.rows if r.site == site and r.measured is not None)

    def best(self, site: str) -> Row:
        """The unbiased estimator of least variance x time at a site."""
        return next(row for row in self.of(site) if not row.biased)

    def __repr__(self) -> str:
        rows = [HEAD, *(row.cells() for row in self.rows if row.measured is not None)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD) - 1)]

        def line(row: Sequence[str]) -> str:
            cells = [
                cell.rjust(width) if 1 < i < 6 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            return "  ".join([*cells, row[-1]]).rstrip()

        text = [f"estimators at each site of {self.loss}, the others as it chose them", line(HEAD)]
        for site in self.sites:
            own = [row for row in self.rows if row.site == site]
            text += [line(row.cells()) for row in own if row.measured is not None]
            text += [f"  refused: {short(r.estimator)} {r.refused}" for r in own if r.refused]
        return "\n".join(
            [*text, *(f"not tried: {name}, {why}" for name, why in self.not_tried.items())]
        )

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(line(row.cells(), "td") for row in self.rows)
        title = escape(f"Estimators at each site of {self.loss}")
        return f"<table><caption>{title}</caption>{line(HEAD, 'th')}{body}</table>"

    def plot(self, axes: Any = None) -> Any:
        """A picture: variance x time of each estimator, a panel for each site.

        Args:
            axes: matplotlib axes, one for each site; new ones if left out.

        Returns:
            The axes.
        """
        from vi_kit.workflow.profile_plot import plotted

        return plotted(self, axes)


def profile_estimators(
    *programs: Any,
    num_draws: int = 200,
    seed: int = 0,
    params: Any = None,
    sites: str = "*",
    candidates: Sequence[Estimator] | None = None,
    cost: str = "seconds",
    clock: Callable[[], float] = time.perf_counter,
    **kwargs: Any,
) -> Profile:
    """Every estimator that can serve a latent site, side by side, at the present parameters.

    Each estimator of the shelf takes its turn at each site, the other sites keeping what the loss chose for them. It
    says how much one gradient varies (summed over the coordinates of all parameters), how long it takes, and the
    product of both: what is left of the variance after a unit of time. Times are of gradients that take turns with
    all others, in NumPyro compiled. What cannot serve is listed with the reason; what is biased is marked. Moving
    averages have found their values; what estimators learn by gradient is as at first.

    Args:
        *programs: a loss, a model, a guide and their arguments, as for `loss.explain`; without the loss it is the
            default one of the library that the programs tell.
        num_draws: gradients of each.
        seed: of the draws.
        params: NumPyro: values of the parameters, if not those that the programs start with.
        sites: a pattern of the sites to try at.
        candidates: estimators to try besides what the loss chose; the whole shelf if left out.
        cost: what counts as time: `"seconds"`, or `"evaluations"` of the model.
        clock: for seconds.
        **kwargs: of model and guide.

    Returns:
        A table that prints, with `.rows` and `.plot()`.

    Raises:
        ObjectiveError: no two programs, programs that do not tell their library, no site of the pattern.
        EstimatorError: the loss itself is refused, as at its first step.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.5))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        >>> found = vi.profile_estimators(model, guide, num_draws=20)
        >>> found.best("z").measured.variance
        0.0
    """
    num_draws = whole_number("profile_estimators", "num_draws", num_draws, least=2)
    bench, chosen = benched("profile_estimators", programs, kwargs, params, seed, cost, clock)
    rows = []
    for site in matching("profile_estimators", chosen, sites):
        rows += rows_of(bench, chosen, site, candidates, max(num_draws, BATCH))
    return Profile(tuple(rows), repr(bench.loss), not_tried(candidates))


def benched(
    where: str,
    programs: Sequence[Any],
    kwargs: Mapping[str, Any],
    params: Any,
    seed: int,
    cost: str,
    clock: Callable[[], float],
) -> tuple[Bench, dict[str, Estimator]]:
    """Where to measure, and what the loss chooses by site."""
    if cost not in COSTS:
        raise ObjectiveError(
            message(
                f"{where}: no such cost",
                got=repr(cost),
                expected=" or ".join(map(repr, COSTS)),
                fix=f"cost={COSTS[0]!r}",
            )
        )
    loss, model, guide, args = of_programs(where, programs)
    replay = loss.replay(model, guide, args, kwargs, params)
    return Bench(loss, replay, seed, clock, cost), chosen_by(replay.plan(loss))


def chosen_by(plan: Plan) -> dict[str, Estimator]:
    """The estimator of each site that has a choice, by name."""
    resolved, chosen = plan.selection.resolved, {}
    for label in drawn_sites(plan):
        (name,) = names_of([label])
        if resolved[label].rule != "algorithm" and "summed" not in label[len(name) :]:
            chosen.setdefault(name, resolved[label].estimator)
    return chosen


def matching(where: str, chosen: Mapping[str, Estimator], pattern: str) -> list[str]:
    """Names of the sites to try at."""
    names = [name for name in chosen if fnmatchcase(name, pattern)]
    if names:
        return names
    raise ObjectiveError(
        message(
            f"{where}: no latent site to choose for",
            got=f"sites={pattern!r}",
            expected=f"a pattern for one of {list(chosen)}",
            fix="leave sites out",
        )
    )


def contenders(
    bench: Bench, chosen: Mapping[str, Estimator], site: str, candidates: Sequence[Estimator] | None
) -> dict[Estimator, Runner | str]:
    """What can stand at a site, with all other sites as they are, or why it cannot."""
    own = chosen[site]
    others = (e for e in shelf() if not isinstance(own, Enumerate) or type(e) is not Enumerate)
    tried = [own, *(others if candidates is None else candidates)]
    return {e: bench.runner({**chosen, site: e}) for e in dict.fromkeys(tried)}


def rows_of(
    bench: Bench,
    chosen: Mapping[str, Estimator],
    site: str,
    candidates: Sequence[Estimator] | None,
    num_draws: int,
) -> list[Row]:
    """Of one site, the best first."""
    found = contenders(bench, chosen, site, candidates)
    race([r for r in found.values() if isinstance(r, Runner)], num_draws)
    return rows_from(found, chosen, site)


def rows_from(
    found: Mapping[Estimator, Runner | str], chosen: Mapping[str, Estimator], site: str
) -> list[Row]:
    """As far as they were measured."""
    rows = []
    for estimator, runner in found.items():
        is_chosen = estimator == chosen[site]
        if isinstance(runner, str):
            rows.append(Row(site, estimator, refused=runner, chosen=is_chosen))
        elif runner.num_draws:
            measured, note = runner.measured(), untrained(estimator)
            rows.append(Row(site, estimator, measured, chosen=is_chosen, note=note))

    def rank(row: Row) -> tuple[bool, float, float]:
        m = row.measured
        return (m is None, 0.0, 0.0) if m is None else (False, m.product, m.time[0])

    return sorted(rows, key=rank)


def untrained(estimator: Estimator) -> str:
    """What is to be said of an estimator that learns."""
    learns = any(isinstance(kept, Learned | Network) for kept in estimator.memory.values())
    return "before it learned" if learns else ""


def not_tried(candidates: Sequence[Estimator] | None) -> dict[str, str]:
    if candidates is not None:
        return {}
    return {kind.__name__: why for kind, why in NOT_TRIED.items()}
