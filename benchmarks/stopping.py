"""How often `vi.Stationary` stops too early, and how late it stops otherwise.

Traces of losses are simulated with a known expectation, and real fits are run several times without a rule, which is
then asked about each. A stop is *false* if the expectation still improved by more than the tolerance from the older to
the newer half of the rule's window. A delay is the step of the stop over the first after which that is so no more.
The false-positive rate has its 95 % interval (Clopper and Pearson).

Run: `python -m benchmarks --only stopping`; about 5 minutes on two cores.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_feasible
from scipy import signal, stats

import vi_kit as vi
from vi_kit.numpyro import fit
from vi_kit.workflow import stationary
from vi_kit.workflow.history import History

NUM_TRACES = 400
NUM_STEPS = 10_000
NUM_FITS, NUM_FIT_STEPS = 50, 10_000
RULE = vi.Stationary(tolerance=1e-3)
LEVEL = 1000.0
"""That losses are near, so that the tolerance is one nat."""

Noise = Callable[[np.random.Generator, int], np.ndarray]
TIME = np.arange(1.0, NUM_STEPS + 1)


def normal(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.standard_normal(num)


def autoregressive(rho: float) -> Noise:
    """Of variance one."""

    def noise(rng: np.random.Generator, num: int) -> np.ndarray:
        shocks = rng.standard_normal(num) * (1 - rho**2) ** 0.5
        start = [rho * rng.standard_normal()]
        return signal.lfilter([1.0], [1.0, -rho], shocks, zi=start)[0]

    return noise


def student(df: float) -> Noise:
    return lambda rng, num: rng.standard_t(df, num)


def skewed(rng: np.random.Generator, num: int) -> np.ndarray:
    """As importance weights make it."""
    return np.exp(1.5 * rng.standard_normal(num)) - np.exp(1.5**2 / 2)


def epochs(rng: np.random.Generator, num: int) -> np.ndarray:
    """Minibatches without replacement, 37 of them, shuffled anew."""
    rows = rng.standard_normal(37)
    return np.concatenate([rng.permutation(rows - rows.mean()) for _ in range(num // 37 + 1)])[:num]


def unshuffled(rng: np.random.Generator, num: int) -> np.ndarray:
    """The same in one order."""
    rows = 3 * rng.standard_normal(370)
    return np.tile(rows - rows.mean(), num // 370 + 1)[:num]


# What is expected of losses


def change(losses: np.ndarray, step: int) -> float:
    """From the older to the newer half of the rule's window."""
    half = step // 4
    window = losses[step - 2 * half : step]
    return float(window[:half].mean() - window[half:].mean())


def exponential(rate: float) -> np.ndarray:
    return LEVEL * (1 + np.exp(-TIME / rate))


def on_the_boundary() -> np.ndarray:
    """Improves by 2 % more than the tolerance at each test: the hardest case."""
    slow = -np.log(TIME)
    return LEVEL + 1.02 * slow / change(slow, NUM_STEPS)


def line() -> np.ndarray:
    """Improves by twice the tolerance at the first test, and by more later."""
    return LEVEL + 200 - 0.04 * TIME


def steps_down() -> np.ndarray:
    """A plateau, then a drop."""
    return LEVEL + 50.0 / (1 + np.exp((TIME - 5000) / 100))


@dataclass(frozen=True)
class Result:
    """Of one rule on many traces.

    Attributes:
        stops: the steps at which it stopped; minus one where it did not.
        false: which were too early.
        converged: the first step after which none would be; minus one if there is none.
    """

    stops: np.ndarray
    false: np.ndarray
    converged: int

    def __str__(self) -> str:
        num, text = len(self.false), interval(self.false)
        right = self.stops[(self.stops > 0) & ~self.false]
        if self.converged > 0 and len(right):
            share = f"{len(right) / num:.0%} stopped, " if len(right) < num else ""
            text += f"; {share}at {np.median(right) / self.converged:.1f} times step {self.converged} (median)"
        return text


def interval(false: Iterable[bool], what: str = "false stops") -> str:
    """A rate with its 95 % interval."""
    found = np.array(list(false))
    num, count = len(found), int(found.sum())
    low = stats.beta.ppf(0.025, count, num - count + 1) if count else 0.0
    high = stats.beta.ppf(0.975, count + 1, num - count) if count < num else 1.0
    return f"{what} {count / num:.3f} [{low:.3f}, {high:.3f}]"


def stop_of(losses: np.ndarray, rule: vi.Stationary = RULE) -> int:
    """Where a rule stops; minus one: nowhere."""
    for step in rule.tests():
        if step > len(losses):
            return -1
        if rule.decide(History(losses=losses[:step])).stop:
            return step
    return -1


