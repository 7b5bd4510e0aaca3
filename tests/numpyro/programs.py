"""A model and guide that several tests share, and gradients of losses as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

X = np.array([0.3, 1.2, -0.4, 0.9])
POSITIVE = dist.constraints.positive


def model(x: Any) -> None:
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x: Any) -> None:
    a = numpyro.param("a", 2.0)
    b = numpyro.param("b", 0.7, constraint=POSITIVE)
    loc = numpyro.sample("loc", dist.Normal(a, b))
    c = numpyro.param("c", jnp.zeros(len(x)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(c + loc, b))


def gradients(
    loss: Any,
    model: Callable,
    guide: Callable,
    params: dict[str, Any],
    num_draws: int,
    *args: Any,
    seed: int = 0,
    given: dict[str, Any] | None = None,
) -> np.ndarray:
    """Independent gradient estimates by the flattened `params`, shape `(num_draws, num_params)`.

    Args:
        given: values of parameters and mutable sites by which nothing is differentiated.
    """

    def one(key: jax.Array) -> jax.Array:
        by = jax.grad(lambda p: loss.loss(key, {**p, **(given or {})}, model, guide, *args))(params)
        return jnp.concatenate([jnp.ravel(v) for _, v in sorted(by.items())])

    params = {name: jnp.asarray(value, dtype=float) for name, value in params.items()}
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num_draws)))


def value(loss: Any, model: Callable, guide: Callable, params: dict[str, Any], *args: Any) -> float:
    """One estimate of the loss (nats)."""
    return float(loss.loss(jax.random.key(0), params, model, guide, *args))


def falls(losses: Any) -> bool:
    """Whether all losses are finite and the last fifth lies below the first."""
    losses = np.asarray(losses)
    n = len(losses) // 5
    return bool(np.isfinite(losses).all() and losses[-n:].mean() < losses[:n].mean())
