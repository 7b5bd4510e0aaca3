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
from models.air import NUM_WHERE, SIZES, Sizes

WHERE_LOC, WHERE_SCALE = jnp.array(air.WHERE_LOC), jnp.array(air.WHERE_SCALE)

Params = dict[str, Any]


def initial_params(key: jax.Array, of: Sizes = SIZES) -> Params:
    def layer(key: jax.Array, num_in: int, num_out: int) -> tuple[jax.Array, jax.Array]:
        return random.normal(key, (num_in, num_out)) / num_in**0.5, jnp.zeros(num_out)

    sizes = {
        "gates": (of.num_coarse + of.num_state + NUM_WHERE + of.num_what + 1, 4 * of.num_state),
        "predict": (of.num_state, 1 + 2 * NUM_WHERE),
        "look": (of.window**2, of.num_hidden),
        "what": (of.num_hidden, 2 * of.num_what),
        "draw": (of.num_what, of.num_hidden),
        "pixels": (of.num_hidden, of.window**2),
    }
    keys = random.split(key, len(sizes))
    params = {n: layer(k, *size) for (n, size), k in zip(sizes.items(), keys, strict=True)}
    weight, bias = params["predict"]
    params["predict"] = weight, bias.at[0].set(of.likely).at[1 + NUM_WHERE :].set(of.narrow)
    weight, bias = params["pixels"]
    params["pixels"] = weight, bias + of.dark
    model = {n: params.pop(n) for n in ("draw", "pixels")}
    return {"guide": params, "model": model}


def dense(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer[0] + layer[1]


def attention(where: jax.Array, of: Sizes = SIZES) -> tuple[jax.Array, jax.Array]:
    """Of rows and of columns: by how much each pixel of the image is one of the window."""
    scale, x, y = jnp.split(where, 3, -1)
    grid, window = jnp.linspace(-1.0, 1.0, of.side), jnp.linspace(-1.0, 1.0, of.window)

    def along(shift: jax.Array) -> jax.Array:
        apart = (grid[:, None] - shift[..., None]) * scale[..., None] - window
        return jax.nn.relu(1.0 - jnp.abs(apart) * (of.window - 1) / 2)

    return along(y), along(x)


class State(NamedTuple):
    """After some steps of the guide; `image` is what the gates get from the image, the same in each."""

    image: jax.Array
    hidden: jax.Array
    cell: jax.Array
    last: jax.Array
    pres: jax.Array


def start(params: Params, x: jax.Array, of: Sizes = SIZES) -> State:
    weight, bias = params["gates"]
    side, zoom = of.side // of.zoom, of.zoom
    coarse = x.reshape(*x.shape[:-2], side, zoom, side, zoom).mean((-3, -1))
    image = coarse.reshape(*x.shape[:-2], -1) @ weight[: of.num_coarse] + bias
    nothing = jnp.zeros((*x.shape[:-2], of.num_state))
    last = jnp.zeros((*x.shape[:-2], NUM_WHERE + of.num_what + 1))
    return State(image, nothing, nothing, last, jnp.ones(x.shape[:-2]))


def recur(params: Params, state: State, of: Sizes = SIZES) -> tuple[State, jax.Array, Any, Any]:
    """The next state, the logit of the bit, and where an object is."""
    weight = params["gates"][0][of.num_coarse :]
    gates = state.image + jnp.concatenate([state.hidden, state.last], -1) @ weight
    i, f, o, g = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    out = dense(params["predict"], hidden)
    loc, scale = WHERE_LOC + out[..., 1:4], WHERE_SCALE * jnp.exp(out[..., 4:])
    return state._replace(hidden=hidden, cell=cell), out[..., 0], loc, scale


def seen(
    params: Params, x: jax.Array, where: jax.Array, of: Sizes = SIZES
) -> tuple[jax.Array, jax.Array]:
    """What an object is."""
    rows, columns = attention(where, of)
    glimpse = jnp.swapaxes(rows, -1, -2) @ x @ columns
    hidden = jax.nn.softplus(dense(params["look"], glimpse.reshape(*glimpse.shape[:-2], -1)))
    loc, raw = jnp.split(dense(params["what"], hidden), 2, -1)
    return loc, jax.nn.softplus(raw)


def drawn(
    params: Params, where: jax.Array, what: jax.Array, pres: jax.Array, of: Sizes = SIZES
) -> jax.Array:
    """One object in the image."""
    hidden = jax.nn.softplus(dense(params["draw"], what))
    pixels = jax.nn.sigmoid(dense(params["pixels"], hidden))
    pixels = pixels.reshape(*pixels.shape[:-1], of.window, of.window)
    rows, columns = attention(where, of)
    return rows @ pixels @ jnp.swapaxes(columns, -1, -2) * pres[..., None, None]


def after(state: State, where: jax.Array, what: jax.Array, pres: jax.Array) -> State:
    last = jnp.concatenate([where, what, pres[..., None]], -1)
    return state._replace(last=last, pres=pres)


def guide(x: jax.Array, params: Params, of: Sizes = SIZES) -> None:
    p = numpyro.param("guide", params["guide"])
    with numpyro.plate("images", len(x)):
        state = start(p, x, of)
        for t in range(of.num_steps):
            state, logit, loc, scale = recur(p, state, of)
            bit = numpyro.sample(f"bit_{t}", dist.Bernoulli(logits=logit).mask(state.pres > 0))
            pres = state.pres * bit
            q = dist.Normal(loc, scale).to_event(1).mask(pres > 0)
            where = numpyro.sample(f"where_{t}", q)
            q = dist.Normal(*seen(p, x, where, of)).to_event(1).mask(pres > 0)
            what = numpyro.sample(f"what_{t}", q)
            state = after(state, where, what, pres)


def model(x: jax.Array, params: Params, of: Sizes = SIZES) -> None:
    p = numpyro.param("model", params["model"])
    with numpyro.plate("images", len(x)):
        pres, canvas = jnp.ones(len(x)), jnp.zeros_like(x)
        zeros = jnp.zeros((len(x), of.num_what))
        for t in range(of.num_steps):
            prior = dist.Bernoulli(logits=of.prior_logit * jnp.ones(len(x))).mask(pres > 0)
            pres = pres * numpyro.sample(f"bit_{t}", prior)
            prior = dist.Normal(WHERE_LOC, WHERE_SCALE * jnp.ones((len(x), 1))).to_event(1)
            where = numpyro.sample(f"where_{t}", prior.mask(pres > 0))
            what = numpyro.sample(f"what_{t}", dist.Normal(zeros, 1.0).to_event(1).mask(pres > 0))
            canvas = canvas + drawn(p, where, what, pres, of)
        numpyro.sample("x", dist.Normal(canvas, of.noise).to_event(2), obs=x)


def programs(of: Sizes = SIZES) -> tuple[Any, Any]:
    """Model and guide."""
    params = initial_params(random.key(0), of)
    return partial(model, params=params, of=of), partial(guide, params=params, of=of)
