"""Affine functions of random values, by their exact means and covariances.

An `Affine` is an array, each element of which is a mean plus a weighted sum of centred, uncorrelated noises
(`vi_kit.analysis.parts`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from vi_kit.analysis.parts import (
    Key,
    Noise,
    NoRuleError,
    Part,
    SiteKey,
    added,
    covariance,
    einsum,
    product,
    reshaped,
)
from vi_kit.base.named import Array


@dataclass(frozen=True, eq=False)
class Affine:
    """An array of affine functions of noises.

    Attributes:
        parts: by noise, each with all dims of the array; that of `()` is the mean, at full size.
    """

    parts: Mapping[Key, Part]

    @classmethod
    def constant(cls, mean: Array) -> Affine:
        return cls({(): Part(mean)})

    @classmethod
    def centred(cls, noise: Noise) -> Affine:
        """The noise itself."""
        variance, ndim = noise.variance, noise.variance.ndim
        xp = array_namespace(variance)
        one = xp.ones((1,) * ndim, dtype=variance.dtype, device=device(variance))
        indices = tuple(None if n == 1 else d - ndim for d, n in enumerate(variance.shape))
        return cls({(): Part(xp.zeros_like(variance)), (noise,): Part(one, (indices,))})

    @classmethod
    def around(cls, mean: Array, noise: Noise) -> Affine:
        """Elements of which means and variances are known."""
        return cls({**cls.centred(noise).parts, (): Part(mean)})

    @property
    def mean(self) -> Array:
        return self.parts[()].weights

    @property
    def site_of_elements(self) -> SiteKey | None:
        """The one site on which it depends, each element on one of the site's that no other depends on; `None` if it is
        no such array."""
        if len(self.noises) != 1:
            return None
        ((key, part),) = self.noises.items()
        if len(key) != 1 or part.num_own or key[0].shared is not None:
            return None
        long = {d - len(self.shape) for d, n in enumerate(self.shape) if n > 1}
        return key[0].site if long == part.along else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def noises(self) -> dict[Key, Part]:
        return {key: part for key, part in self.parts.items() if key}

    @property
    def sites(self) -> frozenset[SiteKey]:
        return frozenset(noise.site for key in self.parts for noise in key)

    @property
    def by_site(self) -> dict[SiteKey, Noise]:
        return {noise.site: noise for key in self.parts for noise in key}

    @property
    def is_gaussian(self) -> bool:
        return all(len(key) == 1 and key[0].is_gaussian for key in self.noises)

    def map(self, fn: Callable[[Key, Part], Part]) -> Affine:
        return Affine({key: fn(key, part) for key, part in self.parts.items()})

    # Elementwise

    def padded(self, ndim: int) -> Affine:
        if len(self.shape) >= ndim:
            return self
        return self.map(lambda _, part: part.padded(ndim))

    def scaled(self, factor: Any) -> Affine:
        """Times a constant, which broadcasts."""
        padded = self.padded(len(getattr(factor, "shape", ())))
        return padded.map(lambda _, part: replace(part, weights=part.weights * factor))

    def plus(self, other: Affine) -> Affine:
        _check_same(self, other)
        ndim = max(len(self.shape), len(other.shape))
        mine, theirs = self.padded(ndim), other.padded(ndim)
        parts = {**theirs.parts, **mine.parts}
        for key in mine.parts.keys() & theirs.parts.keys():
            parts[key] = added(key, mine.parts[key], theirs.parts[key])
        return Affine(parts)

    def masked(self, mask: Array, value: float = 0.0) -> Affine:
        """Itself where a mask is true, a constant where it is not."""
        padded, xp = self.padded(mask.ndim), array_namespace(mask)

        def kept(key: Key, part: Part) -> Part:
            other = xp.full_like(part.weights, 0.0 if key else value)
            return replace(part, weights=xp.where(mask, part.weights, other))

        return padded.map(kept)

    def times(self, other: Affine) -> Affine:
        """The product with an array that is independent of this one."""
        names = [range(-len(x.shape), 0) for x in (self, other)]
        return self.einsum(other, (names[0], names[1]), max(names, key=len))

    # Layout

    def placed(self, positions: Sequence[int], shape: Sequence[int]) -> Affine:
        """In an array of another shape, into which it broadcasts; dim `i` becomes dim `positions[i]`."""
        ndim, order = len(shape), sorted(range(len(positions)), key=lambda i: positions[i])
        where = {i - len(positions): p - ndim for i, p in enumerate(positions)}

        def part_placed(key: Key, part: Part) -> Part:
            own, dims = part.split()
            weights, n, xp = part.weights, len(own), array_namespace(part.weights)
            if order != list(range(len(order))):
                weights = xp.permute_dims(weights, (*range(n), *(n + i for i in order)))
            new = [1] * ndim
            for i, p in enumerate(positions):
                new[p] = dims[i]
            weights = reshaped(weights, (*own, *new))
            if not key and tuple(weights.shape) != tuple(shape):
                weights = xp.broadcast_to(weights, tuple(shape))
            return part.moved(weights, where)

        return self.map(part_placed)

    def squeezed(self, dims: Iterable[int]) -> Affine:
        """Without some dims (from 0) of size one."""
        ndim = len(self.shape)
        kept = [d for d in range(ndim) if d not in set(dims)]
        where = {d - ndim: i - len(kept) for i, d in enumerate(kept)}

        def part_squeezed(key: Key, part: Part) -> Part:
            own, sizes = part.split()
            return part.moved(reshaped(part.weights, (*own, *(sizes[d] for d in kept))), where)

        return self.map(part_squeezed)

    def reshaped(self, shape: Sequence[int]) -> Affine:
        old, new = self.shape, tuple(shape)
        groups = _groups(old, new)
        where, kept = {}, []
        for of_old, of_new in groups:
            long = [[d for d in ds if s[d] > 1] for ds, s in ((of_old, old), (of_new, new))]
            alike = len(long[0]) == len(long[1]) == 1
            kept.append((long[0][0], long[1][0]) if alike else None)
            if alike:
                where[long[0][0] - len(old)] = long[1][0] - len(new)

        def part_reshaped(key: Key, part: Part) -> Part:
            part = part.freed(key, [d for d in part.along if d not in where])
            own, sizes = part.split()
            full, target = list(sizes), [1] * len(new)
            for (of_old, of_new), pair in zip(groups, kept, strict=True):
                if pair is not None:
                    target[pair[1]] = sizes[pair[0]]
                elif any(sizes[d] > 1 for d in of_old):
                    for d in of_old:
                        full[d] = old[d]
                    for d in of_new:
                        target[d] = new[d]
            weights = part.weights
            if tuple(full) != sizes:
                weights = array_namespace(weights).broadcast_to(weights, (*own, *full))
            return part.moved(reshaped(weights, (*own, *target)), where)

        return self.map(part_reshaped)

    def sliced(self, slices: Sequence[slice]) -> Affine:
        """Indexed by one slice for each dim."""
        ndim = len(self.shape)
        touched = [d - ndim for d, s in enumerate(slices) if s != slice(None)]

        def part_sliced(key: Key, part: Part) -> Part:
            part = part.freed(key, touched)
            own, sizes = part.split()
            index = [
                slice(None) if n == 1 and key else s for n, s in zip(sizes, slices, strict=True)
            ]
            return replace(part, weights=part.weights[(*(slice(None),) * len(own), *index)])

        return self.map(part_sliced)

    @staticmethod
    def concatenated(arrays: Sequence[Affine], axis: int) -> Affine:
        """Along a dim that they have (negative)."""
        sizes = [a.shape[axis] for a in arrays]
        result = None
        for i, array in enumerate(arrays):
            before, after = sum(sizes[:i]), sum(sizes[i + 1 :])

            def among(key: Key, part: Part) -> Part:
                part = part.freed(key, [axis])
                weights, shape = part.weights, list(part.weights.shape)
                xp = array_namespace(weights)
                shape[axis] = sizes[i]  # noqa: B023
                pieces = [xp.broadcast_to(weights, tuple(shape))]
                for size, place in ((before, 0), (after, 2)):  # noqa: B023
                    if size:
                        shape[axis] = size
                        zeros = xp.zeros(tuple(shape), dtype=weights.dtype, device=device(weights))
                        pieces.insert(place, zeros)
                return replace(part, weights=xp.concat(pieces, axis=axis))

            placed = array.map(among)
            result = placed if result is None else result.plus(placed)
        assert result is not None
        return result

    # Linear

    def einsum(
        self, other: Affine, names: tuple[Sequence[Any], Sequence[Any]], out: Sequence[Any]
    ) -> Affine:
        """The product with an independent array, summed over dims.

        Args:
            other: the array.
            names: of the dims of the two; dims of one name run together.
            out: names of the result's dims.
        """
        sizes = _sizes(self, other, names)
        parts = [
            product(a, b, names, out, sizes)
            for a in self.parts.items()
            for b in other.parts.items()
        ]
        return Affine(dict(parts))

    def sum(self, dims: Iterable[int]) -> Affine:
        """Over some dims (from 0)."""
        gone, ndim = set(dims), len(self.shape)
        names = range(ndim)
        xp = array_namespace(self.mean)
        one = xp.ones((), dtype=self.mean.dtype, device=device(self.mean))
        out = [d for d in names if d not in gone]
        return self.einsum(Affine.constant(one), (names, ()), out)

    def linear(
        self,
        apply: Callable[[Array], Array],
        vmap: Callable[[Callable[[Array], Array]], Callable[[Array], Array]],
        where: Mapping[int, int] | None = None,
    ) -> Affine:
        """What a linear function makes of it.

        Args:
            apply: the function.
            vmap: makes it one of arrays with one more dim in front.
            where: dims along which the function acts on each index alone, alike, and where they are in the result; if
                the array has size one there, so has the result.
        """
        where = where or {}
        ndim = len(self.shape)

        def part_of(key: Key, part: Part) -> Part:
            if not key:
                return Part(apply(part.weights))
            part = part.freed(key, [d for d in part.along if d not in where])
            own, sizes = part.split()
            full = [n if d - ndim in where else self.shape[d] for d, n in enumerate(sizes)]
            weights, xp = part.weights, array_namespace(part.weights)
            weights = xp.broadcast_to(weights, (*own, *full))
            flat = vmap(apply)(xp.reshape(weights, (math.prod(own), *full)))
            return part.moved(xp.reshape(flat, (*own, *flat.shape[1:])), where)

        return self.map(part_of)


def _check_same(a: Affine, b: Affine) -> None:
    """Refuse two functions of one site of which the covariance is not known."""
    mine, theirs = a.by_site, b.by_site
    if any(theirs.get(site, noise) is not noise for site, noise in mine.items()):
        raise NoRuleError("two different functions of the same site")


def _sizes(a: Affine, b: Affine, names: tuple[Sequence[Any], Sequence[Any]]) -> dict[Any, int]:
    sizes: dict[Any, int] = {}
    for affine, own in zip((a, b), names, strict=True):
        for name, n in zip(own, affine.shape, strict=True):
            sizes[name] = max(n, sizes.get(name, 1))
    return sizes


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dims of two shapes that hold equally many elements."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        of_old, of_new, sizes = [], [], [1, 1]
        while True:
            if sizes[0] <= sizes[1] and i < len(old):
                sizes[0] *= old[i]
                of_old.append(i)
                i += 1
            elif j < len(new):
                sizes[1] *= new[j]
                of_new.append(j)
                j += 1
            elif i < len(old):
                sizes[0] *= old[i]
                of_old.append(i)
                i += 1
            if sizes[0] == sizes[1] and (of_new or j == len(new)):
                break
        groups.append((of_old, of_new))
    return groups


def mean_of_product(
    a: Affine, b: Affine, names: tuple[Sequence[Any], Sequence[Any]], out: Sequence[Any]
) -> Array:
    """The expectation of a product, summed over dims; see `Affine.einsum`."""
    _check_same(a, b)
    sizes = _sizes(a, b, names)
    means = [(x.mean, own) for x, own in zip((a, b), names, strict=True)]
    total = einsum(means, out)
    for key in a.noises.keys() & b.noises.keys():
        ways = [(False, True) if noise.shared is not None else (False,) for noise in key]
        for way in itertools.product(*ways):
            term = covariance(key, a.parts[key], b.parts[key], names, out, sizes, way)
            total = total - term if sum(way) % 2 else total + term
    return total


def product_mean(a: Affine, b: Affine) -> Array:
    """The expectation of a product, element by element."""
    names = [range(-len(x.shape), 0) for x in (a, b)]
    return mean_of_product(a, b, (names[0], names[1]), max(names, key=len))
