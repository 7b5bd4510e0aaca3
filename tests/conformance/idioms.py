"""Programs as people write them: a latent site that the model does *not* use by broadcasting.

Each idiom is a function of the value of one site, in the words of each library and in NumPy, where the exact
loss and its gradient come from enumeration (finite supports) or a Gauss-Hermite rule (Normal).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import vi_kit as vi
from tests import oracles

SIZE = 3
X = np.array([0.7, -0.4, 1.3, 0.2, -0.9, 1.1, 0.5, -0.2, 0.8, 1.6, 0.1, -0.6])
SCALE = 0.8
WEIGHTS = np.array([[0.9, -0.5, 0.4], [0.3, 0.8, -0.7]])
ROWS = np.array([[0.9, -0.5], [0.3, 1.2], [-0.8, 0.1]])
TABLE = np.array([-0.6, 0.5, 1.4])


# How a program uses a value


def loc_at_once(lib: Any, loc: Any, ndim: int, x: np.ndarray) -> None:
    """One sample statement for all."""
    normal = lib.dist.Normal(loc, SCALE)
    lib.sample("x", normal.to_event(ndim) if ndim else normal, obs=lib.array(x))


def one_by_one(lib: Any, loc: Any, ndim: int, x: np.ndarray) -> None:
    """A loop over the elements, with a sample statement each."""
    del ndim
    for i in range(len(loc)):
        lib.sample(f"x{i}", lib.dist.Normal(loc[i], SCALE), obs=lib.array(x[i]))


def in_a_plate(lib: Any, loc: Any, ndim: int, x: np.ndarray) -> None:
    """The elements are the data of a plate, whose size is that of the event."""
    del ndim
    with lib.plate("data", len(x)):
        lib.sample("x", lib.dist.Normal(loc, SCALE), obs=lib.array(x))


def multivariate(lib: Any, loc: Any, ndim: int, x: np.ndarray) -> None:
    del ndim
    covariance = SCALE**2 * lib.array(np.eye(len(x)))
    lib.sample("x", lib.dist.MultivariateNormal(loc, covariance), obs=lib.array(x))


def as_a_factor(lib: Any, loc: Any, ndim: int, x: np.ndarray) -> None:
    """Summed to a number by the program."""
    del ndim
    log_density = lib.dist.Normal(loc, SCALE).log_prob(lib.array(x))
    lib.factor("x", log_density.sum())


@dataclass(frozen=True)
class Idiom:
    """A function of the value of a site.

    Attributes:
        features: from an array namespace (NumPy, `jax.numpy` or torch) and a value to the location of data.
        sites: kinds of sites whose values it takes.
        torch: the same for torch, where its words are others.
        jax: the same for JAX.
        observe: what is done with the location.
        libraries: those that have it.
        raw: whether it takes the value as it is, not as a floating-point number.
    """

    features: Callable[[Any, Any], Any]
    sites: tuple[str, ...] = ("bernoulli", "categorical", "normal")
    torch: Callable[[Any, Any], Any] | None = None
    jax: Callable[[Any, Any], Any] | None = None
    observe: Callable[..., None] = loc_at_once
    libraries: tuple[str, ...] = ("pyro", "numpyro")
    raw: bool = False

    def of(self, lib: Any) -> Callable[[Any, Any], Any]:
        return {"pyro": self.torch, "numpyro": self.jax}[lib.name] or self.features


def softmax(xp, z):
    weights = xp.exp(z)
    return weights / weights.sum()


def jax_softmax(xp, z):
    import jax

    return jax.nn.softmax(z, axis=0)


def checked_shape(xp, z):
    assert z.shape == (SIZE,)
    return z


def checked_scalar(xp, z):
    assert z.shape == ()
    return 1.0 * z


def gathered(xp, z):
    return sum(z[i] * (i + 1.0) for i in range(len(z)))


def mapped(xp, z):
    import jax

    return jax.vmap(lambda v: 0.5 * v * v + v)(z)


def torch_mapped(xp, z):
    return xp.vmap(lambda v: 0.5 * v * v + v)(z)


def scanned(xp, z):
    import jax

    return jax.lax.scan(lambda total, v: (0.5 * total + v,) * 2, 0.0, z)[1]


def decayed(xp, z):
    """What `scanned` and `looped` are."""
    states = [z[0]]
    for v in z[1:]:
        states.append(0.5 * states[-1] + v)
    return xp.stack(states)


def fori(xp, z):
    import jax

    return jax.lax.fori_loop(0, SIZE, lambda i, total: 0.5 * total + z[i], 0.0)


def cond(xp, z):
    import jax

    return jax.lax.cond(z == 1, lambda: 1.2, lambda: -0.4)


def switch(xp, z):
    import jax

    return jax.lax.switch(z, [lambda v=v: v for v in TABLE])


def branch(xp, z):
    return xp.where(z == 1, 1.2, -0.4)


def python_branch(xp, z):
    return 1.2 * z if z == 1 else -0.4 + 0.0 * z


def two_locations(xp, z):
    return xp.where(z == 1, as_array(xp, [0.5, 1.1]), as_array(xp, [-0.3, 0.2]))


def as_array(xp, values):
    return xp.as_tensor(values) if xp.__name__ == "torch" else xp.asarray(values)


def shared(table, use):
    """A function of an array of constants and the value."""
    return lambda xp, z: use(xp, as_array(xp, table), z)


VECTOR = {
    "sum": Idiom(lambda xp, z: z.sum()),
    "mean": Idiom(lambda xp, z: z.mean()),
    "max": Idiom(lambda xp, z: z.max(), ("bernoulli", "categorical")),
    "prod": Idiom(lambda xp, z: (0.5 + z).prod()),
    "length": Idiom(lambda xp, z: z / len(z)),
    "shares": Idiom(lambda xp, z: (z + 4) / (z + 4).sum()),
    "centred": Idiom(lambda xp, z: z - z.mean()),
    "softmax": Idiom(softmax, torch=lambda xp, z: xp.softmax(z, 0), jax=jax_softmax),
    "cumsum": Idiom(lambda xp, z: xp.cumsum(z, 0)),
    "sort": Idiom(
        lambda xp, z: xp.sort(z, 0),
        ("bernoulli", "categorical"),
        torch=lambda xp, z: xp.sort(z, 0)[0],
        jax=lambda xp, z: xp.sort(z, axis=0),
    ),
    "flip": Idiom(lambda xp, z: xp.flip(z, (0,))),
    "roll": Idiom(lambda xp, z: z * xp.roll(z, 1, 0)),
    "take": Idiom(shared([2, 0], lambda xp, index, z: xp.take(z, index))),
    "first": Idiom(lambda xp, z: z[0]),
    "last": Idiom(lambda xp, z: z[-1] * z[0]),
    "differences": Idiom(lambda xp, z: z[1:] - z[:-1]),
    "loop": Idiom(lambda xp, z: z, observe=one_by_one),
    "gathered": Idiom(gathered),
    "unpacked": Idiom(lambda xp, z: (lambda a, b, c: a * b + c)(*z)),
    "concatenate": Idiom(lambda xp, z: xp.concatenate([z, z * z])),
    "append": Idiom(
        lambda xp, z: xp.append(z, 1.0),
        torch=lambda xp, z: xp.cat([z, xp.ones(1)]),
    ),
    "stack": Idiom(lambda xp, z: xp.stack([z, 2 * z])),
    "stack_last": Idiom(lambda xp, z: xp.stack([z, 2 * z], -1)),
    "column": Idiom(shared(WEIGHTS.T, lambda xp, w, z: z.reshape(SIZE, 1) * w)),
    "reshape": Idiom(lambda xp, z: z.reshape(1, SIZE)),
    "view": Idiom(
        lambda xp, z: z.reshape(-1), torch=lambda xp, z: z.view(-1), libraries=("pyro",)
    ),
    "flatten": Idiom(shared(ROWS, lambda xp, w, z: (z[:, None] * w).flatten())),
    "transpose": Idiom(shared(ROWS, lambda xp, w, z: (z[:, None] * w).T)),
    "outer": Idiom(lambda xp, z: xp.outer(z, z)),
    "dot": Idiom(lambda xp, z: xp.dot(z, z)),
    "einsum": Idiom(shared(WEIGHTS, lambda xp, w, z: xp.einsum("ij,j->i", w, z))),
    "matmul": Idiom(shared(WEIGHTS, lambda xp, w, z: w @ z)),
    "matmul_right": Idiom(shared(ROWS, lambda xp, w, z: z @ w)),
    "shape": Idiom(checked_shape),
    "plate": Idiom(lambda xp, z: z + z.sum(), observe=in_a_plate),
    "multivariate": Idiom(shared(WEIGHTS, lambda xp, w, z: w @ z), observe=multivariate),
    "factor": Idiom(lambda xp, z: z, observe=as_a_factor),
    "index": Idiom(shared(TABLE, lambda xp, t, z: t[z]), ("categorical",), raw=True),
    "index_rows": Idiom(shared(ROWS, lambda xp, t, z: t[z]), ("categorical",), raw=True),
    "vmap": Idiom(
        lambda xp, z: 0.5 * z * z + z, torch=torch_mapped, jax=mapped
    ),
    "scan": Idiom(decayed, jax=scanned, libraries=("numpyro",)),
    "fori_loop": Idiom(lambda xp, z: decayed(xp, z)[-1], jax=fori, libraries=("numpyro",)),
    "looped": Idiom(decayed),
}  # fmt: skip

DISCRETE = ("coin", "die")
SCALAR = {
    "where": Idiom(branch, DISCRETE, raw=True),
    "where_two": Idiom(two_locations, DISCRETE, raw=True),
    "where_plate": Idiom(two_locations, DISCRETE, observe=in_a_plate, raw=True),
    "full": Idiom(lambda xp, z: xp.full((2,), 1.0) * z, (*DISCRETE, "gauss"), raw=True),
    "expanded": Idiom(
        lambda xp, z: z * np.ones(2),
        (*DISCRETE, "gauss"),
        torch=lambda xp, z: (1.0 * z).expand(2),
        jax=lambda xp, z: xp.broadcast_to(1.0 * z, (2,)),
    ),
    "pair": Idiom(lambda xp, z: xp.stack([z, 2 * z]), (*DISCRETE, "gauss"), observe=multivariate),
    "scalar_shape": Idiom(checked_scalar, (*DISCRETE, "gauss"), raw=True),
    "scalar_index": Idiom(shared(TABLE, lambda xp, t, z: t[z]), ("die",), raw=True),
    "scalar_index_rows": Idiom(shared(ROWS, lambda xp, t, z: t[z]), ("die",), raw=True),
    "scalar_index_columns": Idiom(shared(WEIGHTS, lambda xp, t, z: t[:, z]), ("die",), raw=True),
    "python_branch": Idiom(python_branch, ("coin",), libraries=("pyro",), raw=True),
    "cond": Idiom(branch, ("coin",), jax=cond, libraries=("numpyro",), raw=True),
    "switch": Idiom(lambda xp, z: TABLE[z], ("die",), jax=switch, libraries=("numpyro",), raw=True),
}

IDIOMS = VECTOR | SCALAR


# The sites


class Finite:
    """A site whose values are counted off: `num_values` per element."""

    def __init__(self, num_values: int, num_elements: int | None):
        self.num_values, self.num_elements = num_values, num_elements
        shape = () if num_elements is None else (num_elements,)
        last = () if num_values == 2 else (num_values,)
        size = int(np.prod(shape + last))
        self.shape = shape + last
        self.params = np.linspace(-0.5, 0.9, size)[::-1].copy()
        self.prior = np.cos(np.arange(1, size + 1)) * 0.6
        self.is_integer = num_values > 2

    def build(self, lib: Any, params: Any) -> Any:
        params = params.reshape(self.shape)
        family = lib.dist.Bernoulli if self.num_values == 2 else lib.dist.Categorical
        dist = family(logits=params)
        return dist if self.num_elements is None else dist.to_event(1)

    def log_density(self, params: np.ndarray) -> np.ndarray:
        """At every joint value."""
        table = params.reshape(self.num_elements or 1, -1)
        if self.num_values == 2:
            table = np.concatenate([np.zeros_like(table), table], -1)
        table = table - np.log(np.exp(table).sum(-1, keepdims=True))
        return np.array([sum(t[k] for t, k in zip(table, ks, strict=True)) for ks in self.ks])

    @functools.cached_property
    def ks(self) -> list[tuple[int, ...]]:
        return list(itertools.product(range(self.num_values), repeat=self.num_elements or 1))

    def table(self, params: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, log masses, and log q minus log p."""
        del order
        values = np.array(self.ks)
        log_q = self.log_density(params)
        values = values[:, 0] if self.num_elements is None else values
        return values, log_q, log_q - self.log_density(self.prior)


