"""Random small programs, and their exact losses by enumeration and quadrature in NumPy."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from hypothesis import strategies as st

import vi_kit as vi
from tests import oracles

SIZE = 2
"""Elements of an event or of a plate."""
MOST = {"elbo": 400, "iwae": 200}
"""Joint values that the oracle takes: pairs of them, for two particles."""
MASK = np.array([True, False])
ROWS = np.array([0.4, -1.1, 0.9, 0.2])
"""Data of a plate of which there are minibatches of two."""


def softmax_first(xp, z):
    weights = xp.exp(z)
    return (weights / weights.sum())[0]


FEATURES = {
    "sum": lambda xp, z: z.sum(),
    "sum_last": lambda xp, z: z.sum(-1),
    "prod": lambda xp, z: (0.5 + z).prod(),
    "first": lambda xp, z: z[0],
    "difference": lambda xp, z: (z[1:] - z[:-1])[0],
    "softmax": softmax_first,
    "dot": lambda xp, z: z @ z,
    "stack": lambda xp, z: xp.stack([z, 2 * z]).sum(),
    "loop": lambda xp, z: sum(z[i] * (i + 0.5) for i in range(len(z))),
}
LINKS = {
    "own": lambda xp, z: 0.6 * z,
    "next": lambda xp, z: 0.6 * z - 0.5 * xp.roll(z, 1, -1),
    "centred": lambda xp, z: z - 0.8 * z.mean(-1, keepdims=True),
    "total": lambda xp, z: 0.4 * z * z.sum(-1)[..., None],
}
"""What a datum of each element of a plate sees: its own value, or others too."""
DATUM = 0.4
OF_A_NUMBER = {
    "bernoulli": ("itself", "branch"),
    "categorical": ("itself", "branch"),
    "normal": ("itself",),
    "gamma": ("itself",),
    "uniform": ("itself",),
}
ESTIMATORS = {
    "default": None,
    "Score": vi.Score(),
    "RLOO": vi.Score(vi.LeaveOneOut()),
    "two baselines": vi.Score(vi.MovingAverage() + vi.LeaveOneOut()),
    "MeasureValued": vi.MeasureValued(),
    "Enumerate": vi.Enumerate(),
    "DisARM": vi.DisARM(),
    "Reparam": vi.Reparam(),
    "DoublyReparam": vi.DoublyReparam(),
    "scaled": vi.Score(vi.ScaledBaseline(vi.MovingAverage()) + vi.LeaveOneOut()),
}
OF_NORMAL = ("default", "Score", "RLOO", "MeasureValued", "Reparam", "DoublyReparam")
OF_DISCRETE = (
    *("default", "Score", "RLOO", "two baselines", "scaled", "MeasureValued", "Enumerate"),
    "DisARM",
)
OF_UNIFORM = ("default", "Reparam")
OF_REPLICATES = {"RLOO", "two baselines", "scaled"}


@dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        kind: its family.
        layout: "scalar", "event", "plate" or "nested" plates.
        feature: by which number of a vector those that come later see it.
        parent: whether its density depends on the site before.
        masked: whether every second element has a mask, "inside" the distribution or "outside", or none ("").
        scale: of its log densities.
        estimator: a key of `ESTIMATORS`.
        link: in a plate what the datum of each element sees, a key of `LINKS`; none, if there is no such datum.
    """

    kind: str
    layout: str
    feature: str
    parent: bool
    masked: str
    scale: float
    estimator: str
    link: str = ""

    @property
    def size(self) -> int:
        return {"scalar": 1, "nested": SIZE**2}.get(self.layout, SIZE)

    def num_nodes(self, objective: str) -> int:
        """How many values or nodes the oracle has for an element."""
        few = objective == "iwae"
        continuous = {"normal": 5 if few else 9, "uniform": 5 if few else 9, "gamma": 14}
        return {"bernoulli": 2, "categorical": 3, **continuous}[self.kind]

    def num_values(self, objective: str) -> int:
        """How many joint values or nodes the oracle has for it."""
        return self.num_nodes(objective) ** self.size


