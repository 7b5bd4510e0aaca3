"""How time and memory of a gradient grow with what is in a model, as exponents of power laws, beside those expected.

Replicates, data and independent bits in NumPyro, where the memory is what XLA sets aside for what it computes; chains
of sites in Pyro, where it is what is saved for the backward pass. The exponents are those of the upper half of the
sizes. Linear ones come out below 1 where fixed costs are not small yet.

Run it: `python -m benchmarks.scaling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pyro
import pyro.distributions as pyro_dist
import torch
from jax import random

import vi_kit as vi
from benchmarks.pyro_overhead import make_step
from benchmarks.timing import Row, exponent, in_turn
from vi_kit.numpyro import Loss
from vi_kit.pyro import Loss as PyroLoss
from vi_kit.pyro.front import saved_bytes

NUM_FEATURES = 256


def regression(num_data: int) -> tuple[Any, Any]:
    """An effect per datum, of which the data are linear functions."""
    weights = random.normal(random.key(0), (16, NUM_FEATURES))
    x = random.normal(random.key(1), (num_data, NUM_FEATURES))

    def model() -> None:
        with numpyro.plate("data", num_data):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(16), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=x)

    def guide() -> None:
        loc = x @ numpyro.param("encoder", jnp.zeros((NUM_FEATURES, 16)))
        with numpyro.plate("data", num_data):
            numpyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return model, guide


def bits(num_bits: int) -> tuple[Any, Any]:
    """Independent bits, of which 64 pixels are linear functions."""
    weights = random.normal(random.key(0), (num_bits, 64)) / num_bits**0.5
    x = jnp.ones((8, 64))

    def model() -> None:
        with numpyro.plate("images", 8):
            z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(num_bits)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=z @ weights).to_event(1), obs=x)

    def guide() -> None:
        logits = numpyro.param("logits", 0.5 * jnp.ones(num_bits))
        with numpyro.plate("images", 8):
            numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def chain(length: int) -> tuple[Any, Any]:
    """A chain of bits, and a datum of each."""

    def walk(logit: Any, is_model: bool) -> None:
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", pyro_dist.Bernoulli(logits=logit + z))
            if is_model:
                pyro.sample(f"x{t}", pyro_dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def model() -> None:
        walk(torch.tensor(0.0), True)

    def guide() -> None:
        walk(pyro.param("logit", torch.tensor(0.2)), False)

    return model, guide


def in_numpyro(loss: Any, programs: tuple[Any, Any]) -> tuple[Callable[[], Any], float]:
    """A compiled gradient, and its memory in bytes."""
    state = loss_params(*programs)

    def value(params: Any, key: jax.Array) -> jax.Array:
        return loss.loss(key, params, *programs)

    compiled = jax.jit(jax.grad(value)).lower(state, random.key(0)).compile()
    memory: Any = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(state, random.key(0))), memory.temp_size_in_bytes


def loss_params(model: Any, guide: Any) -> dict[str, Any]:
    trace = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace()
    return {n: s["value"] for n, s in trace.items() if s["type"] == "param"}


def in_pyro(loss: Any, programs: tuple[Any, Any]) -> tuple[Callable[[], Any], float]:
    """A gradient, and the bytes that are saved for its backward pass."""
    step = make_step(loss, *programs)
    pyro.clear_param_store()
    step()
    with saved_bytes() as saved:
        step()
    return step, saved()


def grown(
    work: str,
    sizes: Sequence[int],
    made: Callable[[int], tuple[Callable[[], Any], float]],
    expected: tuple[float, float],
) -> Row:
    """The exponents of one kind of work."""
    times, bytes_of = [], []
    for size in sizes:
        step, memory = made(size)
        times.append(in_turn({"it": step}, seconds=1.0)["it"])
        bytes_of.append(memory)
    of_time, of_memory = (exponent(list(sizes), costs) for costs in (times, bytes_of))
    span = f"{sizes[0]} to {sizes[-1]}"
    numbers = {f"time ({expected[0]} expected)": of_time}
    numbers[f"memory ({expected[1]} expected)"] = of_memory
    return Row(f"{work}, {span}", numbers, unit="")


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    replicates = [1, 4, 16, 64, 256, 1024]
    for name, objective in {"elbo, num_samples": None, "iwae, num_particles": vi.iwae}.items():

        def with_replicates(n: int, objective: Any = objective) -> Any:
            loss = Loss(num_samples=n) if objective is None else Loss(objective(num_particles=n))
            return in_numpyro(loss, regression(64))

        yield grown(f"exponents: {name}", replicates, with_replicates, (1, 1))
    data = [256, 1024, 4096, 16384, 65536]
    yield grown("exponents: data", data, lambda n: in_numpyro(Loss(), regression(n)), (1, 1))
    many, few = [1024, 4096, 16384, 65536], [64, 128, 256, 512, 1024]
    for estimator, power, sizes in (
        (vi.Score(), 1, many),
        (vi.DisARM(), 1, many),
        (vi.MeasureValued(), 2, few),
    ):
        yield grown(
            f"exponents: bits of one site, {type(estimator).__name__}",
            sizes,
            lambda n, e=estimator: in_numpyro(Loss(estimators=e), bits(n)),
            (power, power),
        )
    for estimator, power in ((vi.Score(), 1), (vi.Enumerate(), 1), (vi.MeasureValued(), 2)):
        yield grown(
            f"exponents: sites in a chain, Pyro, {type(estimator).__name__}",
            [8, 16, 32, 64],
            lambda n, e=estimator: in_pyro(PyroLoss(estimators=e), chain(n)),
            (power, power),
        )


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
