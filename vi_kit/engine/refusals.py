"""What a run refuses, or warns of, for the sake of unbiasedness."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from vi_kit.analysis.degrees import Form
from vi_kit.base.demands import Polynomial
from vi_kit.base.errors import Refusal, message
from vi_kit.base.layouts import Gradient, Single
from vi_kit.base.named import PLATE, Axis
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import CostContext, Nonlinear, Site, Term
from vi_kit.engine.plan import Findings, Plan
from vi_kit.engine.select import Choice
from vi_kit.estimators import Enumerate, Estimator, MeasureValued, Reparam, Score
from vi_kit.estimators.base import estimator_of


class Checked(CostContext, Protocol):
    """A run, as far as it is checked here."""

    def has_several(self, site: Site) -> bool: ...
    @property
    def in_nonlinear(self) -> set[Site]: ...
    @property
    def varied_in_nonlinear(self) -> set[Site]: ...


class Noting(Checked, Protocol):
    """A dry run, as far as it is checked here."""

    @property
    def findings(self) -> Findings: ...


ALTERNATIVES: tuple[Estimator, ...] = (Reparam(), Enumerate(), MeasureValued(), Score())
"""What an error about a site suggests, in this order, as far as they can handle it."""


def reason_against(
    site: Site, dist: Distribution, estimator: Estimator, apart: Iterable[Axis]
) -> str | None:
    """Why an estimator that was chosen for a site cannot handle it."""
    unmet = estimator_of(site).unmet_need((*site.axes, *apart))
    return estimator.reason_against(dist) or unmet


def unable(
    site: Site, dist: Distribution, choice: Choice, reason: str, inside: bool = False
) -> str:
    """The text of the error about a site that its estimator cannot handle."""
    name = type(choice.estimator).__name__
    others = [e for e in ALTERNATIVES if e.reason_against(dist) is None]
    if inside:
        others = [e for e in others if isinstance(e.layout(dist), Single)]
    others = [type(e).__name__ for e in others if type(e).__name__ != name] or [name]
    expected = " or ".join(f"{other}()" for other in others)
    fix = f'estimators={{"{site.name}": vi.{others[0]}()}}'
    if isinstance(reason, Refusal):
        expected, fix = reason.expected or expected, reason.fix or fix
    return message(
        f"site {site.name!r}: {name}() {reason}",
        got=f"{choice.estimator!r}, from {choice.rule}",
        expected=expected,
        fix=fix,
    )


def check_nonlinear(run: Noting, function: Nonlinear) -> None:
    """Note what a nonlinear function tells apart, and refuse what it cannot be right for."""
    name, terms, over = function.name, function.terms, function.over
    if function.in_turn:
        refuse_joined(run, terms)
    note_nonlinear(run, function.summed)
    run.findings.summed.update(a.name for a in function.summed if a.kind == PLATE)
    run.findings.tells_apart(function.plates)
    if over is not None:
        plates = sorted(repr(a.name) for a in function.plates)
        each = ", ".join(plates) or "none: one over everything"
        run.findings.bounds[f"{name} over replicates, for each element of plates {each}"] = None
    refuse_inexact(run, terms, name)
    refuse_half_held(run, terms)


def note_nonlinear(run: Noting, summed: Iterable[Axis]) -> None:
    """Warn of minibatches inside a nonlinear function."""
    plates = sorted({a.name for a in summed if a.kind == PLATE and run.scale(a) != 1.0})
    if plates:
        warnings.warn(
            f"subsampled plates {plates} are summed inside a nonlinear function (some terms are"
            " outside them): the bound of a minibatch is not an unbiased estimate of that of all"
            " the data",
            stacklevel=2,
        )


def refuse_inexact(run: Noting, terms: Sequence[Term], name: str) -> None:
    """Refuse a nonlinear function of sites whose estimators are exact for polynomials only."""
    degrees, analytic = run.findings.degrees, run.findings.analytic
    for site in sorted({s for t in terms for s in t.upstream}, key=lambda s: s.order):
        if site.label in analytic:
            run.refuse(
                message(
                    f"site {site.name!r}: Analytic() has no closed form inside {name}",
                    got="a nonlinear function of costs, which needs draws",
                    expected="a linear objective, such as vi.elbo(), or another estimator",
                    fix=f'estimators={{"{site.name}": vi.Reparam()}}',
                )
            )
        if isinstance(degrees.get(site.label), Polynomial):
            estimator = type(site.estimator).__name__
            run.refuse(
                message(
                    f"site {site.name!r}: {estimator}() is not exact inside {name}",
                    got=f"{site.estimator!r}, and a nonlinear function of costs, which is taken for no polynomial",
                    expected="a linear objective, such as vi.elbo(); biased=True; or an unbiased estimator: Reparam()"
                    " or Score()",
                    fix=f'estimators={{"{site.name}": vi.Reparam()}}, or vi.{estimator}(..., biased=True)',
                )
            )


def refuse_half_held(run: Checked, terms: Sequence[Term]) -> None:
    """Refuse a nonlinear function that sees one draw both as a constant and as a draw."""
    held = {s for t in terms for s in t.held}
    live = {s for t in terms for s in t.upstream - t.held}
    for site in sorted(held & live, key=lambda s: s.order):
        if not (site.tracked or run.has_several(site)):
            continue
        text = message(
            f"site {site.name!r}: a nonlinear function sees its draw both with stop_gradient and"
            " without",
            got=f"{type(site.estimator).__name__}(), which compares whole values of the site",
            expected="the draw held in all arguments or in none",
            fix="stop_gradient on the draw, on neither, or on a program (its parameters only)",
        )
        run.refuse(text)


def refuse_joined(run: Checked, terms: Sequence[Term]) -> None:
    """Refuse a nonlinear function of each iteration of a sequential plate where its sites are varied together."""
    for site in {s: None for t in terms for s in t.alternatives}:
        if site not in run.varied or len(run.varied[site].sites) == 1:
            continue
        name, first = type(site.estimator).__name__, run.varied[site].sites[0].name
        run.refuse(
            message(
                f"site {first!r}: {name}() in a sequential plate inside a nonlinear function",
                got=f"{name}() at {sorted(s.name for s in run.varied[site].sites)}, which it varies together",
                expected="a plate along a dim, with pyro.plate(...) instead of for i in pyro.plate(...)",
                fix=f'estimators={{"{first}": vi.Reparam()}}, at the others too',
            )
        )


def refuse_varied(run: Checked, sites: Iterable[Site]) -> None:
    """Refuse a nonlinear function that cannot vary the sites whose scores are reparameterised alone."""
    varied = [s for s in sites if s.estimator.holds_params]
    for site in varied:
        name = type(site.estimator).__name__
        together = run.varied[site]
        run.varied_in_nonlinear.update(together.sites)
        if len(varied) > 1:
            problem = "and the draws of another simulation meet in one nonlinear function"
            expected = f"one simulation with {name}() per copy of iid"
        elif together.apart:
            problem = f"with Reparam() at {sorted(together.apart)} in a nonlinear function"
            expected = f"{name}() at all reparameterised sites of the program, or at none"
        elif not together.uniform:
            problem = "in a nonlinear function, with unequal scales or with masks"
            expected = "one scale for all these sites and no mask, or one such site"
        else:
            continue
        run.refuse(
            message(
                f"site {site.name!r}: {name}() {problem}",
                got=f"{name}() at {sorted(s.name for s in together.sites)}",
                expected=expected,
                fix=f'estimators={{"*": vi.{name}()}}'
                if together.apart
                else f'estimators={{"{together.sites[0].name}": vi.Reparam()}}',
            )
        )


def refuse_scores_below(run: Noting) -> None:
    """Refuse draws given a site whose cost is differentiated as a function of its value, where their scores would
    be left out."""
    for site in run.sites:
        if site.log_q is None or site.estimator.gradient is Gradient.PATH:
            continue
        for above in sorted(site.log_q.upstream, key=lambda s: s.order):
            enumerated = not site.tracked
            nonlinear = run.in_nonlinear if above.is_live else run.varied_in_nonlinear
            is_analytic = above.label in run.findings.analytic
            if enumerated and above not in nonlinear and not is_analytic:
                continue
            if is_analytic or above.estimator.holds_params or above.is_live:
                instead = "DisARM()" if above.is_live else "Reparam()"
                name = "Analytic" if is_analytic else type(above.estimator).__name__
                run.refuse(
                    message(
                        f"site {above.name!r}: {name}() with {type(site.estimator).__name__}() at"
                        f" site {site.name!r}, which is drawn given it",
                        got=f"a density of {site.name!r} that depends on {above.name!r}",
                        expected="sites drawn given it whose values are differentiable in it"
                        + (
                            ""
                            if enumerated or is_analytic
                            else ", or Enumerate() in a linear objective"
                        ),
                        fix=f'estimators={{"{above.name}": vi.{instead}}}',
                    )
                )


def shortfalls(plan: Plan, found: Iterable[tuple[str, str, Form]]) -> list[str]:
    """Errors about sites whose estimators do not integrate every term exactly.

    Args:
        plan: with the degrees up to which they do.
        found: by `DegreeProbe.found`.
    """
    wrong: dict[str, dict[str, Form]] = {}
    for what, label, form in found:
        demand = plan.degrees[label]
        bound = demand.degree if isinstance(demand, Polynomial) else None
        if (
            bound is None and form.blocker == what
        ):  # what is drawn given the site is another check's
            continue
        if form.reason is not None or (bound is not None and form.degree > bound):
            wrong.setdefault(label, {})[what] = form
    demands = ((label, plan.degrees[label], terms) for label, terms in wrong.items())
    return [
        _shortfall(plan, label, demand, terms)
        if isinstance(demand, Polynomial)
        else _jump(plan, label, terms)
        for label, demand, terms in demands
    ]


def _jump(plan: Plan, label: str, terms: Mapping[str, Form]) -> str:
    name, site = type(plan.selection.resolved[label].estimator).__name__, label.split(" (")[0]
    return message(
        f"site {label!r}: {name}() is biased if a cost jumps between the discrete values of {site!r}",
        got="; ".join(f"{what}, because of {form.reason}" for what, form in terms.items()),
        expected="a cost that is continuous in the value, such as z * a + (1 - z) * b in the place of where(z, a, b)",
        fix=f'estimators={{"{site}": vi.DisARM()}}, or vi.Relax(network, scale=None)',
    )


def _shortfall(plan: Plan, label: str, demand: Polynomial, terms: Mapping[str, Form]) -> str:
    estimator, bound = plan.selection.resolved[label].estimator, demand.degree
    name, site = type(estimator).__name__, label.split(" (")[0]
    parts, fix = [], f'estimators={{"{site}": vi.Reparam()}}, or vi.{name}(..., biased=True)'
    for what, form in terms.items():
        degree = f"of degree {form.degree}"
        if form.reason is not None:
            degree = f"not a polynomial, because of {form.reason}"
        parts.append(f"{what}, {degree}")
    if all(form.reason is None for form in terms.values()):
        enough = demand.larger(max(form.degree for form in terms.values()))
        fix = f'estimators={{"{site}": vi.{enough!r}}}' if enough is not None else fix
    return message(
        f"site {label!r}: {name}() is exact for polynomials of degree at most {bound} in {site!r}",
        got="; ".join(parts),
        expected="polynomials of that degree; biased=True; or an unbiased estimator: Reparam() or Score()",
        fix=fix,
    )
