"""What objectives refuse, for the sake of unbiasedness."""

from __future__ import annotations

from vi_kit.base.context import current
from vi_kit.base.errors import message
from vi_kit.base.layouts import Gradient
from vi_kit.costs.cost import Cost
from vi_kit.language.marginal import Exact
from vi_kit.language.programs import Draw, is_composite, session


def refuse_repeated(draw: Draw) -> None:
    """Refuse sites that stand for several statements, one after the other, where each is a step of its own."""
    run = session()
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
        if site.estimator.gradient is Gradient.PATH and not site.estimator.holds_params:
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


def refuse_estimated(draw: Draw, what: str) -> None:
    """Refuse a draw whose density, asked for anew, is another estimate than that with which it was drawn, for the sake
    of `what`."""
    program = draw.program
    algorithm = getattr(program.fn, "algorithm", None)
    if not is_composite(program.fn) or isinstance(algorithm, Exact) or draw.drawn_with is not None:
        return
    current().refuse(
        message(
            f"{what} asks anew for the density of a draw, which the {program.role} estimates by other particles then:"
            " its weights are biased",
            got=f"a {type(program.fn).__name__} program by {type(algorithm).__name__}",
            expected="a program of sample statements; vi.Exact(); or vi.AIS(...), whose draws keep how they were made",
            fix="another objective, such as vi.elbo(), vi.iwae(num_particles=5) or vi.eubo(num_particles=10)",
        ),
        of_estimator=False,
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
