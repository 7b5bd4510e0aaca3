"""What `fit` takes beside each library's own loop: whole calls, with planning, compilation and all steps.

Run it: `python -m benchmarks.fitting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import numpyro
import optax
import pyro
import torch
from jax import random

import vi_kit.numpyro
import vi_kit.pyro
from benchmarks.timing import Row, in_turn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 10)).astype(np.float32)
Y = (RNG.random(1000) < 1 / (1 + np.exp(-X[:, 0]))).astype(np.float32)
NUM_STEPS = {"numpyro": (1, 5000), "pyro": (1, 300)}


def logistic(lib: Any) -> Any:
    """Logistic regression in the words of a library."""
    dist = lib.distributions

    def model(x: Any, y: Any) -> None:
        w = lib.sample("w", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        with lib.plate("data", len(x)):
            lib.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return model


def of_numpyro(num_steps: int) -> dict[str, float]:
    """One call of each, milliseconds."""
    model = logistic(numpyro)
    x, y = jax.numpy.asarray(X), jax.numpy.asarray(Y)

    def theirs(loss: Any) -> None:
        guide = numpyro.infer.autoguide.AutoNormal(model)
        svi = numpyro.infer.SVI(model, guide, optax.adam(0.01), loss)
        found = svi.run(random.key(0), num_steps, x, y, progress_bar=False)
        jax.block_until_ready(found.params)

    def ours() -> None:
        guide = numpyro.infer.autoguide.AutoNormal(model)
        vi_kit.numpyro.fit(model, guide, x, y, num_steps=num_steps, progress=False)

    contenders = {
        "SVI.run, Trace_ELBO": lambda: theirs(numpyro.infer.Trace_ELBO()),
        "SVI.run, Loss": lambda: theirs(vi_kit.numpyro.Loss()),
        "fit": ours,
    }
    return in_turn(contenders, warm_up=1)


def of_pyro(num_steps: int) -> dict[str, float]:
    """One call of each, milliseconds."""
    model = logistic(pyro)
    x, y = torch.as_tensor(X), torch.as_tensor(Y)

    def theirs(loss: Any) -> None:
        pyro.clear_param_store()
        guide = pyro.infer.autoguide.AutoNormal(model)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        for _ in range(num_steps):
            svi.step(x, y)

    def ours() -> None:
        pyro.clear_param_store()
        guide = pyro.infer.autoguide.AutoNormal(model)
        vi_kit.pyro.fit(model, guide, x, y, num_steps=num_steps, progress=False, compile=False)

    contenders = {
        "SVI.step, Trace_ELBO": lambda: theirs(pyro.infer.Trace_ELBO()),
        "SVI.step, Loss": lambda: theirs(vi_kit.pyro.Loss()),
        "fit": ours,
    }
    return in_turn(contenders, warm_up=1)


def rows() -> Iterator[Row]:
    for num_steps in NUM_STEPS["numpyro"]:
        yield Row(f"NumPyro, logistic regression, {num_steps} steps", of_numpyro(num_steps))
    for num_steps in NUM_STEPS["pyro"]:
        yield Row(f"Pyro, logistic regression, {num_steps} steps", of_pyro(num_steps))


if __name__ == "__main__":
    for row in rows():
        print(row)
