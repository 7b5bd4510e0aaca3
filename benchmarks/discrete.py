"""Variance, time and their product of every estimator of discrete sites, in NumPyro.

(a) E[(b - t)^2] for b ~ Bernoulli(sigmoid(theta)); (b) a sigmoid belief network of 200 bits per image; (c) an
autoencoder with one Categorical of 64 values per image; (b) and (c) on real 8 x 8 digits, binarised. Gradients are
taken at the start, in the middle and at the end of a training run. The variance is that of one gradient by the
guide's parameters, given the minibatch, summed over coordinates. `evals` counts evaluations of the model on the
minibatch: compare rows of equal evals. The time is that of one gradient by all parameters in a compiled loop;
the contenders take turns, and the median is printed. What `Rebar` and `Relax` learn is trained first, 300 steps of Adam
at each point; their time includes learning. With Storchastic installed (0.3.7; `pip install --no-deps
storchastic entmax`) its estimators are run beside those of `vi_kit.pyro`.

Run: `python -m benchmarks.discrete [--quick]`. About 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax, random
from numpyro.infer import SVI

import vi_kit as vi
from benchmarks.timing import Row
from vi_kit.numpyro import Loss

NUM_PIXELS, NUM_BITS, NUM_VALUES, BATCH_SIZE = 64, 200, 64, 50
POINTS = ("start", "middle", "end")

# The programs


@vi.divergence
def expected_square(model, guide, *, target):
    return vi.evaluate(lambda values: (values["b"] - target) ** 2, vi.simulate(guide))


def no_model() -> None:
    pass


def coin() -> None:
    # Not from 0, where JAX's derivative of |x| is 1 and NumPyro's score of a Bernoulli is wrong.
    numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("theta", 0.5)))


def weights(name: str, num_in: int, num_out: int) -> tuple[jax.Array, jax.Array]:
    """The parameters of a linear layer."""

    def initial(key: jax.Array) -> jax.Array:
        return random.normal(key, (num_in, num_out)) / num_in**0.5

    w = numpyro.param(f"{name}_w", initial)
    b = numpyro.param(f"{name}_b", jnp.zeros(num_out))
    return jnp.asarray(w), jnp.asarray(b)


def belief_network(x: jax.Array) -> None:
    w, b = weights("decoder", NUM_BITS, NUM_PIXELS)
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(NUM_BITS)).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=z @ w + b).to_event(1), obs=x)


def belief_guide(x: jax.Array) -> None:
    w, b = weights("encoder", NUM_PIXELS, NUM_BITS)
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=x @ w + b).to_event(1))


def categorical_model(x: jax.Array) -> None:
    w, b = weights("decoder", NUM_VALUES, NUM_PIXELS)
    prior: Any = dist.Categorical(logits=jnp.zeros(NUM_VALUES))
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Bernoulli(logits=w[z] + b).to_event(1), obs=x)


def categorical_guide(x: jax.Array) -> None:
    w, b = weights("encoder", NUM_PIXELS, NUM_VALUES)
    q: Any = dist.Categorical(logits=x @ w + b)
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", q)


def digits() -> np.ndarray:
    """Binary images, `(1797, 64)`."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = np.asarray(pixels) / 16.0 > 0.5
    return images[np.random.default_rng(0).permutation(len(images))].astype(np.float32)


# What is compared


