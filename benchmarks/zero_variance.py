"""Analytic gradients of variational autoencoders of real 8 x 8 digits against estimated ones, in NumPyro.

The comparison of *Zero-Variance Gradients for Variational Autoencoders* (Silent Gradients, 2025): a linear decoder
with a Normal likelihood, whose scale is learned, and an encoder of one hidden layer, for Normal, Bernoulli and
Categorical latents; then a decoder with a hidden layer, where `Analytic(fallback=...)` leaves the likelihood to
draws, and where a linear decoder may guide the encoder first: a second likelihood of the same latents, whose weight
falls from 1 to 0 over the first half of training. All lines have the same minibatches. ELBOs are in nats per image,
mean and standard deviation over seeds: exact (`Analytic`) for linear decoders, else of 100 draws. The variance is that
of one gradient of the ELBO per image by all parameters, given a minibatch, summed over coordinates; it is taken at the
start and at the end of the first line's training, the same points for all. Before all that, the time of one gradient
with `Analytic` over that with `Reparam`, in NumPyro (compiled) and Pyro.

Run: `python -m benchmarks.zero_variance [--quick]`. About 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax, random
from numpyro.infer import ELBO, SVI

import vi_kit as vi
from vi_kit.numpyro import Loss

NUM_PIXELS, NUM_HIDDEN, BATCH_SIZE, NUM_TRAIN = 64, 64, 100, 1400
NUM_LATENT, NUM_BITS, NUM_VALUES, TEMPERATURE = 8, 16, 32, 0.5

Params = dict[str, Any]
Program = Callable[..., None]

# The programs


def digits() -> tuple[jax.Array, jax.Array]:
    """Images with pixels from 0 to 1, `(1400, 64)` to train on and `(397, 64)` held out."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = np.random.default_rng(0).permutation(np.asarray(pixels, np.float32) / 16)
    return jnp.asarray(images[:NUM_TRAIN]), jnp.asarray(images[NUM_TRAIN:])


def layer(name: str, x: Any, num_in: int, num_out: int) -> jax.Array:
    w = numpyro.param(f"{name}_w", lambda key: random.normal(key, (num_in, num_out)) / num_in**0.5)
    return x @ jnp.asarray(w) + jnp.asarray(numpyro.param(f"{name}_b", jnp.zeros(num_out)))


def encoder(x: jax.Array, num_out: int) -> jax.Array:
    return layer(
        "encoder_2", jax.nn.relu(layer("encoder_1", x, NUM_PIXELS, NUM_HIDDEN)), NUM_HIDDEN, num_out
    )


def image(name: str, loc: jax.Array, x: jax.Array) -> None:
    scale = jnp.exp(jnp.asarray(numpyro.param(f"{name}_log_scale", 0.0)))
    numpyro.sample(name, dist.Normal(loc, scale).to_event(1), obs=x)


def normal_model(x: jax.Array) -> None:
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENT), 1.0).to_event(1))
        image("x", layer("decoder", z, NUM_LATENT, NUM_PIXELS), x)


def normal_guide(x: jax.Array, *weight: jax.Array) -> None:
    loc, log_scale = jnp.split(encoder(x, 2 * NUM_LATENT), 2, -1)
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def bits_model(x: jax.Array) -> None:
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(NUM_BITS)).to_event(1))
        image("x", layer("decoder", z, NUM_BITS, NUM_PIXELS), x)


def bits_guide(x: jax.Array) -> None:
    logits = encoder(x, NUM_BITS)
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def value_model(x: jax.Array) -> None:
    prior: Any = dist.Categorical(logits=jnp.zeros(NUM_VALUES))
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", prior)
        image("x", layer("decoder", jax.nn.one_hot(z, NUM_VALUES), NUM_VALUES, NUM_PIXELS), x)


def value_guide(x: jax.Array) -> None:
    q: Any = dist.Categorical(logits=encoder(x, NUM_VALUES))
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", q)


def hidden_layer(z: Any) -> jax.Array:
    hidden = jax.nn.relu(layer("decoder_1", z, NUM_LATENT, NUM_HIDDEN))
    return layer("decoder_2", hidden, NUM_HIDDEN, NUM_PIXELS)


