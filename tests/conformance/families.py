"""Distribution families: how a library builds them, and nodes for exact expectations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import oracles


@dataclass(frozen=True, eq=False)
class Family:
    """A family with unconstrained parameters, each an array over the elements of a site.

    Attributes:
        build: from the library's words and the parameters to a distribution.
        log_density: of the parameters at the nodes, up to what `log_measure` and normalisation give.
        nodes: from a number of nodes to values, shape `(nodes, *event)`, and their log measure.
        guide: parameters of a guide.
        prior: parameters of a prior.
        feature: the number that the likelihood sees of a value.
        slope: factor of the feature.
        num_nodes: of a site alone; ignored where the support is finite.
    """

    build: Callable[..., Any]
    log_density: Callable[..., Any]
    nodes: Callable[[int], tuple[np.ndarray, np.ndarray]]
    guide: tuple[float, ...]
    prior: tuple[float, ...]
    feature: Callable[[Any], Any] = lambda z: z
    slope: float = 1.0
    num_nodes: int = 240

    def grid(self, num_nodes=None):
        """Values and log measure; as many as for a site alone if not told otherwise."""
        return self.nodes(num_nodes or self.num_nodes)

    def log_q(self, params, num_nodes=None):
        """Log density at the nodes, shape `(*batch, nodes)`; `params` has shape `(num_params, *batch)`."""
        values, log_measure = self.grid(num_nodes)
        return oracles.normalised(self.log_density(values, *params[..., None]), log_measure)

    def prior_params(self, like):
        """The prior's parameters, with as many dims as `like`."""
        return np.array(self.prior).reshape(-1, *(1,) * (like.ndim - 1))

    def site_params(self, *sizes):
        """Parameters of a guide that differ from element to element, shape `(num_params, *sizes)`."""
        spread = np.linspace(-0.3, 0.3, math.prod(sizes)).reshape(sizes) if sizes else 0.0
        return np.array(self.guide).reshape(-1, *(1,) * len(sizes)) + spread


def finite(size):
    return lambda num_nodes: (np.arange(size), np.zeros(size))


def trapezoid(low, high, to_value, log_jacobian):
    """Equidistant nodes on the real line, mapped to the support: geometric convergence."""

    def nodes(num_nodes):
        u, step = np.linspace(low, high, num_nodes, retstep=True)
        return to_value(u), log_jacobian(u) + np.log(step)

    return nodes


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


def log_sigmoid_slope(u):
    return -np.logaddexp(0, u) - np.logaddexp(0, -u)


def simplex(num_nodes, reach=14):
    """Values of three coordinates, by breaking a stick twice."""
    u, step = np.linspace(-reach, reach, num_nodes, retstep=True)
    first, second = (v.ravel() for v in np.meshgrid(u, u, indexing="ij"))
    rest = sigmoid(-first)
    values = np.stack([sigmoid(first), rest * sigmoid(second), rest * sigmoid(-second)], -1)
    log_jacobian = log_sigmoid_slope(first) + np.log(rest) + log_sigmoid_slope(second)
    return values, log_jacobian + 2 * np.log(step)


def one_hot(num_nodes):
    return np.eye(3), np.zeros(3)


def counts(log_base_measure):
    def nodes(num_nodes):
        values = np.arange(num_nodes)
        return values, np.array([log_base_measure(int(k)) for k in values])

    return nodes


def panels(num_nodes):
    """Gauss-Legendre nodes between the places where the locations of these tests put kinks."""
    edges = np.array([-32, -12, -5, -2, -0.2, 0.2, 0.5, 0.8, 2.5, 6, 13, 33])
    u, weight = np.polynomial.legendre.leggauss(num_nodes // (len(edges) - 1))
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + u)).ravel(), np.log(half * weight).ravel()


REAL = trapezoid(-5.5, 6.5, lambda u: u, np.zeros_like)
POSITIVE = trapezoid(-16, 5, np.exp, lambda u: u)
WEIBULL = trapezoid(-14, 2.6, np.exp, lambda u: u)
UNIT = trapezoid(-16, 16, sigmoid, log_sigmoid_slope)


def normal_kernel(z, loc, log_scale):
    return -0.5 * ((z - loc) / np.exp(log_scale)) ** 2 - log_scale


def laplace_kernel(z, loc, log_scale):
    distance = (z - loc) * np.sign(z - np.real(loc))
    return -distance / np.exp(log_scale) - log_scale


