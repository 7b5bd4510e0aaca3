"""How often `vi.IterateAverage` and `vi.DecreasingSteps` stop too early, and `vi.diagnose` calls a fit "not converged".

The rules follow steepest descent by the noisy gradient of exp(z) - z, z ~ Normal(theta, 1/2), in ten coordinates: the
mean of its iterates is off by the step size, by as much as a long run of many chains says. A stop of `IterateAverage`
is *false* of a coordinate whose mean is off, from that of such iterates, by more than twice what the rule allows for
its error: 5 % of the coordinates if errors are Normal and at the limit. One of `DecreasingSteps` is false if the mean
at the last step size is off by more than its tolerance. `diagnose` is asked about fits that `vi.Stationary` ended with
a tolerance of a tenth of a nat.

Run: `python -m benchmarks --only averaging`; about 8 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpyro.infer.autoguide import AutoNormal

import vi_kit as vi
from benchmarks.stopping import eight_schools, interval, logistic
from vi_kit.numpyro import fit
from vi_kit.workflow.history import History

NUM_RUNS, NUM_FITS, NUM_COORDINATES = 100, 25, 10
MOST = 100_000
SD = 0.5
OPTIMUM = -(SD**2) / 2
AVERAGE = vi.IterateAverage(tolerance=0.06, scale=0.1)
DECREASING = vi.DecreasingSteps(AVERAGE, tolerance=0.25)


def stepped(theta: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """One step of the descent, of many coordinates."""
    return theta - size * (np.exp(theta + SD * rng.standard_normal(theta.shape)) - 1)


def mean_at(size: float) -> float:
    """Of iterates at a step size: 10,000 chains."""
    rng, theta = np.random.default_rng(1), np.full(10_000, OPTIMUM)
    num = int(20 / size)
    for _ in range(num):
        theta = stepped(theta, size, rng)
    total = 0.0
    for _ in range(num):
        theta = stepped(theta, size, rng)
        total += theta.mean()
    return total / num


def followed(
    rule: vi.IterateAverage | vi.DecreasingSteps, size: float, start: float, seed: int
) -> tuple[np.ndarray, float, int]:
    """What one descent ends with: the mean of its iterates, the step size, the number of steps; none if it goes on."""
    rng, history = np.random.default_rng(seed), History()
    theta, kept = np.full(NUM_COORDINATES, start), []
    while history.num_steps < MOST:
        for _ in range(rule.every):
            theta = stepped(theta, size, rng)
            kept.append(theta)
        history.add(np.zeros(rule.every), np.zeros(rule.every))
        history.looks.append(history.num_steps)
        history.iterates.append(theta[None])
        decision = rule.decide(history)
        if decision.shrink is not None:
            history.shrunk.append(history.num_steps)
            size *= decision.shrink
        if decision.average is not None:
            history.averaging = history.num_steps if decision.average else -1
            history.begun += [history.num_steps] * decision.average
            kept = []
        if decision.stop:
            return np.mean(kept, axis=0), size, history.num_steps
    return np.zeros(0), size, 0


def averaged(size: float, start: float) -> str:
    right, most = mean_at(size), 2 * AVERAGE.tolerance * max(abs(OPTIMUM), AVERAGE.scale)
    runs = [followed(AVERAGE, size, start, seed) for seed in range(NUM_RUNS)]
    found = np.concatenate([mean for mean, _, _ in runs])
    num = int(np.median([num for *_, num in runs]))
    return f"{interval(abs(found - right) > most)}; after {num} steps (median)"


def decreased(size: float, start: float) -> str:
    runs = [followed(DECREASING, size, start, seed) for seed in range(NUM_RUNS)]
    sizes = {size for _, size, _ in runs}
    off = {size: abs(mean_at(size) - OPTIMUM) / abs(OPTIMUM) for size in sizes}
    false = [num > 0 and off[size] > DECREASING.tolerance for _, size, num in runs]
    stopped = [num for *_, num in runs if num]
    share = f"{len(stopped) / len(runs):.0%} stopped, " if len(stopped) < len(runs) else ""
    ends = ", ".join(f"{s:g} ({sum(s == one for _, one, _ in runs)})" for s in sorted(sizes))
    text = f"{share}after {int(np.median(stopped))} steps (median), at step sizes {ends}"
    return f"{interval(false)}; {text}"


def accused(name: str) -> str:
    """Of fits that have converged, those that `diagnose` says have not."""
    model, args = {"eight schools": eight_schools, "logistic regression": logistic}[name]()
    verdicts = []
    for seed in range(NUM_FITS):
        found = fit(
            model,
            AutoNormal(model),
            *args,
            optimizer=0.01,
            num_steps=20_000,
            stop=vi.Stationary(min_nats=0.1, tolerance=1e-9),
            seed=seed,
            progress=False,
        )
        verdicts.append(vi.diagnose(found, seed=seed).verdict)
    return interval([verdict == "not converged" for verdict in verdicts], "accused")


def rows() -> Iterator[str]:
    for size, start in ((0.5, OPTIMUM), (0.1, 1.0), (0.02, 1.0)):
        name = f"IterateAverage, step size {size}, from {start:g}"
        yield f"| stopping, {name} | {NUM_RUNS} runs, 5 % nominal | {averaged(size, start)} |"
    for size, start in ((0.8, OPTIMUM), (0.6, 1.0), (0.3, 1.0)):
        name = f"DecreasingSteps, step size {size}, from {start:g}"
        yield f"| stopping, {name} | {NUM_RUNS} runs | {decreased(size, start)} |"
    for name in ("eight schools", "logistic regression"):
        yield f'| diagnose, "not converged", {name} | {NUM_FITS} fits | {accused(name)} |'


if __name__ == "__main__":
    for one in rows():
        print(one, flush=True)