@dataclass(frozen=True)
class Spec:
    """A program: its sites, the objective, and whether there is a plate of minibatches with a site of its own."""

    sites: tuple[Site, ...]
    objective: str
    minibatches: bool = False

    def loss(self, lib: Any) -> Any:
        given = {
            f"z{i}": ESTIMATORS[s.estimator]
            for i, s in enumerate(self.sites)
            if s.estimator != "default"
        }
        if self.objective == "iwae":
            return lib.Loss(vi.iwae(num_particles=2), given or None)
        return lib.Loss(
            vi.elbo(), given or None, num_samples=3 if self.objective == "samples" else 1
        )


@st.composite
def specs(draw: Any, all_default: bool | None = None) -> Spec:
    sites, continuous = [], 0
    objective = draw(st.sampled_from(["elbo", "samples", "iwae"]))
    plain = draw(st.booleans()) if all_default is None else all_default
    for i in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["bernoulli", "categorical", "normal", "gamma", "uniform"]))
        layout = draw(st.sampled_from(["scalar", "event", "plate", "nested"]))
        if kind in ("normal", "gamma", "uniform"):
            continuous += 1
            kind = kind if continuous == 1 else "bernoulli"
        if kind == "gamma":
            layout = "scalar"
        if layout == "nested" and kind != "bernoulli":
            layout = "plate"
        names = {"bernoulli": OF_DISCRETE, "categorical": OF_DISCRETE, "uniform": OF_UNIFORM}
        masks = {"scalar": [""], "event": ["", "", "inside"]}
        own = [
            n for n in names.get(kind, OF_NORMAL) if objective != "elbo" or n not in OF_REPLICATES
        ]
        features = sorted(FEATURES) if layout != "scalar" else sorted(OF_A_NUMBER[kind])
        sites.append(
            Site(
                kind,
                layout,
                draw(st.sampled_from(features)),
                i > 0 and draw(st.booleans()),
                draw(st.sampled_from(masks.get(layout, ["", "", "inside", "outside"]))),
                draw(st.sampled_from([1.0, 1.0, 1.0, 2.0])),
                "default" if plain else draw(st.sampled_from(own)),
                draw(st.sampled_from(["", *LINKS])) if layout in ("plate", "nested") else "",
            )
        )
    most = MOST["iwae" if objective == "iwae" else "elbo"]
    while len(sites) > 1 and np.prod([s.num_values(objective) for s in sites]) > most:
        sites.pop()
    return Spec(tuple(sites), objective, objective != "iwae" and draw(st.booleans()))


@dataclass(frozen=True)
class NumPy:
    """The words that the oracle shares with the libraries."""

    name = "numpy"
    xp: Any = np


NUMPY = NumPy()


