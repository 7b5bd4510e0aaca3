"""Bounds of state-space models: by weights of whole series, and by particle filters; seconds of a gradient.

Run it: `python -m benchmarks.state_space [--lib numpyro] [--steps 50] [--particles 32]`.
"""

import argparse
import importlib
import time
from functools import partial

import numpy as np

import vi_kit as vi
from models.state_space import linear_data, linear_log_evidence
from models.stochastic_volatility import returns


def main(lib: str, steps: int, particles: int) -> None:
    measure = of_pyro if lib == "pyro" else of_numpyro
    linear = linear_data(steps)
    print(
        f"{lib}: exact log evidence of the linear-Gaussian model {linear_log_evidence(linear):.2f}"
    )
    for name, folder, data in (
        ("linear-Gaussian", "state_space", linear),
        ("stochastic volatility", "stochastic_volatility", returns(steps)),
    ):
        programs = importlib.import_module(f"models.{folder}.{lib}")
        for how in ("whole series", "filter", "filter, resampling unscored"):
            bound, error, first, each = measure(programs, data, how, particles)
            print(
                f"{name:22} {how:28} {bound:9.2f} +- {error:.2f} nats; first gradient {first:6.1f} s, then"
                f" {1e3 * each:7.1f} ms"
            )


def parts(model, proposal, how, particles):
    """Objective and guide."""
    if how == "whole series":
        return vi.iwae(num_particles=particles), proposal
    biased = how != "filter"
    return vi.elbo(), vi.normalize(model, vi.SMC(proposal, particles, biased=biased))


def of_pyro(programs, data, how, particles, num=20):
    import pyro
    import torch

    from vi_kit.pyro import Loss

    pyro.clear_param_store()
    x = torch.as_tensor(data, dtype=torch.float32)
    model, proposal = partial(programs.model, x), partial(programs.proposal, x)
    objective, guide = parts(model, proposal, how, particles)
    loss, values = Loss(objective), []
    start = time.perf_counter()
    loss.loss_and_grads(model, guide)
    first, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(num):
        values.append(-loss.loss_and_grads(model, guide))
    each = (time.perf_counter() - start) / num
    return np.mean(values), np.std(values) / num**0.5, first, each


def of_numpyro(programs, data, how, particles, num=100):
    import jax
    import jax.numpy as jnp
    from numpyro import handlers

    from vi_kit.numpyro import Loss

    x = jnp.asarray(data)
    model, proposal = partial(programs.model, x), partial(programs.proposal, x)
    objective, guide = parts(model, proposal, how, particles)
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        proposal()
    params = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    loss = Loss(objective)
    step = jax.jit(jax.value_and_grad(lambda p, key: loss.loss(key, p, model, guide)))
    keys, start = jax.random.split(jax.random.key(0), num), time.perf_counter()
    jax.block_until_ready(step(params, keys[0]))
    first, start = time.perf_counter() - start, time.perf_counter()
    values = [-float(jax.block_until_ready(step(params, key))[0]) for key in keys]
    each = (time.perf_counter() - start) / num
    return np.mean(values), np.std(values) / num**0.5, first, each


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lib", choices=["pyro", "numpyro"], default="numpyro")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--particles", type=int, default=32)
    main(**vars(parser.parse_args()))