def measured(
    expected: np.ndarray,
    traces: list[np.ndarray],
    rule: vi.Stationary = RULE,
    *,
    in_hindsight: bool = False,
) -> Result:
    """With `in_hindsight` a stop is false if more is to be gained until the last step."""

    def improves(step: int) -> bool:
        least = max(rule.min_nats, rule.tolerance * abs(expected[step - 1]))
        later = expected[step - 1] - expected[-1]
        return (later if in_hindsight else change(expected, step)) > least

    stops = np.array([stop_of(losses, rule) for losses in traces])
    looks = range(rule.min_steps, len(expected) + 1, 10)
    last = max((step for step in looks if improves(step)), default=rule.min_steps - 10)
    false = np.array([step > 0 and improves(step) for step in stops])
    return Result(stops, false, last + 10 if last + 10 <= len(expected) else -1)


def simulated(name: str, expected: np.ndarray, noise: Noise, scale: float) -> Result:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    traces = [expected + scale * noise(rng, len(expected)) for _ in range(NUM_TRACES)]
    return measured(expected, traces, in_hindsight=name.startswith("a plateau"))


# Real fits


def eight_schools() -> tuple[Callable, tuple]:
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y: jax.Array, sigma: jax.Array) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)

    return model, (y, sigma)


def logistic() -> tuple[Callable, tuple]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 10))
    y = rng.random(2000) < 1 / (1 + np.exp(-x @ rng.standard_normal(10)))

    def model(x: jax.Array, y: jax.Array) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return model, (jnp.asarray(x), jnp.asarray(y, float))


def fitted(
    made: Callable[[], tuple[Callable, tuple]],
    step_size: float,
    batch_size: int | None,
    tolerance: float,
) -> Result:
    """Restarts from one place are traces; what is expected of one is the mean of all at that step."""
    model, args = made()
    found = fit(
        model,
        AutoNormal(model, init_loc_fn=init_to_feasible),  # the same for all
        *args,
        optimizer=step_size,
        num_steps=NUM_FIT_STEPS,
        num_restarts=NUM_FITS,
        batch_size=batch_size,
        progress=False,
    )
    rule = vi.Stationary(tolerance)
    return measured(np.mean(found.restarts, axis=0), list(found.restarts), rule)


FITS = {
    "eight schools, Adam(0.01)": (eight_schools, 0.01, None, 1e-3),
    "eight schools, Adam(0.001)": (eight_schools, 0.001, None, 1e-3),
    "logistic regression, 2000 rows, Adam(0.01)": (logistic, 0.01, None, 1e-3),
    "the same, batches of 100, tolerance 0.1 %": (logistic, 0.01, 100, 1e-3),
    "the same, batches of 100, tolerance 2 %": (logistic, 0.01, 100, 2e-2),
}


HOLDS = {
    "on the boundary, normal noise of 3 nats": (on_the_boundary, normal, 3.0),
    "on the boundary, AR(0.9) of 3 nats": (on_the_boundary, autoregressive(0.9), 3.0),
    "on the boundary, AR(0.98) of 2 nats": (on_the_boundary, autoregressive(0.98), 2.0),
    "on the boundary, Student (2 degrees of freedom)": (on_the_boundary, student(2.0), 1.0),
    "on the boundary, Student (1.2)": (on_the_boundary, student(1.2), 1.0),
    "on the boundary, lognormal (skewed)": (on_the_boundary, skewed, 1.0),
    "on the boundary, shuffled epochs of 3 nats": (on_the_boundary, epochs, 3.0),
    "a line, AR(0.9) of 3 nats": (line, autoregressive(0.9), 3.0),
    "exponential in 100 steps, normal": (lambda: exponential(100), normal, 3.0),
    "exponential in 500 steps, normal": (lambda: exponential(500), normal, 3.0),
    "exponential in 300 steps, AR(0.9)": (lambda: exponential(300), autoregressive(0.9), 2.0),
    "exponential in 300 steps, Student (2)": (lambda: exponential(300), student(2.0), 1.0),
}
DOES_NOT_HOLD = {
    "a plateau to step 5000, then a drop by 50 nats": (steps_down, normal, 3.0),
    "on the boundary, AR(0.999) of 1 nat": (on_the_boundary, autoregressive(0.999), 1.0),
    "on the boundary, 370 minibatches in one order": (on_the_boundary, unshuffled, 1.0),
}


def rows() -> Iterator[str]:
    for title, cases in (("", HOLDS), (" (assumptions do not hold)", DOES_NOT_HOLD)):
        for name, (expected, noise, scale) in cases.items():
            yield row(f"{name}{title}", simulated(name, expected(), noise, scale))
    for name, case in FITS.items():
        yield row(f"fits of {name}", fitted(*case))
    name = "on the boundary, AR(0.9) of 3 nats"
    with mock.patch.object(stationary, "autocorrelation_time", lambda x: 1.0):
        wrong = simulated(name, on_the_boundary(), *HOLDS[name][1:])
        yield row(f"{name}, were autocorrelation ignored", wrong)
    with mock.patch.object(vi.Stationary, "level", lambda rule, num_steps: 0.05):
        wrong = simulated(name, on_the_boundary(), *HOLDS[name][1:])
        yield row(f"{name}, were each test at 5 %", wrong)


def row(name: str, result: Result) -> str:
    return f"| stopping, {name} | {len(result.stops)} traces, 5 % nominal | {result} |"


if __name__ == "__main__":
    for one in rows():
        print(one, flush=True)
