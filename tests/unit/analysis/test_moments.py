"""The label algebra of `vi_kit.analysis.moments` against dense coefficients of every product of noises, in NumPy."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np
import pytest

from vi_kit.analysis.moments import Affine, Noise, NoRuleError, mean_of_product, product_mean

NUMPY = (np.asarray, lambda fn: lambda arrays: np.stack([fn(array) for array in arrays]))


def jax_arrays():
    import jax
    import numpyro

    numpyro.enable_x64()
    return jax.numpy.asarray, jax.vmap


def torch_arrays():
    import torch

    return torch.as_tensor, torch.func.vmap


@dataclass
class Pair:
    """An array by its labels, and by its coefficients.

    Attributes:
        affine: the array.
        dense: shape `(*shape, *features)`: of every product of one feature of each site, where those of a site are 1
            and its noises.
        sites: the numbers of those on which it depends.
    """

    affine: Affine
    dense: np.ndarray
    sites: frozenset[int]

    @property
    def shape(self):
        return self.affine.shape


class World:
    """Independent sites, and random programs of them.

    Attributes:
        moments: of each site, the second moments of its features.
    """

    def __init__(self, seed, arrays=NUMPY):
        self.rng = np.random.default_rng(seed)
        self.make, self.vmap = arrays
        self.pool, self.moments = [], []
        noises = [self.noise(number) for number in range(3)]
        for number, noise in enumerate(noises):
            size = math.prod(noise.variance.shape)
            dense = np.zeros((size, *(len(m) for m in self.moments)))
            index = [0] * 4
            for i in range(size):
                index[0], index[number + 1] = i, i + 1
                dense[tuple(index)] = 1.0
            dense = dense.reshape(*noise.variance.shape, *dense.shape[1:])
            mean = self.rng.normal(size=tuple(noise.variance.shape))
            dense[..., 0, 0, 0] += mean
            affine = Affine.around(self.make(mean), noise)
            self.pool.append(Pair(affine, dense, frozenset((number,))))

    def noise(self, number):
        shape = [(3,), (2, 2), (4,), (1,), (2, 1), (1, 3), (2, 3), ()][self.rng.integers(8)]
        variance, shared = self.rng.uniform(0.5, 1.5, shape), None
        dense = np.diag(variance.ravel())
        if shape and self.rng.random() < 0.4:
            shared = self.rng.normal(size=shape)
            rows = shared.reshape(-1, shape[-1])
            for i, row in enumerate(rows):
                at = slice(i * len(row), (i + 1) * len(row))
                dense[at, at] -= np.outer(row, row)
            shared = self.make(shared)
        self.moments.append(np.pad(dense, ((1, 0), (1, 0))))
        self.moments[-1][0, 0] = 1.0
        return Noise((number, str(number)), self.make(variance), shared)

    # Random choices

    def pick(self, fits=lambda pair: True):
        found = [pair for pair in self.pool if fits(pair)]
        return found[self.rng.integers(len(found))] if found else None

    def constant(self, shape):
        values = self.rng.normal(size=shape)
        dense = np.zeros((*shape, *map(len, self.moments)))
        dense[..., 0, 0, 0] = values
        return Pair(Affine.constant(self.make(values)), dense, frozenset())

    def like(self, shape):
        """A shape that broadcasts against another."""
        kept = shape[self.rng.integers(len(shape) + 1) :]
        kept = tuple(n if self.rng.random() < 0.7 else 1 for n in kept)
        return (2, *kept) if len(kept) == len(shape) < 3 and self.rng.random() < 0.2 else kept

    def alike(self, x, y):
        try:
            return len(np.broadcast_shapes(x.shape, y.shape)) <= 4
        except ValueError:
            return False

    def partner(self, x):
        """A constant or an independent array that broadcasts against another."""
        other = self.pick(lambda y: self.alike(x, y) and not x.sites & y.sites)
        return self.constant(self.like(x.shape)) if other is None else other

    # Dense products

    def times(self, x, y):
        """Coefficients of the product of two independent arrays with equally many dims."""
        short = [
            pair.dense[(..., *(slice(None if n in pair.sites else 1) for n in range(3)))]
            for pair in (x, y)
        ]
        product = short[0] * short[1]
        missing = [len(m) - n for m, n in zip(self.moments, product.shape[-3:], strict=True)]
        return np.pad(product, [(0, 0)] * (product.ndim - 3) + [(0, n) for n in missing])

    def raised(self, pair, ndim):
        ones = (1,) * (ndim - len(pair.shape))
        return Pair(pair.affine, pair.dense.reshape(*ones, *pair.dense.shape), pair.sites)

    def expected_product(self, x, y, names, out):
        every = dict.fromkeys((*names[0], *names[1]))
        letters = dict(zip(every, string.ascii_lowercase, strict=False))
        a, b, c = ("".join(letters[n] for n in of) for of in (*names, out))
        return np.einsum(
            f"{a}ABC,{b}DEF,AD,BE,CF->{c}", x.dense, y.dense, *self.moments, optimize="greedy"
        )

    def names(self, x, y):
        """Names of dims of two arrays, some in common, and of the result."""
        names = [("x", i) for i in range(len(x.shape))], [("y", i) for i in range(len(y.shape))]
        free = set(range(len(x.shape)))
        for j, n in enumerate(y.shape):
            fits = [i for i in free if x.shape[i] == n]
            if fits and self.rng.random() < 0.7:
                i = fits[self.rng.integers(len(fits))]
                names[1][j] = names[0][i]
                free.remove(i)
        every = list(dict.fromkeys((*names[0], *names[1])))
        self.rng.shuffle(every)
        out = [tuple(n) for n in every if self.rng.random() < 0.6][:4]
        return names, out

    # Operations

    def scaled(self, x):
        factor = self.constant(self.like(x.shape))
        ndim = max(len(x.shape), len(factor.shape))
        dense = self.times(self.raised(x, ndim), self.raised(factor, ndim))
        return x.affine.scaled(factor.affine.mean), dense, x.sites

    def plus(self, x):
        y = self.pick(lambda y: self.alike(x, y))
        ndim = max(len(x.shape), len(y.shape))
        dense = self.raised(x, ndim).dense + self.raised(y, ndim).dense
        return x.affine.plus(y.affine), dense, x.sites | y.sites

    def product(self, x):
        y = self.partner(x)
        ndim = max(len(x.shape), len(y.shape))
        dense = self.times(self.raised(x, ndim), self.raised(y, ndim))
        return x.affine.times(y.affine), dense, x.sites | y.sites

    def masked(self, x):
        mask = self.rng.random(self.like(x.shape)) < 0.6
        dense = np.where(mask[..., None, None, None], x.dense, 0.0)
        dense[..., 0, 0, 0] += np.where(mask, 0.0, 0.7)
        return x.affine.masked(self.make(mask), 0.7), dense, x.sites

    def placed(self, x):
        ndim = len(x.shape) + self.rng.integers(2)
        positions = [int(p) for p in self.rng.permutation(ndim)[: len(x.shape)]]
        shape, long = [1] * ndim, [2 if self.rng.random() < 0.3 else 1 for _ in range(ndim)]
        for i, p in enumerate(positions):
            shape[p] = x.shape[i]
        order = [*np.argsort(positions), *range(len(x.shape), len(x.shape) + 3)]
        dense = x.dense.transpose(order).reshape(*shape, *x.dense.shape[-3:])
        shape = [n if n > 1 else m for n, m in zip(shape, long, strict=True)]
        dense = np.broadcast_to(dense, (*shape, *x.dense.shape[-3:]))
        return x.affine.placed(positions, shape), dense, x.sites

    def squeezed(self, x):
        dims = [d for d, n in enumerate(x.shape) if n == 1 and self.rng.random() < 0.8]
        return x.affine.squeezed(dims), x.dense.squeeze(tuple(dims)), x.sites

    def reshaped(self, x):
        factors = [p for n in x.shape for p in ([2, 2] if n == 4 else [2, 3] if n == 6 else [n])]
        shape = []
        for factor in factors:
            if shape and self.rng.random() < 0.4:
                shape[-1] *= factor
            else:
                shape.append(factor)
        if self.rng.random() < 0.3:
            shape.insert(self.rng.integers(len(shape) + 1), 1)
        return x.affine.reshaped(shape), x.dense.reshape(*shape, *x.dense.shape[-3:]), x.sites

    def sliced(self, x):
        choices = [slice(None), slice(1, None), slice(None, 2), slice(0, None, 2), slice(0, 1)]
        kept = [choices[self.rng.integers(5 if n > 1 else 1)] for n in x.shape]
        return x.affine.sliced(kept), x.dense[tuple(kept)], x.sites

    def concatenated(self, x):
        if not x.shape:
            return None
        axis = int(self.rng.integers(-len(x.shape), 0))

        def fits(y):
            ones = [tuple(np.delete(z.shape, axis)) for z in (x, y) if len(z.shape) > -axis - 1]
            return len(y.shape) == len(x.shape) and ones[0] == ones[-1]

        others = [x, self.pick(fits), self.constant(x.shape)]
        pairs = [others[i] for i in self.rng.permutation(3)][: self.rng.integers(2, 4)]
        dense = np.concatenate([p.dense for p in pairs], axis=axis - 3)
        sites = frozenset().union(*(p.sites for p in pairs))
        return Affine.concatenated([p.affine for p in pairs], axis), dense, sites

    def einsum(self, x):
        y = self.pick(lambda y: not x.sites & y.sites) or self.constant(x.shape)
        if self.rng.random() < 0.5:
            y = self.constant(x.shape)
        names, out = self.names(x, y)
        every = list(dict.fromkeys((*names[0], *names[1])))
        whole = []
        for pair, own in ((x, names[0]), (y, names[1])):
            order = sorted(range(len(own)), key=lambda i: every.index(own[i]))
            shape = [pair.shape[own.index(n)] if n in own else 1 for n in every]
            dense = pair.dense.transpose([*order, *range(len(own), len(own) + 3)])
            dense = dense.reshape(*shape, *pair.dense.shape[-3:])
            whole.append(Pair(pair.affine, dense, pair.sites))
        dense = self.times(*whole)
        gone = tuple(i for i, n in enumerate(every) if n not in out)
        kept = [n for n in every if n in out]
        dense = dense.sum(gone).transpose([*(kept.index(n) for n in out), *(-3, -2, -1)])
        return x.affine.einsum(y.affine, names, out), dense, x.sites | y.sites

    def sum(self, x):
        dims = [d for d in range(len(x.shape)) if self.rng.random() < 0.5]
        return x.affine.sum(dims), x.dense.sum(tuple(dims)), x.sites

    def linear(self, x):
        if not x.shape:
            return None
        n = x.shape[-1]
        matrix = self.rng.normal(size=(n, 3))
        weights = self.make(matrix)
        where = {d: d for d in range(-len(x.shape), -1) if self.rng.random() < 0.7}
        dense = np.moveaxis(np.moveaxis(x.dense, -4, -1) @ matrix, -1, -4)
        return x.affine.linear(lambda a: a @ weights, self.vmap, where), dense, x.sites

    def step(self):
        """One more array, by a random operation."""
        name = OPERATIONS[self.rng.integers(len(OPERATIONS))]
        x = self.pick(lambda pair: len(pair.shape) <= 4 and math.prod(pair.shape) <= 60)
        made = getattr(self, name)(x)
        if made is not None:
            self.pool.append(Pair(*made))

    # Checks

    def check(self, x):
        assert x.shape == x.dense.shape[:-3]
        np.testing.assert_allclose(x.affine.mean, x.dense[..., 0, 0, 0], atol=1e-10)
        for y in (x, self.pick(lambda y: self.alike(x, y))):
            names = range(-len(x.shape), 0), range(-len(y.shape), 0)
            self.compare(x, y, names, max(names, key=len))
        y = self.pick(lambda y: len(y.shape) <= 3)
        self.compare(x, y, *self.names(x, y))

    def compare(self, x, y, names, out):
        if isinstance(out, range):
            found = product_mean(x.affine, y.affine)
        else:
            found = mean_of_product(x.affine, y.affine, names, out)
        expected = self.expected_product(x, y, names, out)
        assert tuple(found.shape) == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


OPERATIONS = (
    "scaled plus plus product masked placed squeezed reshaped sliced concatenated einsum einsum sum linear"
).split()


def run(seed, arrays=NUMPY, num_steps=7):
    world = World(seed, arrays)
    for _ in range(num_steps):
        world.step()
    for pair in world.pool:
        world.check(pair)


@pytest.mark.parametrize("block", range(8))
def test_random_programs(block):
    for seed in range(50):
        run(1000 * block + seed)


@pytest.mark.parametrize("arrays", [jax_arrays, torch_arrays], ids=["jax", "torch"])
def test_random_programs_of(arrays):
    for seed in range(2):
        run(seed, arrays(), num_steps=4)


def test_two_functions_of_one_site_are_refused():
    first, second = (Noise((0, "z"), np.ones(2)) for _ in range(2))
    x, y = Affine.centred(first), Affine.centred(second)
    with pytest.raises(NoRuleError, match="two different functions of the same site"):
        x.plus(y)
    with pytest.raises(NoRuleError, match="two different functions of the same site"):
        product_mean(x, y)