class Gaussian:
    """Normal elements; theta: means, log scales."""

    is_integer = False

    def __init__(self, num_elements: int | None):
        self.num_elements = num_elements
        n = num_elements or 1
        self.params = np.concatenate([np.linspace(0.7, -0.4, n), np.linspace(-0.8, -0.5, n)])
        self.prior = np.concatenate([0.3 * np.ones(n), np.zeros(n)])

    def build(self, lib: Any, params: Any) -> Any:
        n = len(self.params) // 2
        if self.num_elements is None:
            return lib.dist.Normal(params[0], lib.xp.exp(params[1]))
        return lib.dist.Normal(params[:n], lib.xp.exp(params[n:])).to_event(1)

    def table(self, params: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = len(params) // 2
        nodes, weights = np.polynomial.hermite_e.hermegauss(order)
        noise = np.array(list(itertools.product(nodes, repeat=n)))
        log_mass = np.array(list(itertools.product(np.log(weights / weights.sum()), repeat=n)))
        loc, scale = params[:n], np.exp(params[n:])
        values = loc + scale * noise
        log_q = oracles.log_normal(values, loc, scale).sum(-1)
        log_p = oracles.log_normal(values, self.prior[:n], np.exp(self.prior[n:])).sum(-1)
        values = values[:, 0] if self.num_elements is None else values
        return values, log_mass.sum(-1), log_q - log_p


SITES = {
    "bernoulli": Finite(2, SIZE),
    "categorical": Finite(3, SIZE),
    "normal": Gaussian(SIZE),
    "coin": Finite(2, None),
    "die": Finite(3, None),
    "gauss": Gaussian(None),
}

DISCRETE_ESTIMATORS = {
    "default": None,
    "Enumerate": vi.Enumerate(),
    "Score": vi.Score(),
    "Score(LeaveOneOut)": vi.Score(vi.LeaveOneOut()),
    "MeasureValued": vi.MeasureValued(),
    "DisARM": vi.DisARM(),
}
CATEGORICAL_ESTIMATORS = DISCRETE_ESTIMATORS | {
    "SumAndSample": vi.SumAndSample(1),
    "WithoutReplacement": vi.WithoutReplacement(2),
}
BERNOULLI_ESTIMATORS = DISCRETE_ESTIMATORS | {"Rebar": vi.Rebar()}
NORMAL_ESTIMATORS = {
    "default": None,
    "Reparam": vi.Reparam(),
    "DoublyReparam": vi.DoublyReparam(),
    "Score": vi.Score(),
    "Score(LeaveOneOut)": vi.Score(vi.LeaveOneOut()),
    "MeasureValued": vi.MeasureValued(),
    "Quadrature": vi.Quadrature(5),
    "Analytic": vi.Analytic(),
}
ESTIMATORS = {
    "bernoulli": BERNOULLI_ESTIMATORS,
    "coin": BERNOULLI_ESTIMATORS,
    "categorical": CATEGORICAL_ESTIMATORS,
    "die": CATEGORICAL_ESTIMATORS,
    "normal": NORMAL_ESTIMATORS,
    "gauss": NORMAL_ESTIMATORS,
}
OBJECTIVES = ("elbo", "iwae", "samples")


def loss_of(lib: Any, objective: str, estimator: vi.Estimator | None) -> Any:
    estimators = None if estimator is None else {"z": estimator}
    if objective == "iwae":
        return lib.Loss(vi.iwae(num_particles=2), estimators)
    return lib.Loss(vi.elbo(), estimators, num_samples=4 if objective == "samples" else 1)


class Program:
    """One idiom on one site. theta: parameters of the guide; a slope of the model."""

    def __init__(self, lib: Any, idiom: str, site: str):
        self.lib, self.idiom, self.site = lib, IDIOMS[idiom], SITES[site]
        self.values = np.array([*self.site.params, 1.3])
        value = np.ones(() if self.site.num_elements is None else SIZE, dtype=int)
        self.shape = np.shape(self.feature(value))
        self.x = X[: int(np.prod(self.shape))].reshape(self.shape)

    def model(self) -> None:
        lib, theta = self.lib, self.lib.theta(self.values)
        z = lib.sample("z", self.site.build(lib, lib.array(self.site.prior)))
        loc = self.idiom.of(lib)(lib.xp, z if self.idiom.raw else 1.0 * z)
        self.idiom.observe(lib, theta[-1] * loc, len(self.shape), self.x)

    def guide(self) -> None:
        self.lib.sample("z", self.site.build(self.lib, self.lib.theta(self.values)[:-1]))

    def feature(self, z: np.ndarray) -> Any:
        return self.idiom.features(np, z if self.idiom.raw else 1.0 * z)

    def exact_loss(self, theta: np.ndarray, num_particles: int) -> float:
        order = 14 if num_particles == 1 else 9
        z, log_mass, log_ratio = self.site.table(theta[:-1], order)
        x, at = self.x, theta[-1]
        features = np.array([self.feature(v) for v in z])
        log_x = oracles.log_normal(x, at * features, SCALE)
        log_x = log_x.reshape(len(z), -1).sum(-1)
        return -float(oracles.expected_bound(log_mass, log_x - log_ratio, num_particles))

    def exact(self, objective: str) -> np.ndarray:
        """The loss and its gradient, by central differences."""
        k, step = (2 if objective == "iwae" else 1), 1e-5
        slopes = [
            (self.exact_loss(self.values + d, k) - self.exact_loss(self.values - d, k)) / (2 * step)
            for d in step * np.eye(len(self.values))
        ]
        return np.array([self.exact_loss(self.values, k), *slopes])


@dataclass(frozen=True)
class Case:
    lib: str
    site: str
    idiom: str
    estimator: str
    objective: str

    def __str__(self) -> str:
        return "-".join([self.lib, self.site, self.idiom, self.estimator, self.objective])


def cases() -> list[Case]:
    """The whole product."""
    return [
        Case(lib, site, name, estimator, objective)
        for name, idiom in IDIOMS.items()
        for lib in idiom.libraries
        for site in idiom.sites
        for estimator in ESTIMATORS[site]
        for objective in OBJECTIVES
    ]
