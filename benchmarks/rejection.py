"""Variance and time of gradients of a Dirichlet guide by its concentrations, with every estimator that has one.

The experiment of Naesseth et al. 2017: 100 observations of a Categorical of 100 values with a uniform prior, and a
Dirichlet guide. The gradient is that of the expected log joint density; the entropy of the guide is known and adds
no noise. It is taken with all concentrations at 0.2, 1, 2 or 10, and at the exact posterior. The variance is that of
one estimate, summed over the coordinates of the log concentrations. RSVI is `RejectionReparam(augmentation=B)`,
G-REP `GeneralizedReparam()`, implicit `Reparam()`. `z` is the largest distance between the mean gradient and the exact
one in standard errors. A second table has the same of one Gamma site with a cost of log z and z.

Run: `python -m benchmarks.rejection [--quick]`. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.scipy.special import digamma, polygamma

import vi_kit as vi
from vi_kit.numpyro import Loss

numpyro.enable_x64()

NUM_VALUES, NUM_DATA, CHUNK = 100, 100, 500
COUNTS = np.random.default_rng(0).multinomial(NUM_DATA, np.full(NUM_VALUES, 1 / NUM_VALUES))

ESTIMATORS: dict[str, vi.Estimator] = {
    "Score": vi.Score(),
    "G-REP": vi.GeneralizedReparam(),
    **{f"RSVI, B = {b}": vi.RejectionReparam(b) for b in (0, 1, 3, 10, 30)},
    "implicit": vi.Reparam(),
}


@vi.objective
def expected_log_joint(model, guide):
    """The ELBO less the entropy of the guide."""
    return vi.log_density(model, vi.simulate(guide))


def model() -> None:
    z = numpyro.sample("z", dist.Dirichlet(jnp.ones(NUM_VALUES)))
    total = jnp.asarray(NUM_DATA)
    numpyro.sample("x", dist.Multinomial(total, probs=z), obs=jnp.asarray(COUNTS))


def guide() -> None:
    log_concentration = numpyro.param("a", jnp.zeros(NUM_VALUES))
    numpyro.sample("z", dist.Dirichlet(jnp.exp(log_concentration)))


def exact_gradient(a: jax.Array) -> jax.Array:
    """Of minus the expected log joint density, by log concentrations: E[log z_k] is digamma(a_k) - digamma(sum a)."""
    concentration = jnp.exp(a)
    total = concentration.sum()
    slopes = COUNTS * polygamma(1, concentration) - NUM_DATA * polygamma(1, total)
    return -slopes * concentration


def gamma_model() -> None:
    z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
    numpyro.sample("x", dist.Poisson(z), obs=jnp.asarray(3))


def gamma_guide() -> None:
    a = jnp.asarray(numpyro.param("a", jnp.zeros(1)))
    numpyro.sample("z", dist.Gamma(jnp.exp(a[0]), 2.0))


def exact_gamma_gradient(a: jax.Array) -> jax.Array:
    """Minus 4 E[log z] - 2 E[z], by the log concentration."""

    def expected(a: jax.Array) -> jax.Array:
        concentration = jnp.exp(a[0])
        return 4.0 * digamma(concentration) - concentration

    return -jax.grad(expected)(a)


class Result(NamedTuple):
    """Variance of one gradient, its time (ms), and the distance of the mean from the exact gradient."""

    variance: float
    milliseconds: float
    z: float


Sums = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def compiled(model: Callable, guide: Callable, estimator: vi.Estimator) -> Sums:
    """Sums of gradients less a centre, and of their squares, over chunks of draws."""
    loss = Loss(expected_log_joint(), estimator)

    def value(a: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.asarray(loss.loss(key, {"a": a}, model, guide))

    @jax.jit
    def sums(a: jax.Array, centre: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        def chunk(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            gaps = jax.vmap(jax.grad(value), (None, 0))(a, random.split(key, CHUNK)) - centre
            return gaps.sum(0), (gaps**2).sum(0)

        first, second = lax.map(chunk, keys)
        return first.sum(0), second.sum(0)

    return sums


def measure(sums: Sums, a: jax.Array, centre: jax.Array, num_draws: int) -> Result:
    keys = random.split(random.key(0), num_draws // CHUNK)
    jax.block_until_ready(sums(a, centre, keys))
    start = time.perf_counter()
    first, second = jax.block_until_ready(sums(a, centre, keys))
    milliseconds = 1e3 * (time.perf_counter() - start) / num_draws
    gap = first / num_draws
    variance = second / num_draws - gap**2
    z = jnp.abs(gap) / jnp.sqrt(jnp.maximum(variance, 1e-300) / num_draws)
    return Result(float(variance.sum()), milliseconds, float(z.max()))


def table(
    title: str,
    programs: tuple[Callable, Callable],
    points: dict[str, jax.Array],
    exact: Callable[[jax.Array], jax.Array],
    num_draws: int,
) -> None:
    print(f"\n{title}; {num_draws} draws. Variance (z), time (ms), variance over that of implicit")
    print(" " * 14 + "".join(f"{name:>22}" for name in points))
    rows = {}
    for name, estimator in ESTIMATORS.items():
        sums = compiled(*programs, estimator)
        rows[name] = [measure(sums, a, exact(a), num_draws) for a in points.values()]
    for name, row in rows.items():
        cells = "".join(f"{r.variance:14.4g} ({r.z:4.1f}) " for r in row)
        ratios = [r.variance / i.variance for r, i in zip(row, rows["implicit"], strict=True)]
        milliseconds = np.median([r.milliseconds for r in row])
        print(f"{name:14}{cells}{milliseconds:9.4f}  " + " ".join(f"{r:9.3g}" for r in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    scale = 0.1 if parser.parse_args().quick else 1.0
    points = {f"all {c:g}": jnp.full(NUM_VALUES, np.log(c)) for c in (0.2, 1.0, 2.0, 10.0)}
    points["posterior"] = jnp.log(1.0 + jnp.asarray(COUNTS))
    table("Dirichlet", (model, guide), points, exact_gradient, int(20_000 * scale))
    points = {f"a = {c:g}": jnp.log(jnp.full(1, c)) for c in (0.2, 1.0, 2.0, 5.0, 50.0)}
    table("Gamma", (gamma_model, gamma_guide), points, exact_gamma_gradient, int(500_000 * scale))


if __name__ == "__main__":
    main()
