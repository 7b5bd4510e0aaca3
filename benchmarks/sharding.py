"""A step of `fit` in NumPyro on 1, 2, 4 and 8 simulated devices: time, and what devices tell each other.

Devices are threads of one process, each of one thread, so that no more of them than there are cores can gain: on two
cores 0.5 is the best there is, and more devices show what dividing costs. So does the time that all processors take
together, which is the same on any number of devices if dividing costs nothing. What is exchanged is read from the
compiled step: the results of its collective operations, which on N devices go over each link about 2 (N - 1) / N times.

Run: `python -m benchmarks --only sharding`; about 4 minutes on two cores.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

NUM_DEVICES = 8
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    f" --xla_force_host_platform_device_count={NUM_DEVICES}"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from jax import random  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

import vi_kit as vi  # noqa: E402
from benchmarks.timing import Row  # noqa: E402
from vi_kit.numpyro import fit  # noqa: E402
from vi_kit.numpyro.sharding import Devices  # noqa: E402

COUNTS = (1, 2, 4, 8)
PIXELS, HIDDEN, LATENT = 784, 200, 20
SHAPES = {"w1": (PIXELS, HIDDEN), "w2": (HIDDEN, 2 * LATENT), "w3": (LATENT, HIDDEN)} | {
    "w4": (HIDDEN, PIXELS)
}
NUM_PARTS, STEPS_OF_PART = 12, 20
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
SHAPE = re.compile(r"[fsu](\d+)\[([\d,]*)\]")


def weights(name: str) -> jax.Array:
    rows, columns = SHAPES[name]
    start = random.normal(random.key(len(name) + rows), (rows, columns)) / rows**0.5
    return numpyro.param(name, start)


def model(x: jax.Array) -> None:
    w3, w4 = weights("w3"), weights("w4")
    with numpyro.plate("images", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        logits = jnp.tanh(z @ w3) @ w4
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    loc, log_scale = jnp.split(jnp.tanh(x @ weights("w1")) @ weights("w2"), 2, -1)
    with numpyro.plate("images", len(x)):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def exchanged(text: str) -> int:
    """Bytes of the results of collective operations in a compiled step."""
    total = 0
    for results in COLLECTIVE.findall(text):
        for bits, dims in SHAPE.findall(results):
            total += int(bits) // 8 * int(np.prod([int(d) for d in dims.split(",") if d]))
    return total


def mesh_of(num: int, axis: str) -> Mesh:
    return Mesh(np.array(jax.devices()[:num]), (axis,))


def milliseconds_of(
    x: np.ndarray, mesh: Mesh, batch_size: int, objective: Any
) -> tuple[float, float]:
    """Of a step, by the clock and of processors together: the median over parts of a fit but the first."""
    marks: list[tuple[float, float]] = []
    fit(
        model,
        guide,
        x,
        batch_size=batch_size,
        num_steps=NUM_PARTS * STEPS_OF_PART,
        objective=objective,
        callbacks=lambda moment: marks.append((time.perf_counter(), time.process_time())),
        callback_every=STEPS_OF_PART,
        mesh=mesh,
        progress=False,
    )
    clock, processors = 1e3 * np.median(np.diff(marks, axis=0), axis=0) / STEPS_OF_PART
    return float(clock), float(processors)


def bytes_of(x: np.ndarray, mesh: Mesh, batch_size: int, objective: Any) -> int:
    texts: list[str] = []
    compiled = Devices.compiled

    def recorded(self: Devices, fn: Any) -> Any:
        def run(*args: Any) -> Any:
            program = compiled(self, fn).lower(*args).compile()
            texts.append(program.as_text())
            return program(*args)

        return run

    with mock.patch.object(Devices, "compiled", recorded):
        fit(
            model,
            guide,
            x,
            batch_size=batch_size,
            num_steps=1,
            objective=objective,
            mesh=mesh,
            progress=False,
        )
    return exchanged(texts[0])


def rows() -> Iterator[Row]:
    x = (np.random.default_rng(0).random((8192, PIXELS)) < 0.3).astype(np.float32)
    elbo, iwae = vi.elbo(), vi.iwae(num_particles=32)
    for work, axis, objective, sizes in (
        ("VAE 784-200-20, batch 1024, rows divided", "data", elbo, [1024] * 4),
        ("VAE 784-200-20, 256 rows on each device", "data", elbo, [256 * n for n in COUNTS]),
        ("VAE 784-200-20, batch 64, 32 particles divided", "particles", iwae, [64] * 4),
    ):
        times = {
            num: milliseconds_of(x, mesh_of(num, axis), size, objective)
            for num, size in zip(COUNTS, sizes, strict=True)
        }
        for i, what in enumerate(("", ", time of processors")):
            found = {f"{n} device{'s' * (n > 1)}": times[n][i] for n in COUNTS}
            yield Row(f"step of fit in NumPyro, {work}{what}", found)
        if sizes[0] == sizes[-1]:
            num_params = sum(int(np.prod(s)) for s in SHAPES.values())
            told = {"the parameters": 4.0 * num_params / 2**20}
            for num, size in zip(COUNTS[1:], sizes[1:], strict=True):
                found_bytes = bytes_of(x, mesh_of(num, axis), size, objective)
                told[f"{num} devices"] = found_bytes / 2**20
            yield Row("what devices tell each other in that step", told, unit="MiB")


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
