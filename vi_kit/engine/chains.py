"""Gradients of log densities by the values at which they are taken, for Markov chains along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from array_api_compat import array_namespace

from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.named import PLATE, SLOT, Array, Axis, Named, total
from vi_kit.costs.cost import Cost
from vi_kit.costs.terms import Site, Term
from vi_kit.engine.backend import Backend
from vi_kit.engine.plan import Plan
from vi_kit.language.programs import Draw, Session, Statement


class Chains(Session, Protocol):
    """A run, as far as it is asked here."""

    plan: Plan
    repeated: set[str]

    @property
    def backend(self) -> Backend[Any]: ...
    def all_at_once(self, site: Site) -> bool: ...
    def aside(self) -> AbstractContextManager[None]: ...
    def term(
        self, log_prob: Array, axes: Sequence[Axis], what: str, *, counts: bool = True
    ) -> Term: ...


def gradients(
    run: Chains,
    fn: Callable[[list[Array]], Sequence[Cost]],
    values: list[Array],
    num: int,
) -> list[list[Array]]:
    """See `vi_kit.language.programs.Session.gradients`."""

    def totals(values: list[Array]) -> list[Array]:
        with run.aside():
            costs = fn(values)
            _refuse_parts(run, [t for cost in costs for t in cost.terms])
            return [_number(run, cost) for cost in costs]

    return run.backend.gradients(totals, values, num)


def _refuse_parts(run: Chains, terms: Sequence[Term]) -> None:
    """Refuse densities of a minibatch that are not apart for each of its elements."""
    scaled = {a for t in terms for a in t.pending if run.scale(a) != 1.0}
    outside = {t.label for t in terms if not scaled <= t.pending}
    if outside:
        names = sorted(a.name for a in scaled)
        run.refuse(
            message(
                f"a Markov chain towards the posterior given a minibatch of plate {names}: the bound would be none on"
                " the evidence of all data",
                got=f"outside of the plate: {sorted(outside)}",
                expected="all sites inside the subsampled plate, each with a chain of its own, or all data",
                fix="a plate without subsampling",
            ),
            of_estimator=False,
        )


def _number(run: Chains, cost: Cost) -> Array:
    """The sum of all elements: the gradient by a value of one is that of its own."""
    several = sorted({s.name for t in cost.terms for s in t.alternatives})
    several += sorted({a.name for t in cost.terms for a in t.base.axes if a.kind >= SLOT})
    if several:
        run.refuse(
            message(
                f"the target of a Markov chain depends on {several}, of which there are several values at once",
                got="a gradient for each of them, along one chain",
                expected="single draws",
                fix="Reparam() or Score() for these sites",
            )
        )
    return total(Named(_sum(t), ()) for t in cost.terms).array


def _sum(term: Term) -> Array:
    """That of a minibatch is no factor here: it multiplies what the chains of its elements give."""
    return term.scaled(term.base.sum(term.base.axes), ()).array


def one_per_element(run: Chains, array: Array, statement: Statement) -> Array:
    """The sum of what a site has besides the dims of its plates."""
    xp, ndim = array_namespace(array), len(statement.dist.batch_shape)
    over = tuple(range(ndim, array.ndim))
    array = xp.sum(array, axis=over) if over else array
    if statement.name in run.repeated:  # a dim for the steps lies left of the plates
        array, ndim = xp.sum(array, axis=0), ndim - 1
    plates = {a.order for a in statement.axes if a.kind == PLATE}
    most = min(ndim, run.plan.max_plate_nesting)
    undeclared = tuple(-d for d in range(1, most + 1) if d not in plates)
    return xp.sum(array, axis=undeclared, keepdims=True) if undeclared else array


def of_elements(run: Chains, array: Array, statement: Statement, what: str) -> Cost:
    """See `vi_kit.language.programs.Session.of_elements`."""
    array = one_per_element(run, array, statement)
    return Cost([run.term(array, statement.axes, what, counts=False)])


def single(run: Chains, draw: Draw) -> Draw:
    """A draw that has one value of each site, or an error."""
    values = {name: run.backend.one_value(value) for name, value in draw.by_name.items()}
    several = {n for n, v in values.items() if v is None or run.all_at_once(draw.sites[n])}
    if several:
        raise EstimatorError(
            message(
                f"a Markov chain starts from one value of each site, and {sorted(several)} have several at once",
                got="estimators that take several",
                expected="single draws",
                fix="Reparam() or Score() for these sites",
            )
        )
    return replace(draw, by_name=values)