def deep_model(x: jax.Array) -> None:
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENT), 1.0).to_event(1))
        image("x", hidden_layer(z), x)


def guided_model(x: jax.Array, weight: jax.Array) -> None:
    """The images twice, from a linear decoder and from the other; the ELBO is the weighted mean of those of both."""
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENT), 1.0).to_event(1))
        with numpyro.handlers.scale(scale=weight):
            image("x_linear", layer("decoder", z, NUM_LATENT, NUM_PIXELS), x)
        with numpyro.handlers.scale(scale=1.0 - weight):
            image("x", hidden_layer(z), x)


class GumbelSoftmax(ELBO):
    """`vi.Relaxed` for a Categorical, by hand: NumPyro has no one-hot site. The KL divergence is exact."""

    can_infer_discrete = True

    def loss_with_mutable_state(
        self,
        rng_key: Any,
        param_map: Params,
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        del model, kwargs
        (x,) = args
        held = numpyro.handlers.substitute(numpyro.handlers.seed(guide, 0), data=param_map)
        logits = numpyro.handlers.trace(held).get_trace(x)["z"]["fn"].logits
        log_q = jax.nn.log_softmax(logits)
        z = jax.nn.softmax((log_q + random.gumbel(rng_key, log_q.shape)) / TEMPERATURE)
        loc = z @ param_map["decoder_w"] + param_map["decoder_b"]
        log_x = dist.Normal(loc, jnp.exp(param_map["x_log_scale"])).log_prob(x).sum()
        kl = (jnp.exp(log_q) * (log_q + jnp.log(NUM_VALUES))).sum()
        return {"loss": kl - log_x, "mutable_state": None}


# What is compared

Schedule = Callable[[Any], Any]


class Line(NamedTuple):
    """What trains a model; `guided` with a linear decoder first."""

    loss: Any
    guided: bool = False


def score(num_samples: int = 2) -> Line:
    return Line(Loss(vi.elbo(), vi.Score(vi.LeaveOneOut()), num_samples=num_samples))


def of(estimator: vi.Estimator) -> Line:
    return Line(Loss(vi.elbo(), estimator))


ANALYTIC, REPARAM = vi.Analytic(), vi.Reparam()
WITH_FALLBACK = vi.Analytic(fallback=REPARAM)
SCORE = "Score(LeaveOneOut()), 2 draws"
RELAXED = f"Relaxed({TEMPERATURE})"
LINEAR: dict[str, tuple[Program, Program, dict[str, Line]]] = {
    f"{NUM_LATENT} Normal": (
        normal_model,
        normal_guide,
        {"Analytic()": of(ANALYTIC), "Reparam()": of(REPARAM), SCORE: score()},
    ),
    f"{NUM_BITS} Bernoulli": (
        bits_model,
        bits_guide,
        {
            "Analytic()": of(ANALYTIC),
            RELAXED: of(vi.Relaxed(TEMPERATURE, biased=True)),
            SCORE: score(),
        },
    ),
    f"one Categorical of {NUM_VALUES}": (
        value_model,
        value_guide,
        {"Analytic()": of(ANALYTIC), RELAXED: Line(GumbelSoftmax()), SCORE: score()},
    ),
}


def falling(num_steps: int) -> Schedule:
    """From 1 to 0 over the first half of so many steps."""
    return lambda step: jnp.clip(1.0 - 2.0 * step / num_steps, 0.0, 1.0)


def deep_lines(num_steps: int) -> dict[str, Line]:
    annealed = vi.Annealed(WITH_FALLBACK, REPARAM, falling(num_steps))
    return {
        "Reparam()": of(REPARAM),
        "Analytic(fallback=Reparam())": of(WITH_FALLBACK),
        "Annealed(that, Reparam(), ...)": of(annealed),
        "linear decoder first, Reparam()": Line(Loss(vi.elbo(), REPARAM), guided=True),
        "linear decoder first, Analytic(...)": Line(Loss(vi.elbo(), WITH_FALLBACK), guided=True),
    }


# Training


def train(
    model: Program, guide: Program, line: Line, num_steps: int, num_seeds: int, x: jax.Array
) -> tuple[Params, Params]:
    """Parameters at the start and at the end, with the seeds along the first dim."""
    counts = isinstance(line.loss, Loss)
    program = line.loss.with_state(guide) if counts else guide
    svi = SVI(guided_model if line.guided else model, program, optax.adam(3e-3), line.loss)
    weight = falling(num_steps)

    def step(state: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        rows, number = now
        args = (x[rows], weight(number)) if line.guided else (x[rows],)
        return svi.update(state, *args)[0], None

    def fit(key: jax.Array) -> tuple[Params, Params]:
        start = svi.init(key, x[:BATCH_SIZE], *((jnp.ones(()),) if line.guided else ()))
        rows = random.randint(key, (num_steps, BATCH_SIZE), 0, len(x))
        end, _ = lax.scan(step, start, (rows, jnp.arange(num_steps)))
        return svi.get_params(start), svi.get_params(end)

    return jax.jit(jax.vmap(fit))(random.split(random.key(0), num_seeds))


def bound(
    model: Program, guide: Program, estimator: vi.Estimator, num_samples: int
) -> Callable[[Params, jax.Array], jax.Array]:
    """The ELBO (nats per image) by seed, of parameters and images."""
    loss = Loss(vi.elbo(), estimator, num_samples=num_samples)

    def one(params: Params, x: jax.Array) -> jax.Array:
        return -jnp.asarray(loss.loss(random.key(1), params, model, guide, x)) / len(x)

    return jax.jit(jax.vmap(one, (0, None)))


def variance(
    model: Program, guide: Program, loss: Any, params: Params, num_draws: int, x: jax.Array
) -> float:
    """Of one gradient of the ELBO per image, summed over coordinates, at one point."""

    def value(params: Params, key: jax.Array) -> jax.Array:
        found = loss.loss_with_mutable_state(key, params, model, guide, x)
        return jnp.asarray(found["loss"]) / len(x)

    @jax.jit
    def many(params: Params, keys: jax.Array) -> Params:
        return lax.map(lambda key: jax.grad(value)(params, key), keys)

    draws = many(params, random.split(random.key(2), num_draws))
    return sum(float(np.asarray(g, np.float64).var(0, ddof=1).sum()) for g in draws.values())


def spread(values: np.ndarray) -> str:
    return f"{values.mean():8.2f} +- {values.std(ddof=1) if len(values) > 1 else np.nan:.2f}"


def compare(
    title: str,
    programs: tuple[Program, Program],
    lines: dict[str, Line],
    exact: tuple[vi.Estimator, int],
    num_steps: int,
    num_seeds: int,
) -> None:
    """Train every line, and print bounds and variances."""
    print(f"\n{title}; {num_steps} steps, {num_seeds} seeds")
    heads = "train ELBO", "held-out ELBO", "var start", "var end", "s"
    print(f"{'':36}" + "".join(f"{h:>18}" for h in heads))
    x, held_out = digits()
    batch, points, names = x[:BATCH_SIZE], None, []
    bounds = bound(*programs, *exact)
    for name, line in lines.items():
        started = time.perf_counter()
        fitted = jax.block_until_ready(train(*programs, line, num_steps, num_seeds, x))
        seconds = time.perf_counter() - started
        names = names or list(fitted[1])
        points = points or [jax.tree.map(lambda p: p[0], at) for at in fitted]
        cells = [
            spread(np.asarray(bounds({n: fitted[1][n] for n in names}, images)))
            for images in (x, held_out)
        ]
        has_state = isinstance(line.loss, Loss) and "Annealed" in repr(line.loss)
        if line.guided or has_state:
            cells += ["", ""]
        else:
            cells += [f"{variance(*programs, line.loss, at, 200, batch):.3g}" for at in points]
        print(f"{name:36}" + "".join(f"{c:>18}" for c in (*cells, f"{seconds:.0f}")), flush=True)


# Cost


def interleaved(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median times (ms) of steps that take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if i >= 3:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(t)) for name, t in times.items()}


def numpyro_steps(num_pixels: int, num_latent: int, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    def model(x: jax.Array) -> None:
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(num_latent), 1.0).to_event(1))
            image("x", layer("decoder", z, num_latent, num_pixels), x)

    def guide(x: jax.Array) -> None:
        hidden = jax.nn.relu(layer("encoder_1", x, num_pixels, 4 * num_latent))
        loc, log_scale = jnp.split(
            layer("encoder_2", hidden, 4 * num_latent, 2 * num_latent), 2, -1
        )
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    data = jnp.asarray(x)
    svi = SVI(model, guide, optax.sgd(0.0), Loss())
    params = svi.get_params(svi.init(random.key(0), data))

    def of(estimator: vi.Estimator) -> Callable[[], Any]:
        loss = Loss(vi.elbo(), estimator)

        @jax.jit
        def gradient(params: Params, key: jax.Array) -> Params:
            return jax.grad(lambda p: loss.loss(key, p, model, guide, data))(params)

        return lambda: jax.block_until_ready(gradient(params, random.key(0)))

    return {"Analytic": of(ANALYTIC), "Reparam": of(REPARAM)}


