"""Attend, infer, repeat in NumPyro."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random

from models import air
from models.air import (
    NOISE,
    NUM_HIDDEN,
    NUM_STATE,
    NUM_STEPS,
    NUM_WHAT,
    NUM_WHERE,
    PRIOR_LOGIT,
    SIDE,
    WINDOW,
)

WHERE_LOC, WHERE_SCALE = jnp.array(air.WHERE_LOC), jnp.array(air.WHERE_SCALE)

Params = dict[str, Any]


def initial_params(key: jax.Array) -> Params:
    def layer(key: jax.Array, num_in: int, num_out: int) -> tuple[jax.Array, jax.Array]:
        return random.normal(key, (num_in, num_out)) / num_in**0.5, jnp.zeros(num_out)

    sizes = {
        "gates": (SIDE**2 + NUM_STATE + NUM_WHERE + NUM_WHAT + 1, 4 * NUM_STATE),
        "predict": (NUM_STATE, 1 + 2 * NUM_WHERE),
        "look": (WINDOW**2, NUM_HIDDEN),
        "what": (NUM_HIDDEN, 2 * NUM_WHAT),
        "draw": (NUM_WHAT, NUM_HIDDEN),
        "pixels": (NUM_HIDDEN, WINDOW**2),
    }
    keys = random.split(key, len(sizes))
    params = {n: layer(k, *size) for (n, size), k in zip(sizes.items(), keys, strict=True)}
    model = {n: params.pop(n) for n in ("draw", "pixels")}
    return {"guide": params, "model": model}


def dense(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer[0] + layer[1]


def attention(where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of rows and of columns: by how much each pixel of the image is one of the window."""
    scale, x, y = jnp.split(where, 3, -1)
    grid, window = jnp.linspace(-1.0, 1.0, SIDE), jnp.linspace(-1.0, 1.0, WINDOW)

    def along(shift: jax.Array) -> jax.Array:
        apart = (grid[:, None] - shift[..., None]) * scale[..., None] - window
        return jax.nn.relu(1.0 - jnp.abs(apart) * (WINDOW - 1) / 2)

    return along(y), along(x)


class State(NamedTuple):
    """After some steps of the guide."""

    hidden: jax.Array
    cell: jax.Array
    last: jax.Array
    pres: jax.Array


def start(x: jax.Array) -> State:
    nothing = jnp.zeros((*x.shape[:-2], NUM_STATE))
    last = jnp.zeros((*x.shape[:-2], NUM_WHERE + NUM_WHAT + 1))
    return State(nothing, nothing, last, jnp.ones(x.shape[:-2]))


def recur(params: Params, x: jax.Array, state: State) -> tuple[State, jax.Array, Any, Any]:
    """The next state, the logit of the bit, and where an object is."""
    inputs = jnp.concatenate([x.reshape(*x.shape[:-2], -1), state.hidden, state.last], -1)
    i, f, o, g = jnp.split(dense(params["gates"], inputs), 4, -1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    out = dense(params["predict"], hidden)
    loc, scale = WHERE_LOC + out[..., 1:4], WHERE_SCALE * jnp.exp(out[..., 4:])
    return state._replace(hidden=hidden, cell=cell), out[..., 0], loc, scale


def seen(params: Params, x: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What an object is."""
    rows, columns = attention(where)
    glimpse = jnp.swapaxes(rows, -1, -2) @ x @ columns
    hidden = jax.nn.softplus(dense(params["look"], glimpse.reshape(*glimpse.shape[:-2], -1)))
    loc, raw = jnp.split(dense(params["what"], hidden), 2, -1)
    return loc, jax.nn.softplus(raw)


def drawn(params: Params, where: jax.Array, what: jax.Array, pres: jax.Array) -> jax.Array:
    """One object in the image."""
    hidden = jax.nn.softplus(dense(params["draw"], what))
    pixels = jax.nn.sigmoid(dense(params["pixels"], hidden))
    rows, columns = attention(where)
    image = (
        rows @ pixels.reshape(*pixels.shape[:-1], WINDOW, WINDOW) @ jnp.swapaxes(columns, -1, -2)
    )
    return image * pres[..., None, None]


def after(state: State, where: jax.Array, what: jax.Array, pres: jax.Array) -> State:
    last = jnp.concatenate([where, what, pres[..., None]], -1)
    return state._replace(last=last, pres=pres)


def guide(x: jax.Array, params: Params) -> None:
    p = numpyro.param("guide", params["guide"])
    with numpyro.plate("images", len(x)):
        state = start(x)
        for t in range(NUM_STEPS):
            state, logit, loc, scale = recur(p, x, state)
            bit = numpyro.sample(f"bit_{t}", dist.Bernoulli(logits=logit).mask(state.pres > 0))
            pres = state.pres * bit
            q = dist.Normal(loc, scale).to_event(1).mask(pres > 0)
            where = numpyro.sample(f"where_{t}", q)
            q = dist.Normal(*seen(p, x, where)).to_event(1).mask(pres > 0)
            what = numpyro.sample(f"what_{t}", q)
            state = after(state, where, what, pres)


def model(x: jax.Array, params: Params) -> None:
    p = numpyro.param("model", params["model"])
    with numpyro.plate("images", len(x)):
        pres, canvas = jnp.ones(len(x)), jnp.zeros_like(x)
        zeros = jnp.zeros((len(x), NUM_WHAT))
        for t in range(NUM_STEPS):
            prior = dist.Bernoulli(logits=PRIOR_LOGIT * jnp.ones(len(x))).mask(pres > 0)
            pres = pres * numpyro.sample(f"bit_{t}", prior)
            prior = dist.Normal(WHERE_LOC, WHERE_SCALE * jnp.ones((len(x), 1))).to_event(1)
            where = numpyro.sample(f"where_{t}", prior.mask(pres > 0))
            what = numpyro.sample(f"what_{t}", dist.Normal(zeros, 1.0).to_event(1).mask(pres > 0))
            canvas = canvas + drawn(p, where, what, pres)
        numpyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)


def programs() -> tuple[Any, Any]:
    """Model and guide."""
    params = initial_params(random.key(0))
    return partial(model, params=params), partial(guide, params=params)
