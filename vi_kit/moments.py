"""Affine functions of random values, by their exact means and covariances.

An `Affine` is an array, each element of which is a mean plus a weighted sum of centred, uncorrelated noises. The
weights (`Part.weights`) are kept small: an index of the noise that runs along with a dim of the array takes no room,
and a dim along which all weights are equal has size one. So the value of a site starts with the single weight 1, and
what a linear layer makes of a batch of vectors has the weights of one vector only.

Dims of the array are counted from the right (-1, -2, ...), so that broadcasting on the left changes nothing.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from vi_kit._named import Array


class NoRuleError(Exception):
    """There is no closed form for an operation on random values; the text says why."""


SiteKey = tuple[int, str]
"""The order and the label of a site."""


@dataclass(frozen=True, eq=False)
class Noise:
    """The centred values of the elements of a site.

    Attributes:
        site: tells sites apart: those of two sites are independent.
        variance: of each element.
        shared: if the elements along the last dim are correlated, their covariance is `diag(variance)` minus the outer
            product of this with itself; of the same shape.
        is_gaussian: whether they are Gaussian.
    """

    site: SiteKey
    variance: Array
    shared: Array | None = None
    is_gaussian: bool = False


Key = tuple[Noise, ...]
"""A noise, or the product of the noises of several sites, which is uncorrelated with each of them; `()` for one."""


@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one noise, or of a product of noises, in an array.

    Attributes:
        weights: shape `(*own, *dims)`: first the dims of indices that the noise alone has, then those of the array;
            any of size one if they are equal along it.
        indices: for each dim of each noise where its index is: a dim of the array (negative), one of `own` (from 0), or
            `None` if it has size one.
    """

    weights: Array
    indices: tuple[tuple[int | None, ...], ...] = ()

    @property
    def num_own(self) -> int:
        return 1 + max([-1, *(i for of in self.indices for i in of if i is not None)])

    @property
    def along(self) -> set[int]:
        """The dims of the array along which an index of the noise runs."""
        return {i for of in self.indices for i in of if i is not None and i < 0}

    def moved(self, weights: Array, where: Mapping[int, int]) -> Part:
        """With other weights, and indices elsewhere."""
        indices = tuple(
            tuple(None if i is None else where.get(i, i) for i in of) for of in self.indices
        )
        return Part(weights, indices)

    def size(self, key: Key, index: int) -> int:
        """How many values an index of the noise takes."""
        for noise, of in zip(key, self.indices, strict=True):
            for i, n in zip(of, noise.variance.shape, strict=True):
                if i == index:
                    return n
        raise KeyError(index)

    def split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape, n = tuple(self.weights.shape), self.num_own
        return shape[:n], shape[n:]

    def padded(self, ndim: int) -> Part:
        """As part of an array with more dims on the left."""
        own, dims = self.split()
        if len(dims) >= ndim:
            return self
        shape = (*own, *(1,) * (ndim - len(dims)), *dims)
        return Part(_reshape(self.weights, shape), self.indices)

    def freed(self, key: Key, dims: Iterable[int]) -> Part:
        """With none of the dims tied to an index of the noise."""
        part = self
        for d in sorted(part.along & set(dims)):
            n, own = part.size(key, d), part.num_own
            xp = array_namespace(part.weights)
            before, after = part.split()
            ones = [1] * len(after)
            ones[d] = n
            eye = xp.eye(n, dtype=part.weights.dtype, device=device(part.weights))
            eye = _reshape(eye, (*(1,) * own, n, *ones))
            weights = _reshape(part.weights, (*before, 1, *after)) * eye
            part = part.moved(weights, {d: own})
        return part


def _reshape(array: Array, shape: Sequence[int]) -> Array:
    shape = tuple(shape)
    if tuple(array.shape) == shape:
        return array
    return array_namespace(array).reshape(array, shape)


