"""Random arrays whose expectations are known, as products of independent factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from vi_kit.analysis.moments import Affine, product_mean
from vi_kit.analysis.parts import Noise, NoRuleError, Part, SiteKey
from vi_kit.base.named import Array

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
            variance = variance_of(exponent)
            mean = xp.exp(exponent.mean + variance / 2)
            raw = Affine.around(mean, Noise(site, mean**2 * xp.expm1(variance)))
        return cls(exponent, raw)

    @property
    def sites(self) -> frozenset[SiteKey]:
        return self.exponent.sites

    @property
    def shape(self) -> tuple[int, ...]:
        return self.exponent.shape

    @cached_property
    def mean(self) -> Array:
        return array_namespace(self.exponent.mean).exp(
            self.exponent.mean + variance_of(self.exponent) / 2
        )


@dataclass(frozen=True, eq=False)
class Tilted:
    """Gaussian values, or the product of two such, times the exponential of Gaussian values.

    Attributes:
        values: one array or two.
        exponent: of the exponential; `None` if there is none.
    """

    values: tuple[Affine, ...]
    exponent: Affine | None = None

    @property
    def parts(self) -> tuple[Affine, ...]:
        return self.values if self.exponent is None else (*self.values, self.exponent)

    @property
    def sites(self) -> frozenset[SiteKey]:
        return frozenset[SiteKey]().union(*(a.sites for a in self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return broadcast([a.shape for a in self.parts])

    @cached_property
    def mean(self) -> Array:
        if self.exponent is None:
            return product_mean(*self.values)
        tilt = centred(self.exponent)
        means = [a.mean + product_mean(centred(a), tilt) for a in self.values]
        total = math.prod(means[1:], start=means[0])
        if len(means) == 2:
            total = total + product_mean(*map(centred, self.values))
        return total * Exponential(self.exponent).mean

    def map(self, fn: Callable[[Affine], Affine]) -> Tilted:
        exponent = None if self.exponent is None else fn(self.exponent)
        return Tilted(tuple(map(fn, self.values)), exponent)

    def times(self, other: Tilted | Exponential) -> Tilted:
        """The product with another function of the same sites."""
        values = (*self.values, *(other.values if isinstance(other, Tilted) else ()))
        if len(values) > 2:
            raise NoRuleError("a product of more than two functions of the same site")
        exponents = [e for e in (self.exponent, other.exponent) if e is not None]
        if len(exponents) == 2:
            exponents = [exponents[0].plus(exponents[1])]
        return Tilted(values, exponents[0] if exponents else None)


@dataclass(frozen=True, eq=False)
class Power:
    """A power of the elements of a site with a Gamma or Beta distribution, laid out anew perhaps.

    Attributes:
        site: which.
        family: `"gamma"` (concentration, rate) or `"beta"` (concentration1, concentration0).
        params: of the elements.
        exponent: of the power.
        layout: tells layouts apart: of two arrays with the same one, elements that meet are the same.
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

    @cached_property
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

    def expanded(self, shape: tuple[int, ...]) -> Power:
        """Broadcast to a shape."""
        if shape == self.shape:
            return self
        a, b = (array_namespace(p).broadcast_to(p, shape) for p in self.params)
        lead, raw = len(shape) - len(self.shape), self.raw
        if raw is not None:
            raw = raw.placed(range(lead, len(shape)), shape)
        return replace(self, params=(a, b), raw=raw)

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


@dataclass(frozen=True, eq=False)
class Choice:
    """Whole numbers or truth values, each one of several values that are known.

    Attributes:
        values: what each may be.
        indicators: one array for each value: 1 where it was taken, else 0.
        one_hot: the same along a last dim, while elements are laid out as they were drawn.
    """

    values: tuple[int, ...]
    indicators: tuple[Affine, ...]
    one_hot: Affine | None = None

    @property
    def sites(self) -> frozenset[SiteKey]:
        return self.indicators[0].sites

    @property
    def shape(self) -> tuple[int, ...]:
        return self.indicators[0].shape

    @classmethod
    def of_truth(cls, is_true: Affine) -> Choice:
        xp = array_namespace(is_true.mean)
        one = xp.ones((), dtype=is_true.mean.dtype, device=device(is_true.mean))
        return cls((0, 1), (is_true.scaled(-1.0).plus(Affine.constant(one)), is_true))

    @cached_property
    def raw(self) -> Affine:
        return self.indicators[1] if self.values == (0, 1) else self.weighted(self.values)

    @property
    def mean(self) -> Array:
        return self.raw.mean

    def weighted(self, weights: Sequence[Any]) -> Affine:
        """What takes, with each value, that value's weight: a number or an array."""
        first, *others = (i.scaled(w) for i, w in zip(self.indicators, weights, strict=True))
        for other in others:
            first = first.plus(other)
        return first

    def along_last(self) -> Affine:
        """The indicators along one more dim, the last."""
        if self.one_hot is not None:
            return self.one_hot
        shape = self.shape
        raised = [i.placed(range(len(shape)), (*shape, 1)) for i in self.indicators]
        return Affine.concatenated(raised, -1)