class Program:
    """theta: one number per element of each site; means of the site of the minibatches; the slope of the model."""

    x = np.array([0.8, -0.3])

    def __init__(self, lib: Any, spec: Spec):
        self.lib, self.spec = lib, spec
        self.starts = np.cumsum([0, *(s.size for s in spec.sites)])
        local = [0.3, -0.5, 0.6, 0.1] * spec.minibatches
        self.values = np.array([*np.linspace(-0.4, 0.6, self.starts[-1]), *local, 0.9])

    def model(self) -> None:
        lib, theta = self.lib, self.lib.theta(self.values)
        loc = self.latents(lib.array(np.full(self.starts[-1], 0.2)), prior=True)
        for j, x in enumerate(self.x):
            lib.sample(f"x{j}", lib.dist.Normal(theta[-1] * loc + 0.3 * j, 1.1), obs=lib.array(x))
        if self.spec.minibatches:
            with lib.plate("rows", 4, subsample_size=2) as rows:
                z = lib.sample("local", lib.dist.Normal(lib.array(np.zeros(2)), 1.0))
                normal = lib.dist.Normal(z + 0.3 * loc, 1.0)
                lib.sample("y", normal, obs=lib.array(ROWS)[rows])

    def guide(self) -> None:
        theta = self.lib.theta(self.values)
        self.latents(theta, prior=False)
        if self.spec.minibatches:
            with self.lib.plate("rows", 4, subsample_size=2) as rows:
                self.lib.sample("local", self.lib.dist.Normal(theta[-5:-1][rows], 0.6))

    def latents(self, params: Any, *, prior: bool) -> Any:
        lib, total, before = self.lib, 0.0, None
        for i, site in enumerate(self.spec.sites):
            own = params[self.starts[i] : self.starts[i + 1]]
            own = own[0] if site.layout == "scalar" else own
            if site.parent:
                shift = 0.5 * before
                own = own + (shift[..., None] if site.layout != "scalar" else shift)
            if site.layout == "nested":
                own = own.reshape(SIZE, SIZE)
            fn = self.distribution(site, own, prior)
            if site.masked == "inside":
                fn = fn.mask(lib.array(MASK))
            with contextlib.ExitStack() as stack:
                stack.enter_context(lib.handlers.scale(scale=site.scale))
                if site.layout in ("plate", "nested"):
                    stack.enter_context(lib.plate(f"plate{i}", SIZE, dim=-1))
                if site.layout == "nested":
                    stack.enter_context(lib.plate(f"outer{i}", SIZE, dim=-2))
                if site.masked == "outside":
                    stack.enter_context(lib.handlers.mask(mask=lib.array(MASK)))
                z = lib.sample(f"z{i}", fn.to_event(1) if site.layout == "event" else fn)
                if prior and site.link:
                    y = lib.array(np.full(own.shape, DATUM))
                    lib.sample(f"y{i}", self.linked(lib.xp, site, 1.0 * z, lib.dist.Normal), obs=y)
            before = self.feature(lib, site, 1.0 * z)
            total = total + before
        return total

    @staticmethod
    def linked(xp: Any, site: Site, z: Any, normal: Any) -> Any:
        return normal(LINKS[site.link](xp, z), 0.9)

    def distribution(self, site: Site, own: Any, prior: bool) -> Any:
        dist = self.lib.dist
        if site.kind == "bernoulli":
            return dist.Bernoulli(logits=own)
        if site.kind == "gamma":
            return dist.Gamma(1.0 + self.lib.xp.exp(own), 1.5)
        if site.kind == "uniform" and not prior:
            return dist.Uniform(own - 1.0, own + 1.5)
        if site.kind in ("normal", "uniform"):
            return dist.Normal(own, 0.7)
        return dist.Categorical(logits=own[..., None] * self.lib.array([-1.0, 0.0, 1.0]))

    @staticmethod
    def feature(lib: Any, site: Site, z: Any) -> Any:
        if site.layout == "nested":
            z = z.reshape(-1)
        if site.layout != "scalar":
            return FEATURES[site.feature](lib.xp, z)
        if site.feature == "itself":
            return z
        if lib.name == "pyro":
            return 1.2 * z if z == 1 else lib.array(-0.4)
        return lib.xp.where(z == 1, 1.2 * z, -0.4)

    # the oracle

    def exact_loss(self, theta: np.ndarray, particles: int) -> float:
        log_mass, log_w = [], []
        states = [(0.0, 0.0, 0.0, 0.0)]  # log mass, log p - log q, total, feature before
        for i, site in enumerate(self.spec.sites):
            following = []
            for mass, ratio, total, before in states:
                own = theta[self.starts[i] : self.starts[i + 1]] + 0.5 * site.parent * before
                prior = np.full(site.size, 0.2) + 0.5 * site.parent * before
                for z, m, log_q in self.nodes(site, own):
                    keep = np.resize(MASK, site.size) if site.masked else np.ones(site.size, bool)
                    log_p = self.log_density(site, prior, z, True)
                    gain = site.scale * (np.sum((log_p - log_q) * keep) + self.data(site, z))
                    f = self.feature(NUMPY, site, z[0] if site.layout == "scalar" else z)
                    following.append((mass + m, ratio + gain, total + f, f))
            states = following
        for mass, ratio, total, _ in states:
            loc = theta[-1] * total + 0.3 * np.arange(len(self.x))
            fit = oracles.log_normal(self.x, loc, 1.1).sum() + self.local(theta, 0.3 * total)
            log_mass.append(mass)
            log_w.append(ratio + fit)
        return -float(oracles.expected_bound(np.array(log_mass), np.array(log_w), particles))

    def data(self, site: Site, z: np.ndarray) -> float:
        """The log density of what each element of a plate observes."""
        if not site.link:
            return 0.0
        z = z.reshape(SIZE, SIZE) if site.layout == "nested" else z
        log_p = self.linked(np, site, z, lambda *at: oracles.log_normal(DATUM, *at))
        return float((log_p * (MASK if site.masked == "outside" else 1.0)).sum())

    def local(self, theta: np.ndarray, loc: float) -> float:
        """The bound of all rows, given the location that they share."""
        if not self.spec.minibatches:
            return 0.0
        mean, var = theta[-5:-1], 0.36
        kl = 0.5 * (var + mean**2 - 1.0 - np.log(var))
        return (oracles.log_normal(ROWS, mean + loc, 1.0) - 0.5 * var - kl).sum()

    def nodes(self, site: Site, own: np.ndarray) -> Any:
        """Joint values, their log masses, and log q of each element."""
        num = site.num_nodes(self.spec.objective)
        per_element = [self.nodes_of_element(site.kind, num, a) for a in own]
        for chosen in itertools.product(*per_element):
            z = np.array([c[0] for c in chosen])
            yield z, sum(c[1] for c in chosen), self.log_density(site, own, z, False)

    def nodes_of_element(self, kind: str, num: int, own: float) -> list[tuple[float, float]]:
        if kind == "normal":
            at, weight = np.polynomial.hermite_e.hermegauss(num)
            at = own + 0.7 * at
        elif kind == "uniform":
            at, weight = np.polynomial.legendre.leggauss(num)
            at = own + 0.25 + 1.25 * at
        elif kind == "gamma":
            k, extra = (
                np.arange(num),
                np.exp(own),
            )  # of Gauss and Laguerre, where Gamma(extra) overflows too
            aside = np.diag(np.sqrt(k[1:] * (k[1:] + extra)), 1)
            at, vectors = np.linalg.eigh(np.diag(2 * k + 1 + extra) + aside + aside.T)
            at, weight = at / 1.5, vectors[0] ** 2
        else:
            at = np.arange(num, dtype=float)
            site = Site(kind, "scalar", "itself", False, "", 1.0, "default")
            weight = np.exp([self.log_density(site, np.array([own]), z, False)[0] for z in at])
        return list(zip(at, np.log(weight / weight.sum()), strict=True))

    @staticmethod
    def log_density(site: Site, own: np.ndarray, z: np.ndarray, prior: bool) -> np.ndarray:
        if site.kind == "uniform" and not prior:
            return np.full(site.size, -np.log(2.5))
        if site.kind in ("normal", "uniform"):
            return oracles.log_normal(z, own, 0.7)
        if site.kind == "gamma":
            shape = 1.0 + np.exp(own)
            log_z = shape * np.log(1.5) - scipy.special.gammaln(shape)
            return log_z + (shape - 1.0) * np.log(z) - 1.5 * z
        if site.kind == "bernoulli":
            return oracles.log_bernoulli(own, z)
        return own * (z - 1) - np.log(np.exp(-own) + 1 + np.exp(own))

    def exact(self) -> np.ndarray:
        """The loss and its gradient, by central differences."""
        k, step = (2 if self.spec.objective == "iwae" else 1), 1e-5
        slopes = [
            (self.exact_loss(self.values + d, k) - self.exact_loss(self.values - d, k)) / (2 * step)
            for d in step * np.eye(len(self.values))
        ]
        return np.array([self.exact_loss(self.values, k), *slopes])
