"""Random arrays whose expectations are known, as products of independent factors.

A new closed form is a subclass of `Factor`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True)
class Change:
    """What is done to all arrays of which a factor is made.

    Attributes:
        affine: to affine functions.
        array: to plain arrays, of the factor's full shape.
        layout: to the name of a layout; `None` if only the dtype changes.
    """

    affine: Callable[[Affine], Affine]
    array: Apply
    layout: Callable[[Hashable], Hashable] | None = None

    def __call__(self, x: Any) -> Any:
        """A field of a factor."""
        if isinstance(x, tuple):
            return tuple(map(self, x))
        if isinstance(x, Affine):
            return self.affine(x)
        return self.array(x) if hasattr(x, "shape") else x


class Factor:
    """A random array of which the expectation is known. What it has no rule for raises `NoRuleError`, or is `None`.

    Attributes:
        mean: the expectation.
        raw: itself by means and covariances, if these are known.
    """

    mean: Array
    raw: Affine | None = None

    @property
    def fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @property
    def made_of(self) -> list[Any]:
        """The arrays and affine functions of which it is made."""
        own = (x if isinstance(x, tuple) else (x,) for x in self.fields.values())
        return [x for of in own for x in of if hasattr(x, "shape")]

    @property
    def sites(self) -> frozenset[SiteKey]:
        return frozenset[SiteKey]().union(*(a.sites for a in self.made_of))

    @property
    def shape(self) -> tuple[int, ...]:
        return broadcast([tuple(a.shape) for a in self.made_of])

    @property
    def like(self) -> Array:
        """An array of its dtype, on its device."""
        first = self.made_of[0]
        return first.mean if isinstance(first, Affine) else first

    def as_gaussian(self) -> Gaussian | None:
        """Itself as a function of Gaussian values."""
        return None

    def changed(self, change: Change) -> Factor:
        """Laid out anew, or of another dtype."""
        return type(self)(**{name: change(x) for name, x in self.fields.items()})

    def scaled(self, constant: Any) -> Factor | None:
        """Times a constant."""
        return None

    def times(self, other: Factor) -> Factor | None:
        """The product with another function of the same sites."""
        return None

    def to(self, p: float) -> Factor | None:
        """To a power; `None` if the square is the product with itself."""
        if not self.sites:
            return Known(self.mean**p)
        if p != 2 or isinstance(self, Known):
            raise NoRuleError("a power of what is an expectation already")
        return None

    def log(self) -> Factor:
        if self.sites:
            raise NoRuleError("the logarithm of what is no product of positive sites")
        return Known(array_namespace(self.mean).log(self.mean))

    def abs(self) -> Factor:
        if self.sites:
            raise NoRuleError("the absolute value of what may be negative")
        return Known(array_namespace(self.mean).abs(self.mean))

    def stopped(self, fn: Apply) -> Factor:
        """Without gradient."""
        raise NoRuleError("a random value whose gradient is stopped")


@dataclass(frozen=True, eq=False)
class Known(Factor):
    """An array of which no more than the expectation is kept, or a constant if it depends on no site."""

    mean: Array
    sites: frozenset[SiteKey] = frozenset()

    @property
    def raw(self) -> Affine | None:
        return None if self.sites else Affine.constant(self.mean)

    def scaled(self, constant: Any) -> Known:
        return Known(self.mean * constant, self.sites)

    def stopped(self, fn: Apply) -> Known:
        return Known(fn(self.mean), self.sites)


@dataclass(frozen=True, eq=False)
class Linear(Factor):
    """An affine function of noises and of their products."""

    raw: Affine

    @property
    def mean(self) -> Array:
        return self.raw.mean

    def as_gaussian(self) -> Gaussian | None:
        return Gaussian((self.raw,)) if self.raw.is_gaussian else None

    def scaled(self, constant: Any) -> Linear:
        return Linear(self.raw.scaled(constant))

    def to(self, p: float) -> Factor | None:
        affine = self.raw
        if not affine.sites or p == 2:
            return super().to(p)
        if not affine.is_gaussian or p != int(p) or p < 0:
            raise NoRuleError(f"a power of {p:g} of a value of which mean and variance are known")
        variance, n = variance_of(affine), int(p)
        total = affine.mean**n
        for k in range(1, n // 2 + 1):
            count = math.comb(n, 2 * k) * math.prod(range(1, 2 * k, 2))
            total = total + count * affine.mean ** (n - 2 * k) * variance**k
        return Known(total, affine.sites)


@dataclass(frozen=True, eq=False)
class Gaussian(Factor):
    """Gaussian values, the product of two such, or none, times the exponential of Gaussian values.

    Attributes:
        values: at most two arrays.
        exponent: of the exponential; `None` if there is none.
        raw: the exponential alone by mean and variance, if its elements are independent.
    """

    values: tuple[Affine, ...]
    exponent: Affine | None = None
    raw: Affine | None = None

    @classmethod
    def exponential(cls, exponent: Affine) -> Gaussian:
        site, raw = exponent.site_of_elements, None
        if site is not None:
            xp = array_namespace(exponent.mean)
            variance = variance_of(exponent)
            mean = xp.exp(exponent.mean + variance / 2)
            raw = Affine.around(mean, Noise(site, mean**2 * xp.expm1(variance)))
        return cls((), exponent, raw)

    @cached_property
    def mean(self) -> Array:
        if self.exponent is None:
            return product_mean(*self.values)
        tilt, xp = centred(self.exponent), array_namespace(self.exponent.mean)
        total = xp.exp(self.exponent.mean + variance_of(self.exponent) / 2)
        means = [a.mean + product_mean(centred(a), tilt) for a in self.values]
        if len(means) == 2:
            return (means[0] * means[1] + product_mean(*map(centred, self.values))) * total
        return math.prod(means, start=total)

    def as_gaussian(self) -> Gaussian:
        return self

    def times(self, other: Factor) -> Gaussian | None:
        theirs = other.as_gaussian()
        if theirs is None:
            return None
        values = (*self.values, *theirs.values)
        if len(values) > 2:
            raise NoRuleError("a product of more than two functions of the same site")
        exponents = [e for e in (self.exponent, theirs.exponent) if e is not None]
        exponent = functools.reduce(Affine.plus, exponents) if exponents else None
        if values or exponent is None:
            return Gaussian(values, exponent)
        return Gaussian.exponential(exponent)

    def to(self, p: float) -> Factor | None:
        if self.values or self.exponent is None:
            return super().to(p)
        return Gaussian.exponential(self.exponent.scaled(p))

    def log(self) -> Factor:
        return super().log() if self.values or self.exponent is None else Linear(self.exponent)

    def abs(self) -> Factor:
        return super().abs() if self.values else self


@dataclass(frozen=True, eq=False)
class Power(Factor):
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

    def changed(self, change: Change) -> Factor:
        layout = self.layout if change.layout is None else change.layout(self.layout)
        own = {name: change(x) for name, x in self.fields.items()}
        return Power(**{**own, "layout": layout})

    def times(self, other: Factor) -> Power | None:
        if not isinstance(other, Power) or self.layout != other.layout:
            return None
        return self.expanded(broadcast([self.shape, other.shape]))._to(
            self.exponent + other.exponent
        )

    def to(self, p: float) -> Power:
        return self._to(self.exponent * p)

    def _to(self, p: float) -> Power:
        """The elements to another power."""
        raw = None
        if self.raw is not None and self.raw.site_of_elements is not None:
            mean = self.moment(p)
            raw = Affine.around(mean, Noise(self.site, self.moment(2 * p) - mean**2))
        return replace(self, exponent=p, raw=raw)

    def log(self) -> Known:
        (a, b), digamma = self.params, self.library.digamma
        shift = array_namespace(b).log(b) if self.family == "gamma" else digamma(a + b)
        return Known(self.exponent * (digamma(a) - shift), self.sites)

    def abs(self) -> Power:
        return self


@dataclass(frozen=True, eq=False)
class Discrete(Factor):
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
    def made_of(self) -> list[Affine]:
        return [*self.indicators]

    @classmethod
    def of_truth(cls, is_true: Affine) -> Discrete:
        xp = array_namespace(is_true.mean)
        one = xp.ones((), dtype=is_true.mean.dtype, device=device(is_true.mean))
        return cls((0, 1), (is_true.scaled(-1.0).plus(Affine.constant(one)), is_true))

    @cached_property
    def raw(self) -> Affine:
        return self.indicators[1] if self.values == (0, 1) else self.weighted(self.values)

    @property
    def mean(self) -> Array:
        return self.raw.mean

    def changed(self, change: Change) -> Factor:
        if change.layout is None:
            return Linear(change.affine(self.raw))
        return Discrete(self.values, tuple(map(change.affine, self.indicators)))

    def weighted(self, weights: Sequence[Any]) -> Affine:
        """What takes, with each value, that value's weight: a number or an array."""
        pairs = zip(self.indicators, weights, strict=True)
        return functools.reduce(Affine.plus, (i.scaled(w) for i, w in pairs))

    def along_last(self) -> Affine:
        """The indicators along one more dim, the last."""
        if self.one_hot is not None:
            return self.one_hot
        shape = self.shape
        raised = [i.placed(range(len(shape)), (*shape, 1)) for i in self.indicators]
        return Affine.concatenated(raised, -1)


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
        return self.factors[0].like

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
        known = [f.raw for f in self.factors if f.raw is not None]
        return functools.reduce(Affine.times, known) if len(known) == len(self.factors) else None


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    ndim = max(map(len, shapes))
    return tuple(map(max, zip(*((1,) * (ndim - len(s)) + s for s in shapes), strict=True)))


