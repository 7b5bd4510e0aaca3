"""Minibatch ELBO gradient of a VAE in JAX: vi_kit against hand-written code and NumPyro's Trace_ELBO.

784-200-20 encoder, 20-200-784 Bernoulli decoder, simulated binary images. The three are run in turn in
one process after compilation; the table has medians and the ratios of vi_kit to the others. Printed too:
equations of the traced gradient, and XLA's count of operations and bytes.

Run: `python benchmarks/vae_overhead.py [--rounds N]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.example_libraries import stax
from jax.extend.core import jaxprs_in_params
from numpyro.infer import Trace_ELBO

from vi_kit.numpyro import Loss

NUM_PIXELS, NUM_HIDDEN, NUM_LATENT = 784, 200, 20
BATCH_SIZES = (64, 128, 256, 512, 1024)


def encoder_net() -> Any:
    return stax.serial(
        stax.Dense(NUM_HIDDEN),
        stax.Softplus,
        stax.FanOut(2),
        stax.parallel(stax.Dense(NUM_LATENT), stax.serial(stax.Dense(NUM_LATENT), stax.Exp)),
    )


def decoder_net() -> Any:
    return stax.serial(stax.Dense(NUM_HIDDEN), stax.Softplus, stax.Dense(NUM_PIXELS))


def model(x: jax.Array) -> None:
    decode = numpyro.module("decoder", decoder_net(), (x.shape[0], NUM_LATENT))
    with numpyro.plate("batch", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENT), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    encode = numpyro.module("encoder", encoder_net(), (x.shape[0], NUM_PIXELS))
    loc, scale = encode(x)
    with numpyro.plate("batch", x.shape[0]):
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def by_hand(key: jax.Array, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Minus the ELBO, as one would write it without a library."""
    encode, decode = encoder_net()[1], decoder_net()[1]
    loc, scale = encode(params["encoder$params"], x)
    noise = random.normal(key, loc.shape)
    z = loc + scale * noise
    logits = decode(params["decoder$params"], z)
    half_log_2pi = 0.5 * jnp.log(2 * jnp.pi)
    log_q = -0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - half_log_2pi
    log_prior = -0.5 * z**2 - half_log_2pi
    log_x = x * logits - jax.nn.softplus(logits)
    return log_q.sum() - log_prior.sum() - log_x.sum()


def through(loss: Any) -> Callable[..., jax.Array]:
    return lambda key, params, x: loss.loss(key, params, model, guide, x)


def contenders() -> dict[str, Callable[..., jax.Array]]:
    return {"vi_kit": through(Loss()), "hand": by_hand, "Trace_ELBO": through(Trace_ELBO())}


def initial_params(x: jax.Array) -> dict[str, Any]:
    """One draw of the weights, the same for all."""
    params = {}
    for program in (guide, model):
        trace = numpyro.handlers.trace(numpyro.handlers.seed(program, 0)).get_trace(x)
        params.update({n: s["value"] for n, s in trace.items() if s["type"] == "param"})
    return params


def num_equations(jaxpr: Any) -> int:
    """Equations of a jaxpr and of what it calls."""
    inner = [
        sub for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params) if hasattr(sub, "eqns")
    ]
    return len(jaxpr.eqns) + sum(map(num_equations, inner))


def static_cost(
    fn: Callable[..., jax.Array], *args: Any, compiler_options: dict[str, Any] | None = None
) -> dict[str, float]:
    """What can be said of a gradient without running it."""
    gradient = jax.grad(fn, argnums=1)
    closed = jax.make_jaxpr(gradient)(*args)
    cost = jax.jit(gradient).lower(*args).compile(compiler_options).cost_analysis()
    return {
        "equations": num_equations(closed.jaxpr),
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
    }


def images(batch_size: int) -> jax.Array:
    rng = np.random.default_rng(batch_size)
    return jnp.asarray(rng.random((batch_size, NUM_PIXELS)) < 0.2, jnp.float32)


def milliseconds(batch_size: int, rounds: int) -> dict[str, float]:
    """Median time of one gradient, the contenders taking turns in a changing order."""
    x = images(batch_size)
    params = initial_params(x)
    compiled = {n: jax.jit(jax.value_and_grad(f, argnums=1)) for n, f in contenders().items()}
    keys = random.split(random.key(1), rounds + 3)
    for key in keys[:3]:
        for fn in compiled.values():
            jax.block_until_ready(fn(key, params, x))
    times: dict[str, list[float]] = {n: [] for n in compiled}
    names = list(compiled)
    for i, key in enumerate(keys[3:]):
        for name in names[i % 3 :] + names[: i % 3]:
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](key, params, x))
            times[name].append(1e3 * (time.perf_counter() - start))
    return {n: float(np.median(t)) for n, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="gradients timed per contender")
    rounds = parser.parse_args().rounds
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    x = images(64)
    args = (random.key(0), initial_params(x), x)
    print(f"\n{'gradient, batch 64':20} {'equations':>10} {'flops':>14} {'bytes':>14}")
    for name, fn in contenders().items():
        cost = static_cost(fn, *args)
        print(f"{name:20} {cost['equations']:10d} {cost['flops']:14.0f} {cost['bytes']:14.0f}")
    print(
        f"\n{'batch':>6} {'vi_kit ms':>10} {'hand ms':>9} {'Trace_ELBO':>11} {'/hand':>7} {'/Trace':>7}"
    )
    for size in BATCH_SIZES:
        ms = milliseconds(size, rounds)
        ratios = ms["vi_kit"] / ms["hand"], ms["vi_kit"] / ms["Trace_ELBO"]
        print(
            f"{size:6d} {ms['vi_kit']:10.2f} {ms['hand']:9.2f} {ms['Trace_ELBO']:11.2f}"
            f" {ratios[0]:7.2f} {ratios[1]:7.2f}"
        )


if __name__ == "__main__":
    main()