def _einsum(
    operands: Sequence[tuple[Array, Sequence[Any]]],
    out: Sequence[Any],
    sizes: Mapping[Any, int] | None = None,
) -> Array:
    """A product of arrays, each with a name for each of its dims, summed over what is not in `out`. Dims of size one
    are nobody's; names of `out` that nobody has get size one.

    Args:
        operands: arrays with names.
        out: names of the result's dims.
        sizes: of names to be summed that perhaps no operand has, for it is constant along them.
    """
    letters: dict[Any, str] = {}
    arrays, subscripts = [], []
    factor: Any = 1
    for array, names in operands:
        kept = [(n, name) for n, name in zip(array.shape, names, strict=True) if n != 1]
        array = _reshape(array, [n for n, _ in kept])
        if not kept:
            factor = factor * array
            continue
        for _, name in kept:
            letters.setdefault(name, string.ascii_letters[len(letters)])
        arrays.append(array)
        subscripts.append("".join(letters[name] for _, name in kept))
    factor = factor * math.prod(n for name, n in (sizes or {}).items() if name not in letters)
    present = [name for name in out if name in letters]
    if arrays:
        target = "".join(letters[name] for name in present)
        product, xp = arrays[0], array_namespace(*arrays)
        if subscripts != [target]:
            if len({a.dtype for a in arrays}) > 1:
                dtype = xp.result_type(*arrays)
                arrays = [xp.astype(a, dtype) for a in arrays]
            while len(arrays) > 2 and subscripts[0] == subscripts[1]:  # else a path is looked for
                arrays[:2], subscripts[:2] = [arrays[0] * arrays[1]], [subscripts[0]]
            product = xp.einsum(f"{','.join(subscripts)}->{target}", *arrays)
        factor = product if isinstance(factor, int) and factor == 1 else product * factor
    found = dict(zip(present, factor.shape, strict=True))
    return _reshape(factor, [found.get(name, 1) for name in out])


@dataclass(frozen=True)
class _Own:
    """Name of one of the own dims of a part."""

    tag: str
    index: int


def _names(part: Part, dims: Sequence[Any], tag: str) -> list[Any]:
    """Names for the dims of a part's weights: `dims` for those of the array, others for its own."""
    return [*(_Own(tag, i) for i in range(part.num_own)), *dims]


def _name(index: int | None, dims: Sequence[Any], tag: str) -> Any:
    if index is None:
        return None
    return dims[index] if index < 0 else _Own(tag, index)


def _product(
    a: tuple[Key, Part],
    b: tuple[Key, Part],
    dims: tuple[Sequence[Any], Sequence[Any]],
    out: Sequence[Any],
    sizes: Mapping[Any, int],
) -> tuple[Key, Part]:
    """What parts of two independent arrays make of the arrays' product, summed over the dims not in `out`. A summed
    dim along which an index of a noise runs becomes the index's own."""
    indices: dict[Noise, list[Any]] = {}
    operands, own = [], []
    for (key, part), names, tag in zip((a, b), dims, "ab", strict=True):
        operands.append((part.weights, _names(part, names, tag)))
        for noise, of in zip(key, part.indices, strict=True):
            indices[noise] = [_name(i, names, tag) for i in of]
            own += [n for n in indices[noise] if n is not None and n not in (*out, *own)]
    summed = {name: n for name, n in sizes.items() if name not in (*out, *own)}
    weights = _einsum(operands, [*own, *out], summed)
    where: dict[Any, int | None] = {name: i - len(out) for i, name in enumerate(out)}
    where |= {name: i for i, name in enumerate(own)} | {None: None}
    key = tuple(sorted(indices, key=lambda noise: noise.site))
    return key, Part(weights, tuple(tuple(where[n] for n in indices[noise]) for noise in key))


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
            parts[key] = _sum(key, mine.parts[key], theirs.parts[key])
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
            weights = _reshape(weights, (*own, *new))
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
            return part.moved(_reshape(part.weights, (*own, *(sizes[d] for d in kept))), where)

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
            return part.moved(_reshape(weights, (*own, *target)), where)

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
            _product(a, b, names, out, sizes)
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


