"""Signal-to-noise ratio of gradient estimates as the bound gets tighter, and the variance of log_variance.

The experiment of Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better: z ~ N(mu, I),
x | z ~ N(z, I) and the guide q(z | x) = N(A x + b, (2/3) I), all in 20 dims, close to the optimum A = I/2,
b = mu/2, mu = mean of x. The SNR of one estimate, |mean| / standard deviation, is averaged over the
coordinates of b (inference network) and of mu (generative model). Theory, for K particles: it falls as
K^(-1/2) for b by IWAE and grows as K^(1/2) for mu; for b DoublyReparam (Tucker et al. 2019) makes it grow as
K^(1/2). The last table has the variance of the gradient by A and b of log_variance (Richter et al. 2020) beside
those of the ELBO. Prints the tables and saves `figures/snr.png`.

Run: `python -m benchmarks.snr [--scale S]`; S multiplies the numbers of draws. About 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random

import vi_kit as vi
from vi_kit.numpyro import Loss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_DIMS = 20
NUM_DATA = 8  # the number of data points does not change the slopes
NUM_PARTICLES = tuple(2**i for i in range(11))
NUM_OUTER = (1, 4, 16, 64)
LAST_DIRECT = 64  # beyond, the mean gradient by b drowns in the noise of IWAE by Reparam
FIRST_LATE = 64  # before, the means have terms of higher order in 1/K, those by mu above all
BUDGET = 64
FIGURE = Path(__file__).resolve().parents[1] / "figures" / "snr.png"

# The model, the guide, and parameters near their optimum


def model(x: jax.Array) -> None:
    mu = numpyro.param("mu", jnp.zeros(NUM_DIMS))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    a = jnp.asarray(numpyro.param("A", jnp.eye(NUM_DIMS) / 2))
    b = jnp.asarray(numpyro.param("b", jnp.zeros(NUM_DIMS)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(x @ a.T + b, (2 / 3) ** 0.5).to_event(1))


class Problem(NamedTuple):
    """Simulated data, and the parameters at which gradients are taken."""

    x: jax.Array
    params: dict[str, jax.Array]


def near_optimum(perturbation: float) -> Problem:
    """Data from the model, and the optimum with normal noise of the given standard deviation."""
    rng = np.random.default_rng(0)
    true_mu = rng.standard_normal(NUM_DIMS)
    z = true_mu + rng.standard_normal((NUM_DATA, NUM_DIMS))
    x = z + rng.standard_normal(z.shape)
    optimum = {"A": np.eye(NUM_DIMS) / 2, "b": x.mean(0) / 2, "mu": x.mean(0)}
    params = {n: v + perturbation * rng.standard_normal(v.shape) for n, v in optimum.items()}
    return Problem(jnp.asarray(x), {n: jnp.asarray(v) for n, v in params.items()})


# What is measured


class Moments(NamedTuple):
    """Mean and standard deviation of one gradient estimate per coordinate, from `num_draws` estimates."""

    mean: np.ndarray
    sd: np.ndarray
    num_draws: int

    @property
    def snr(self) -> float:
        return float(np.mean(np.abs(self.mean) / self.sd))

    @property
    def noise(self) -> float:
        """Standard error of a mean relative to its size; well under one, or the SNR is not known."""
        error = self.sd / np.sqrt(self.num_draws)
        return float(np.mean(error) / np.mean(np.abs(self.mean)))


def gradient_moments(
    loss: Loss, problem: Problem, wrt: Sequence[str], num_draws: int, num_particles: int
) -> dict[str, Moments]:
    """Moments of independent estimates of the gradient by the parameters `wrt`.

    `num_particles`, the draws of z in one estimate, only decides how many estimates are made at a time.
    """
    chunk = max(1, 2**13 // num_particles)
    num_chunks = max(2, -(-num_draws // chunk))

    def value(some: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        params = problem.params | some
        return jnp.asarray(loss.loss(key, params, model, guide, problem.x))

    def sums(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        some = {name: problem.params[name] for name in wrt}
        gradients = jax.vmap(jax.grad(value), (None, 0))(some, random.split(key, chunk))
        return {name: (g.sum(0), (g**2).sum(0)) for name, g in gradients.items()}

    seed = zlib.crc32(repr(loss).encode())  # its own for each loss, so that any two are independent
    keys = random.split(random.key(seed), num_chunks)
    by_chunk = jax.jit(lambda keys: lax.map(sums, keys))(keys)
    num_draws = num_chunks * chunk
    moments = {}
    for name, both in by_chunk.items():
        # A small mean is the sum of large terms, so the chunks are added in double precision.
        first, second = (np.asarray(v, np.float64).sum(0) / num_draws for v in both)
        moments[name] = Moments(first, np.sqrt(second - first**2), num_draws)
    return moments


def slope(counts: Sequence[int], snrs: Sequence[float], first: int, last: int) -> float:
    """Least squares slope of log SNR over log count, for counts from `first` to `last`."""
    chosen = [(k, s) for k, s in zip(counts, snrs, strict=True) if first <= k <= last]
    k, s = np.log(np.asarray(chosen)).T
    return float(np.polyfit(k, s, 1)[0])


# SNR against K and against M


class Scan(NamedTuple):
    """SNR of IWAE against K, and of the mean of M estimates at K = 1."""

    plain: list[dict[str, Moments]]  # by Reparam
    double: list[dict[str, Moments]]  # by DoublyReparam
    outer: list[dict[str, Moments]]

    def with_shared_mean(self) -> list[float]:
        """SNR of Reparam for b with the mean of DoublyReparam, which has the same expectation."""
        pairs = zip(self.plain, self.double, strict=True)
        return [d["b"]._replace(sd=p["b"].sd).snr for p, d in pairs]

    def differences(self) -> np.ndarray:
        """Differences of the two estimators' means in standard errors, over K and coordinates."""
        differences = []
        for p, d in zip(self.plain, self.double, strict=True):
            for name in p:
                errors = [m[name].sd / np.sqrt(m[name].num_draws) for m in (p, d)]
                differences.append((p[name].mean - d[name].mean) / np.hypot(*errors))
        return np.concatenate(differences)


