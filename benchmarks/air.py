"""Attend-Infer-Repeat in JAX: vi_kit beside the same estimators written by hand.

Up to three objects in an image of 50 x 50; per step a bit (is there one more), where it is, and what. The bits are
served by the score function, enumeration or measure-valued derivatives, under the ELBO and under IWAE of two particles.
A second line of each has the memory that XLA sets aside for what it computes.

Run it: `python -m benchmarks.air`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import logsumexp

import vi_kit as vi
from benchmarks.timing import Row, in_turn
from models.air import NUM_WHERE, SIZES
from models.air.numpyro import (
    WHERE_LOC,
    WHERE_SCALE,
    Params,
    State,
    after,
    drawn,
    guide,
    initial_params,
    model,
    recur,
    seen,
    start,
)
from vi_kit.numpyro import Loss


def log_normal(x: jax.Array, loc: Any, scale: Any) -> jax.Array:
    log_probs = -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
    return log_probs.sum(-1)


def log_bernoulli(bit: jax.Array, logit: Any) -> jax.Array:
    return bit * logit - jax.nn.softplus(logit)


class Noise(NamedTuple):
    """Of one step: of the bit, of where and of what."""

    bit: jax.Array
    where: jax.Array
    what: jax.Array


class Walk(NamedTuple):
    """After some steps: of the guide, of the image, and what log p - log q and the score are so far."""

    state: State
    canvas: jax.Array
    log_weight: jax.Array


Choose = Callable[[int, jax.Array], jax.Array]


def noises(key: jax.Array, shape: tuple[int, ...]) -> list[Noise]:
    keys = random.split(key, (SIZES.num_steps, 3))
    return [
        Noise(
            random.uniform(k[0], shape),
            random.normal(k[1], (*shape, NUM_WHERE)),
            random.normal(k[2], (*shape, SIZES.num_what)),
        )
        for k in keys
    ]


def walk(
    params: Params, x: jax.Array, at: Walk, noise: Noise, bit: jax.Array | None
) -> tuple[Walk, jax.Array, jax.Array, jax.Array]:
    """One step, with the bit and its logit, and whether it is asked for."""
    q, asked = params["guide"], at.state.pres
    state, logit, loc, scale = recur(q, at.state)
    if bit is None:
        bit = (noise.bit < jax.nn.sigmoid(logit)).astype(x.dtype)
    pres = asked * bit
    where = loc + scale * noise.where
    of_what = seen(q, x, where)
    what = of_what[0] + of_what[1] * noise.what
    weight = asked * (log_bernoulli(bit, SIZES.prior_logit) - log_bernoulli(bit, logit))
    of_where = log_normal(where, WHERE_LOC, WHERE_SCALE) - log_normal(where, loc, scale)
    weight += pres * (of_where + log_normal(what, 0.0, 1.0) - log_normal(what, *of_what))
    canvas = at.canvas + drawn(params["model"], where, what, pres)
    done = Walk(after(state, where, what, pres), canvas, at.log_weight + weight)
    return done, bit, logit, asked


def finished(x: jax.Array, at: Walk) -> jax.Array:
    """log p - log q."""
    log_x = log_normal(x, at.canvas, SIZES.noise).sum(-1)
    return at.log_weight + log_x


def begun(params: Params, x: jax.Array) -> Walk:
    return Walk(start(params["guide"], x), jnp.zeros_like(x), jnp.zeros(x.shape[:-2]))


stop = lax.stop_gradient


def scored(key: jax.Array, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p - log q, and the score of the bits."""
    at, score = begun(params, x), jnp.zeros(x.shape[:-2])
    for noise in noises(key, x.shape[:-2]):
        at, bit, logit, asked = walk(params, x, at, noise, None)
        score += asked * log_bernoulli(bit, logit)
    return finished(x, at), score


def compared(key: jax.Array, params: Params, x: jax.Array) -> tuple[jax.Array, list[Any]]:
    """log p - log q; and for each step the weight and log p - log q with the other bit, without gradient."""
    ats, found, noise = [begun(params, x)], [], noises(key, x.shape[:-2])
    for t in range(SIZES.num_steps):
        at, bit, logit, _ = walk(params, x, ats[-1], noise[t], None)
        ats.append(at)
        found.append((bit, jax.nn.sigmoid(logit)))
    held, others = stop(params), []
    for t, (bit, prob) in enumerate(found):
        at, *_ = walk(held, x, stop(ats[t]), noise[t], 1.0 - bit)
        for later in noise[t + 1 :]:
            at, *_ = walk(held, x, at, later, None)
        sign = 1.0 - 2.0 * bit
        others.append((sign * (prob - stop(prob)), stop(finished(x, at))))
    return finished(x, ats[-1]), others