class Network(nn.Module):
    """The control variate of `Relax`."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(nn.tanh(nn.Dense(32)(z)))


class Contender(NamedTuple):
    """An estimator, how many estimates are averaged, and the evaluations of the model that these take."""

    estimator: vi.Estimator
    num_samples: int
    evals: int
    cost: float = 1.0
    """Share of the draws that it gets; less where one gradient is expensive."""

    @property
    def name(self) -> str:
        name = repr(self.estimator).replace("value=0.0", "").replace("baseline=", "")
        name = name.replace("Constant()", "").replace("arm=False", "")
        for default in (", per_element=False", "decay=0.9", ", num_rao=1", "biased=True, "):
            name = name.replace(default, "")
        name = name.replace("temperature=0.5, scale=1.0, learn=True", "")
        name = name.replace("temperature=0.5, scale=None, learn=True", "scale=None")
        name = re.sub(r"(, )?network=.*\)\)", ")", name.replace("\n", ""))
        name = name.replace(", straight_through=False", "").replace("second_order=False", "")
        name = f"{name} x {self.num_samples}" if self.num_samples > 1 else name
        return f"{name} biased" if self.biased else name

    @property
    def biased(self) -> bool:
        return isinstance(self.estimator, vi.Relaxed | vi.StraightThrough)


LEAVE_ONE_OUT, MOVING_AVERAGE = vi.Score(vi.LeaveOneOut()), vi.Score(vi.MovingAverage())
RELAXATIONS = (
    Contender(vi.Relaxed(0.5, biased=True), 1, 1),
    Contender(vi.Relaxed(0.5, straight_through=True, biased=True), 1, 1),
    Contender(vi.StraightThrough(biased=True), 1, 1),
    Contender(vi.StraightThrough(second_order=True, biased=True), 1, 1),
)
BINARY = (
    Contender(vi.Score(), 1, 1),
    Contender(MOVING_AVERAGE, 1, 1),
    Contender(LEAVE_ONE_OUT, 2, 2),
    Contender(vi.DisARM(), 1, 2),
    Contender(vi.DisARM(arm=True), 1, 2),
    Contender(LEAVE_ONE_OUT, 4, 4),
    Contender(vi.DisARM(), 2, 4),
    Contender(vi.DisARM(arm=True), 2, 4),
)
RELAX = vi.Relax(Network())
LEARNED = (
    Contender(vi.Relax(Network(), scale=None), 1, 1),
    Contender(LEAVE_ONE_OUT, 3, 3),
    Contender(vi.Rebar(), 1, 3),
    Contender(RELAX, 1, 3),
)
TOY = (
    *BINARY,
    *LEARNED,
    Contender(vi.MeasureValued(), 1, 2),
    Contender(vi.Enumerate(), 1, 2),
    *RELAXATIONS,
)
BITS = (*BINARY, *LEARNED, Contender(vi.MeasureValued(), 1, 1 + NUM_BITS, 0.07), *RELAXATIONS)
PARTICLES = 5
BITS_IN_IWAE = (
    Contender(vi.Score(), 1, PARTICLES),
    Contender(MOVING_AVERAGE, 1, PARTICLES),
    Contender(LEAVE_ONE_OUT, 1, PARTICLES),
    Contender(LEAVE_ONE_OUT, 2, 2 * PARTICLES),
    Contender(vi.DisARM(), 1, 2 * PARTICLES),
    Contender(vi.DisARM(arm=True), 1, 2 * PARTICLES),
    Contender(LEAVE_ONE_OUT, 4, 4 * PARTICLES),
    Contender(vi.DisARM(), 2, 4 * PARTICLES),
    Contender(LEAVE_ONE_OUT, 3, 3 * PARTICLES),
    Contender(vi.Rebar(), 1, 3 * PARTICLES),
    *(c._replace(evals=PARTICLES) for c in RELAXATIONS),
)
VALUES = (
    Contender(vi.Score(), 1, 1),
    Contender(MOVING_AVERAGE, 1, 1),
    Contender(LEAVE_ONE_OUT, 2, 2),
    Contender(vi.DisARM(), 1, 2),
    Contender(vi.SumAndSample(1), 1, 2),
    Contender(vi.WithoutReplacement(2), 1, 2),
    Contender(LEAVE_ONE_OUT, 4, 4),
    Contender(vi.DisARM(), 2, 4),
    Contender(vi.SumAndSample(3), 1, 4),
    Contender(vi.WithoutReplacement(4), 1, 4),
    Contender(LEAVE_ONE_OUT, NUM_VALUES, NUM_VALUES, 0.2),
    Contender(vi.MeasureValued(), 1, NUM_VALUES, 0.2),
    Contender(vi.Enumerate(), 1, NUM_VALUES, 0.2),
)


class Problem(NamedTuple):
    """An objective, its programs, and what trains them."""

    title: str
    objective: Any
    model: Callable[..., None]
    guide: Callable[..., None]
    args: tuple[Any, ...]
    training: Loss
    learning_rate: float
    num_steps: int
    num_draws: int


Params = dict[str, Any]


def train(problem: Problem, data: np.ndarray | None) -> list[Params]:
    """The parameters at 0%, 50% and 100% of training, and the loss there."""
    optimizer = optax.adam(problem.learning_rate)
    svi = SVI(problem.model, problem.guide, optimizer, problem.training)
    state = svi.init(random.key(0), *problem.args)
    points = [svi.get_params(state)]
    half = problem.num_steps // 2
    for part in range(2):
        if data is None:
            state, losses = lax.scan(lambda s, _: svi.update(s), state, None, half)
        else:
            rows = np.random.default_rng(part).integers(len(data), size=(half, BATCH_SIZE))
            state, losses = lax.scan(svi.update, state, jnp.asarray(data[rows]))
        points.append(svi.get_params(state))
        if part == 0:
            first = float(losses[:5].mean())
            middle = float(losses[-20:].mean())
    size = 1 if data is None else BATCH_SIZE
    found = " -> ".join(f"{v / size:.4g}" for v in (first, middle, float(losses[-20:].mean())))
    print(f"\n{problem.title}; {problem.num_steps} steps of {problem.training!r}: loss {found}")
    return points


@dataclass
class Measured:
    """Of one contender, per point of training: sums of gradients; and all its times (s)."""

    seconds: list[float] = field(default_factory=list)
    traces: list[list[float]] = field(default_factory=list)  # per point and round
    means: list[np.ndarray] = field(default_factory=list)
    num_draws: int = 0

    @property
    def milliseconds(self) -> float:
        return 1e3 * float(np.median(self.seconds))

    def variance(self, point: int) -> float:
        return float(np.mean(self.traces[point]))

    def relative_error(self, point: int) -> float:
        """Standard error of a variance relative to it, from its rounds."""
        rounds = self.traces[point]
        return float(np.std(rounds, ddof=1) / len(rounds) ** 0.5 / max(np.mean(rounds), 1e-30))


Chunk = Callable[..., tuple[Params, Params, Params]]


class Program(NamedTuple):
    """A contender compiled.

    Attributes:
        chunk: a loop over keys: sums of gradients less a given centre, of their squares, and what is kept.
        tuned: parameters with those of the estimator trained, the others as they are.
        state: what is kept, at first.
        own: parameters of the estimator, at first.
    """

    chunk: Chunk
    tuned: Callable[[Params, Params], Params]
    state: Params
    own: Params


def compiled(problem: Problem, contender: Contender) -> Program:
    loss = Loss(problem.objective, contender.estimator, num_samples=contender.num_samples)
    guide = loss.with_state(problem.guide)
    svi = SVI(problem.model, guide, optax.sgd(0.0), loss)
    initial = svi.init(random.key(0), *problem.args)
    state = initial.mutable_state or {}
    own = {n: p for n, p in svi.get_params(initial).items() if n.startswith("vi_kit.")}

    def value(params: Params, state: Params, key: jax.Array) -> tuple[jax.Array, Params]:
        found = loss.loss_with_mutable_state(
            key, params | state, problem.model, guide, *problem.args
        )
        return jnp.asarray(found["loss"]), lax.stop_gradient(found["mutable_state"] or {})

    def chunk(params: Params, state: Params, centre: Params, keys: jax.Array) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            first, second, state = carry
            held, key = lax.optimization_barrier((params, key))  # or XLA moves work out of the loop
            gradient, state = jax.grad(value, has_aux=True)(held, state, key)
            gap = jax.tree.map(jnp.subtract, gradient, centre)
            first = jax.tree.map(jnp.add, first, gap)
            second = jax.tree.map(lambda s, g: s + g**2, second, gap)
            return (first, second, state), None

        zeros = jax.tree.map(jnp.zeros_like, centre)
        return lax.scan(step, (zeros, zeros, state), keys)[0]

    def tuned(params: Params, state: Params) -> Params:
        optimizer = optax.adam(0.02)

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            own, slots, state = carry
            gradient, state = jax.grad(value, has_aux=True)(params | own, state, key)
            gradient = {n: gradient[n] for n in own}
            change, slots = optimizer.update(gradient, slots)
            return (optax.apply_updates(own, change), slots, state), None

        at_first = own, optimizer.init(own), state
        return params | lax.scan(step, at_first, random.split(random.key(2), 300))[0][0]

    return Program(jax.jit(chunk), jax.jit(tuned), state, own)


def measure(
    problem: Problem, contenders: tuple[Contender, ...], points: list[Params], rounds: int
) -> dict[Contender, Measured]:
    """Interleaved rounds of all contenders, at each point of training."""
    programs = {c: compiled(problem, c) for c in contenders}
    results = {c: Measured() for c in contenders}
    trace = numpyro.handlers.trace(numpyro.handlers.seed(problem.guide, 0))
    own = [n for n, s in trace.get_trace(*problem.args).items() if s["type"] == "param"]
    key = random.key(1)
    for params in points:
        kept = {}
        for c, program in programs.items():  # compiles, finds the mean, and warms up
            key, own_key = random.split(key)
            keys = random.split(own_key, num_draws(problem, c))
            at = program.tuned(params, program.state) if program.own else params
            zeros = jax.tree.map(jnp.zeros_like, at)
            first, _, state = program.chunk(at, program.state, zeros, keys)
            kept[c] = at, state, jax.tree.map(functools.partial(jnp.multiply, 1 / len(keys)), first)
        sums = {c: [] for c in contenders}
        for _ in range(rounds):
            for c, program in programs.items():
                key, own_key = random.split(key)
                keys = jax.block_until_ready(random.split(own_key, num_draws(problem, c)))
                at, state, centre = kept[c]
                start = time.perf_counter()
                found = jax.block_until_ready(program.chunk(at, state, centre, keys))
                results[c].seconds.append((time.perf_counter() - start) / len(keys))
                kept[c] = at, found[2], centre
                sums[c].append([flat(f, own) for f in found[:2]])
        for c in contenders:
            add(results[c], sums[c], flat(kept[c][2], own), num_draws(problem, c))
    return results


def num_draws(problem: Problem, contender: Contender) -> int:
    return max(4, int(problem.num_draws * contender.cost))


def flat(params: Params, names: list[str]) -> np.ndarray:
    return np.concatenate([np.asarray(params[n], np.float64).ravel() for n in names])


def add(result: Measured, sums: list[list[np.ndarray]], centre: np.ndarray, per_round: int) -> None:
    """The traces of the covariance by round, about the mean of all rounds."""
    total = len(sums) * per_round
    gap = sum(first for first, _ in sums) / total
    scale = total / (total - 1) / per_round
    traces = [(s - 2 * gap * f + per_round * gap**2).sum() * scale for f, s in sums]
    result.traces.append([max(float(t), 0.0) for t in traces])
    result.means.append(centre + gap)
    result.num_draws = total


# Tables


def print_table(results: dict[Contender, Measured]) -> None:
    heads = [f"var {p}" for p in POINTS] + [f"var ms {p}" for p in POINTS]
    print(f"{'estimator':56} {'evals':>5} {'ms':>8}" + "".join(f"{h:>14}" for h in heads))
    for c, r in results.items():
        variances = [r.variance(i) for i in range(len(POINTS))]
        cells = variances + [v * r.milliseconds for v in variances]
        line = f"{c.name:56} {c.evals:5d} {r.milliseconds:8.4f}"
        print(line + "".join(f"{v:14.4g}" for v in cells))


def print_ratios(results: dict[Contender, Measured]) -> None:
    """Variances of the others over that of Score(LeaveOneOut()) with as many evaluations."""
    for base, reference in results.items():
        others = [c for c in results if c.evals == base.evals and c != base and not c.biased]
        if base.estimator != LEAVE_ONE_OUT:
            continue
        for c in others:
            cells = []
            for i in range(len(POINTS)):
                ratio = results[c].variance(i) / reference.variance(i)
                errors = results[c].relative_error(i), reference.relative_error(i)
                cells.append(f"{ratio:8.3f} +- {ratio * float(np.hypot(*errors)):.3f}")
            print(f"  {c.evals:3d} evals: {c.name + ' / ' + base.name:60}" + "  ".join(cells))


def print_bias(results: dict[Contender, Measured], exact: list[float]) -> None:
    for c, r in results.items():
        cells = []
        for i, truth in enumerate(exact):
            bias, error = float(r.means[i][0]) - truth, (r.variance(i) / r.num_draws) ** 0.5
            cells.append(f"{bias**2:10.3g} ({abs(bias) / max(error, 1e-7):7.1f})")
        print(f"  {c.name:60}" + "  ".join(cells))


def toy(target: float, quick: bool) -> None:
    objective = expected_square(target=target)
    problem = Problem(
        f"(a) toy, t = {target}",
        objective,
        no_model,
        coin,
        (),
        Loss(objective, vi.Enumerate()),
        0.015,
        400,
        500 if quick else 8_000,
    )
    points = train(problem, None)
    thetas = np.array([float(p["theta"]) for p in points])
    s = 1 / (1 + np.exp(-thetas))
    exact = s * (1 - s) * (1 - 2 * target)
    print(f"theta {np.round(thetas, 3)}, exact gradient {np.round(exact, 6)}")
    results = measure(problem, TOY, points, rounds=4)
    print_table(results)
    print("squared bias at the three points (in brackets: bias in standard errors)")
    print_bias(results, list(exact))
    if importlib.util.find_spec("storch") and target == 0.45:
        beside_storchastic("(a) toy, t = 0.45", points, None, 20 if quick else 300)


def belief_problem(data: np.ndarray, steps: int, draws: int) -> Problem:
    return Problem(
        "(b) belief network of 200 bits, ELBO",
        vi.elbo(),
        belief_network,
        belief_guide,
        (jnp.asarray(data[:BATCH_SIZE]),),
        Loss(vi.elbo(), vi.DisARM(), num_samples=2),
        3e-3,
        steps,
        draws,
    )


def rows() -> Iterator[Row]:
    """Variance x time on the belief network in the middle of training."""
    data = digits()
    problem = belief_problem(data, 400, 20)
    found = measure(problem, BITS, train(problem, data), rounds=2)
    products = {c: m.variance(1) * m.milliseconds for c, m in found.items() if not c.biased}
    base = next(c for c in products if c.estimator == LEAVE_ONE_OUT)
    numbers = {base.name: products.pop(base)} | {c.name: p for c, p in products.items()}
    yield Row("variance x time, 200 bits of digits, NumPyro", numbers, "nats^2 ms")


def images(quick: bool) -> None:
    data = digits()
    rounds, steps, draws = (2, 100, 8) if quick else (4, 800, 40)
    bits = belief_problem(data, steps, draws)
    points = train(bits, data)
    results = measure(bits, BITS, points, rounds)
    print_table(results)
    print("variance over that of Score(LeaveOneOut()) at equal evals, start, middle, end")
    print_ratios(results)
    if importlib.util.find_spec("storch"):
        beside_storchastic("(b) ELBO", points, data[:BATCH_SIZE], 4 if quick else 60)
    iwae = bits._replace(objective=vi.iwae(num_particles=PARTICLES), num_draws=max(6, draws // 2))
    print(f"\n(b) the same with IWAE of {PARTICLES} particles, at the same parameters")
    results = measure(iwae, BITS_IN_IWAE, points, rounds)
    print_table(results)
    print_ratios(results)
    values = bits._replace(
        title="(c) one Categorical of 64 values, ELBO",
        model=categorical_model,
        guide=categorical_guide,
        training=Loss(vi.elbo(), vi.Enumerate()),
        learning_rate=1e-2,
        num_draws=3 * draws,
    )
    points = train(values, data)
    results = measure(values, VALUES, points, rounds)
    print_table(results)
    print_ratios(results)


# Storchastic


def beside_storchastic(where: str, points: list[Params], x: np.ndarray | None, draws: int) -> None:
    """Its estimators and those of vi_kit.pyro in turn, eagerly: at `x`, or on the toy with t = 0.45.

    Left out: its REBAR and DisARM (0.3.7), biased on the toy here, and its RELAX, too slow to be measured.
    """
    import pyro
    import pyro.distributions as pyro_dist
    import torch

    from vi_kit.pyro import Loss as PyroLoss

    storch: Any = importlib.import_module("storch")
    torch.set_num_threads(1)
    data = None if x is None else torch.as_tensor(x)
    objective = expected_square(target=0.45) if x is None else vi.elbo()

    def fresh(params: Params) -> None:
        pyro.clear_param_store()
        for name, value in params.items():
            pyro.param(name, torch.tensor(np.asarray(value)))

    def gradient() -> np.ndarray:
        own = [n for n in ("theta", "encoder_w", "encoder_b") if n in pyro.get_param_store()]
        leaves = [pyro.get_param_store()._params[n] for n in own]
        return np.concatenate([np.asarray(p.grad).ravel().astype(np.float64) for p in leaves])

    def forget() -> None:
        for leaf in pyro.get_param_store()._params.values():
            leaf.grad = None

    def pyro_model(*args: Any) -> None:
        for images in args:
            with pyro.plate("images", len(images)):
                z = pyro.sample("z", pyro_dist.Bernoulli(logits=torch.zeros(NUM_BITS)).to_event(1))
                logits = z @ pyro.param("decoder_w") + pyro.param("decoder_b")
                pyro.sample("x", pyro_dist.Bernoulli(logits=logits).to_event(1), obs=images)

    def pyro_guide(*args: Any) -> None:
        if not args:
            pyro.sample("b", pyro_dist.Bernoulli(logits=pyro.param("theta")))
        for images in args:
            logits = images @ pyro.param("encoder_w") + pyro.param("encoder_b")
            with pyro.plate("images", len(images)):
                pyro.sample("z", pyro_dist.Bernoulli(logits=logits).to_event(1))

    def ours(contender: Contender) -> Callable[[], None]:
        loss = PyroLoss(objective, contender.estimator, num_samples=contender.num_samples)
        args = () if data is None else (data,)

        def step() -> None:
            loss.loss_and_grads(pyro_model, pyro_guide, *args)

        return step

    @storch.deterministic
    def cost(images: Any, z: Any, logits: Any) -> Any:
        # The derivative of log q at a fixed draw is zero in the mean, and only adds noise.
        bernoulli = torch.distributions.Bernoulli
        log_q = bernoulli(logits=logits.detach()).log_prob(z).sum(-1)
        log_prior = bernoulli(logits=torch.zeros(NUM_BITS)).log_prob(z).sum(-1)
        decoded = z @ pyro.param("decoder_w") + pyro.param("decoder_b")
        return log_q - log_prior - bernoulli(logits=decoded).log_prob(images).sum(-1)

    def theirs(method: Any) -> Callable[[], None]:
        def on_toy() -> None:
            storch.reset()
            b = method(torch.distributions.Bernoulli(logits=pyro.param("theta").reshape(1)))
            storch.add_cost(torch.sum((b - 0.45) ** 2, -1), "cost")
            storch.backward()

        def on_images() -> None:
            storch.reset()
            rows = storch.denote_independent(data, 0, "images")  # averages over them
            logits = storch.deterministic(
                lambda r: r @ pyro.param("encoder_w") + pyro.param("encoder_b")
            )(rows)
            z = method(torch.distributions.Bernoulli(logits=logits))
            storch.add_cost(cost(rows, z, logits), "cost")
            storch.backward()

        return on_toy if data is None else on_images

    score, arm = storch.method.ScoreFunction, storch.method.ARM
    averaged = {"baseline_factory": "batch_average"}
    entries: list[tuple[str, int, Callable[[], None], int]] = []
    for c in BINARY:
        if c.evals > 1:
            entries.append((f"vi_kit.pyro {c.name}", c.evals, ours(c), 1))
    factor = 1 if data is None else len(data)
    for n in (2, 4):
        method = score("z", n_samples=n, **averaged)
        entries.append((f"Storchastic score, batch average, {n}", n, theirs(method), factor))
    for n in (1, 2):
        method = arm("z", n_samples=n)
        entries.append((f"Storchastic ARM x {n}", 2 * n, theirs(method), factor))

    print(
        f"\n{where}: vi_kit.pyro and Storchastic, torch {torch.__version__}, one thread, {draws} draws"
    )
    times: dict[str, list[float]] = {e[0]: [] for e in entries}
    variances: dict[str, list[float]] = {e[0]: [] for e in entries}
    for params in points:
        fresh(params)
        found: dict[str, list[np.ndarray]] = {e[0]: [] for e in entries}
        for i in range(draws + 2):
            for name, _, step, scale in entries:
                forget()
                start = time.perf_counter()
                step()
                if i >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
                    found[name].append(scale * gradient())
        for name, gradients in found.items():
            variances[name].append(float(np.var(gradients, axis=0, ddof=1).sum()))
    heads = [f"var {p}" for p in POINTS] + [f"var ms {p}" for p in POINTS]
    print(f"{'estimator':56} {'evals':>5} {'ms':>8}" + "".join(f"{h:>14}" for h in heads))
    for name, evals, *_ in entries:
        ms = float(np.median(times[name]))
        cells = variances[name] + [v * ms for v in variances[name]]
        print(f"{name:56} {evals:5d} {ms:8.3f}" + "".join(f"{v:14.4g}" for v in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few draws; a check that it runs")
    quick = parser.parse_args().quick
    started = time.perf_counter()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    for target in (0.45, 0.499):
        toy(target, quick)
    images(quick)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
