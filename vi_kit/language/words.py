"""The words in which objectives are written.

An objective program takes `model` and `guide` and returns a `Cost`. It is run once per gradient; the
estimators of the sites turn what it returned into an unbiased gradient of its expected value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from array_api_compat import array_namespace

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import Array, softmax
from vi_kit.costs.cost import Cost, apply
from vi_kit.costs.terms import Term, held_fixed
from vi_kit.language.objective import Objective, SettingRange, SettingRule, divergence, objective
from vi_kit.language.programs import (
    Draw,
    Program,
    Simulated,
    draw_of,
    log_density_of,
    refuse_composite,
    session,
    with_replaced,
)
from vi_kit.language.refusals import refuse_repeated
from vi_kit.language.replicates import Replicates, iid, log_mean_exp
from vi_kit.language.varied import held_densities, vary, with_alternatives

__all__ = [
    "Objective",
    "Replicates",
    "SettingRange",
    "SettingRule",
    "apply",
    "divergence",
    "evaluate",
    "given",
    "held_draw",
    "iid",
    "log_density",
    "log_mean_exp",
    "objective",
    "partial_log_densities",
    "simulate",
    "softmax",
    "split_gradients",
    "stop_gradient",
    "uncondition",
]

T = TypeVar("T")


def simulate(program: Program) -> Draw:
    """Run a program and draw its latent sites, each by the estimator chosen for it.

    Returns:
        The draw; its `log_density` includes the program's observed sites and factors.
    """
    draw = draw_of(program)
    return vary(draw) if draw.factors else draw


def log_density(program: Program, draw: Draw) -> Cost:
    """Log density of a program at the values of a draw, observed sites and factors included (nats).

    Raises:
        ObjectiveError: the program has a latent site that the draw lacks, or the other way round.
    """
    cost = log_density_of(program, draw)
    if draw.held or draw.varied is None:
        return cost
    return with_alternatives(cost, draw, held_densities(program, draw, cost))


def evaluate(fn: Callable[..., Array], draw: Draw) -> Cost:
    """A cost that is any function of drawn values, for instance a reward.

    Args:
        fn: `fn(values, *args, **kwargs)` with the values of the draw by name, expanded to their plates, and the
            arguments of the step. It returns a number, or an array with dims as in a program: those of the plates to
            which it belongs, at their places from the right. A plate that it sums over leaves a dim of size one.
        draw: what it is evaluated at.
    """
    return session().evaluate(draw, fn)


def partial_log_densities(
    model: Program, guide: Program, draw: Draw
) -> tuple[list[Cost], dict[int, Cost]]:
    """Log weights of the first t sites of a draw, for t from 0 to their number (nats), and the guide's factors.

    The sites are in the guide's order. A term of the model belongs to the last of the guide's sites on which it
    depends, wherever its statement stands.

    Returns:
        The log densities of the model less those of the guide, summed up to site t; and by t the factors of the
        guide between site t and the next.
    """
    refuse_composite(guide, "a sum over parts of a trajectory")
    run, followed = session(), replace(draw, followed=True)
    of_guide, of_model = log_density(guide, draw), log_density(model, followed)
    refuse_repeated(draw)
    order = {t.statement: i for i, t in enumerate(t for t in of_guide.terms if t.statement in draw)}
    steps: list[list[Term]] = [[] for _ in range(len(order) + 1)]
    factors: dict[int, list[Term]] = {}
    at = 0
    for term in of_guide.terms:
        if term.statement in order:
            at = order[term.statement] + 1
            steps[at] += (-Cost([term])).terms
        else:
            factors.setdefault(at, []).append(term)
    met = 0
    for term in of_model.terms:
        met = max(met, order.get(term.statement, -1) + 1)
        needed = [order[s.name] + 1 for s in term.upstream if draw.sites.get(s.name) is s]
        steps[run.state_of(term, max(needed, default=0), met)].append(term)
    sums = [Cost(itertools.chain(*steps[: t + 1])) for t in range(len(steps))]
    return sums, {t: Cost(terms) for t, terms in factors.items()}


def uncondition(program: Program) -> Program:
    """The program with its observed sites drawn too: simulated data, as by the library's `uncondition` handler.

    Its draws have the observed sites among their values. It may not contain factors.
    """
    return replace(program, joint=True)


def given(program: Program, draw: Draw) -> Program:
    """The program with simulated data in the place of the data.

    Args:
        program: usually the guide.
        draw: from an unconditioned program. Wherever what one of its sites observed is an argument, alone
            or inside a list, tuple or dict of arguments, `program` gets the simulated value.

    Raises:
        ObjectiveError: what a site observed is not an argument.
    """
    run, simulated, values = session(), {}, list[Simulated]()
    for name, observed in draw.data.items():
        value = draw.replayed(name)
        dtype = getattr(observed, "dtype", value.dtype)
        if dtype != value.dtype:
            value = run.backend.each(
                lambda v, dtype=dtype: array_namespace(v).astype(v, dtype), value
            )
        simulated[id(observed)] = (name, value)
        event_ndim = len(draw.details[name].dist.event_shape)
        shape = tuple(getattr(observed, "shape", ()))
        values.append(Simulated(value, event_ndim, shape))
    found: set[str] = set()

    def replaced(argument: Any) -> Any:
        if id(argument) in simulated:
            name, value = simulated[id(argument)]
            found.add(name)
            return value
        return argument

    args, kwargs = (with_replaced(a, replaced) for a in (program.args, program.kwargs))
    for name in sorted(draw.data.keys() - found):
        run.refuse(
            message(
                f"{draw.program.role} site {name!r}: what it observes is not an argument of its own",
                got=f"arguments {[type(a).__name__ for a in (*program.args, *program.kwargs.values())]}",
                expected=f"the array that {name!r} observes, so that the {program.role} can be given"
                " simulated data",
                fix=f"sample({name!r}, ..., obs=x) with x just as it was given to the step",
            ),
            of_estimator=False,
        )
    return replace(program, args=args, kwargs=kwargs, simulated=tuple(values))


def stop_gradient(x: T) -> T:
    """Take a cost, a draw or a program as a constant.

    For a *program* its parameters are held fixed, in its draws and in its densities. For a *draw*
    its values are constants: neither the path through the sampler nor the score of the draw counts.
    For a *cost* both hold.
    """
    if isinstance(x, Program | Draw):
        return replace(x, held=True)  # type: ignore[return-value]
    if isinstance(x, Cost):
        return Cost(map(held_fixed, x.terms))  # type: ignore[return-value]
    raise ObjectiveError(
        message(
            "stop_gradient takes a cost, a draw or a program",
            got=type(x).__name__,
            expected="a Cost, what simulate returned, or the model or guide of the program",
            fix="for an array use your library's own (detach, jax.lax.stop_gradient)",
        )
    )


def held_draw(program: Program) -> Draw:
    """A draw that is a constant, from a program whose parameters are: for objectives that go by log densities only."""
    return stop_gradient(simulate(stop_gradient(program)))


def split_gradients(*, model: Cost, guide: Cost) -> Cost:
    """Let the model's parameters ascend one cost and the guide's another.

    The value reported is that of the `model` cost. Draws that both share are made once.

    Raises:
        ObjectiveError: a parameter that model and guide share (when the loss is first used).

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better (PIWAE).
    """
    return Cost(
        [
            replace(t, group=group)
            for group, c in (("model", model), ("guide", guide))
            for t in c.terms
        ]
    )