def pyro_steps(num_pixels: int, num_latent: int, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    import pyro
    import pyro.distributions as pyro_dist
    import torch
    from torch import nn

    from vi_kit.pyro import Loss as PyroLoss

    torch.set_num_threads(1)
    pyro.clear_param_store()
    data = torch.as_tensor(x)
    hidden = 4 * num_latent
    net = nn.Sequential(nn.Linear(num_pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * num_latent))
    decoder = nn.Linear(num_latent, num_pixels)

    def model() -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("log_scale", torch.zeros(())).exp()
        with pyro.plate("images", len(data)):
            z = pyro.sample("z", pyro_dist.Normal(torch.zeros(num_latent), 1.0).to_event(1))
            pyro.sample("x", pyro_dist.Normal(decoder(z), scale).to_event(1), obs=data)

    def guide() -> None:
        pyro.module("encoder", net)
        loc, log_scale = net(data).chunk(2, -1)
        with pyro.plate("images", len(data)):
            pyro.sample("z", pyro_dist.Normal(loc, log_scale.exp()).to_event(1))

    def of(estimator: vi.Estimator) -> Callable[[], Any]:
        loss = PyroLoss(vi.elbo(), estimator)
        return lambda: loss.loss_and_grads(model, guide)

    return {"Analytic": of(ANALYTIC), "Reparam": of(REPARAM)}


def cost(rounds: int) -> None:
    print("\nms per gradient, minibatches of 100; linear decoder, Normal latents")
    print(f"{'':26}{'Analytic':>10}{'Reparam':>10}{'ratio':>8}")
    for num_pixels, num_latent in ((64, 8), (784, 10)):
        x = np.random.default_rng(0).random((BATCH_SIZE, num_pixels), np.float32)
        for library, make in (("NumPyro", numpyro_steps), ("Pyro", pyro_steps)):
            ms = interleaved(make(num_pixels, num_latent, x), rounds)
            ratio = ms["Analytic"] / ms["Reparam"]
            cells = f"{ms['Analytic']:10.3f}{ms['Reparam']:10.3f}{ratio:8.2f}"
            print(f"{library:10}{f'{num_pixels} x {num_latent}':16}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few steps and lines; a check that it runs"
    )
    quick = parser.parse_args().quick
    started = time.perf_counter()
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    cost(10 if quick else 200)
    size = (20, 2) if quick else (3000, 5)
    for title, (model, guide, lines) in list(LINEAR.items())[:: 2 if quick else 1]:
        title = f"linear decoder, latents: {title}"
        lines = dict(list(lines.items())[: 2 if quick else None])
        compare(title, (model, guide), lines, (ANALYTIC, 1), *size)
    title = f"decoder with a hidden layer, latents: {NUM_LATENT} Normal"
    programs = deep_model, normal_guide
    lines = dict(list(deep_lines(size[0]).items())[:: 4 if quick else 1])
    compare(title, programs, lines, (REPARAM, 5 if quick else 100), *size)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