def log_negative_binomial(z, logit):
    log_choose = np.array([math.lgamma(k + 2.5) - math.lgamma(k + 1) for k in z])
    return log_choose - z * np.log(1 + np.exp(-logit)) - 2.5 * np.log(1 + np.exp(logit))


def weibull_kernel(z, log_scale, log_concentration):
    log_power = np.exp(log_concentration) * (np.log(z) - log_scale)
    return log_power - np.exp(log_power) + log_concentration - np.log(z)


COUNTS = np.array([2, 5])
LOG_CHOOSE = np.array(
    [[math.log(math.comb(n, k)) if k <= n else -1e3 for k in range(6)] for n in COUNTS]
)


def softmax_kernel(z, *logits):
    table = np.concatenate(np.broadcast_arrays(*logits), axis=-1)
    return table - np.zeros(len(z))


def first_minus_half_second(z):
    return z[..., 0] - 0.5 * z[..., 1]


def logit(z):
    return np.log(z) - np.log1p(-z)


FAMILIES = {
    "bernoulli": Family(
        build=lambda lib, a: lib.dist.Bernoulli(logits=a),
        log_density=lambda z, a: a * z,
        nodes=finite(2),
        guide=(0.6,),
        prior=(-0.3,),
        slope=1.2,
    ),
    "categorical": Family(
        build=lambda lib, *logits: lib.dist.Categorical(logits=lib.xp.stack(logits, -1)),
        log_density=softmax_kernel,
        nodes=finite(3),
        guide=(0.5, -0.2, 0.4),
        prior=(0.1, 0.3, -0.4),
        slope=0.7,
    ),
    "one_hot": Family(
        build=lambda lib, *logits: lib.dist.OneHotCategorical(logits=lib.xp.stack(logits, -1)),
        log_density=softmax_kernel,
        nodes=one_hot,
        guide=(0.5, -0.2, 0.4),
        prior=(0.1, 0.3, -0.4),
        feature=first_minus_half_second,
    ),
    "binomial": Family(
        build=lambda lib, a: lib.dist.Binomial(total_count=3, logits=a),
        log_density=lambda z, a: a * z,
        nodes=lambda n: (np.arange(4), np.log([1, 3, 3, 1])),
        guide=(0.6,),
        prior=(-0.3,),
        slope=0.4,
    ),
    "binomial_counts": Family(  # a count for each of two elements
        build=lambda lib, a: lib.dist.Binomial(
            total_count=lib.array(COUNTS), probs=1 / (1 + lib.xp.exp(-a))
        ),
        log_density=lambda z, a: a * z - COUNTS[:, None] * np.log(1 + np.exp(a)) + LOG_CHOOSE,
        nodes=finite(6),
        guide=(0.6,),
        prior=(-0.3,),
        slope=0.4,
    ),
    "poisson": Family(
        build=lambda lib, a: lib.dist.Poisson(lib.xp.exp(a)),
        log_density=lambda z, a: a * z,
        nodes=counts(lambda k: -math.lgamma(k + 1)),
        guide=(0.6,),
        prior=(0.1,),
        slope=0.4,
    ),
    "geometric": Family(
        build=lambda lib, a: lib.dist.Geometric(logits=a),
        log_density=lambda z, a: -z * np.log(1 + np.exp(a)),
        nodes=counts(lambda k: 0.0),
        guide=(0.8,),
        prior=(0.1,),
        slope=0.6,
    ),
    "geometric_probs": Family(
        build=lambda lib, a: lib.dist.Geometric(probs=1 / (1 + lib.xp.exp(-a))),
        log_density=lambda z, a: -z * np.log(1 + np.exp(a)),
        nodes=counts(lambda k: 0.0),
        guide=(0.8,),
        prior=(0.1,),
        slope=0.6,
    ),
    "negative_binomial": Family(
        build=lambda lib, a: lib.dist.NegativeBinomial(lib.array(2.5), logits=a),
        log_density=log_negative_binomial,
        nodes=counts(lambda k: 0.0),
        guide=(-0.7,),
        prior=(-0.2,),
        slope=0.6,
    ),
    "negative_binomial_probs": Family(
        build=lambda lib, a: lib.dist.NegativeBinomial(
            lib.array(2.5), probs=1 / (1 + lib.xp.exp(-a))
        ),
        log_density=log_negative_binomial,
        nodes=counts(lambda k: 0.0),
        guide=(-0.7,),
        prior=(-0.2,),
        slope=0.6,
    ),
    "normal": Family(
        build=lambda lib, loc, log_scale: lib.dist.Normal(loc, lib.xp.exp(log_scale)),
        log_density=normal_kernel,
        nodes=REAL,
        guide=(0.5, -0.3),
        prior=(-0.2, 0.1),
        slope=0.9,
    ),
    "log_normal": Family(
        build=lambda lib, loc, log_scale: lib.dist.LogNormal(loc, lib.xp.exp(log_scale)),
        log_density=lambda z, loc, log_scale: normal_kernel(np.log(z), loc, log_scale) - np.log(z),
        nodes=trapezoid(-4, 4.5, np.exp, lambda u: u),
        guide=(0.2, -0.8),
        prior=(-0.2, -0.2),
        slope=0.9,
    ),
    "logit_normal": Family(
        build=lambda lib, loc, log_scale: lib.dist.TransformedDistribution(
            lib.dist.Normal(loc, lib.xp.exp(log_scale)), [lib.dist.transforms.SigmoidTransform()]
        ),
        log_density=lambda z, loc, log_scale: (
            normal_kernel(logit(z), loc, log_scale) - np.log(z) - np.log1p(-z)
        ),
        nodes=trapezoid(-5.5, 6.5, sigmoid, log_sigmoid_slope),
        guide=(0.5, -0.3),
        prior=(-0.2, 0.1),
        slope=1.3,
    ),
    "laplace": Family(
        build=lambda lib, loc, log_scale: lib.dist.Laplace(loc, lib.xp.exp(log_scale)),
        log_density=laplace_kernel,
        nodes=panels,
        guide=(0.5, -0.3),
        prior=(-0.2, 0.1),
        slope=0.9,
    ),
    "exponential": Family(
        build=lambda lib, a: lib.dist.Exponential(lib.xp.exp(a)),
        log_density=lambda z, a: a - np.exp(a) * z,
        nodes=trapezoid(-22, 5, np.exp, lambda u: u),
        guide=(0.4,),
        prior=(-0.2,),
    ),
    "gamma": Family(
        build=lambda lib, a, b: lib.dist.Gamma(lib.xp.exp(a), lib.xp.exp(b)),
        log_density=lambda z, a, b: np.exp(a) * np.log(z) - np.log(z) - np.exp(b) * z,
        nodes=POSITIVE,
        guide=(0.8, 0.5),
        prior=(0.6, 0.1),
    ),
    "gamma_rate": Family(
        build=lambda lib, b: lib.dist.Gamma(lib.array(2.2), lib.xp.exp(b)),
        log_density=lambda z, b: 1.2 * np.log(z) - np.exp(b) * z,
        nodes=POSITIVE,
        guide=(0.5,),
        prior=(0.1,),
    ),
    "weibull": Family(
        build=lambda lib, a, b: lib.dist.Weibull(lib.xp.exp(a), lib.xp.exp(b)),
        log_density=weibull_kernel,
        nodes=WEIBULL,
        guide=(0.4, 0.5),
        prior=(0.1, 0.4),
    ),
    "weibull_scale": Family(
        build=lambda lib, a: lib.dist.Weibull(lib.xp.exp(a), lib.array(1.7)),
        log_density=lambda z, a: weibull_kernel(z, a, math.log(1.7)),
        nodes=WEIBULL,
        guide=(0.4,),
        prior=(0.1,),
    ),
    "beta": Family(
        build=lambda lib, a, b: lib.dist.Beta(lib.xp.exp(a), lib.xp.exp(b)),
        log_density=lambda z, a, b: (np.exp(a) - 1) * np.log(z) + (np.exp(b) - 1) * np.log1p(-z),
        nodes=UNIT,
        guide=(0.9, 0.6),
        prior=(0.6, 0.8),
        slope=1.3,
    ),
    "dirichlet": Family(
        build=lambda lib, *a: lib.dist.Dirichlet(lib.xp.exp(lib.xp.stack(a, -1))),
        log_density=lambda z, *a: sum((np.exp(a[i]) - 1) * np.log(z[:, i]) for i in range(3)),
        nodes=simplex,
        guide=(0.7, 1.2, 0.9),
        prior=(0.7, 0.9, 0.8),
        feature=first_minus_half_second,
        slope=1.3,
        num_nodes=60,
    ),
}
