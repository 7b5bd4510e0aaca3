"""On which sites and parameters the values of a JAX program depend, read off its jaxpr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from vi_kit.numpyro.interpreter import INLINED, Domain, within
from vi_kit.numpyro.markers import site_p

PARAMS = "params"
"""In the place of a site."""

Sources = frozenset[Any]
"""Numbers of sites, and `PARAMS` for parameters."""

Provenance = Mapping[tuple[Any, ...], Sources]
"""On what each value depends of which that is asked."""


GRADIENT = "gradient"
"""What keys begin with where it is asked for parameters; else it is asked for sites."""


def asked_of(key: tuple[Any, ...], sources: Sources) -> Sources:
    """Of what a value depends on, that for which is asked."""
    parameters = frozenset((PARAMS,))
    return sources & parameters if key[0] == GRADIENT else sources - parameters


def sources(closed: ClosedJaxpr) -> list[Sources]:
    """Of the outputs of a jaxpr whose inputs are a random key, and parameters."""
    given = [frozenset((PARAMS,)) for _ in closed.jaxpr.invars]
    given[0] = frozenset()
    return Dependence().read(closed, given)


class Dependence(Domain[Sources]):
    """Reads on what values depend."""

    calls = INLINED

    def constant(self, value: Any) -> Sources:
        return frozenset()

    def transfer(self, equation: Any, operands: list[Sources]) -> Sequence[Sources]:
        inside = {e.params["site"] for e in within(equation) if e.primitive is site_p}
        return [frozenset(inside).union(*operands)] * len(equation.outvars)

    def on_vi_kit_apart(self, equation: Any, operands: list[Sources]) -> Sequence[Sources]:
        return [frozenset()]


class Sight:
    """On what values depend that are still being traced, as far as JAX's tracers tell from which equation they come,
    which newer ones do. It is no more than a guess, so that a program need not be traced again for what is read off it
    afterwards.

    Args:
        params: what is traced for them.
    """

    def __init__(self, params: Any) -> None:
        self.reader = Dependence()
        self.known = {self._name(x): frozenset((PARAMS,)) for x in jax.tree.leaves(params)}
        self.equations: list[Any] = []

    def asked_of(self, key: tuple[Any, ...], value: Any) -> Sources:
        unseen = [value]
        while unseen:
            equation = self._equation(unseen[-1])
            before = [x for x in equation.in_tracers if self._equation(x)] if equation else []
            unseen += before
            if before:
                continue
            unseen.pop()
            if equation:
                self.equations.append(equation)  # so that no other has its identity
                operands = [self._known(x) for x in equation.in_tracers]
                results = self.reader.equation(equation, operands)
                self.known.update(zip(map(id, equation.outvars), results, strict=True))
        return asked_of(key, self._known(value))

    def _known(self, tracer: Any) -> Sources:
        return self.known.get(self._name(tracer), frozenset())

    def _equation(self, tracer: Any) -> Any:
        """From which a value comes of which nothing is known."""
        return None if self._name(tracer) in self.known else getattr(tracer, "parent", None)

    @staticmethod
    def _name(tracer: Any) -> int:
        return id(getattr(tracer, "val", None))