def centred(affine: Affine) -> Affine:
    return Affine({**affine.parts, (): Part(affine.mean * 0.0)})


def variance_of(affine: Affine) -> Array:
    noise = centred(affine)
    return product_mean(noise, noise)


def value_of(affine: Affine) -> Value:
    return Value((Linear(affine),))


def as_value(x: Any, like: Value) -> Value:
    """A constant as a value."""
    if isinstance(x, Value):
        return x
    if not hasattr(x, "shape"):
        mean = like.like
        x = array_namespace(mean).full((), x, dtype=mean.dtype, device=device(mean))
    return Value((Known(x),))


def both(x: Any, y: Any) -> tuple[Value, Value]:
    like = x if isinstance(x, Value) else y
    return as_value(x, like), as_value(y, like)


def value_of_site(kind: str, arrays: Sequence[Any], site: SiteKey, library: Library) -> Value:
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
        return Value((Discrete.of_truth(is_true),))
    return value_of(Affine.around(first, Noise(site, last)))


def _moved_by(loc: Any, noise: Affine) -> Value:
    mean = loc.affine if isinstance(loc, Value) else Affine.constant(loc)
    if mean is None:
        raise NoRuleError("a draw whose loc is no affine function of random values")
    return value_of(mean.plus(noise))


def _chosen(one_hot: Affine) -> Discrete:
    *shape, num = one_hot.shape
    before = (slice(None),) * len(shape)
    indicators = [
        one_hot.sliced((*before, slice(k, k + 1))).squeezed((len(shape),)) for k in range(num)
    ]
    return Discrete(tuple(range(num)), tuple(indicators), one_hot)
