"""What operations make of random arrays whose expectations are known.

The functions below are the one table of rules for all libraries: `vi_kit.pyro.torch_rules` and
`vi_kit.numpyro.jax_rules` bring their operations to them. Each takes values, arrays and numbers, and raises
`NoRuleError` where there is no closed form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from vi_kit.analysis.factors import (
    Apply,
    Change,
    Discrete,
    Factor,
    Gaussian,
    Known,
    Library,
    Value,
    as_value,
    both,
    value_of,
)
from vi_kit.analysis.moments import Affine, mean_of_product, product_mean
from vi_kit.analysis.parts import NoRuleError, SiteKey
from vi_kit.analysis.waves import Wave
from vi_kit.base.named import Array

# Elementwise


def add(x: Any, y: Any) -> Value:
    choice, shift = (discrete_of(x), y) if isinstance(x, Value) else (discrete_of(y), x)
    if choice is not None and isinstance(shift, int | np.integer):
        return Value((replace(choice, values=tuple(v + int(shift) for v in choice.values)),))
    for one, other in ((x, y), (y, x)):
        if isinstance(other, int | float | np.number) and other == 0:
            return one
    x, y = both(x, y)
    a, b = x.affine, y.affine
    if a is not None and b is not None:
        try:
            return value_of(a.plus(b))
        except NoRuleError:  # their sum has a mean all the same
            pass
    return Value((Known(x.full_mean + y.full_mean, x.sites | y.sites),))


def negative(x: Value) -> Value:
    return multiply(x, -1.0)


def subtract(x: Any, y: Any) -> Value:
    return add(x, negative(y) if isinstance(y, Value) else -y)


def multiply(x: Any, y: Any) -> Value:
    if not isinstance(x, Value) or not isinstance(y, Value):
        return _scaled(y, x) if isinstance(y, Value) else _scaled(x, y)
    factors = list(x.factors)
    for factor in y.factors:
        met = [f for f in factors if f.sites & factor.sites]
        if len(met) > 1:
            raise NoRuleError("a product of functions of the same sites")
        for other in met:
            factors.remove(other)
            factor = _dependent_product(other, factor)
        factors.append(factor)
    return _collected(factors)


def _scaled(value: Value, constant: Any) -> Value:
    if isinstance(constant, int | float | np.number) and constant == 1:
        return value
    for i, factor in enumerate(value.factors):
        scaled = factor.scaled(constant)
        if scaled is not None:
            return Value((*value.factors[:i], scaled, *value.factors[i + 1 :]))
    return Value((*value.factors, *as_value(constant, value).factors))


def _collected(factors: Sequence[Factor]) -> Value:
    """A product with at most one expectation or constant."""
    rest = [f for f in factors if not isinstance(f, Known)]
    if len(rest) == len(factors):
        return Value(tuple(rest))
    known = Value(tuple(f for f in factors if isinstance(f, Known)))
    return Value((*rest, Known(known.mean, known.sites)))


def _dependent_product(f: Factor, g: Factor) -> Factor:
    """The product of two functions of the same site."""
    for one, other in ((f, g), (g, f), (f.as_gaussian(), g)):
        product = None if one is None else one.times(other)
        if product is not None:
            return product
    a, b = f.raw, g.raw
    if a is not None and b is not None:
        return Known(product_mean(a, b), f.sites | g.sites)
    raise NoRuleError("a product of two functions of the same site")


def divide(x: Any, y: Any) -> Value:
    if isinstance(y, Value):
        return multiply(x, power(y, -1.0))
    return multiply(x, 1.0 / y)


def power(x: Value, exponent: float) -> Value:
    """To a power that is a known number."""
    if exponent == 1:
        return x
    return _collected([f.to(exponent) or _dependent_product(f, f) for f in x.factors])


def exp(x: Value) -> Value:
    return Value((Gaussian.exponential(_gaussian(x, "exponential")),))


def sin(x: Value, quarters: int = 0) -> Value:
    """Of a value that was turned on by quarters of a turn."""
    return Value((Wave.of(_gaussian(x, "cosine" if quarters else "sine"), quarters),))


def cos(x: Value) -> Value:
    return sin(x, 1)


def _gaussian(x: Value, what: str) -> Affine:
    affine = x.affine
    if affine is None or not affine.is_gaussian:
        raise NoRuleError(f"the {what} of what is not an affine function of Gaussian values")
    return affine


def log(x: Value) -> Value:
    first, *others = (Value((factor.log(),)) for factor in x.factors)
    return functools.reduce(add, others, first)


def absolute(x: Value) -> Value:
    return Value(tuple(factor.abs() for factor in x.factors))


def where(mask: Any, x: Any, y: Any) -> Value:
    """One value where a mask is true, another where it is not. The mask is constant, or a truth value."""
    if isinstance(mask, Value):
        truth = discrete_of(mask)
        if truth is None or truth.values != (0, 1):
            raise NoRuleError("its condition is random, and no comparison of whole numbers")
        parts = zip(truth.indicators, (as_value(y, mask), as_value(x, mask)), strict=True)
        no, yes = (multiply(value_of(indicator), part) for indicator, part in parts)
        return add(no, yes)
    x, y = both(x, y)
    a, b, xp = x.affine, y.affine, array_namespace(mask)
    if a is not None and b is not None:
        return value_of(a.masked(mask).plus(b.masked(~mask)))
    return Value((Known(xp.where(mask, x.full_mean, y.full_mean), x.sites | y.sites),))


# Layout and linear functions


def laid_out(
    x: Value, name: Hashable, move: Callable[[Affine], Affine], apply: Apply, *, keeps: bool = False
) -> Value:
    """Elements laid out anew.

    Args:
        x: a value.
        name: tells layouts of one shape apart.
        move: does it to affine functions of the full shape.
        apply: does it to arrays of the full shape.
        keeps: whether elements stay aligned from the right, as when they are broadcast.
    """
    shape = x.shape

    def full(array: Array) -> Array:
        if tuple(array.shape) == shape:
            return array
        return array_namespace(array).broadcast_to(array, shape)

    def whole(affine: Affine) -> Affine:
        if affine.shape == shape:
            return affine
        lead = len(shape) - len(affine.shape)
        return affine.placed(range(lead, len(shape)), shape)

    def layout(own: Hashable) -> Hashable:
        return own if keeps else (own, shape, name)

    change = Change(lambda a: move(whole(a)), lambda array: apply(full(array)), layout)
    return Value(tuple(factor.changed(change) for factor in x.factors))


def converted(x: Value, fn: Apply) -> Value:
    """With another dtype."""

    def affine(a: Affine) -> Affine:
        return a.map(lambda _, part: replace(part, weights=fn(part.weights)))

    return Value(tuple(factor.changed(Change(affine, fn)) for factor in x.factors))


def stopped(x: Value, fn: Apply) -> Value:
    """Without gradient."""
    return Value(tuple(factor.stopped(fn) for factor in x.factors))


def sum_over(x: Value, dims: Sequence[int]) -> Value:
    """Over dims (from 0)."""
    affine = x.affine
    if affine is not None:
        return value_of(affine.sum(dims))
    mean = x.full_mean
    return Value((Known(array_namespace(mean).sum(mean, axis=tuple(dims)), x.sites),))


def einsum(x: Any, y: Any, names: tuple[Sequence[Any], Sequence[Any]], out: Sequence[Any]) -> Value:
    """The product of two arrays, summed over dims; see `Affine.einsum`."""
    x, y = both(x, y)
    a, b = x.affine, y.affine
    sites = x.sites | y.sites
    if a is None or b is None:
        if x.sites & y.sites:
            raise NoRuleError("a product of two functions of the same site")
        a, b = Affine.constant(x.full_mean), Affine.constant(y.full_mean)
        return Value((Known(a.einsum(b, names, out).mean, sites),))
    if a.sites & b.sites:
        return Value((Known(mean_of_product(a, b, names, out), sites),))
    return value_of(a.einsum(b, names, out))


def linear(
    x: Value, apply: Apply, library: Library, where: Mapping[int, int] | None = None
) -> Value:
    """What a linear function makes of a value; see `Affine.linear`."""
    affine = x.affine
    if affine is None:
        return Value((Known(apply(x.full_mean), x.sites),))
    return value_of(affine.linear(apply, library.vmap, where))


def concatenate(arrays: Sequence[Any], axis: int) -> Value:
    """Along a dim (negative)."""
    like = next(x for x in arrays if isinstance(x, Value))
    values = [as_value(x, like) for x in arrays]
    affines = [v.affine for v in values]
    if all(a is not None for a in affines):
        return value_of(Affine.concatenated([a for a in affines if a is not None], axis))
    means = [v.full_mean for v in values]
    sites = frozenset[SiteKey]().union(*(v.sites for v in values))
    return Value((Known(array_namespace(*means).concat(means, axis=axis), sites),))


# Whole numbers


def discrete_of(x: Any) -> Discrete | None:
    """The one factor of a value of whole numbers."""
    if isinstance(x, Value) and len(x.factors) == 1 and isinstance(x.factors[0], Discrete):
        return x.factors[0]
    return None


def compared(x: Any, y: Any, test: Callable[[Any, Any], Any]) -> Value | bool:
    """The truth value, 1 or 0, of a comparison with a constant; a constant if it is the same for all values."""
    choice, flipped = discrete_of(x), False
    if choice is None:
        choice, flipped = discrete_of(y), True
    other = x if flipped else y
    if choice is None or isinstance(other, Value):
        raise NoRuleError("only whole numbers can be compared, and only with constants")
    truths = [test(other, v) if flipped else test(v, other) for v in choice.values]
    if all(isinstance(t, bool | np.bool_) for t in truths) and len(set(map(bool, truths))) == 1:
        return bool(truths[0])
    return Value((Discrete.of_truth(choice.weighted(truths)),))


def one_hot(x: Value, num_values: int) -> Value:
    """Of whole numbers, along a new last dim."""
    choice = discrete_of(x)
    if choice is None:
        raise NoRuleError("only the values of a Categorical have a rule")
    if choice.values == tuple(range(num_values)):
        return value_of(choice.along_last())
    xp = array_namespace(choice.mean)
    shape = choice.shape
    raised = laid_out(x, "one_hot", lambda a: a.placed(range(len(shape)), (*shape, 1)), lambda a: a)
    numbers = xp.arange(num_values, device=device(choice.mean))
    made = compared(raised, numbers, lambda v, n: xp.astype(n == v, choice.mean.dtype))
    assert isinstance(made, Value)
    return made


def looked_up(x: Value, table: Array, names: Sequence[Any], out: Sequence[Any]) -> Value:
    """What stands in a table at whole numbers.

    Args:
        x: the numbers.
        table: the first dim goes over their values, as `Discrete.values` has them.
        names: of the dims of `x`, then of those of the table but the first; dims of one name run together.
        out: names of the result's dims.
    """
    choice = discrete_of(x)
    if choice is None:
        raise NoRuleError("its index is random, and not the value of a Categorical")
    ndim = len(x.shape)
    own = (*names[:ndim], "value")
    return einsum(value_of(choice.along_last()), table, (own, ("value", *names[ndim:])), out)
