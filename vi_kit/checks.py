"""What a run refuses, or warns of, for the sake of unbiasedness."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vi_kit._errors import message
from vi_kit._named import PLATE, Axis
from vi_kit.backend import current

if TYPE_CHECKING:
    from vi_kit.cost import Cost, Site, Term
    from vi_kit.programs import Draw
    from vi_kit.run import Run


def note_nonlinear(run: Run, summed: Iterable[Axis]) -> None:
    """Warn, in the dry run, of minibatches inside a nonlinear function."""
    plates = sorted({a.name for a in summed if a.kind == PLATE and run.scale(a) != 1.0})
    if run.findings is not None and plates:
        warnings.warn(
            f"subsampled plates {plates} are summed inside a nonlinear function (some terms are"
            " outside them): the bound of a minibatch is not an unbiased estimate of that of all"
            " the data",
            stacklevel=2,
        )


def refuse_inexact(run: Run, terms: Sequence[Term], name: str) -> None:
    """Refuse, in the dry run, a nonlinear function of sites whose estimators are exact for polynomials only."""
    degrees = run.findings.degrees if run.findings is not None else {}
    analytic = run.findings.analytic if run.findings is not None else ()
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
        if degrees.get(site.label) is not None:
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


def refuse_half_held(run: Run, terms: Sequence[Term]) -> None:
    """Refuse a nonlinear function that sees one draw both as a constant and as a draw."""
    held = {s for t in terms for s in t.held}
    live = {s for t in terms for s in t.upstream - t.held}
    sizes = run.findings.sizes if run.findings is not None else {}
    for site in sorted(held & live, key=lambda s: s.order):
        if not (site.estimator.tracked or site.world or sizes.get(site, 1) > 1):
            continue
        text = message(
            f"site {site.name!r}: a nonlinear function sees its draw both with stop_gradient and"
            " without",
            got=f"{type(site.estimator).__name__}(), which compares whole values of the site",
            expected="the draw held in all arguments or in none",
            fix="stop_gradient on the draw, on neither, or on a program (its parameters only)",
        )
        run.refuse(text)


def refuse_joined(run: Run, terms: Sequence[Term]) -> None:
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


def refuse_varied(run: Run, sites: Iterable[Site]) -> None:
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


def refuse_scores_below(run: Run) -> None:
    """Refuse draws given a site whose cost is differentiated as a function of its value, where their scores would
    be left out."""
    for site in run.sites:
        if site.log_q is None or site.estimator.pathwise:
            continue
        for above in sorted(site.log_q.upstream, key=lambda s: s.order):
            enumerated = not site.estimator.tracked
            nonlinear = (
                run.in_nonlinear if above.estimator.live_alternatives else run.varied_in_nonlinear
            )
            is_analytic = run.findings is not None and above.label in run.findings.analytic
            if enumerated and above not in nonlinear and not is_analytic:
                continue
            if is_analytic or above.estimator.holds_params or above.estimator.live_alternatives:
                instead = "DisARM()" if above.estimator.live_alternatives else "Reparam()"
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


def refuse_repeated(run: Run, draw: Draw) -> None:
    """Refuse sites that stand for several statements, one after the other, where each is a step of its own."""
    for name in sorted(run.repeated & draw.keys()):
        run.refuse(
            message(
                f"{draw.program.role} site {name!r} is in a scan: its steps cannot be told apart as states",
                got="one site for all steps of the scan",
                expected="a sample statement per state",
                fix=f'for t in range(n): sample(f"{name}_{{t}}", ...), in model and guide',
            ),
            of_estimator=False,
        )


def refuse_others(draw: Draw, what: str) -> None:
    """Refuse estimators other than `Reparam` for a draw, for the sake of `what`."""
    for name, site in draw.sites.items():
        if site.estimator.pathwise and not site.estimator.holds_params:
            continue
        fix = "another objective, such as vi.elbo()"
        if draw.details[name].dist.has_rsample:
            fix += f", or estimators={{{name!r}: vi.Reparam()}}"
        current().refuse(
            message(
                f"site {name!r}: {what} is biased with {type(site.estimator).__name__}()",
                got=repr(site.estimator),
                expected="Reparam() at every site: its weights are not differentiated",
                fix=fix,
            )
        )


def refuse_data(cost: Cost, draw: Draw) -> None:
    """Refuse the log density of a program that has more in it than the sites of a draw: it is not normalised."""
    for name in sorted({t.statement for t in cost.terms if t.statement not in draw}):
        current().refuse(
            message(
                f"site {name!r} is observed or a factor, and the model is to be normalised",
                got="a log density that does not integrate to one over the guide's sites",
                expected="a model with the guide's sites and nothing else",
                fix="normalized=False, or a model without data",
            ),
            of_estimator=False,
        )
