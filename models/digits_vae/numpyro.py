"""The autoencoder of digits in NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI

import vi_kit as vi
from models.digits_vae import (
    ESTIMATORS,
    NUM_BITS,
    NUM_CLASSES,
    NUM_CODES,
    NUM_HIDDEN,
    NUM_PIXELS,
    NUM_STYLE,
    OBJECTIVE,
)
from vi_kit.numpyro import Loss

DECODER = stax.serial(
    stax.Dense(NUM_HIDDEN),
    stax.Relu,
    stax.Dense(NUM_HIDDEN),
    stax.Relu,
    stax.Dense(NUM_PIXELS),
)
CLASS_ENCODER = stax.serial(stax.Dense(NUM_HIDDEN), stax.Relu, stax.Dense(NUM_CODES * NUM_CLASSES))
CODE_ENCODER = stax.serial(stax.Dense(NUM_HIDDEN), stax.Relu, stax.Dense(NUM_BITS))
STYLE_ENCODER = stax.serial(stax.Dense(NUM_HIDDEN), stax.Relu, stax.Dense(2 * NUM_STYLE))


def joined(*parts: jax.Array) -> jax.Array:
    """Concatenate along the last dim, whatever batch dims each part has on the left."""
    shape = jnp.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return jnp.concatenate([jnp.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], -1)


def model(x: jax.Array) -> None:
    decoder = numpyro.module("decoder", DECODER, (NUM_BITS + NUM_STYLE,))
    with numpyro.plate("images", len(x)):
        code = numpyro.sample("code", dist.Bernoulli(logits=jnp.zeros(NUM_BITS)).to_event(1))
        style = numpyro.sample("style", dist.Normal(jnp.zeros(NUM_STYLE), 1.0).to_event(1))
        logits = decoder(joined(code, style))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    code_encoder = numpyro.module("code_encoder", CODE_ENCODER, (NUM_PIXELS,))
    style_encoder = numpyro.module("style_encoder", STYLE_ENCODER, (NUM_PIXELS + NUM_BITS,))
    with numpyro.plate("images", len(x)):
        code = numpyro.sample("code", dist.Bernoulli(logits=code_encoder(x)).to_event(1))
        loc, log_scale = jnp.split(style_encoder(joined(x, code)), 2, -1)
        numpyro.sample("style", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def programs() -> tuple[Callable, Callable]:
    """Model and guide."""
    return model, guide


def categorical_programs() -> tuple[Callable, Callable]:
    """Model and guide with codes of several classes, and no style."""

    def model(x: jax.Array) -> None:
        decoder = numpyro.module("decoder", DECODER, (NUM_CODES * NUM_CLASSES,))
        classes = dist.Categorical(logits=jnp.zeros((NUM_CODES, NUM_CLASSES))).to_event(1)
        with numpyro.plate("images", len(x)):
            code = jax.nn.one_hot(numpyro.sample("code", classes), NUM_CLASSES)
            logits = decoder(code.reshape(*code.shape[:-2], -1))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        encoder = numpyro.module("encoder", CLASS_ENCODER, (NUM_PIXELS,))
        with numpyro.plate("images", len(x)):
            logits = encoder(x).reshape(-1, NUM_CODES, NUM_CLASSES)
            numpyro.sample("code", dist.Categorical(logits=logits).to_event(1))

    return model, guide


class Training:
    """A model, its guide and what trains them."""

    def __init__(self, train: np.ndarray, batch_size: int, seed: int):
        self.train, self.batch_size = jnp.asarray(train), batch_size
        self.loss = Loss(OBJECTIVE, ESTIMATORS)
        self.svi = SVI(model, guide, optax.adam(2e-3), self.loss)
        self.key, key = random.split(random.key(seed))
        self.state = jax.jit(self.svi.init)(key, self.train[:batch_size])

    def explain(self) -> str:
        return self.loss.explain(model, guide, self.train[: self.batch_size])

    def new_key(self) -> jax.Array:
        self.key, key = random.split(self.key)
        return key

    def epoch(self) -> float:
        """One pass over the images; the mean bound on the way (nats per image)."""
        self.state, bound = self._epoch(self.state, self.new_key())
        return float(bound)

    @partial(jax.jit, static_argnames="self")
    def _epoch(self, state, key):
        # Minibatches have one shape, so a remainder waits for another epoch's order.
        shape = (len(self.train) // self.batch_size, self.batch_size)
        order = random.permutation(key, len(self.train))[: shape[0] * shape[1]]
        state, losses = lax.scan(self.svi.update, state, self.train[order.reshape(shape)])
        return state, -losses.mean() / self.batch_size

    def bound(self, objective: vi.Objective, x: np.ndarray, num_samples: int = 1) -> float:
        """A bound by `num_samples` estimates (nats per image)."""
        params = self.svi.get_params(self.state)
        return -float(estimate(objective, num_samples, self.new_key(), params, x)) / len(x)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Pixel probabilities, `(len(images), 64)`, at the most probable code and the mean style."""
        params, x = self.svi.get_params(self.state), jnp.asarray(images)
        code = (CODE_ENCODER[1](params["code_encoder$params"], x) > 0).astype(x.dtype)
        loc, _ = jnp.split(STYLE_ENCODER[1](params["style_encoder$params"], joined(x, code)), 2, -1)
        return np.asarray(jax.nn.sigmoid(DECODER[1](params["decoder$params"], joined(code, loc))))


@partial(jax.jit, static_argnames=("objective", "num_samples"))
def estimate(objective, num_samples, key, params, x):
    """A loss, compiled once per objective and shape of `x`."""
    return Loss(objective, num_samples=num_samples).loss(key, params, model, guide, x)
