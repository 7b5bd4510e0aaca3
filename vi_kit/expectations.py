"""Random values whose expectations are known, and what operations make of them.

A `Value` is a product of factors that are independent of one another: an affine function of noises, a power of a
positive site, the exponential of a Gaussian, or an expectation. The functions below are the one table of rules for all
libraries (`vi_kit.pyro.expectations`, `vi_kit.numpyro.expectations` bring their operations to them); each takes values,
arrays and numbers, and raises `NoRuleError` where there is no closed form.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from vi_kit._errors import AnalyticError, message
from vi_kit._named import Array
from vi_kit.moments import (
    Affine,
    Noise,
    NoRuleError,
    Part,
    SiteKey,
    mean_of_product,
    product_mean,
)

Apply = Callable[[Array], Array]


class Library(Protocol):
    """What rules need of a library."""

    def vmap(self, fn: Apply) -> Apply: ...
    def lgamma(self, array: Array) -> Array: ...
    def digamma(self, array: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class Known:
    """An array of which no more than the expectation is kept, or a constant if it depends on no site."""

    mean: Array
    sites: frozenset[SiteKey] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)


@dataclass(frozen=True, eq=False)
class Exponential:
    """The exponential of Gaussian values.

    Attributes:
        exponent: the values.
        raw: itself by mean and variance, if its elements are independent.
    """

    exponent: Affine
    raw: Affine | None = None

    @classmethod
    def of(cls, exponent: Affine) -> Exponential:
        site, raw = exponent.site_of_elements, None
        if site is not None:
            xp = array_namespace(exponent.mean)
            variance = _variance(exponent)
            mean = xp.exp(exponent.mean + variance / 2)
            raw = Affine.around(mean, Noise(site, mean**2 * xp.expm1(variance)))
        return cls(exponent, raw)

    @property
    def sites(self) -> frozenset[SiteKey]:
        return self.exponent.sites

    @property
    def shape(self) -> tuple[int, ...]:
        return self.exponent.shape

    @property
    def mean(self) -> Array:
        return array_namespace(self.exponent.mean).exp(
            self.exponent.mean + _variance(self.exponent) / 2
        )


@dataclass(frozen=True, eq=False)
class Power:
    """A power of the elements of a site with a Gamma or Beta distribution, laid out anew perhaps.

    Attributes:
        site: which.
        family: `"gamma"` (concentration, rate) or `"beta"` (concentration1, concentration0).
        params: of the elements.
        exponent: of the power.
        layout: tells layouts apart.
        library: for special functions.
        raw: itself by means and covariances, if they are known.
    """

    site: SiteKey
    family: str
    params: tuple[Array, Array]
    exponent: float
    layout: Hashable
    library: Library
    raw: Affine | None = None

    @property
    def sites(self) -> frozenset[SiteKey]:
        return frozenset((self.site,))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.params[0].shape)

    @property
    def mean(self) -> Array:
        return self.raw.mean if self.raw is not None else self.moment(self.exponent)

    def moment(self, p: float) -> Array:
        """The expectation of the elements to the power `p`."""
        (a, b), lgamma = self.params, self.library.lgamma
        xp = array_namespace(a)
        least = a + p
        if p < 0:  # infinite elsewhere, where the formula is not
            least = xp.where(least > 0, least, xp.full_like(least, math.nan))
        log = lgamma(least) - lgamma(a)
        if self.family == "gamma":
            return xp.exp(log - p * xp.log(b))
        return xp.exp(log + lgamma(a + b) - lgamma(a + b + p))

    def to(self, p: float) -> Power:
        """Its elements to another power."""
        raw = None
        if self.raw is not None and self.raw.site_of_elements is not None:
            mean = self.moment(p)
            raw = Affine.around(mean, Noise(self.site, self.moment(2 * p) - mean**2))
        return replace(self, exponent=p, raw=raw)

    @property
    def mean_log(self) -> Array:
        (a, b), digamma = self.params, self.library.digamma
        shift = array_namespace(b).log(b) if self.family == "gamma" else digamma(a + b)
        return self.exponent * (digamma(a) - shift)


Factor = Affine | Known | Exponential | Power


@dataclass(frozen=True, eq=False)
class Value:
    """A random array.

    Attributes:
        factors: independent arrays, which broadcast against one another.
    """

    factors: tuple[Factor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [f.shape for f in self.factors]
        ndim = max(map(len, shapes))
        return tuple(map(max, zip(*((1,) * (ndim - len(s)) + s for s in shapes), strict=True)))

    @property
    def sites(self) -> frozenset[SiteKey]:
        return frozenset[SiteKey]().union(*(f.sites for f in self.factors))

    @property
    def mean(self) -> Array:
        return math.prod((f.mean for f in self.factors[1:]), start=self.factors[0].mean)

    @property
    def full_mean(self) -> Array:
        """The mean, if its factors broadcast."""
        mean = self.mean
        if tuple(mean.shape) == self.shape:
            return mean
        return array_namespace(mean).broadcast_to(mean, self.shape)

    @property
    def affine(self) -> Affine | None:
        """Itself as an affine function of noises and of their products, if it is one."""
        result: Affine | None = None
        for factor in self.factors:
            own = _affine(factor)
            if own is None:
                return None
            result = own if result is None else result.times(own)
        return result


def _affine(factor: Factor) -> Affine | None:
    if isinstance(factor, Affine):
        return factor
    if isinstance(factor, Power | Exponential):
        return factor.raw
    if isinstance(factor, Known) and not factor.sites:
        return Affine.constant(factor.mean)
    return None


def _centred(affine: Affine) -> Affine:
    return Affine({**affine.parts, (): Part(affine.mean * 0.0)})


def _variance(affine: Affine) -> Array:
    centred = _centred(affine)
    return product_mean(centred, centred)


def value_of(affine: Affine) -> Value:
    return Value((affine,))


def _as_value(x: Any, like: Value) -> Value:
    """A constant as a value."""
    if isinstance(x, Value):
        return x
    if not hasattr(x, "shape"):
        mean = like.factors[0].mean
        x = array_namespace(mean).asarray(x, dtype=mean.dtype, device=device(mean))
    return Value((Known(x),))


def _both(x: Any, y: Any) -> tuple[Value, Value]:
    like = x if isinstance(x, Value) else y
    return _as_value(x, like), _as_value(y, like)


def known(value: Value) -> Value:
    """Of which only the expectation is kept."""
    return Value((Known(value.full_mean, value.sites),))


# What the values of sites are


def start(kind: str, arrays: Sequence[Any], site: SiteKey, library: Library) -> Value:
    """The value of a site.

    Args:
        kind: `"normal"` (loc, scale), `"gaussian"` (loc, scale_tril), `"gamma"` (concentration, rate), `"beta"`
            (concentration1, concentration0), `"dirichlet"` (concentration), `"one_hot"` (probs), `"moments"` (mean,
            variance) or `"unknown"`.
        arrays: these, of the shape of the site; a loc may be random.
        site: tells it apart.
        library: for special functions.
    """
    if kind == "unknown":
        raise NoRuleError("mean and variance of its distribution are not known")
    first, last = arrays[0], arrays[-1]
    if isinstance(last, Value):
        raise NoRuleError("a draw whose parameters, other than its loc, are random")
    xp = array_namespace(last)
    if kind == "gaussian":
        shape = tuple(last.shape)[:-1]
        noise = Noise(site, xp.ones(shape, dtype=last.dtype, device=device(last)), is_gaussian=True)
        weights = xp.moveaxis(last, -1, 0)
        batch = [None if n == 1 else d - len(shape) for d, n in enumerate(shape[:-1])]
        own = None if shape[-1] == 1 else 0
        if own is None:
            weights = xp.reshape(weights, shape)
        centred = {
            (): Part(xp.zeros_like(noise.variance)),
            (noise,): Part(weights, ((*batch, own),)),
        }
        return add(first, value_of(Affine(centred)))
    if kind == "normal":
        noise = Noise(site, last**2, is_gaussian=True)
        return add(first, value_of(Affine.centred(noise)))
    if isinstance(first, Value):
        raise NoRuleError("a draw whose parameters are random")
    if kind in ("gamma", "beta"):
        mean = first / last if kind == "gamma" else first / (first + last)
        total = first + last
        variance = mean / last if kind == "gamma" else mean * last / (total * (total + 1))
        raw = Affine.around(mean, Noise(site, variance))
        return Value((Power(site, kind, (first, last), 1.0, (), library, raw),))
    if kind == "dirichlet":
        total = xp.sum(first, axis=-1, keepdims=True)
        mean, spread = first / total, total + 1
        noise = Noise(site, mean / spread, mean / spread**0.5)
        raw = Affine.around(mean, noise)
        return Value((Power(site, "beta", (first, total - first), 1.0, (), library, raw),))
    if kind == "one_hot":
        return value_of(Affine.around(first, Noise(site, first, first)))
    return value_of(Affine.around(first, Noise(site, last)))


# Elementwise


def add(x: Any, y: Any) -> Value:
    x, y = _both(x, y)
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
    for i, factor in enumerate(value.factors):
        if isinstance(factor, Affine | Known):
            scaled = (
                factor.scaled(constant)
                if isinstance(factor, Affine)
                else Known(factor.mean * constant, factor.sites)
            )
            return Value((*value.factors[:i], scaled, *value.factors[i + 1 :]))
    return Value((*value.factors, *_as_value(constant, value).factors))


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
        return max(f, g, key=lambda p: math.prod(p.shape)).to(f.exponent + g.exponent)
    if isinstance(f, Exponential) and isinstance(g, Exponential):
        return Exponential.of(f.exponent.plus(g.exponent))
    a, b = _affine(f), _affine(g)
    if a is not None and b is not None:
        return Known(product_mean(a, b), sites)
    exp, other = (f, b) if isinstance(f, Exponential) else (g, a)
    if isinstance(exp, Exponential) and other is not None and other.is_gaussian:
        return Known(
            product_mean(other, _centred(exp.exponent).plus(_one(other))) * exp.mean, sites
        )
    raise NoRuleError("a product of two functions of the same site")


def _one(like: Affine) -> Affine:
    xp = array_namespace(like.mean)
    return Affine.constant(xp.ones((), dtype=like.mean.dtype, device=device(like.mean)))


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
    if isinstance(factor, Affine) and p == 2:
        return Known(product_mean(factor, factor), factor.sites)
    if isinstance(factor, Affine) and factor.is_gaussian and p == int(p) and p > 0:
        variance, n = _variance(factor), int(p)
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
    if any(isinstance(f, Affine) or (isinstance(f, Known) and f.sites) for f in x.factors):
        raise NoRuleError("the absolute value of what may be negative")
    return Value(
        tuple(
            Known(array_namespace(f.mean).abs(f.mean)) if isinstance(f, Known) else f
            for f in x.factors
        )
    )


def where(mask: Array, x: Any, y: Any) -> Value:
    """One value where a mask, which is constant, is true, another where it is not."""
    x, y = _both(x, y)
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
        name: tells layouts apart.
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
        raw = None if factor.raw is None else move(whole(factor.raw))
        if isinstance(factor, Exponential):
            return Exponential(move(whole(factor.exponent)), raw)
        a, b = (apply(full(p)) for p in factor.params)
        layout = factor.layout if keeps else (factor.layout, name)
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
    x, y = _both(x, y)
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
    values = [_as_value(x, like) for x in arrays]
    affines = [v.affine for v in values]
    if all(a is not None for a in affines):
        return value_of(Affine.concatenated([a for a in affines if a is not None], axis))
    means = [v.full_mean for v in values]
    sites = frozenset[SiteKey]().union(*(v.sites for v in values))
    return Value((Known(array_namespace(*means).concat(means, axis=axis), sites),))


# What has no closed form


@dataclass(frozen=True)
class Blocked:
    """What had no closed form.

    Attributes:
        operation: that had no rule.
        reason: why.
        line: of the program, if it is known.
        sites: on which the value depends.
        term: of which it is a part.
    """

    operation: str
    reason: str
    line: str
    sites: frozenset[SiteKey]
    term: str = ""

    def __str__(self) -> str:
        where = f" at {self.line}" if self.line else ""
        return f"{self.operation}{where}: {self.reason}"

    def error(self) -> AnalyticError:
        return analytic_error([self])


def analytic_error(found: Iterable[Blocked]) -> AnalyticError:
    """The error about values that have no closed form."""
    texts = []
    for blocked in found:
        names = sorted(label.split(" (")[0] for _, label in blocked.sites)
        where = f"site {names[0]!r}" if len(names) == 1 else f"sites {names}"
        texts.append(
            message(
                f"{where}: Analytic() has no closed form for {blocked}",
                got=blocked.term or "a value that depends on random ones",
                expected="sums, products with constants, linear layers; squares, products of independent sites, exp of"
                " Normal values, powers and logs of Gamma values; then only sums and products with constants",
                fix=f'estimators={{"{names[0]}": vi.Analytic(fallback=vi.Reparam())}}, or vi.Reparam()',
            )
        )
    return AnalyticError("\n".join(texts))


PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def line_of_program(frames: Iterable[tuple[str, int, str]]) -> str:
    """The first of some frames, innermost first, that is neither of a library nor of vi_kit."""
    for path, line, function in frames:
        if "site-packages" not in path and not path.startswith((PACKAGE, "<")):
            return f"{os.path.basename(path)}:{line} ({function})"
    return ""


@dataclass(eq=False)
class Once:
    """A function that is called once at most."""

    fn: Callable[[], Any]
    result: Any = None
    is_done: bool = False

    def __call__(self) -> Any:
        if not self.is_done:
            self.result, self.is_done = self.fn(), True
        return self.result
