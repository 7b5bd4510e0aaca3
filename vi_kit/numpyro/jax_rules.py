"""What JAX primitives make of random values, in the words of `vi_kit.analysis.expectations`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import digamma, gammaln

import vi_kit.analysis.expectations as rules
from vi_kit.analysis.factors import Value
from vi_kit.analysis.parts import NoRuleError


class JaxLibrary:
    """Implements `vi_kit.analysis.expectations.Library`."""

    def vmap(self, fn: Any) -> Any:
        return jax.vmap(fn)

    def lgamma(self, array: jax.Array) -> jax.Array:
        return gammaln(array)

    def digamma(self, array: jax.Array) -> jax.Array:
        return digamma(array)


LIBRARY = JaxLibrary()

Rule = Callable[..., Any]
"""From an equation and its operands to what it makes of them."""


def _constant(x: Any) -> float:
    if isinstance(x, Value):
        raise NoRuleError("only powers that are numbers have a rule")
    try:
        return float(x)
    except TypeError:
        raise NoRuleError("only powers that are known numbers have a rule") from None


def _whole_number(x: Any) -> Any:
    """A constant as an int, if it is one whose value is known."""
    if isinstance(x, Value) or jnp.ndim(x) or not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        return x
    try:
        return int(x)
    except TypeError:
        return x


def _pow(e: Any, x: Any, exponent: Any) -> Value:
    if not isinstance(x, Value):
        raise NoRuleError("only powers that are numbers have a rule")
    return rules.power(x, _constant(exponent))


def _dot(e: Any, x: Any, y: Any) -> Value:
    (left, right), (batch_left, batch_right) = e.params["dimension_numbers"]
    names: tuple[list[Any], list[Any]] = (
        [("left", i) for i in range(len(x.shape))],
        [("right", i) for i in range(len(y.shape))],
    )
    out = []
    for dims, pairs in (((batch_left, batch_right), out), ((left, right), None)):
        for i, j in zip(*dims, strict=True):
            names[1][j] = names[0][i]
            if pairs is not None:
                pairs.append(names[0][i])
    for own, contracted, batch in zip(names, (left, right), (batch_left, batch_right), strict=True):
        out += [n for i, n in enumerate(own) if i not in (*contracted, *batch)]
    return rules.einsum(x, y, names, out)


def _reshape(e: Any, x: Value) -> Value:
    new = tuple(e.params["new_sizes"])
    return rules.laid_out(
        x, ("reshape", new), lambda a: a.reshaped(new), lambda a: jnp.reshape(a, new)
    )


def _broadcast_in_dim(e: Any, x: Value) -> Value:
    shape, positions = tuple(e.params["shape"]), tuple(e.params["broadcast_dimensions"])
    return rules.laid_out(
        x,
        ("broadcast", shape, positions),
        lambda a: a.placed(positions, shape),
        lambda a: lax.broadcast_in_dim(a, shape, positions),
        keeps=positions == tuple(range(len(shape) - len(positions), len(shape))),
    )


def _transpose(e: Any, x: Value) -> Value:
    order = tuple(e.params["permutation"])
    positions, shape = [order.index(d) for d in range(len(order))], [x.shape[d] for d in order]
    return rules.laid_out(
        x,
        ("transpose", order),
        lambda a: a.placed(positions, shape),
        lambda a: jnp.transpose(a, order),
    )


def _squeeze(e: Any, x: Value) -> Value:
    return without(x, tuple(e.params["dimensions"]))


def without(x: Value, dims: tuple[int, ...]) -> Value:
    return rules.laid_out(
        x, ("squeeze", dims), lambda a: a.squeezed(dims), lambda a: jnp.squeeze(a, dims)
    )


def cut_out(x: Value, slices: Sequence[slice]) -> Value:
    shown, cut = tuple((s.start, s.stop, s.step) for s in slices), tuple(slices)
    return rules.laid_out(x, ("slice", shown), lambda a: a.sliced(cut), lambda a: a[cut])


def _slice(e: Any, x: Value) -> Value:
    starts, stops = e.params["start_indices"], e.params["limit_indices"]
    steps = e.params["strides"] or (1,) * len(starts)
    slices = [
        slice(None) if (a, b, s) == (0, n, 1) else slice(a, b, s)
        for a, b, s, n in zip(starts, stops, steps, x.shape, strict=True)
    ]
    return cut_out(x, slices)


def _gather(e: Any, x: Any, index: Any) -> Value:
    if isinstance(x, Value):
        return _laid_out(e, x, index)
    choice, *shape = rules.discrete_of(index), *index.shape
    if choice is None:
        raise NoRuleError("its index is random, and not the value of a Categorical")

    def found(number: jax.Array) -> jax.Array:
        return e.primitive.bind(x, jnp.full(shape, number), **e.params)

    table = jax.vmap(found)(jnp.asarray(choice.values, jnp.int32))
    names = list(range(table.ndim - 1))
    batch = [i for i in names if i not in e.params["dimension_numbers"].offset_dims]
    return rules.looked_up(index, table, [*batch, "vector", *names], names)


def _compared(e: Any, x: Any, y: Any) -> Any:
    test = getattr(operator, e.primitive.name)
    result = rules.compared(_whole_number(x), _whole_number(y), test)
    return np.full(e.outvars[0].aval.shape, result) if isinstance(result, bool) else result


def _laid_out(e: Any, x: Any, *others: Any) -> Value:
    """Each element one of the first operand's, wherever the others, which are constant, say."""
    if not isinstance(x, Value) or any(isinstance(y, Value) for y in others):
        raise NoRuleError("its index is random")

    def pick(array: jax.Array) -> jax.Array:
        return e.primitive.bind(array, *others, **e.params)

    return rules.laid_out(x, object(), lambda a: a.linear(pick, LIBRARY.vmap), pick)


