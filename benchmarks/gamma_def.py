"""ELBO by steps and by seconds, and variance of the gradient, of a sparse gamma deep exponential family of digits.

The experiment of Naesseth et al. 2017, section 6.2, on 100 real images of 8 x 8 pixels (`models/gamma_def/`; theirs
are 320 faces of 64 x 64, which need a download). Each estimator fits the same guide from the same start for the same
number of seconds: independent Gamma variables with shape and mean as parameters. All take steps of Adam with a
learning rate of 0.05 (theirs: the rule of Kucukelbir et al. 2017, its scale chosen for each estimator).
RSVI is `RejectionReparam(B)`, G-REP `GeneralizedReparam()`, implicit `Reparam()`, BBVI `Score()`, and ADVI `Reparam()`
with log-normal variables in place of the Gamma ones. ELBOs on the way are means over the last 10 steps, in nats per
image. The variance is that of one gradient of the ELBO of all images, at points on the path of RSVI with B = 4, summed
over the parameters of the shapes and over those of the means. Compilation is not part of the seconds. Saves
`figures/gamma_def.png`.

Run: `python -m benchmarks.gamma_def [--quick]`. About five minutes on two idle cores, half of them compilation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import optax
from jax import lax, random
from numpyro.handlers import seed, trace

import vi_kit as vi
from vi_kit.numpyro import Loss

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from models.gamma_def import LAYERS, LEARNING_RATE, load_data  # noqa: E402
from models.gamma_def.numpyro import guide, log_normal, model  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

numpyro.enable_x64()  # in single precision, Gamma variables of a small shape are zero

CHUNK = 10
STEPS = (50, 100, 200, 500, 1000)
FIGURE = ROOT / "figures" / "gamma_def.png"
OPTIMIZER = optax.adam(LEARNING_RATE)
PATH = "RSVI, B = 4"
QUICK = (PATH, "implicit", "ADVI")
POINTS = ("start", "step 100", "end")

ESTIMATORS: dict[str, vi.Estimator] = {
    PATH: vi.RejectionReparam(4),
    "RSVI, B = 1": vi.RejectionReparam(1),
    "G-REP": vi.GeneralizedReparam(),
    "implicit": vi.Reparam(),
    "BBVI": vi.Score(),
    "ADVI": vi.Reparam(),
}

Params = dict[str, jax.Array]


class Fit(NamedTuple):
    """What an estimator reached: per chunk of steps its seconds and ELBO, and at the end the ELBO and its error."""

    num_steps: np.ndarray
    seconds: np.ndarray
    elbos: np.ndarray
    final: tuple[float, float]
    points: list[Params]

    @property
    def milliseconds(self) -> float:
        return 1e3 * float(self.seconds[-1] / self.num_steps[-1])


class Found(NamedTuple):
    """Of a chunk of draws: their ELBOs, and the sums of gradients and of their squares."""

    elbos: jax.Array
    first: Params
    second: Params


class Contender:
    """An estimator with its guide, compiled."""

    def __init__(self, name: str, x: jax.Array, layers: tuple[int, ...]):
        own_guide = partial(guide, family=log_normal) if name == "ADVI" else guide
        loss = Loss(vi.elbo(), ESTIMATORS[name])
        sites = trace(seed(own_guide, 0)).get_trace(x, layers).values()
        params = {s["name"]: s["value"] for s in sites if s["type"] == "param"}
        self.start = params, OPTIMIZER.init(params)

        def value(params: Params, key: jax.Array) -> jax.Array:
            return jnp.asarray(loss.loss(key, params, model, own_guide, x, layers))

        def chunk(state: Any, key: jax.Array, pace: float) -> tuple[Any, Found]:
            def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
                params, slots, first, second = carry
                loss, gradient = jax.value_and_grad(value)(params, key)
                change, slots = OPTIMIZER.update(gradient, slots)
                params = jax.tree.map(lambda p, c: p + pace * c, params, change)
                first = jax.tree.map(jnp.add, first, gradient)
                second = jax.tree.map(lambda s, g: s + g**2, second, gradient)
                return (params, slots, first, second), -loss / len(x)

            zeros = jax.tree.map(jnp.zeros_like, state[0])
            carry, elbos = lax.scan(step, (*state, zeros, zeros), random.split(key, CHUNK))
            return carry[:2], Found(elbos, *carry[2:])

        self.chunk: Callable = jax.jit(chunk).lower(self.start, random.key(0), 1.0).compile()

    def fit(self, seconds: float, num_draws: int) -> Fit:
        state, spent, taken, elbos = self.start, 0.0, [], []
        points = [state[0]]
        while spent < seconds:
            key = random.key(len(taken))
            start = time.perf_counter()
            state, found = jax.block_until_ready(self.chunk(state, key, 1.0))
            spent += time.perf_counter() - start
            taken.append(spent)
            elbos.append(float(found.elbos.mean()))
            if len(taken) * CHUNK == 100:
                points.append(state[0])
        points.append(state[0])
        num_steps = CHUNK * np.arange(1, len(taken) + 1)
        final = np.concatenate([found.elbos for found in self.at(state[0], num_draws)])
        error = float(final.std(ddof=1) / len(final) ** 0.5)
        return Fit(
            num_steps, np.array(taken), np.array(elbos), (float(final.mean()), error), points
        )

    def at(self, params: Params, num_draws: int) -> list[Found]:
        """Chunks of draws with the parameters held."""
        keys = random.split(random.key(1), num_draws // CHUNK)
        return [self.chunk((params, self.start[1]), key, 0.0)[1] for key in keys]

    def variances(self, params: Params, num_draws: int) -> tuple[float, float]:
        """Traces of the covariance of one gradient by the shapes and by the means."""
        found = self.at(params, num_draws)
        total = {"shape": 0.0, "mean": 0.0}
        for name in params:
            mean = sum(f.first[name] for f in found) / num_draws
            square = sum(f.second[name] for f in found) / num_draws
            unbiased = num_draws / (num_draws - 1)
            total[name.split("_")[-1]] += unbiased * float(jnp.sum(square - mean**2))
        return total["shape"], total["mean"]


def print_fits(fits: dict[str, Fit], moments: list[float]) -> None:
    steps = [n for n in STEPS if n <= max(f.num_steps[-1] for f in fits.values())]
    print(
        "\nELBO (nats per image) after so many steps or seconds; at the end with its standard error"
    )
    columns = [f"step {n}" for n in steps] + [f"{s:g} s" for s in moments]
    print(
        f"{'':14}{'ms a step':>10}"
        + "".join(f"{c:>11}" for c in columns)
        + f"{'end':>18}{'steps':>8}"
    )
    for name, fit in fits.items():
        at_steps = [fit.elbos[n // CHUNK - 1] if n <= fit.num_steps[-1] else None for n in steps]
        done = [np.searchsorted(fit.seconds, s) for s in moments]
        at_moments = [fit.elbos[i - 1] if i > 0 else None for i in done]
        cells = ["-" if e is None else f"{e:.1f}" for e in at_steps + at_moments]
        end = f"{fit.final[0]:.1f} ({fit.final[1]:.1f})"
        print(
            f"{name:14}{fit.milliseconds:10.1f}"
            + "".join(f"{c:>11}" for c in cells)
            + f"{end:>18}{fit.num_steps[-1]:8d}"
        )


def print_variances(contenders: dict[str, Contender], points: list[Params], num_draws: int) -> None:
    print(
        f"\nVariance of one gradient by shapes and by means, {num_draws} draws, on the path of {PATH}"
    )
    print(" " * 14 + "".join(f"{p + ': shapes':>18}{'means':>12}" for p in POINTS))
    for name, contender in contenders.items():
        if name == "ADVI":  # it has other parameters
            continue
        pairs = [contender.variances(params, num_draws) for params in points]
        print(f"{name:14}" + "".join(f"{shapes:18.3g}{means:12.3g}" for shapes, means in pairs))


def draw(fits: dict[str, Fit], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for name, fit in fits.items():
        axes[0].semilogx(fit.num_steps, fit.elbos, label=name)
        axes[1].semilogx(fit.seconds, fit.elbos, label=name)
    lowest = min(f.elbos[0] for n, f in fits.items() if n not in ("BBVI", "ADVI"))
    highest = max(f.final[0] for f in fits.values())
    axes[0].set(xlabel="steps", ylabel="ELBO (nats per image)", ylim=(lowest, highest + 20))
    axes[1].set(xlabel="seconds")
    axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one layer, few images; a check that it runs"
    )
    quick = parser.parse_args().quick
    began = time.perf_counter()
    x = jnp.asarray(load_data(30 if quick else 100))
    layers, seconds, num_draws = ((5,), 0.5, 20) if quick else (LAYERS, 12.0, 60)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    print(f"{len(x)} images, layers {layers}, {seconds:g} s each")
    contenders, fits = {}, {}
    for name in QUICK if quick else ESTIMATORS:
        contenders[name] = Contender(name, x, layers)
        fits[name] = contenders[name].fit(seconds, num_draws)
    print_fits(fits, [seconds / 8, seconds / 4, seconds / 2])
    print_variances(contenders, fits[PATH].points, num_draws)
    if not quick:
        draw(fits, FIGURE)
        print(f"\nfigure: {FIGURE}")
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