def _sum(key: Key, a: Part, b: Part) -> Part:
    """The sum of two parts of one noise."""
    if not key:
        return Part(a.weights + b.weights)
    pairs = [
        pair
        for of in zip(a.indices, b.indices, strict=True)
        for pair in zip(*of, strict=True)
        if pair[0] is not None
    ]
    apart = [p for p in pairs if p[0] != p[1]]
    a = a.freed(key, [i for i, _ in apart if i is not None])
    b = b.freed(key, [j for _, j in apart if j is not None])
    own: dict[int, int] = {}
    for of_a, of_b in zip(a.indices, b.indices, strict=True):
        for i, j in zip(of_a, of_b, strict=True):
            if i is not None and j is not None and own.setdefault(i, j) != j:
                raise NoRuleError("a sum of products that are laid out differently")
    order = [own[i] for i in range(a.num_own)]
    if sorted(order) != list(range(b.num_own)):
        raise NoRuleError("a sum of products that are laid out differently")
    weights, n = b.weights, b.num_own
    if order != list(range(n)):
        xp = array_namespace(weights)
        weights = xp.permute_dims(weights, (*order, *range(n, weights.ndim)))
    return replace(a, weights=a.weights + weights)


def mean_of_product(
    a: Affine, b: Affine, names: tuple[Sequence[Any], Sequence[Any]], out: Sequence[Any]
) -> Array:
    """The expectation of a product, summed over dims; see `Affine.einsum`."""
    _check_same(a, b)
    sizes = _sizes(a, b, names)
    means = [(x.mean, own) for x, own in zip((a, b), names, strict=True)]
    total = _einsum(means, out)
    for key in a.noises.keys() & b.noises.keys():
        ways = [(False, True) if noise.shared is not None else (False,) for noise in key]
        for way in itertools.product(*ways):
            term = _covariance(key, a.parts[key], b.parts[key], names, out, sizes, way)
            total = total - term if sum(way) % 2 else total + term
    return total


def product_mean(a: Affine, b: Affine) -> Array:
    """The expectation of a product, element by element."""
    names = [range(-len(x.shape), 0) for x in (a, b)]
    return mean_of_product(a, b, (names[0], names[1]), max(names, key=len))


def _covariance(
    key: Key,
    a: Part,
    b: Part,
    names: tuple[Sequence[Any], Sequence[Any]],
    out: Sequence[Any],
    sizes: Mapping[Any, int],
    shared: Sequence[bool],
) -> Array:
    """What one noise has in it of the covariance of two arrays, by the variances, or by what is to be subtracted from
    these for the noises that are `shared`."""
    while True:
        root: dict[Any, Any] = {}

        def find(name: Any) -> Any:
            while name in root:  # noqa: B023
                name = root[name]  # noqa: B023
            return name

        clash: tuple[Any, Any] | None = None
        for of_a, of_b, is_shared in zip(a.indices, b.indices, shared, strict=True):
            pairs = list(zip(of_a, of_b, strict=True))
            for i, j in pairs[:-1] if is_shared else pairs:
                x, y = find(_name(i, names[0], "a")), find(_name(j, names[1], "b"))
                if i is None or x == y:
                    continue
                if isinstance(x, _Own):
                    root[x] = y
                elif isinstance(y, _Own):
                    root[y] = x
                else:
                    clash = (x, y)
        if clash is None:
            break
        tied = [i for i in a.along if names[0][i] in clash]
        if tied:
            a = a.freed(key, tied[:1])
        else:
            b = b.freed(key, [j for j in b.along if names[1][j] in clash][:1])
    operands = [
        (part.weights, [find(n) for n in _names(part, dims, tag)])
        for part, dims, tag in ((a, names[0], "a"), (b, names[1], "b"))
    ]
    for noise, of_a, of_b, is_shared in zip(key, a.indices, b.indices, shared, strict=True):
        of = [[find(_name(i, names[0], "a")) for i in of_a]]
        if is_shared:
            of.append([find(_name(j, names[1], "b")) for j in of_b])
        values = noise.shared if is_shared else noise.variance
        operands += [(values, own) for own in of]
    summed = {find(name): n for name, n in sizes.items() if name not in out}
    return _einsum(operands, out, summed)
