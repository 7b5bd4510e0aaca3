"""What NumPyro models cost before they run: eager losses, and tracing and lowering of a step, beside NumPyro's own.

Run it: `python -m benchmarks.numpyro_overhead`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import vi_kit as vi
from benchmarks.timing import Row, in_turn
from vi_kit.numpyro import Loss

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)


def walk(num_sites: int) -> tuple[Any, Any]:
    """A random walk and a guide of independent Normals."""

    def model() -> None:
        z: Any = 0.0
        for t in range(num_sites):
            z = numpyro.sample(f"z{t}", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)

    def guide() -> None:
        for t in range(num_sites):
            loc, log_scale = numpyro.param(f"m{t}", 0.0), numpyro.param(f"s{t}", 0.0)
            numpyro.sample(f"z{t}", dist.Normal(loc, jnp.exp(log_scale)))

    return model, guide


def evaluate(loss: Any, params: Any, model: Any, guide: Any) -> Any:
    return jax.block_until_ready(loss.loss(random.key(0), params, model, guide))


def lower(svi: Any, state: Any) -> Any:
    return jax.jit(lambda s: svi.update(s)).lower(state)


def rows() -> Iterator[Row]:
    programs = {"eight schools, AutoNormal": (eight_schools, AutoNormal(eight_schools))}
    programs |= {f"walk of {n} sites": walk(n) for n in (1, 10, 50, 200)}
    for name, (model, guide) in programs.items():
        eager, lowered = {}, {}
        for loss_name, loss in {"Trace_ELBO": Trace_ELBO(), "vi_kit": Loss(vi.elbo())}.items():
            svi = SVI(model, guide, optax.adam(1e-2), loss)
            state = svi.init(random.key(0))
            params = svi.get_params(state)

            eager[loss_name] = partial(evaluate, loss, params, model, guide)
            lowered[loss_name] = partial(lower, svi, state)
        if "200" not in name:
            yield Row(f"eager loss in NumPyro, {name}", in_turn(eager))
        yield Row(f"trace and lower a step in NumPyro, {name}", in_turn(lowered, warm_up=1))


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
