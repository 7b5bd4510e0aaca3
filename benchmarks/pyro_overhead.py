"""Eager gradients in Pyro beside those of Pyro's own losses, and torch operations of each, backward included.

Run it: `python -m benchmarks.pyro_overhead`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine import block
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vi_kit as vi
from benchmarks.timing import Row, in_turn
from vi_kit.pyro import Loss

NUM_PIXELS, NUM_HIDDEN, NUM_LATENT = 784, 200, 20
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


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


def make_step(loss: Any, model: Any, guide: Any, *args: Any) -> Step:
    """A gradient that is taken and then thrown away."""

    def step() -> float:
        value = loss.loss_and_grads(model, guide, *args)
        for leaf in pyro.get_param_store()._params.values():
            leaf.grad = None
        return value

    return step


def eight_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)


def hidden_markov(y: torch.Tensor) -> None:
    """Three states, transitions and means unknown."""
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    z: Any = None
    for t in pyro.markov(range(len(y))):
        probs = torch.ones(3) / 3 if z is None else rows[z]
        z = pyro.sample(f"z{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"y{t}", dist.Normal(means[z], 1.0), obs=y[t])


def comparisons() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What is compared: a name, model and guide with their arguments, and losses."""
    for batch_size in (64, 256):
        x = (torch.rand(batch_size, NUM_PIXELS) < 0.3).float()
        vae = VAE(discrete=False)
        programs = (vae.model, vae.guide, x)
        yield f"VAE, batch {batch_size}", programs, {"Trace_ELBO": Trace_ELBO(), "vi_kit": Loss()}

    plain = {"Trace_ELBO": Trace_ELBO(), "vi_kit": Loss()}
    yield "Normal mean", (conjugate_model, conjugate_guide, torch.randn(100)), plain
    yield "eight schools, AutoNormal", (eight_schools, AutoNormal(eight_schools)), plain
    guide = AutoNormal(block(hidden_markov, expose=["rows", "means"]))
    enumerated = {"TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=0), "vi_kit": Loss()}
    yield "hidden Markov model, 100 steps", (hidden_markov, guide, torch.randn(100)), enumerated

    x = (torch.rand(64, NUM_PIXELS) < 0.3).float()
    vae = VAE(discrete=True)
    programs = (vae.model, vae.guide, x)
    two: Any = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    losses = {
        "Trace_ELBO": Trace_ELBO(),
        "TraceGraph_ELBO": TraceGraph_ELBO(),
        "vi_kit Score": Loss(estimators=vi.Score()),
        "MeasureValued": Loss(estimators=vi.MeasureValued()),
    }
    yield "Bernoulli VAE, batch 64", programs, losses
    losses = {
        "Trace_ELBO": Trace_ELBO(**two),
        "TraceGraph_ELBO": TraceGraph_ELBO(**two),
        "vi_kit Score(LeaveOneOut)": Loss(estimators=vi.Score(vi.LeaveOneOut()), num_samples=2),
    }
    yield "Bernoulli VAE, batch 64, 2 samples", programs, losses

    losses = {
        "TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=1),
        "vi_kit": Loss(estimators=vi.Enumerate()),
    }
    yield "mixture of 3", (mixture_model, mixture_guide, torch.randn(200)), losses


def num_ops(step: Step) -> int:
    with CountOps() as count:
        step()
    return count.num_ops


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    for work, programs, losses in comparisons():
        pyro.clear_param_store()
        steps = {name: make_step(loss, *programs) for name, loss in losses.items()}
        numbers = in_turn(steps, warm_up=5)
        ops = ", ".join(str(num_ops(step)) for step in steps.values())
        yield Row(f"gradient in Pyro, {work} (torch operations: {ops})", numbers)


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
