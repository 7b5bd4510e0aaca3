"""Distributions of any library in the words that estimators use."""

from __future__ import annotations

import copy
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from vi_kit.base.named import Array
from vi_kit.base.protocols import Elementary, Mixture, Moments, Push
from vi_kit.base.supports import Wrappers, edges, has_arrays, is_a

PARAMS = {
    "Bernoulli": ("probs",),
    "Categorical": ("probs",),
    "OneHotCategorical": ("probs",),
    "Binomial": ("probs", "total_count"),
    "Poisson": ("rate",),
    "Geometric": ("probs",),
    "NegativeBinomial": ("probs", "total_count"),
    "Normal": ("loc", "scale"),
    "Laplace": ("loc", "scale"),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Chi2": ("concentration", "rate"),
    "Weibull": ("scale", "concentration"),
    "Beta": ("concentration1", "concentration0"),
    "Uniform": ("low", "high"),
    "Dirichlet": ("concentration",),
    "StudentT": ("df", "loc", "scale"),
    "VonMises": ("loc", "concentration"),
    "LeftTruncatedNormal": ("loc", "scale", "low"),
    "RightTruncatedNormal": ("loc", "scale", "high"),
}

KINDS = {
    "Normal": ("normal", ("loc", "scale")),
    "Gamma": ("gamma", ("concentration", "rate")),
    "Chi2": ("gamma", ("concentration", "rate")),
    "Beta": ("beta", ("concentration1", "concentration0")),
    "Dirichlet": ("dirichlet", ("concentration",)),
    "OneHotCategorical": ("one_hot", ("probs",)),
    "Categorical": ("categorical", ("probs",)),
    "Bernoulli": ("bernoulli", ("probs",)),
}
"""Families of whose values more is known than mean and variance, and by which parameters."""

OPEN = ("AffineTransform", "ExpTransform", "IdentityTransform", "PowerTransform")
"""Transforms through which moments go."""

KEEP_KIND = (
    "AffineTransform",
    "IdentityTransform",
    "Permute",
    "PermuteTransform",
    "ReshapeTransform",
)
"""Transforms that leave a bounded set bounded, a half-line a half-line, and the whole space whole. Their codomain
says less: it is the whole space."""

OF_VECTORS = ("Categorical", "OneHotCategorical", "Dirichlet")
"""Families whose parameter has one more dim than their elements have, or as many as vectors have."""


