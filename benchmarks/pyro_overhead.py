"""Time per gradient against Pyro's own losses: `python benchmarks/pyro_overhead.py`.

Both losses run in turn in one process, so that a busy machine slows both; medians are printed. A ratio
below one means that vi_kit is faster. Ops are torch operations per gradient, backward included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vi_kit as vi
from vi_kit.pyro import Loss

SECONDS_PER_ROW = 5.0
WARM_UP = 5
NUM_PIXELS, NUM_HIDDEN, NUM_LATENT = 784, 200, 20


class CountOps(TorchDispatchMode):
    """Counts torch operations."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_ops += 1
        return func(*args, **(kwargs or {}))


class VAE(nn.Module):
    """784 pixels, 200 hidden units, 20 latent variables, Normal or Bernoulli."""

    def __init__(self, discrete: bool):
        super().__init__()
        self.discrete = discrete
        outputs = NUM_LATENT if discrete else 2 * NUM_LATENT
        self.encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS, NUM_HIDDEN), nn.Softplus(), nn.Linear(NUM_HIDDEN, outputs)
        )
        self.decoder = nn.Sequential(
            nn.Linear(NUM_LATENT, NUM_HIDDEN), nn.Softplus(), nn.Linear(NUM_HIDDEN, NUM_PIXELS)
        )

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            zeros = x.new_zeros(NUM_LATENT)
            prior = dist.Bernoulli(logits=zeros) if self.discrete else dist.Normal(zeros, 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(x)):
            out = self.encoder(x)
            if self.discrete:
                q: Any = dist.Bernoulli(logits=out)
            else:
                loc, log_scale = out.chunk(2, -1)
                q = dist.Normal(loc, log_scale.exp())
            pyro.sample("z", q.to_event(1))


def conjugate_model(x: torch.Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def conjugate_guide(x: torch.Tensor) -> None:
    loc = pyro.param("loc_mean", torch.tensor(0.0))
    scale = pyro.param("loc_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale))


def mixture_model(x: torch.Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 2.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)


def mixture_guide(x: torch.Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(len(x), 3))
    with pyro.plate("data", len(x)):
        infer = {"enumerate": "parallel"}
        pyro.sample("z", dist.Categorical(logits=logits), infer=infer)


Step = Callable[[], float]


def make_step(loss: Any, model: Any, guide: Any, x: torch.Tensor) -> Step:
    """A gradient that is taken and then thrown away."""

    def step() -> float:
        value = loss.loss_and_grads(model, guide, x)
        for leaf in pyro.get_param_store()._params.values():
            leaf.grad = None
        return value

    return step


def rows() -> Iterator[tuple[str, Step, Step]]:
    """What is compared: a name, vi_kit's gradient and Pyro's."""
    for batch_size in (64, 256):
        x = (torch.rand(batch_size, NUM_PIXELS) < 0.3).float()
        vae = VAE(discrete=False)
        programs = (vae.model, vae.guide, x)
        name = f"VAE, batch {batch_size}: Loss() / Trace_ELBO"
        yield name, make_step(Loss(), *programs), make_step(Trace_ELBO(), *programs)

    programs = (conjugate_model, conjugate_guide, torch.randn(100))
    name = "Normal mean: Loss() / Trace_ELBO"
    yield name, make_step(Loss(), *programs), make_step(Trace_ELBO(), *programs)

    x = (torch.rand(64, NUM_PIXELS) < 0.3).float()
    vae = VAE(discrete=True)
    programs = (vae.model, vae.guide, x)
    two = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    comparisons: list[tuple[str, Any, Any]] = [
        ("Score() / Trace_ELBO", Loss(estimators=vi.Score()), Trace_ELBO()),
        ("Score() / TraceGraph_ELBO", Loss(estimators=vi.Score()), TraceGraph_ELBO()),
        (
            "Score(LeaveOneOut()), 2 samples / Trace_ELBO, 2",
            Loss(estimators=vi.Score(vi.LeaveOneOut()), num_samples=2),
            Trace_ELBO(**two),
        ),
        (
            "Score(LeaveOneOut()), 2 samples / TraceGraph_ELBO, 2",
            Loss(estimators=vi.Score(vi.LeaveOneOut()), num_samples=2),
            TraceGraph_ELBO(**two),
        ),
        ("MeasureValued() / Trace_ELBO", Loss(estimators=vi.MeasureValued()), Trace_ELBO()),
        (
            "MeasureValued() / TraceGraph_ELBO",
            Loss(estimators=vi.MeasureValued()),
            TraceGraph_ELBO(),
        ),
    ]
    for name, ours, theirs in comparisons:
        name = f"Bernoulli VAE, batch 64: {name}"
        yield name, make_step(ours, *programs), make_step(theirs, *programs)

    programs = (mixture_model, mixture_guide, torch.randn(200))
    ours, theirs = Loss(estimators=vi.Enumerate()), TraceEnum_ELBO(max_plate_nesting=1)
    name = "mixture of 3: Enumerate() / TraceEnum_ELBO"
    yield name, make_step(ours, *programs), make_step(theirs, *programs)


def num_ops(step: Step) -> int:
    with CountOps() as count:
        step()
    return count.num_ops


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(ours: Step, theirs: Step) -> tuple[float, float, int]:
    """Median seconds of each, taken in turn, and how often."""
    for _ in range(WARM_UP):
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS_PER_ROW:
        times[0].append(seconds(ours))
        times[1].append(seconds(theirs))
    return statistics.median(times[0]), statistics.median(times[1]), len(times[0])


def main() -> None:
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    head = ("vi_kit / Pyro", "vi_kit ms", "Pyro ms", "ratio", "vi_kit ops", "Pyro ops", "gradients")
    line = "{:78} {:>9} {:>9} {:>6} {:>10} {:>8} {:>9}"
    print(line.format(*head))
    for name, ours, theirs in rows():
        pyro.clear_param_store()
        a, b, times = compare(ours, theirs)
        numbers = f"{a * 1e3:.2f}", f"{b * 1e3:.2f}", f"{a / b:.2f}", num_ops(ours), num_ops(theirs)
        print(line.format(name, *numbers, times), flush=True)


if __name__ == "__main__":
    main()