def scan(problem: Problem, scale: float) -> Scan:
    """The SNR needs a number of draws well above SNR^-2, which is what decides the numbers here."""

    def moments(loss: Loss, num_draws: int, num_particles: int) -> dict[str, Moments]:
        return gradient_moments(loss, problem, ("b", "mu"), int(scale * num_draws), num_particles)

    plain, double = [], []
    for k in NUM_PARTICLES:
        many = 2**17 if k <= LAST_DIRECT else 2**20 // k
        plain.append(moments(Loss(vi.iwae(num_particles=k), vi.Reparam()), many, k))
        few = 2**13 if k <= LAST_DIRECT else 2**18 // k
        double.append(moments(Loss(vi.iwae(num_particles=k), vi.DoublyReparam()), few, k))
    outer = []
    for m in NUM_OUTER:
        loss = Loss(vi.miwae(num_outer=m, num_inner=1), vi.Reparam())
        outer.append(moments(loss, 2**17 // m, m))
    return Scan(plain, double, outer)


def print_scan(found: Scan) -> None:
    print("\nSNR against K (in brackets: standard error of a mean relative to the mean)")
    print(f"{'':6} {'b, Reparam':>18} {'(*)':>8} {'b, DoublyReparam':>20} {'mu, Reparam':>18}")
    shared = found.with_shared_mean()
    for k, p, d, s in zip(NUM_PARTICLES, found.plain, found.double, shared, strict=True):
        direct = f"{p['b'].snr:.4f} ({p['b'].noise:.2f})" if k <= LAST_DIRECT else "-"
        double = f"{d['b'].snr:.4f} ({d['b'].noise:.2f})"
        generative = f"{p['mu'].snr:.4f} ({p['mu'].noise:.2f})"
        print(f"{k:6d} {direct:>18} {s:8.4f} {double:>20} {generative:>18}")
    z = found.differences()
    print(
        "(*) with the mean of DoublyReparam, which has the same expectation: over all K and coordinates"
    )
    print(
        f"    z of the difference has mean square {np.mean(z**2):.2f}, largest of {z.size} {abs(z).max():.1f}"
    )


def print_slopes(found: Scan) -> None:
    print(f"\n{'slope of log SNR':52} {'range':>10} {'slope':>7} {'theory':>7}")
    direct = [m["b"].snr for m in found.plain]
    double = [m["b"].snr for m in found.double]
    generative = [m["mu"].snr for m in found.plain]
    last = NUM_PARTICLES[-1]
    rows = (
        ("IWAE, b by Reparam, against K", direct, 4, LAST_DIRECT, -0.5),
        ("the same, mean by DoublyReparam", found.with_shared_mean(), 4, last, -0.5),
        ("IWAE, b by DoublyReparam, against K", double, FIRST_LATE, last, 0.5),
        ("IWAE, mu by Reparam, against K", generative, FIRST_LATE, last, 0.5),
    )
    for name, snrs, first, last, theory in rows:
        value = slope(NUM_PARTICLES, snrs, first, last)
        print(f"{name:52} {f'{first}-{last}':>10} {value:7.3f} {theory:7.1f}")
    for name in ("b", "mu"):
        snrs = [m[name].snr for m in found.outer]
        value = slope(NUM_OUTER, snrs, NUM_OUTER[0], NUM_OUTER[-1])
        title = f"mean of M estimates, K = 1, {name} by Reparam, against M"
        print(f"{title:52} {f'{NUM_OUTER[0]}-{NUM_OUTER[-1]}':>10} {value:7.3f} {0.5:7.1f}")


def draw_scan(found: Scan, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.5), sharex=True, layout="constrained")
    curves = (
        ("b", "IWAE, K, Reparam", NUM_PARTICLES, found.with_shared_mean(), -0.5),
        ("b", "IWAE, K, DoublyReparam", NUM_PARTICLES, [m["b"].snr for m in found.double], 0.5),
        ("b", "K = 1, M, Reparam", NUM_OUTER, [m["b"].snr for m in found.outer], None),
        ("mu", "IWAE, K, Reparam", NUM_PARTICLES, [m["mu"].snr for m in found.plain], 0.5),
        ("mu", "K = 1, M, Reparam", NUM_OUTER, [m["mu"].snr for m in found.outer], None),
    )
    axis_of = {"b": axes[0], "mu": axes[1]}
    for name, label, counts, snrs, theory in curves:
        axis = axis_of[name]
        (line,) = axis.loglog(counts, snrs, "o-", markersize=4, label=label)
        if theory is not None:
            reference = snrs[-1] * (np.asarray(counts) / counts[-1]) ** theory
            axis.loglog(counts, reference, ":", color=line.get_color())
    axes[0].set(title="inference network (b)", ylabel="signal-to-noise ratio")
    axes[1].set(title="generative model (mu)")
    for axis in axes:
        axis.set_xlabel("K, or M (dotted: slopes of the theory)")
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


# SNR of the bounds that split one budget


def print_budget(problem: Problem, scale: float) -> None:
    side = int(BUDGET**0.5)
    objectives = (
        vi.elbo(),
        vi.iwae(num_particles=BUDGET),
        vi.miwae(num_outer=side, num_inner=side),
        vi.piwae(num_outer=side, num_inner=side),
        vi.ciwae(num_particles=BUDGET, beta=0.5),
    )
    print(
        f"\nSNR with {BUDGET} draws of z per estimate (standard error of a mean relative to the mean)"
    )
    print(f"{'':36} {'b, Reparam':>18} {'b, DoublyReparam':>20} {'mu, Reparam':>18}")
    for objective in objectives:
        num_samples = BUDGET if objective == vi.elbo() else 1
        cells = {}
        for estimator in (vi.Reparam(), vi.DoublyReparam()):
            # IWAE by Reparam has by far the smallest signal.
            many = (objective, estimator) == (vi.iwae(num_particles=BUDGET), vi.Reparam())
            draws = int(scale * 2 ** (15 if many else 13))
            loss = Loss(objective, estimator, num_samples=num_samples)
            cells[estimator] = gradient_moments(loss, problem, ("b", "mu"), draws, BUDGET)
        plain, double = cells.values()
        shown = [f"{m.snr:.3f} ({m.noise:.2f})" for m in (plain["b"], double["b"], plain["mu"])]
        name = f"{objective} x {num_samples}" if num_samples > 1 else str(objective)
        print(f"{name:36} {shown[0]:>18} {shown[1]:>20} {shown[2]:>18}")


# Variance of log_variance


def variance_contenders(num_draws: int) -> dict[str, Loss]:
    """Losses whose mean gradient by the guide's parameters is that of KL(q || p), with equal numbers of draws."""
    return {
        "elbo, Reparam": Loss(vi.elbo(), vi.Reparam(), num_samples=num_draws),
        "elbo, DoublyReparam": Loss(vi.elbo(), vi.DoublyReparam(), num_samples=num_draws),
        "log_variance": Loss(vi.log_variance(num_particles=num_draws)),
        "elbo, Score(LeaveOneOut())": Loss(
            vi.elbo(), vi.Score(vi.LeaveOneOut()), num_samples=num_draws
        ),
        "elbo, Score()": Loss(vi.elbo(), vi.Score(), num_samples=num_draws),
    }


def print_variances(scale: float, num_draws: int = 8) -> None:
    print(
        f"\nGradient by A and b from {num_draws} draws: trace of its covariance, and E |gradient|^2"
    )
    problems = {sd: near_optimum(sd) for sd in (0.01, 0.1, 0.5)}
    print(f"{'':28}" + "".join(f"{f'{sd} from the optimum':>24}" for sd in problems))
    for name, loss in variance_contenders(num_draws).items():
        cells = []
        for problem in problems.values():
            moments = gradient_moments(loss, problem, ("A", "b"), int(scale * 2**12), num_draws)
            trace = sum((m.sd**2).sum() for m in moments.values())
            square = trace + sum((m.mean**2).sum() for m in moments.values())
            cells.append(f"{trace:12.4g}{square:12.4g}")
        print(f"{name:28}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of draws")
    scale = parser.parse_args().scale
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    problem = near_optimum(0.01)
    found = scan(problem, scale)
    print_scan(found)
    print_slopes(found)
    print_budget(problem, scale)
    print_variances(scale)
    draw_scan(found, FIGURE)
    print(f"\nfigure: {FIGURE}")


if __name__ == "__main__":
    main()