class DistributionView(ABC):
    """A library's distribution; implements `vi_kit.base.protocols.Distribution`.

    Args:
        fn: the distribution. Masks around it and in it are dropped: they change the density, not the draw.

    Attributes:
        given: the distribution, with its masks.
        fn: without them.
        mask: what was dropped around it, `True` if nothing was.
        hides_elements: whether a mask was dropped in it, which leaves out a part of its density.
    """

    wrappers: ClassVar[Wrappers]

    def __init__(self, fn: Any):
        self.given = fn
        self.fn, self.mask, self.hides_elements = self._unmasked(fn)
        fn = base = self.fn
        while is_a(type(base), self.wrappers.laying_out):
            base = base.base_dist
        self.name = _family(base)
        self.batch_shape: tuple[int, ...] = tuple(fn.batch_shape)
        self.event_shape: tuple[int, ...] = tuple(fn.event_shape)
        self.has_partial_rsample = self.is_partial(base)
        self.is_straight_through = self.rounds(base)
        whole = not self.has_partial_rsample and not self.is_straight_through
        self.has_rsample = whole and bool(fn.has_rsample)

    def _unmasked(self, fn: Any) -> tuple[Any, Any, bool]:
        """A distribution without its masks; what they multiply its density by; whether some hide parts of it."""
        if not hasattr(fn, "base_dist"):
            return fn, True, False
        w = self.wrappers
        base, mask, hides = self._unmasked(fn.base_dist)
        if is_a(type(fn), w.masked):
            return base, fn._mask & mask, hides
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
        if mask is True or is_a(type(fn), w.expanded):
            return fn, mask, hides
        return fn, True, True

    @abstractmethod
    def sample(self) -> Array: ...

    @abstractmethod
    def rsample(self) -> Array: ...

    def is_partial(self, fn: Any) -> bool:
        """Whether the path through a distribution's own sampler is not all of its gradient."""
        del fn
        return False

    def rounds(self, fn: Any) -> bool:
        """Whether a distribution's own sampler rounds, and passes on the gradient of what it rounded."""
        del fn
        return False

    def shown(self, value: Array) -> Array:
        """What a program sees of a value that was drawn."""
        return value

    def partial_rsample(self) -> tuple[Array, Array]:
        raise NotImplementedError(f"{self.name} has no such sampler")

    @abstractmethod
    def sample_elements(self, fn: Any) -> Array:
        """Draw without gradient from one of the library's own distributions."""

    @abstractmethod
    def as_drawn(self, fn: Any, value: Array) -> Array:
        """A value in the dtype of what one draws from one of the library's own distributions."""

    @abstractmethod
    def parts_of_mixture(self, fn: Any) -> tuple[Array, Any]:
        """The log weights of one of the library's mixtures, and its components."""

    @abstractmethod
    def is_by_probs(self, fn: Any) -> bool:
        """Whether one of the library's distributions was given probabilities, where it takes these or logits."""

    @abstractmethod
    def is_discrete(self, fn: Any) -> bool:
        """Whether one of the library's distributions is."""

    @abstractmethod
    def as_array(self, value: Any) -> Array:
        """A parameter as an array of the library, if it is a Python number."""

    @abstractmethod
    def covers(self, other: Any, value: Array) -> bool:
        """Whether the values of `other`, of which `value` is one, lie in this support."""

    def contains(self, value: Array) -> Array | None:
        """Whether values lie in the support; `None` where nobody can say."""
        support = self.support_of(self.fn)
        try:
            return None if support is None else getattr(support, "check", support)(value)
        except (
            NotImplementedError,
            ValueError,
        ):  # as of a constraint that depends on what is not there
            return None

    @staticmethod
    def support_of(fn: Any) -> Any:
        """The constraint on values of a library's distribution; `None` if it does not say."""
        try:
            return fn.support
        except NotImplementedError:
            return None

    def open_ends(self) -> int | None:
        """At how many ends the support is without bound: 0 to 2; `None` if it has no ends."""
        w, fn, transforms = self.wrappers, self.fn, ()
        while isinstance(fn, w.independent | w.expanded | w.transformed):
            if isinstance(fn, w.transformed):
                transforms = (*_parts(fn.transforms), *transforms)
            fn = fn.base_dist
        while transforms and type(transforms[-1]).__name__ in KEEP_KIND:
            transforms = transforms[:-1]
        support = transforms[-1].codomain if transforms else self.support_of(fn)
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if self.is_real(support):
            return 2
        bounds = [hasattr(support, name) for name in ("lower_bound", "upper_bound")]
        return 2 - sum(bounds) if any(bounds) else None

    def reaches_beyond(self, other: DistributionView) -> bool:
        """Whether this support has more open ends than that of another distribution, so that it cannot lie in it."""
        if self.support_of(other.fn) is None:
            return False
        own, theirs = self.open_ends(), other.open_ends()
        if own == 2 and theirs is None:
            return True
        return own is not None and theirs is not None and own > theirs

    @abstractmethod
    def is_real(self, support: Any) -> bool:
        """Whether one of the library's constraints is none."""

    @abstractmethod
    def map_to(self, support: Any) -> Any:
        """The library's map from all of a space to what one of its constraints allows."""

    def coordinates(self) -> Any | None:
        support = inner = self.fn.support
        while hasattr(inner, "base_constraint"):
            inner = inner.base_constraint
        if not self.is_real(inner):
            return self.map_to(support)
        if self.open_ends() == 2:
            return None
        raise NotImplementedError(f"{self.name} does not say what its support is")

    @property
    def support_name(self) -> str:
        return str(self.fn.support)

    def support_edges(self) -> list[Array]:
        return edges(self.fn, self.wrappers)

    def log_prob(self, value: Array) -> Array:
        return self.fn.log_prob(value)

    def support_size(self) -> int | None:
        if self._listed is None:
            return None
        _, event_ndim, _ = self._elements()
        return self._listed.shape[0] ** math.prod(self.event_shape[:event_ndim])

    def support(self) -> Array:
        fn, event_ndim, _ = self._elements()
        values = self._listed
        assert values is not None
        shape = self.event_shape[:event_ndim]
        count, size = math.prod(shape), values.shape[0]
        if event_ndim == 0:
            return values
        return values[_digits(size, count, values)].reshape(size**count, *shape, *fn.event_shape)

    @cached_property
    def _listed(self) -> Array | None:
        """The values of each element, if they can be counted off."""
        fn, _, transforms = self._elements()
        values = None if transforms or not fn.has_enumerate_support else self._values(fn)
        return None if values is None else values.reshape(values.shape[0], *fn.event_shape)

    @property
    def is_continuous(self) -> bool:
        return not self.is_discrete(self.fn)

    def one_of_many(self, number: Any, far: Callable[[], Array]) -> Array:
        """A value like others, which have other numbers: of the first ones all elements are the same, if the support is
        known.

        Args:
            number: of the value.
            far: makes a continuous one.
        """
        if not self.is_discrete(self.fn):
            return far()
        value, listed = self.sample(), self._listed
        if listed is None:
            return value
        xp = array_namespace(value)
        listed, number = xp.asarray(listed, dtype=value.dtype), xp.asarray(number)
        for i, same in enumerate((listed[0], listed[-1], *listed[1:2])[: listed.shape[0]]):
            value = xp.where(number == i, same, value)
        return value

    def support_probs(self) -> Array | None:
        elements = self.elementary()
        if elements is None or not elements.by_probs or self._elements()[2]:
            return None
        if elements.family not in ("Bernoulli", "Binomial", "Categorical"):
            return None
        probs = elements.params["probs"]
        xp = array_namespace(probs)
        if elements.family == "Bernoulli":
            probs = xp.stack([1.0 - probs, probs], axis=0)
        elif elements.family == "Binomial":
            values = self._values(self._elements()[0])
            if values is None:
                return None
            probs = _binomial(probs, values.shape[0] - 1)
        else:
            probs = xp.moveaxis(probs, -1, 0)
        if elements.event_ndim == 0:
            return probs
        count = math.prod(self.event_shape[: elements.event_ndim])
        probs = xp.reshape(probs, (probs.shape[0], *self.batch_shape, count))
        digits = _digits(probs.shape[0], count, probs)
        return math.prod(probs[digits[:, i]][..., i] for i in range(count))

    def _values(self, fn: Any) -> Array | None:
        """The values of one element, as many as dim 0 is long."""
        try:
            return fn.enumerate_support(expand=False)
        except (NotImplementedError, TypeError):
            return None

    def elementary(self, params: tuple[str, ...] = ()) -> Elementary | None:
        fn, event_ndim, transforms = self._elements(params)
        family = self.family(fn)
        names = params or PARAMS.get(family)
        if names is None or (params and not _has_scalars(fn, params)):
            return None
        one_hot = family == "OneHotCategorical"
        shape = tuple(self.fn.batch_shape) + self.event_shape
        shape = shape[:-1] if fn.event_shape else shape
        live = {}
        for name in names:
            value = self._param(fn, name)
            full = (*shape, value.shape[-1]) if family in OF_VECTORS else shape
            if tuple(value.shape) != full:
                value = array_namespace(value).broadcast_to(value, full)
            live[name] = value
        elements = fn if tuple(fn.batch_shape) == shape else fn.expand(shape)

        def sample() -> Array:
            value = self.sample_elements(elements)
            return value.argmax(-1) if one_hot else value

        def push(value: Array) -> Array:
            if one_hot:
                probs = live["probs"]
                xp = array_namespace(probs)
                categories = xp.arange(probs.shape[-1], device=device(probs))
                return xp.astype(value[..., None] == categories, probs.dtype)
            value = self.as_drawn(elements, value)
            for transform in transforms:
                value = transform(value)
            return value

        family = "Categorical" if one_hot else family
        has_params = any(has_arrays(transform) for transform in transforms)
        by_probs = "probs" in live and self.is_by_probs(fn)
        return Elementary(
            family, live, event_ndim, sample, elements.log_prob, push, has_params, by_probs
        )

    def family(self, fn: Any) -> str:
        """The name under which a distribution's parameters are known."""
        return _family(fn)

    def mixture(self) -> Mixture | None:
        w, fn = self.wrappers, self.fn
        while isinstance(fn, w.independent | w.expanded):
            fn = fn.base_dist
        if not isinstance(fn, w.mixture):
            return None
        weights, components = self.parts_of_mixture(fn)
        event_ndim, leaf = len(components.event_shape), components
        while isinstance(leaf, w.independent | w.expanded):
            leaf = leaf.base_dist

        def reason_against() -> str | None:
            if event_ndim > 1 or leaf.event_shape:
                return "needs components whose elements are independent, with at most one event dim"
            if self.is_discrete(leaf):
                return f"needs continuous components; {_family(leaf)} is discrete"
            try:
                leaf.cdf(self.sample_elements(leaf))
            except NotImplementedError:
                return f"needs the distribution function of {_family(leaf)}, which has none"
            return None

        def along(value: Array) -> Array:
            value = value[..., None, :]
            return value if event_ndim else value[..., 0]

        def apart(values: Array) -> Array:
            return values if event_ndim else values[..., None]

        return Mixture(
            weights,
            event_ndim,
            lambda value: apart(leaf.cdf(along(value))),
            lambda value: apart(leaf.log_prob(along(value))),
            reason_against,
        )

    def gaussian(self) -> tuple[Array, Array, Push] | None:
        fn, event_ndim, transforms = self._elements()
        if _family(fn) != "MultivariateNormal" or len(self.event_shape) != 1 or event_ndim:
            return None
        shape = (*self.batch_shape, *self.event_shape)
        xp = array_namespace(fn.loc)
        loc = xp.broadcast_to(fn.loc, shape)
        scale_tril = xp.broadcast_to(fn.scale_tril, (*shape, shape[-1]))

        def push(value: Array) -> Array:
            for transform in transforms:
                value = transform(value)
            return value

        return loc, scale_tril, push

    def moments(self) -> Moments | None:
        """What is known of its values; `None` if mean and variance are not."""
        fn, _, transforms = self._elements()

        def push(value: Array) -> Array:
            for transform in transforms:
                value = transform(value)
            return value

        family = self.family(fn)
        if all(type(t).__name__ in OPEN for t in transforms):
            if family == "LowRankMultivariateNormal":
                return Moments("gaussian", (fn.loc, fn.scale_tril), push)
            gaussian = self.gaussian()
            if gaussian is not None:
                return Moments("gaussian", gaussian[:2], push)
            elements = self.elementary() if family in KINDS else None
            if elements is not None:
                kind, names = KINDS[family]
                params = elements.params
                return Moments(kind, tuple(params[name] for name in names), push)
        if family == "OrderedLogistic":
            xp, shape = array_namespace(fn.probs), (*self.batch_shape, *self.event_shape)
            probs = xp.broadcast_to(fn.probs, (*shape, fn.probs.shape[-1]))
            return Moments("categorical", (probs,), push)
        unlimited = "Cauchy", "HalfCauchy", "Levy", "VonMises", "Delta", "Unit"
        if fn.event_shape or _family(getattr(fn, "base_dist", fn)) in unlimited:
            return None
        try:
            moments = self.fn.mean, self.fn.variance
        except NotImplementedError:
            return None
        return Moments("moments", moments, lambda value: value, self.is_discrete(self.fn))

    def mean_log_prob(self, drawn: Any, is_own: bool) -> Array | None:
        """The expectation of the log density of values drawn from another distribution (nats), if it is in the
        library's registry.

        Args:
            drawn: the view of the distribution from which they are drawn.
            is_own: whether that is this one.
        """
        try:
            entropy = drawn.entropy()
            return -entropy if is_own else -(self.divergence_from(drawn.fn) + entropy)
        except NotImplementedError:
            return None

    def entropy(self) -> Array:
        """In nats, if the library has it."""
        return self.fn.entropy()

    @abstractmethod
    def divergence_from(self, drawn: Any) -> Array:
        """The Kullback-Leibler divergence to this from another of the library's distributions (nats)."""

    @abstractmethod
    def arrays(self) -> list[Array]:
        """All the arrays of which it is made."""

    def _param(self, fn: Any, name: str) -> Array:
        if name == "probs" and type(fn).__name__ == "NegativeBinomialLogits":  # NumPyro's has none
            logits = self.as_array(fn.logits)
            xp = array_namespace(logits)
            return xp.exp(-xp.logaddexp(xp.zeros_like(logits), -logits))
        return self.as_array(getattr(fn, name))

    def _elements(self, params: tuple[str, ...] = ()) -> tuple[Any, int, tuple[Any, ...]]:
        """What lies below `Independent` and elementwise transforms, and how many dims they reinterpret.
        What has the parameters is not opened."""
        w, fn, event_ndim, transforms = self.wrappers, self.fn, 0, ()
        while True:
            if isinstance(fn, w.independent):
                event_ndim += fn.reinterpreted_batch_ndims
            elif isinstance(fn, w.transformed):
                if _family(fn) in PARAMS:  # Pyro's Weibull, an Exponential to a power
                    break
                if params and _has_scalars(fn, params):
                    break
                if any(t.domain.event_dim or t.codomain.event_dim for t in fn.transforms):
                    break
                event_ndim += len(fn.event_shape) - len(fn.base_dist.event_shape)
                transforms = (*fn.transforms, *transforms)
            elif not isinstance(fn, w.expanded):
                break
            fn = fn.base_dist
        return fn, event_ndim, transforms


