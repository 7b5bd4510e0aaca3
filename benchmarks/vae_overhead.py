"""Minibatch ELBO gradient of a VAE in JAX: vi_kit against hand-written code and NumPyro's Trace_ELBO.

784-200-20 encoder, 20-200-784 Bernoulli decoder, simulated binary images. Printed too: equations of the traced
gradient, and XLA's count of operations and bytes.

Run it: `python -m benchmarks.vae_overhead`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

from benchmarks.timing import Row, in_turn
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
    return {"by hand": by_hand, "vi_kit": through(Loss()), "Trace_ELBO": through(Trace_ELBO())}


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


def rows() -> Iterator[Row]:
    for size in BATCH_SIZES:
        x = images(size)
        params = initial_params(x)
        steps = {}
        for name, fn in contenders().items():
            gradient = jax.jit(jax.value_and_grad(fn, argnums=1))

            def step(gradient: Any = gradient, x: Any = x, params: Any = params) -> Any:
                return jax.block_until_ready(gradient(random.key(1), params, x))

            steps[name] = step
        yield Row(f"VAE gradient in NumPyro, batch {size}", in_turn(steps))


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpyro {numpyro.__version__}")
    x = images(64)
    args = (random.key(0), initial_params(x), x)
    print(f"\n{'gradient, batch 64':20} {'equations':>10} {'flops':>14} {'bytes':>14}")
    for name, fn in contenders().items():
        cost = static_cost(fn, *args)
        print(f"{name:20} {cost['equations']:10d} {cost['flops']:14.0f} {cost['bytes']:14.0f}")
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
