"""Compiled steps in Pyro, beside code written by hand and Pyro's own losses; the time of the first three steps too,
which torch's cache on disk shortens (an empty `TORCHINDUCTOR_CACHE_DIR` is one without).

Run it: `python -m benchmarks.compiled`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from benchmarks.pyro_overhead import NUM_LATENT, NUM_PIXELS, VAE, Step, make_step
from benchmarks.timing import Row, in_turn
from vi_kit.pyro import Loss

HALF_LOG_2PI = 0.9189385332046727
LOG_2_OVER_PI = -0.4515827052894548
NUM_DATA, NUM_COVARIATES = 1000, 30


def log_normal(z: torch.Tensor, loc: Any, scale: Any) -> torch.Tensor:
    return -0.5 * ((z - loc) / scale) ** 2 - torch.log(scale) - HALF_LOG_2PI


class HandWrittenVAE:
    """Minus the ELBO of the same networks, as one would write it without a library."""

    def __init__(self, vae: VAE):
        self.vae = vae

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        loc, log_scale = self.vae.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(loc)
        logits = self.vae.decoder(z)
        log_x = -binary_cross_entropy_with_logits(logits, x, reduction="sum")
        log_prior = (-0.5 * z**2 - HALF_LOG_2PI).sum()
        return log_normal(z, loc, scale).sum() - log_prior - log_x


class HandWrittenRegression:
    """The same of a logistic regression with horseshoe priors."""

    def __init__(self) -> None:
        size = 2 * NUM_COVARIATES + 1
        self.loc = torch.zeros(size, requires_grad=True)
        self.rho = torch.full((size,), -2.0, requires_grad=True)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scale = softplus(self.rho)
        u = self.loc + scale * torch.randn_like(scale)
        positive, beta = u[: NUM_COVARIATES + 1], u[NUM_COVARIATES + 1 :]
        values = positive.exp()
        eta = x @ (beta * values[0] * values[1:])
        log_y = -binary_cross_entropy_with_logits(eta, y, reduction="sum")
        log_prior = (LOG_2_OVER_PI - torch.log1p(values**2) + positive).sum()
        log_prior = log_prior + (-0.5 * beta**2 - HALF_LOG_2PI).sum()
        return log_normal(u, self.loc, scale).sum() - log_prior - log_y


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(NUM_COVARIATES)).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(NUM_COVARIATES), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ (beta * local * tau)), obs=y)


def by_hand(loss: Callable[..., torch.Tensor], params: list[torch.Tensor], args: Any) -> Step:
    def step() -> float:
        value = loss(*args)
        value.backward()
        for p in params:
            p.grad = None
        return value.item()

    return step


def by_svi(loss: Any, model: Any, guide: Any, args: Any) -> Step:
    svi = SVI(model, guide, Adam({"lr": 1e-3, "fused": True}), loss)
    return lambda: svi.step(*args)


def by_one_optimizer(loss: Any, model: Any, guide: Any, args: Any) -> Step:
    """What `SVI.step` does, with one optimiser for all parameters."""
    loss.loss_and_grads(model, guide, *args)
    params = list(pyro.get_param_store()._params.values())
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)

    def step() -> float:
        value = loss.loss_and_grads(model, guide, *args)
        optimizer.step()
        optimizer.zero_grad()
        return value

    return step


def problems() -> list[tuple[str, Any, Any, Any, Any, list[torch.Tensor]]]:
    """Name, model, guide, arguments, loss by hand and its parameters."""
    vae = VAE(discrete=False)
    images = (torch.rand(64, NUM_PIXELS) < 0.3).float()
    x, y = torch.randn(NUM_DATA, NUM_COVARIATES), (torch.rand(NUM_DATA) < 0.5).float()
    hand = HandWrittenRegression()
    return [
        (
            f"VAE {NUM_PIXELS}-200-{NUM_LATENT}, batch 64",
            vae.model,
            vae.guide,
            (images,),
            HandWrittenVAE(vae),
            list(vae.parameters()),
        ),
        (
            f"horseshoe logistic regression {NUM_DATA} x {NUM_COVARIATES}, AutoNormal",
            regression,
            AutoNormal(regression),
            (x, y),
            hand,
            [hand.loc, hand.rho],
        ),
    ]


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    for name, model, guide, args, hand, params in problems():
        pyro.clear_param_store()
        compiled, programs = Loss(compile=True), (model, guide, args)
        jit = JitTrace_ELBO(ignore_jit_warnings=True)
        start = time.perf_counter()
        for _ in range(3):
            make_step(compiled, model, guide, *args)()
        seconds = time.perf_counter() - start
        gradients = {
            "by hand": by_hand(hand, params, args),
            "by hand, torch.compile": by_hand(torch.compile(hand), params, args),
            "vi_kit": make_step(Loss(), model, guide, *args),
            "vi_kit, compiled": make_step(compiled, model, guide, *args),
            "Trace_ELBO": make_step(Trace_ELBO(), model, guide, *args),
            "JitTrace_ELBO": make_step(jit, model, guide, *args),
        }
        numbers = in_turn(gradients, seconds=15.0)
        yield Row(f"gradient in Pyro, {name} (captured and compiled in {seconds:.0f} s)", numbers)
        steps = {
            "SVI, Trace_ELBO": by_svi(Trace_ELBO(), *programs),
            "SVI, JitTrace_ELBO": by_svi(jit, *programs),
            "SVI, vi_kit": by_svi(Loss(), *programs),
            "SVI, vi_kit, compiled": by_svi(compiled, *programs),
            "vi_kit, compiled, one fused Adam": by_one_optimizer(compiled, *programs),
        }
        yield Row(f"step in Pyro, {name}", in_turn(steps, seconds=15.0))


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