def _whole(e: Any, x: Any, *others: Any) -> Value:
    """A function that is linear in its first operand."""
    if not isinstance(x, Value) or any(isinstance(y, Value) for y in others):
        raise NoRuleError("only a random first operand has a rule")
    return rules.linear(x, lambda a: e.primitive.bind(a, *others, **e.params), LIBRARY)


def _convolution(e: Any, x: Any, weight: Any) -> Value:
    if not isinstance(x, Value) or isinstance(weight, Value):
        raise NoRuleError("only a random input has a rule")
    numbers, n = e.params["dimension_numbers"], len(x.shape)
    where = {numbers.lhs_spec[0] - n: numbers.out_spec[0] - n}
    if e.params["batch_group_count"] != 1:
        where = {}
    return rules.linear(x, lambda a: e.primitive.bind(a, weight, **e.params), LIBRARY, where)


def _triangular_solve(e: Any, matrix: Any, right: Any) -> Value:
    if isinstance(matrix, Value):
        raise NoRuleError("only a random right hand side has a rule")
    return rules.linear(right, lambda b: e.primitive.bind(matrix, b, **e.params), LIBRARY)


def _select(e: Any, mask: Any, *cases: Any) -> Value:
    if len(cases) != 2:
        raise NoRuleError("only two cases have a rule")
    if isinstance(mask, Value):
        return rules.where(mask, cases[1], cases[0])
    if isinstance(mask, np.ndarray) and (mask.all() or not mask.any()):
        return cases[int(mask.all())]
    return rules.where(jnp.asarray(mask, bool), cases[1], cases[0])


def _convert(e: Any, x: Value) -> Value:
    dtype = e.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.integer) and rules.discrete_of(x) is not None:
        return x
    if not jnp.issubdtype(dtype, jnp.floating):
        raise NoRuleError("it makes whole numbers")
    return rules.converted(x, lambda a: a.astype(dtype))


def _concatenate(e: Any, *arrays: Any) -> Value:
    return rules.concatenate(arrays, e.params["dimension"] - len(arrays[0].shape))


def _stack(e: Any, *arrays: Any) -> Value:
    axis, ndim = e.params["axis"], len(arrays[0].shape) + 1
    dims = tuple(d for d in range(ndim) if d != axis)
    shape = [1] * ndim
    for d, n in zip(dims, arrays[0].shape, strict=True):
        shape[d] = n
    raised = [
        rules.laid_out(
            x, ("stack", axis), lambda a: a.placed(dims, shape), lambda a: jnp.expand_dims(a, axis)
        )
        if isinstance(x, Value)
        else jnp.expand_dims(x, axis)
        for x in arrays
    ]
    return rules.concatenate(raised, axis - ndim)


def _tile(e: Any, x: Value) -> Value:
    for axis, times in enumerate(e.params["reps"]):
        x = rules.concatenate([x] * times, axis - len(x.shape)) if times > 1 else x
    return x


def _pad(e: Any, x: Any, value: Any) -> Value:
    if not isinstance(x, Value) or isinstance(value, Value):
        raise NoRuleError("only a random first operand has a rule")
    padded = _whole(e, x, jnp.zeros_like(value))
    config, zeros = e.params["padding_config"], jnp.zeros(x.shape, value.dtype)
    return rules.add(padded, lax.pad(zeros, value, config))


def _fixed(x: Any) -> Any:
    if isinstance(x, Value):
        raise NoRuleError("only a random first argument has a rule")
    return x


def _xlogy(e: Any, x: Any, y: Any) -> Value:
    return rules.multiply(x, rules.log(y) if isinstance(y, Value) else jnp.log(y))


RULES: Mapping[str, Rule] = {
    "sum": lambda e, x, y: rules.add(_whole_number(x), _whole_number(y)),
    "sub": lambda e, x, y: rules.subtract(x, y),
    "neg": lambda e, x: rules.negative(x),
    "mul": lambda e, x, y: rules.multiply(x, y),
    "div": lambda e, x, y: rules.divide(x, y),
    "integer_pow": lambda e, x: rules.power(x, e.params["y"]),
    "pow": _pow,
    "square": lambda e, x: rules.power(x, 2),
    "sqrt": lambda e, x: rules.power(x, 0.5),
    "rsqrt": lambda e, x: rules.power(x, -0.5),
    "exp": lambda e, x: rules.exp(x),
    "sin": lambda e, x: rules.sin(x),
    "cos": lambda e, x: rules.cos(x),
    "log": lambda e, x: rules.log(x),
    "abs": lambda e, x: rules.absolute(x),
    "total": lambda e, x: rules.sum_over(x, e.params["axes"]),
    "dot_general": _dot,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "gather": _gather,
    **dict.fromkeys(("dynamic_slice", "rev"), _laid_out),
    "comparison": _compared,
    **dict.fromkeys(("running total", "window total"), _whole),
    "conv_general_dilated": _convolution,
    "triangular_solve": _triangular_solve,
    "select_n": _select,
    "convert_element_type": _convert,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "pad": _pad,
    "copy": lambda e, x: x,
    "stop_gradient": lambda e, x: rules.stopped(x, lax.stop_gradient),
}
"""By the name of the primitive, or of its kind."""

FUNCTIONS: Mapping[str, Rule] = {
    "xlogy": _xlogy,
    "xlog1py": lambda e, x, y: rules.multiply(x, jnp.log1p(_fixed(y))),
}
"""By the name of a function that has a derivative of its own."""