def reinforce(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    log_weight, score = scored(key, params, x)
    return -(log_weight + (score - stop(score)) * stop(log_weight)).sum()


def measure_valued(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    log_weight, others = compared(key, params, x)
    return -(log_weight + sum(c * (f - stop(log_weight)) for c, f in others)).sum()


def enumerated(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    noise = noises(key, x.shape[:-2])

    def value(t: int, at: Walk) -> jax.Array:
        if t == SIZES.num_steps:
            return finished(x, at)

        def with_bit(bit: jax.Array) -> jax.Array:
            done, bit, logit, _ = walk(params, x, at, noise[t], jnp.full(len(x), bit))
            return jnp.exp(log_bernoulli(bit, logit)) * value(t + 1, done)

        return jax.vmap(with_bit)(jnp.array([0.0, 1.0])).sum(0)

    return -value(0, begun(params, x)).sum()


def both(fn: Callable[..., Any], key: jax.Array, params: Params, x: jax.Array) -> Any:
    return jax.vmap(partial(fn, params=params, x=x))(random.split(key, 2))


def iwae_reinforce(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    log_weights, scores = both(lambda key, params, x: scored(key, params, x), key, params, x)
    bound, score = logsumexp(log_weights, 0) - jnp.log(2.0), scores.sum(0)
    return -(bound + (score - stop(score)) * stop(bound)).sum()


def iwae_measure_valued(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    log_weights, others = both(lambda key, params, x: compared(key, params, x), key, params, x)
    bound = logsumexp(log_weights, 0) - jnp.log(2.0)
    held = stop(log_weights)
    total = bound
    for c, f in others:
        swapped = jnp.logaddexp(f, held[::-1]) - jnp.log(2.0)
        total += (c * (swapped - stop(bound))).sum(0)
    return -total.sum()


def losses() -> dict[str, tuple[Callable[..., jax.Array], Any]]:
    """By hand and by vi_kit."""
    bits = {"REINFORCE": vi.Score(), "ENUM": vi.Enumerate(), "MVD": vi.MeasureValued()}
    rest = {"where_*": vi.Reparam(), "what_*": vi.Reparam()}

    def by_bits(name: str, objective: Any = None) -> Any:
        return Loss(objective or vi.elbo(), {"bit_*": bits[name], **rest})

    iwae = vi.iwae(num_particles=2)
    return {
        "REINFORCE": (reinforce, by_bits("REINFORCE")),
        "ENUM": (enumerated, by_bits("ENUM")),
        "MVD": (measure_valued, by_bits("MVD")),
        "IWAE(2) + REINFORCE": (iwae_reinforce, by_bits("REINFORCE", iwae)),
        "IWAE(2) + MVD": (iwae_measure_valued, by_bits("MVD", iwae)),
    }


def through(loss: Any) -> Callable[..., jax.Array]:
    return lambda key, params, x: loss.loss(key, params, model, guide, x, params)


def rows(batch_size: int = 64) -> Iterator[Row]:
    params = initial_params(random.key(0))
    x = jax.nn.sigmoid(random.normal(random.key(3), (batch_size, SIZES.side, SIZES.side)) - 2.0)
    for name, (by_hand, loss) in losses().items():
        contenders, memory = {}, {}
        for who, fn in {"hand": by_hand, "vi_kit": through(loss)}.items():
            gradient = jax.jit(jax.value_and_grad(fn, argnums=1))
            step = gradient.lower(random.key(0), params, x).compile()
            contenders[who] = partial(
                lambda f: jax.block_until_ready(f(random.key(1), params, x)), step
            )
            found: Any = step.memory_analysis()
            memory[who] = found.temp_size_in_bytes / 2**20
        work = f"AIR, batch {batch_size}, NumPyro, {name}"
        yield Row(work, in_turn(contenders))
        yield Row(f"{work}, memory", memory, "MiB")


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
