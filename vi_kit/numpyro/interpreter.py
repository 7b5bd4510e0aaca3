"""One walk through the jaxpr of a program, equation by equation and into what it calls, for all that is read off it.

What is known of a value, and what an operation makes of it, is a `Domain`'s: of which elements of a plate it is made
(`vi_kit.numpyro.mixing`), its degree, and what it would be elsewhere (`degrees`), its moments (`expectations`), or the
steps by which it is made (`lanes`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint"), "jaxpr"),
    **dict.fromkeys(("core_call", "closed_call"), "call_jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}
"""Primitives that call a function, and under which name they keep it."""

INLINED = {name: CALLS[name] for name in ("jit", "pjit", "closed_call", "core_call")}
"""Those that mean no more than the operations of the function."""

Inside = tuple[int, ...]
"""Equations by their identity, each inside the one before."""

AnyJaxpr = ClosedJaxpr | Jaxpr

V = TypeVar("V")
"""What is known of a value."""


class Domain(ABC, Generic[V]):
    """What is read off a jaxpr. A method `on_cond` sees what is called `cond` in place of `transfer`.

    Attributes:
        inside: the equations that are being read.
    """

    calls: Mapping[str, str] = CALLS

    def __init__(self) -> None:
        self.inside: Inside = ()

    @abstractmethod
    def constant(self, value: Any) -> V:
        """What is known of a literal, or of what the program closes over."""

    @abstractmethod
    def transfer(self, equation: Any, operands: list[V]) -> Sequence[V]:
        """What the results of an operation are."""

    def call(self, equation: Any, body: AnyJaxpr, operands: list[V]) -> Sequence[V]:
        """What those of a function are."""
        return self.read(body, operands)

    def read(self, jaxpr: AnyJaxpr, inputs: Sequence[V], consts: Sequence[Any] = ()) -> list[V]:
        """What the outputs are.

        Args:
            jaxpr: of a function.
            inputs: what is known of its arguments.
            consts: what it closes over, if it does not say that itself.
        """
        body, own = opened(jaxpr)
        known: dict[Any, V] = dict(zip(body.invars, inputs, strict=True))
        for var, value in zip(body.constvars, own or consts, strict=True):
            known[var] = self.constant(value)

        def of(atom: Any) -> V:
            return self.constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in body.eqns:
            outside, self.inside = self.inside, (*self.inside, id(equation))
            results = self.equation(equation, [of(atom) for atom in equation.invars])
            self.inside = outside
            known.update(zip(equation.outvars, results, strict=True))
        return [of(atom) for atom in body.outvars]

    def equation(self, equation: Any, operands: list[V]) -> Sequence[V]:
        """What the results of an equation are."""
        body = called(equation, self.calls)
        if body is not None:
            return self.call(equation, body, operands)
        read = getattr(self, f"on_{equation.primitive.name}", self.transfer)
        return read(equation, operands)


class Analysis(Domain[V]):
    """A domain whose values are joined: it reads all branches, and loops until nothing is new.

    Attributes:
        max_rounds: how often the body of a loop is read before its results are `lost`.
    """

    max_rounds = sys.maxsize

    @abstractmethod
    def join(self, values: Sequence[V]) -> V:
        """What is so of a value that may be any of these."""

    @abstractmethod
    def steered(self, value: V, by: V) -> V:
        """What is left of a value if another chooses which it is."""

    @abstractmethod
    def lost(self, equation: Any, operands: list[V]) -> Sequence[V]:
        """What the results of an equation are of which nothing is known."""

    def of_a_step(self, value: V) -> V:
        """What a loop sees of an array along whose first dim it goes."""
        return value

    def handed_on(self, value: V) -> V:
        """What the next step gets."""
        return value

    def of_all_steps(self, value: V) -> V:
        """What is made of the results of all steps."""
        return value

    def on_cond(self, equation: Any, operands: list[V]) -> Sequence[V]:
        index, *rest = operands
        branches = [self.read(branch, rest) for branch in equation.params["branches"]]
        return [self.steered(self.join(of), index) for of in zip(*branches, strict=True)]

    def on_scan(self, equation: Any, operands: list[V]) -> Sequence[V]:
        fixed, carry, xs = parts_of_scan(equation, operands)
        xs, body = [self.of_a_step(x) for x in xs], equation.params["jaxpr"]
        for _ in range(self.max_rounds):
            results = self.read(body, [*fixed, *carry, *xs])
            last = [self.handed_on(x) for x in results[: len(carry)]]
            before, carry = carry, [self.join(pair) for pair in zip(carry, last, strict=True)]
            if carry == before:
                ends = last if equation.params["length"] else carry
                return [*ends, *map(self.of_all_steps, results[len(carry) :])]
        return self.lost(equation, operands)

    def on_while(self, equation: Any, operands: list[V]) -> Sequence[V]:
        params = equation.params
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = operands[second:]
        for _ in range(self.max_rounds):
            results = self.read(params["body_jaxpr"], [*operands[first:second], *carry])
            (test,) = self.read(params["cond_jaxpr"], [*operands[:first], *carry])
            pairs = zip(carry, results, strict=True)
            before, carry = carry, [self.steered(self.join(pair), test) for pair in pairs]
            if carry == before:
                return carry
        return self.lost(equation, operands)


class Computation(Domain[V]):
    """A domain whose values are arrays, or trees of them: loops stay loops."""

    def step(self, body: ClosedJaxpr, inputs: list[V]) -> tuple[list[V], Any]:
        """The results of one step of a loop, and arrays that it notes."""
        return self.read(body, inputs), ()

    def noted(self, arrays: Any) -> None:
        """Take what all steps of a loop noted."""

    def on_scan(self, equation: Any, operands: list[V]) -> Sequence[V]:
        params, (fixed, start, xs) = equation.params, parts_of_scan(equation, operands)

        def step(carry: list[V], x: list[V]) -> Any:
            results, notes = self.step(params["jaxpr"], [*fixed, *carry, *x])
            return results[: len(carry)], (results[len(carry) :], notes)

        last, (ys, notes) = lax.scan(step, start, xs, params["length"], params["reverse"])
        self.noted(notes)
        return [*last, *ys]


def opened(jaxpr: AnyJaxpr) -> tuple[Any, Sequence[Any]]:
    """A jaxpr, and what it closes over if it says that."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def called(equation: Any, calls: Mapping[str, str] = CALLS) -> AnyJaxpr | None:
    """The function that an equation calls."""
    return equation.params.get(calls.get(equation.primitive.name))


def within(equation: Any) -> Iterator[Any]:
    """An equation, and all those of the functions that it has."""
    yield equation
    for value in equation.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, ClosedJaxpr | Jaxpr):
                for inner in opened(x)[0].eqns:
                    yield from within(inner)


def has(equation: Any, primitives: Collection[Primitive]) -> bool:
    """Whether an equation is of these, or one of those that it has inside."""
    return any(e.primitive in primitives for e in within(equation))


def parts_of_scan(equation: Any, operands: list[V]) -> tuple[list[V], list[V], list[V]]:
    """The operands of a loop: those that stay, those that it hands on, and those along which it goes."""
    first = equation.params["num_consts"]
    second = first + equation.params["num_carry"]
    return operands[:first], operands[first:second], operands[second:]


def bound(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation makes of arrays."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # as in older JAX
    made = equation.primitive.bind(*functions, *values, **params)
    return made if equation.primitive.multiple_results else [made]
