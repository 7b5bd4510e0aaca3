"""Which polynomials a JAX program computes: its jaxpr, read equation by equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vi_kit.degrees import (
    CONTINUOUS,
    JUMPS,
    DegreeProbe,
    Degrees,
    Form,
    Rule,
    chosen,
    contraction,
    derive,
    discrete,
    exponential,
    first_moved,
    linear,
    logarithm,
    moved,
    named,
    power,
    product,
    quotient,
    solved,
    start,
    unknown,
)
from vi_kit.plan import Plan

CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint"), "jaxpr"),
    "core_call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that call a function, and under which name they keep it."""

MAX_ROUNDS = 8
"""How often the body of a loop is read before its degree is taken to grow with every iteration."""


def degrees_found(
    plan: Plan, execute: Callable[[DegreeProbe], None]
) -> list[tuple[str, str, Form]]:
    """What the terms of a probe are, as `DegreeProbe.found` says it.

    Args:
        plan: says for which sites.
        execute: makes the dry run, which is traced.
    """
    labels, probes = list(plan.degrees), []

    def values(zeros: list[Any]) -> list[Any]:
        probe = DegreeProbe(dict(zip(labels, zeros, strict=True)))
        execute(probe)
        probes.append(probe)
        return [jnp.asarray(value) for value in probe.values()]

    closed = jax.make_jaxpr(values)([0.0] * len(labels))
    degrees = read(closed.jaxpr, [{label: start(plan.degrees[label])} for label in labels])
    return probes[-1].found(degrees)


def read(jaxpr: Jaxpr, inputs: Sequence[Degrees]) -> list[Degrees]:
    """What the outputs are, given what the inputs are."""
    known: dict[Any, Degrees] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> Degrees:
        return {} if isinstance(atom, Literal) else known.get(atom, {})

    for equation in jaxpr.eqns:
        operands = [of(atom) for atom in equation.invars]
        if any(operands):
            results = _equation(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _equation(equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, operands)
    if name == "cond":
        return _cond(params["branches"], operands)
    if name in CALLS and CALLS[name] in params:
        body = params[CALLS[name]]
        return _called(name, body.jaxpr if isinstance(body, ClosedJaxpr) else body, operands)
    result = derive(name, _rule(name, params, equation), operands)
    by_distribution = "/distributions/" in source_info_util.summarize(equation.source_info)
    return [
        result
        if jnp.issubdtype(variable.aval.dtype, jnp.floating)
        else discrete(name, result, by_distribution)
        for variable in equation.outvars
    ]


def _called(name: str, jaxpr: Jaxpr, operands: list[Degrees]) -> list[Degrees]:
    """What a function made. Of one with a derivative of its own, which is JAX's, the name is told instead of that of
    an operation inside."""
    if not name.startswith("custom_"):
        return read(jaxpr, operands)
    own = jaxpr.debug_info.func_name
    if own == "xlogy":
        logs = derive("log", logarithm, operands[1:])
        return [derive(own, product, [operands[0], logs])]
    forms = [item for operand in operands for item in operand.items()]
    before = {label for label, form in forms if form.blocker}
    continuous = {label for label, form in forms if form.is_continuous} - before

    def outside(label: str, form: Form) -> Form:
        if label in continuous:
            return form if own in JUMPS else CONTINUOUS
        return Form(blocker=own) if form.blocker and label not in before else form

    return [
        {label: outside(label, form) for label, form in result.items()}
        for result in read(jaxpr, operands)
    ]


def _rule(name: str, params: Mapping[str, Any], equation: Any) -> Rule:
    if name == "integer_pow":
        return power(params["y"])
    if name == "pow":
        exponent = equation.invars[1]
        return power(float(exponent.val) if isinstance(exponent, Literal) else None)
    return RULES.get(name, unknown)


def _join(first: Sequence[Degrees], second: Sequence[Degrees]) -> list[Degrees]:
    return [derive("cond", moved, pair) for pair in zip(first, second, strict=True)]


def _cond(branches: Sequence[ClosedJaxpr], operands: list[Degrees]) -> Sequence[Degrees]:
    index, *rest = operands
    results = read(branches[0].jaxpr, rest)
    for branch in branches[1:]:
        results = _join(results, read(branch.jaxpr, rest))
    return [derive("cond", chosen, [index, result]) for result in results]


def _scan(params: Mapping[str, Any], operands: list[Degrees]) -> Sequence[Degrees]:
    consts, carries = params["num_consts"], params["num_carry"]
    carry, jaxpr = operands[consts : consts + carries], params["jaxpr"].jaxpr
    for _ in range(MAX_ROUNDS):
        results = read(jaxpr, [*operands[:consts], *carry, *operands[consts + carries :]])
        joined = _join(carry, results[:carries])
        if joined == carry:
            return results
        carry = joined
    labels = {label for operand in operands for label in operand}
    blocked = {label: Form(blocker="scan") for label in labels}
    return [blocked] * (len(results))


RULES: Mapping[str, Rule] = {
    **named("add sub add_any neg reduce_sum cumsum scatter-add", linear),
    **named("reshape broadcast_in_dim transpose squeeze expand_dims slice rev pad copy", moved),
    **named("concatenate stack unstack split tile convert_element_type stop_gradient", moved),
    **named("reduce_precision optimization_barrier device_put", moved),
    **named("dynamic_update_slice scatter", moved),
    **named("gather dynamic_slice", first_moved),
    **named("mul", product),
    **named("dot_general conv_general_dilated", contraction),
    **named("div", quotient),
    **named("triangular_solve", solved),
    **named("square", power(2)),
    **named("sqrt", power(0.5)),
    **named("rsqrt", power(-0.5)),
    **named("exp", exponential),
    **named("log", logarithm),
    **named("select_n", chosen),
}
"""By the name of the primitive."""