Factor = Affine | Known | Exponential | Tilted | Power | Choice


@dataclass(frozen=True, eq=False)
class Value:
    """A random array.

    Attributes:
        factors: independent arrays, which broadcast against one another.
    """

    factors: tuple[Factor, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return broadcast([f.shape for f in self.factors])

    @property
    def like(self) -> Array:
        """An array of its dtype, on its device."""
        first = self.factors[0]
        if isinstance(first, Known):
            return first.mean
        if isinstance(first, Power):
            return first.params[0]
        if isinstance(first, Choice):
            return first.indicators[0].mean
        if isinstance(first, Tilted):
            return first.values[0].mean
        return first.exponent.mean if isinstance(first, Exponential) else first.mean

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
            own = affine_of(factor)
            if own is None:
                return None
            result = own if result is None else result.times(own)
        return result


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    ndim = max(map(len, shapes))
    return tuple(map(max, zip(*((1,) * (ndim - len(s)) + s for s in shapes), strict=True)))


def affine_of(factor: Factor) -> Affine | None:
    if isinstance(factor, Affine):
        return factor
    if isinstance(factor, Power | Exponential | Choice):
        return factor.raw
    if isinstance(factor, Known) and not factor.sites:
        return Affine.constant(factor.mean)
    return None


def centred(affine: Affine) -> Affine:
    return Affine({**affine.parts, (): Part(affine.mean * 0.0)})


def variance_of(affine: Affine) -> Array:
    noise = centred(affine)
    return product_mean(noise, noise)


def value_of(affine: Affine) -> Value:
    return Value((affine,))


def as_value(x: Any, like: Value) -> Value:
    """A constant as a value."""
    if isinstance(x, Value):
        return x
    if not hasattr(x, "shape"):
        mean = like.like
        x = array_namespace(mean).asarray(x, dtype=mean.dtype, device=device(mean))
    return Value((Known(x),))


def both(x: Any, y: Any) -> tuple[Value, Value]:
    like = x if isinstance(x, Value) else y
    return as_value(x, like), as_value(y, like)


def start(kind: str, arrays: Sequence[Any], site: SiteKey, library: Library) -> Value:
    """The value of a site.

    Args:
        kind: `"normal"` (loc, scale), `"gaussian"` (loc, scale_tril), `"gamma"` (concentration, rate), `"beta"`
            (concentration1, concentration0), `"dirichlet"` (concentration), `"one_hot"`, `"categorical"` or
            `"bernoulli"` (probs), `"moments"` (mean, variance) or `"unknown"`.
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
        parts = {
            (): Part(xp.zeros_like(noise.variance)),
            (noise,): Part(weights, ((*batch, own),)),
        }
        return _moved_by(first, Affine(parts))
    if kind == "normal":
        noise = Noise(site, last**2, is_gaussian=True)
        return _moved_by(first, Affine.centred(noise))
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
    if kind in ("one_hot", "categorical"):
        one_hot = Affine.around(first, Noise(site, first, first))
        return value_of(one_hot) if kind == "one_hot" else Value((_chosen(one_hot),))
    if kind == "bernoulli":
        is_true = Affine.around(first, Noise(site, first * (1.0 - first)))
        return Value((Choice.of_truth(is_true),))
    return value_of(Affine.around(first, Noise(site, last)))


def _moved_by(loc: Any, noise: Affine) -> Value:
    mean = loc.affine if isinstance(loc, Value) else Affine.constant(loc)
    if mean is None:
        raise NoRuleError("a draw whose loc is no affine function of random values")
    return value_of(mean.plus(noise))


def _chosen(one_hot: Affine) -> Choice:
    *shape, num = one_hot.shape
    before = (slice(None),) * len(shape)
    indicators = [
        one_hot.sliced((*before, slice(k, k + 1))).squeezed((len(shape),)) for k in range(num)
    ]
    return Choice(tuple(range(num)), tuple(indicators), one_hot)