OF_TRANSFORMS = ("_inv", "_cached_x_y")
"""Attributes that are none of the arrays which a transform is made of: its inverse, and what it was last asked."""


def has_array(fn: Any, made_of: tuple[type, ...], kinds: Collection[Any]) -> bool:
    """Whether a distribution has an array of one of some dtypes, in it or in what it is made of."""
    left, met = [fn] if isinstance(fn, made_of) else [], set()
    while left:
        one = left.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        for name, part in vars(one).items():
            if getattr(part, "dtype", None) in kinds:
                return True
            if isinstance(part, made_of):
                left += [part] * (name not in OF_TRANSFORMS)
            elif type(part) in (list, tuple):
                left += [inner for inner in part if isinstance(inner, made_of)]
    return False


def with_arrays(fn: Any, made_of: tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """A distribution with what `change` makes of the arrays in it and in what it is made of; itself, if that is none
    but themselves.

    Args:
        made_of: the classes of what is looked into.
        change: is asked for everything else.
    """
    if isinstance(fn, list | tuple):
        parts = [with_arrays(part, made_of, change) for part in fn]
        return fn if all(map(operator.is_, parts, fn)) else type(fn)(parts)
    if not isinstance(fn, made_of):
        return change(fn)
    own = {name: part for name, part in vars(fn).items() if name not in OF_TRANSFORMS}
    made = {name: with_arrays(part, made_of, change) for name, part in own.items()}
    changed = {name: part for name, part in made.items() if part is not vars(fn)[name]}
    if not changed:
        return fn
    fn = copy.copy(fn)
    vars(fn).update(changed)
    return fn


def with_leaf(fn: Any, leaf: Callable[[Any], Any], **attributes: Any) -> Any:
    """A copy of a library's distribution, with another one (made of a copy) below all its wrappers, and with
    attributes set on all of them."""
    fn = copy.copy(fn)
    for name, value in attributes.items():
        setattr(fn, name, value)
    if not hasattr(fn, "base_dist"):
        return leaf(fn)
    fn.base_dist = with_leaf(fn.base_dist, leaf, **attributes)
    return fn


def without_validation(fn: Any, leaf: Callable[[Any], Any] = lambda fn: fn) -> Any:
    """A copy of a distribution that evaluates values outside its support too."""
    return with_leaf(fn, leaf, _validate_args=False)


def _binomial(p: Array, n: int) -> Array:
    """The probabilities of 0 to n successes, in front, with their derivatives where p is zero or one too."""
    xp = array_namespace(p)
    is_end = (p == 0.0) | (p == 1.0)
    inner = xp.where(is_end, xp.full_like(p, 0.5), p)
    log_p, log_q = xp.log(inner), xp.log1p(-inner)
    zero = xp.zeros_like(p)
    found = []
    for k in range(n + 1):
        within = xp.exp(math.log(math.comb(n, k)) + k * log_p + (n - k) * log_q)
        at_zero = {0: 1.0 - n * p, 1: n * p}.get(k, zero)
        at_one = {n: 1.0 - n * (1.0 - p), n - 1: n * (1.0 - p)}.get(k, zero)
        found.append(xp.where(is_end, xp.where(p == 0.0, at_zero, at_one), within))
    return xp.stack(found, axis=0)


def _digits(size: int, count: int, like: Array) -> Array:
    """All joint values of so many elements, in the order of a support: shape `(size**count, count)`."""
    xp, on = array_namespace(like), device(like)
    powers = size ** xp.arange(count, device=on)
    return xp.arange(size**count, device=on)[:, None] // powers % size


def _has_scalars(fn: Any, params: tuple[str, ...]) -> bool:
    """Whether a distribution has these parameters, and no event dims."""
    return not fn.event_shape and all(hasattr(fn, name) for name in params)


def _parts(transforms: Any) -> tuple[Any, ...]:
    """Transforms one after the other, those of compositions apart and without the dims that they reinterpret."""
    parts = []
    for t in transforms:
        name = type(t).__name__
        if name == "ComposeTransform":
            parts += _parts(t.parts)
        elif name == "IndependentTransform":
            parts += _parts([t.base_transform])
        else:
            parts.append(t)
    return tuple(parts)


def _family(fn: Any) -> str:
    """Class name without the parametrisation."""
    return type(fn).__name__.removesuffix("Probs").removesuffix("Logits")
