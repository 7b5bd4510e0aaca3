"""Random small programs, and their exact losses by enumeration and quadrature in NumPy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import vi_kit as vi
from tests import oracles

SIZE = 2
"""Elements of an event or of a plate."""
MOST = {"elbo": 400, "iwae": 200}
"""Joint values that the oracle takes: pairs of them, for two particles."""
MASK = np.array([True, False])


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
}
OF_NORMAL = ("default", "Score", "RLOO", "MeasureValued", "Reparam", "DoublyReparam")
OF_DISCRETE = (
    *("default", "Score", "RLOO", "two baselines", "MeasureValued", "Enumerate", "DisARM"),
)


@dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        kind: its family.
        layout: "scalar", "event" or "plate".
        feature: by which number of a vector those that come later see it.
        parent: whether its density depends on the site before.
        masked: whether the second element has a mask inside the distribution.
        scale: of its log densities.
        estimator: a key of `ESTIMATORS`.
    """

    kind: str
    layout: str
    feature: str
    parent: bool
    masked: bool
    scale: float
    estimator: str

    @property
    def size(self) -> int:
        return 1 if self.layout == "scalar" else SIZE

    def num_values(self, objective: str) -> int:
        """How many joint values or nodes the oracle has for it."""
        nodes = {"bernoulli": 2, "categorical": 3, "normal": 5 if objective == "iwae" else 9}
        return nodes[self.kind] ** self.size


@dataclass(frozen=True)
class Spec:
    sites: tuple[Site, ...]
    objective: str

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
    sites, normals = [], 0
    plain = draw(st.booleans()) if all_default is None else all_default
    for i in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["bernoulli", "categorical", "normal"]))
        layout = draw(st.sampled_from(["scalar", "event", "plate"]))
        normals += kind == "normal"
        if normals > 1 and kind == "normal":
            kind = "bernoulli"
        names = OF_NORMAL if kind == "normal" else OF_DISCRETE
        sites.append(
            Site(
                kind,
                layout,
                draw(st.sampled_from(sorted(FEATURES))),
                i > 0 and draw(st.booleans()),
                layout != "scalar" and draw(st.sampled_from([False, False, True])),
                draw(st.sampled_from([1.0, 1.0, 1.0, 2.0])),
                "default" if plain else draw(st.sampled_from(names)),
            )
        )
    objective = draw(st.sampled_from(["elbo", "samples", "iwae"]))
    most = MOST["iwae" if objective == "iwae" else "elbo"]
    while len(sites) > 1 and np.prod([s.num_values(objective) for s in sites]) > most:
        sites.pop()
    return Spec(tuple(sites), objective)


class Program:
    """theta: one number per element of each site; the slope of the model."""

    x = np.array([0.8, -0.3])

    def __init__(self, lib: Any, spec: Spec):
        self.lib, self.spec = lib, spec
        self.starts = np.cumsum([0, *(s.size for s in spec.sites)])
        self.values = np.array([*np.linspace(-0.4, 0.6, self.starts[-1]), 0.9])

    def model(self) -> None:
        lib, theta = self.lib, self.lib.theta(self.values)
        loc = self.latents(lib.array(np.full(self.starts[-1], 0.2)))
        for j, x in enumerate(self.x):
            lib.sample(f"x{j}", lib.dist.Normal(theta[-1] * loc + 0.3 * j, 1.1), obs=lib.array(x))

    def guide(self) -> None:
        self.latents(self.lib.theta(self.values))

    def latents(self, params: Any) -> Any:
        lib, total, before = self.lib, 0.0, None
        for i, site in enumerate(self.spec.sites):
            own = params[self.starts[i] : self.starts[i + 1]]
            own = own[0] if site.layout == "scalar" else own
            if site.parent:
                shift = 0.5 * before
                own = own + (shift[..., None] if site.layout != "scalar" else shift)
            fn = self.distribution(site, own)
            if site.masked:
                fn = fn.mask(lib.array(MASK))
            with lib.handlers.scale(scale=site.scale):
                if site.layout == "plate":
                    with lib.plate(f"plate{i}", SIZE):
                        z = lib.sample(f"z{i}", fn)
                else:
                    z = lib.sample(f"z{i}", fn.to_event(1) if site.layout == "event" else fn)
            before = self.feature(lib.xp, site, 1.0 * z)
            total = total + before
        return total

    def distribution(self, site: Site, own: Any) -> Any:
        lib = self.lib
        if site.kind == "bernoulli":
            return lib.dist.Bernoulli(logits=own)
        if site.kind == "normal":
            return lib.dist.Normal(own, 0.7)
        return lib.dist.Categorical(logits=own[..., None] * lib.array([-1.0, 0.0, 1.0]))

    @staticmethod
    def feature(xp: Any, site: Site, z: Any) -> Any:
        return z if site.layout == "scalar" else FEATURES[site.feature](xp, z)

    # the oracle

    def exact_loss(self, theta: np.ndarray, particles: int) -> float:
        order = 9 if particles == 1 else 5
        log_mass, log_w = [], []
        states = [(0.0, 0.0, 0.0, 0.0)]  # log mass, log p - log q, total, feature before
        for i, site in enumerate(self.spec.sites):
            following = []
            for mass, ratio, total, before in states:
                own = theta[self.starts[i] : self.starts[i + 1]] + 0.5 * site.parent * before
                prior = np.full(site.size, 0.2) + 0.5 * site.parent * before
                for z, m, log_q in self.nodes(site, own, order):
                    keep = MASK[: site.size] if site.masked else np.ones(site.size, bool)
                    log_p = self.log_density(site, prior, z)
                    gain = site.scale * np.sum((log_p - log_q) * keep)
                    f = self.feature(np, site, z[0] if site.layout == "scalar" else z)
                    following.append((mass + m, ratio + gain, total + f, f))
            states = following
        for mass, ratio, total, _ in states:
            loc = theta[-1] * total + 0.3 * np.arange(len(self.x))
            log_mass.append(mass)
            log_w.append(ratio + oracles.log_normal(self.x, loc, 1.1).sum())
        return -float(oracles.expected_bound(np.array(log_mass), np.array(log_w), particles))

    def nodes(self, site: Site, own: np.ndarray, order: int) -> Any:
        if site.kind == "normal":
            at, weight = np.polynomial.hermite_e.hermegauss(order)
            pairs = list(zip(at, np.log(weight / weight.sum()), strict=True))
            for chosen in itertools.product(pairs, repeat=site.size):
                z = own + 0.7 * np.array([c[0] for c in chosen])
                yield z, sum(c[1] for c in chosen), self.log_density(site, own, z)
            return
        support = range(2 if site.kind == "bernoulli" else 3)
        for chosen in itertools.product(support, repeat=site.size):
            z = np.array(chosen, float)
            log_q = self.log_density(site, own, z)
            yield z, log_q.sum(), log_q

    @staticmethod
    def log_density(site: Site, own: np.ndarray, z: np.ndarray) -> np.ndarray:
        if site.kind == "normal":
            return oracles.log_normal(z, own, 0.7)
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
