"""Weights of centred noises in arrays: what `vi_kit.moments.Affine` is made of.

The weights are kept small: an index of a noise that runs along with a dim of the array takes no room, and a dim along
which all weights are equal has size one. So the value of a site starts with the single weight 1, and what a linear
layer makes of a batch of vectors has the weights of one vector only.

Dims of an array are counted from the right (-1, -2, ...), so that broadcasting on the left changes nothing.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from vi_kit.base.named import Array


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
        return Part(reshaped(self.weights, shape), self.indices)

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
            eye = reshaped(eye, (*(1,) * own, n, *ones))
            weights = reshaped(part.weights, (*before, 1, *after)) * eye
            part = part.moved(weights, {d: own})
        return part


def reshaped(array: Array, shape: Sequence[int]) -> Array:
    shape = tuple(shape)
    if tuple(array.shape) == shape:
        return array
    return array_namespace(array).reshape(array, shape)


def einsum(
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
        array = reshaped(array, [n for n, _ in kept])
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
    return reshaped(factor, [found.get(name, 1) for name in out])


@dataclass(frozen=True)
class _Own:
    """Name of one of the own dims of a part."""

    tag: str
    index: int


def names_of(part: Part, dims: Sequence[Any], tag: str) -> list[Any]:
    """Names for the dims of a part's weights: `dims` for those of the array, others for its own."""
    return [*(_Own(tag, i) for i in range(part.num_own)), *dims]


def name_of(index: int | None, dims: Sequence[Any], tag: str) -> Any:
    if index is None:
        return None
    return dims[index] if index < 0 else _Own(tag, index)


def product(
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
        operands.append((part.weights, names_of(part, names, tag)))
        for noise, of in zip(key, part.indices, strict=True):
            indices[noise] = [name_of(i, names, tag) for i in of]
            own += [n for n in indices[noise] if n is not None and n not in (*out, *own)]
    summed = {name: n for name, n in sizes.items() if name not in (*out, *own)}
    weights = einsum(operands, [*own, *out], summed)
    where: dict[Any, int | None] = {name: i - len(out) for i, name in enumerate(out)}
    where |= {name: i for i, name in enumerate(own)} | {None: None}
    key = tuple(sorted(indices, key=lambda noise: noise.site))
    return key, Part(weights, tuple(tuple(where[n] for n in indices[noise]) for noise in key))


def added(key: Key, a: Part, b: Part) -> Part:
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


def covariance(
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
                x, y = find(name_of(i, names[0], "a")), find(name_of(j, names[1], "b"))
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
        (part.weights, [find(n) for n in names_of(part, dims, tag)])
        for part, dims, tag in ((a, names[0], "a"), (b, names[1], "b"))
    ]
    for noise, of_a, of_b, is_shared in zip(key, a.indices, b.indices, shared, strict=True):
        of = [[find(name_of(i, names[0], "a")) for i in of_a]]
        if is_shared:
            of.append([find(name_of(j, names[1], "b")) for j in of_b])
        values = noise.shared if is_shared else noise.variance
        operands += [(values, own) for own in of]
    summed = {find(name): n for name, n in sizes.items() if name not in out}
    return einsum(operands, out, summed)
