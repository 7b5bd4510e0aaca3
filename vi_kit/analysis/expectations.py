"""What operations make of random arrays whose expectations are known.

The functions below are the one table of rules for all libraries: `vi_kit.pyro.torch_rules` and
`vi_kit.numpyro.jax_rules` bring their operations to them. Each takes values, arrays and numbers, and raises
`NoRuleError` where there is no closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from vi_kit.analysis.factors import (
    Apply,
    Choice,
    Exponential,
    Factor,
    Known,
    Library,
    Power,
    Tilted,
    Value,
    affine_of,
    as_value,
    both,
    broadcast,
    value_of,
    variance_of,
)
from vi_kit.analysis.moments import Affine, mean_of_product, product_mean
from vi_kit.analysis.parts import NoRuleError, SiteKey
from vi_kit.base.named import Array

# Elementwise


def add(x: Any, y: Any) -> Value:
    choice, shift = (choice_of(x), y) if isinstance(x, Value) else (choice_of(y), x)
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
        if isinstance(factor, Affine | Known):
            scaled = (
                factor.scaled(constant)
                if isinstance(factor, Affine)
                else Known(factor.mean * constant, factor.sites)
            )
            return Value((*value.factors[:i], scaled, *value.factors[i + 1 :]))
    return Value((*value.factors, *as_value(constant, value).factors))


def _collected(factors: Sequence[Factor]) -> Value:
    """A product with at most one expectation or constant."""
    expectations = [f for f in factors if isinstance(f, Known)]
    rest = [f for f in factors if not isinstance(f, Known)]
    if not expectations:
        return Value(tuple(rest))
    mean = math.prod((f.mean for f in expectations[1:]), start=expectations[0].mean)
    sites = frozenset[SiteKey]().union(*(f.sites for f in expectations))
    return Value((*rest, Known(mean, sites)))


def _dependent_product(f: Factor, g: Factor) -> Factor:
    """The product of two functions of the same site."""
    sites = f.sites | g.sites
    if isinstance(f, Power) and isinstance(g, Power) and f.layout == g.layout:
        return f.expanded(broadcast([f.shape, g.shape])).to(f.exponent + g.exponent)
    if isinstance(f, Exponential) and isinstance(g, Exponential):
        return Exponential.of(f.exponent.plus(g.exponent))
    tilted = [_tilted(x) for x in (f, g)]
    if isinstance(tilted[0], Tilted) and tilted[1] is not None:
        return tilted[0].times(tilted[1])
    if isinstance(tilted[1], Tilted) and tilted[0] is not None:
        return tilted[1].times(tilted[0])
    a, b = affine_of(f), affine_of(g)
    if a is not None and b is not None:
        return Known(product_mean(a, b), sites)
    raise NoRuleError("a product of two functions of the same site")


def _tilted(factor: Factor) -> Tilted | Exponential | None:
    """What is made of Gaussian values, as such."""
    if isinstance(factor, Affine) and factor.is_gaussian:
        return Tilted((factor,))
    return factor if isinstance(factor, Tilted | Exponential) else None


def divide(x: Any, y: Any) -> Value:
    if isinstance(y, Value):
        return multiply(x, power(y, -1.0))
    return multiply(x, 1.0 / y)


def power(x: Value, exponent: float) -> Value:
    """To a power that is a known number."""
    if exponent == 1:
        return x
    return _collected([_power(f, exponent) for f in x.factors])


def _power(factor: Factor, p: float) -> Factor:
    if isinstance(factor, Exponential):
        return Exponential.of(factor.exponent.scaled(p))
    if isinstance(factor, Power):
        return factor.to(factor.exponent * p)
    if not factor.sites:
        return Known(factor.mean**p)
    tilted = _tilted(factor)
    if isinstance(tilted, Tilted) and p == 2:
        return tilted.times(tilted)
    if isinstance(factor, Affine) and p == 2:
        return Known(product_mean(factor, factor), factor.sites)
    if isinstance(factor, Affine) and factor.is_gaussian and p == int(p) and p > 0:
        variance, n = variance_of(factor), int(p)
        total = factor.mean**n
        for k in range(1, n // 2 + 1):
            count = math.comb(n, 2 * k) * math.prod(range(1, 2 * k, 2))
            total = total + count * factor.mean ** (n - 2 * k) * variance**k
        return Known(total, factor.sites)
    if isinstance(factor, Affine):
        raise NoRuleError(f"a power of {p:g} of a value of which mean and variance are known")
    raise NoRuleError("a power of what is an expectation already")


def exp(x: Value) -> Value:
    affine = x.affine
    if affine is None or not affine.is_gaussian:
        raise NoRuleError("the exponential of what is not an affine function of Gaussian values")
    return Value((Exponential.of(affine),))


def log(x: Value) -> Value:
    terms: list[Value] = []
    for factor in x.factors:
        if isinstance(factor, Exponential):
            terms.append(value_of(factor.exponent))
        elif isinstance(factor, Power):
            terms.append(Value((Known(factor.mean_log, factor.sites),)))
        elif not factor.sites:
            terms.append(Value((Known(array_namespace(factor.mean).log(factor.mean)),)))
        else:
            raise NoRuleError("the logarithm of what is no product of positive sites")
    total = terms[0]
    for term in terms[1:]:
        total = add(total, term)
    return total


def absolute(x: Value) -> Value:
    if any(
        isinstance(f, Affine | Tilted | Choice) or (isinstance(f, Known) and f.sites)
        for f in x.factors
    ):
        raise NoRuleError("the absolute value of what may be negative")
    return Value(
        tuple(
            Known(array_namespace(f.mean).abs(f.mean)) if isinstance(f, Known) else f
            for f in x.factors
        )
    )


def where(mask: Any, x: Any, y: Any) -> Value:
    """One value where a mask is true, another where it is not. The mask is constant, or a truth value."""
    if isinstance(mask, Value):
        truth = choice_of(mask)
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


def moved(
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

    def new(factor: Factor) -> Factor:
        if isinstance(factor, Affine):
            return move(whole(factor))
        if isinstance(factor, Known):
            return Known(apply(full(factor.mean)), factor.sites)
        if isinstance(factor, Choice):
            return Choice(factor.values, tuple(move(whole(i)) for i in factor.indicators))
        if isinstance(factor, Tilted):
            return factor.map(lambda a: move(whole(a)))
        raw = None if factor.raw is None else move(whole(factor.raw))
        if isinstance(factor, Exponential):
            return Exponential(move(whole(factor.exponent)), raw)
        a, b = (apply(full(p)) for p in factor.params)
        layout = factor.layout if keeps else (factor.layout, shape, name)
        return replace(factor, params=(a, b), raw=raw, layout=layout)

    return Value(tuple(map(new, x.factors)))


def converted(x: Value, fn: Apply) -> Value:
    """With another dtype."""

    def affine(a: Affine) -> Affine:
        return a.map(lambda _, part: replace(part, weights=fn(part.weights)))

    def new(factor: Factor) -> Factor:
        if isinstance(factor, Affine):
            return affine(factor)
        if isinstance(factor, Known):
            return Known(fn(factor.mean), factor.sites)
        if isinstance(factor, Choice):
            return affine(factor.raw)
        if isinstance(factor, Tilted):
            return factor.map(affine)
        raw = None if factor.raw is None else affine(factor.raw)
        if isinstance(factor, Exponential):
            return Exponential(affine(factor.exponent), raw)
        a, b = map(fn, factor.params)
        return replace(factor, params=(a, b), raw=raw)

    return Value(tuple(map(new, x.factors)))


def stopped(x: Value, fn: Apply) -> Value:
    """Without gradient."""
    if any(not isinstance(f, Known) for f in x.factors):
        raise NoRuleError("a random value whose gradient is stopped")
    return converted(x, fn)


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


def choice_of(x: Any) -> Choice | None:
    """The one factor of a value of whole numbers."""
    if isinstance(x, Value) and len(x.factors) == 1 and isinstance(x.factors[0], Choice):
        return x.factors[0]
    return None


def compared(x: Any, y: Any, test: Callable[[Any, Any], Any]) -> Value | bool:
    """The truth value, 1 or 0, of a comparison with a constant; a constant if it is the same for all values."""
    choice, flipped = choice_of(x), False
    if choice is None:
        choice, flipped = choice_of(y), True
    other = x if flipped else y
    if choice is None or isinstance(other, Value):
        raise NoRuleError("only whole numbers can be compared, and only with constants")
    truths = [test(other, v) if flipped else test(v, other) for v in choice.values]
    if all(isinstance(t, bool | np.bool_) for t in truths) and len(set(map(bool, truths))) == 1:
        return bool(truths[0])
    return Value((Choice.of_truth(choice.weighted(truths)),))


def one_hot(x: Value, num_values: int) -> Value:
    """Of whole numbers, along a new last dim."""
    choice = choice_of(x)
    if choice is None:
        raise NoRuleError("only the values of a Categorical have a rule")
    if choice.values == tuple(range(num_values)):
        return value_of(choice.along_last())
    xp = array_namespace(choice.mean)
    shape = choice.shape
    raised = moved(x, "one_hot", lambda a: a.placed(range(len(shape)), (*shape, 1)), lambda a: a)
    numbers = xp.arange(num_values, device=device(choice.mean))
    made = compared(raised, numbers, lambda v, n: xp.astype(n == v, choice.mean.dtype))
    assert isinstance(made, Value)
    return made


def looked_up(x: Value, table: Array, names: Sequence[Any], out: Sequence[Any]) -> Value:
    """What stands in a table at whole numbers.

    Args:
        x: the numbers.
        table: the first dim goes over their values, as `Choice.values` has them.
        names: of the dims of `x`, then of those of the table but the first; dims of one name run together.
        out: names of the result's dims.
    """
    choice = choice_of(x)
    if choice is None:
        raise NoRuleError("its index is random, and not the value of a Categorical")
    ndim = len(x.shape)
    own = (*names[:ndim], "value")
    return einsum(value_of(choice.along_last()), table, (own, ("value", *names[ndim:])), out)
