"""The autoencoder of digits in Pyro."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

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
from vi_kit.pyro import Loss


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Concatenate along the last dim, whatever batch dims each part has on the left."""
    shape = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], -1)


class DigitsVAE(nn.Module):
    """Model and guide; both broadcast over extra batch dims on the left."""

    def __init__(self, num_hidden: int = NUM_HIDDEN):
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(NUM_BITS + NUM_STYLE, num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, NUM_PIXELS),
        )
        self.code_encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS, num_hidden), nn.ReLU(), nn.Linear(num_hidden, NUM_BITS)
        )
        self.style_encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS + NUM_BITS, num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, 2 * NUM_STYLE),
        )

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            bits = dist.Bernoulli(logits=x.new_zeros(NUM_BITS)).to_event(1)
            code = pyro.sample("code", bits)
            style = pyro.sample("style", dist.Normal(x.new_zeros(NUM_STYLE), 1.0).to_event(1))
            logits = self.decoder(joined(code, style))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("code_encoder", self.code_encoder)
        pyro.module("style_encoder", self.style_encoder)
        with pyro.plate("images", len(x)):
            code = pyro.sample("code", dist.Bernoulli(logits=self.code_encoder(x)).to_event(1))
            loc, log_scale = self.style_encoder(joined(x, code)).chunk(2, -1)
            pyro.sample("style", dist.Normal(loc, log_scale.exp()).to_event(1))


def programs() -> tuple[Callable, Callable]:
    """Model and guide with new networks."""
    vae = DigitsVAE()
    return vae.model, vae.guide


def categorical_programs() -> tuple[Callable, Callable]:
    """Model and guide with codes of several classes, and no style."""
    decoder = nn.Sequential(
        nn.Linear(NUM_CODES * NUM_CLASSES, NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(NUM_HIDDEN, NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(NUM_HIDDEN, NUM_PIXELS),
    )
    encoder = nn.Sequential(
        nn.Linear(NUM_PIXELS, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, NUM_CODES * NUM_CLASSES)
    )

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        classes = dist.Categorical(logits=x.new_zeros(NUM_CODES, NUM_CLASSES)).to_event(1)
        with pyro.plate("images", len(x)):
            code = nn.functional.one_hot(pyro.sample("code", classes), NUM_CLASSES)
            logits = decoder(code.flatten(-2).to(x.dtype))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            logits = encoder(x).unflatten(-1, (NUM_CODES, NUM_CLASSES))
            pyro.sample("code", dist.Categorical(logits=logits).to_event(1))

    return model, guide


def as_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.get_default_dtype())


class Training:
    """A model, its guide and what trains them."""

    def __init__(self, train: np.ndarray, batch_size: int, seed: int):
        torch.set_num_threads(1)  # the matrices are small; a second thread only waits
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.train, self.batch_size = as_tensor(train), batch_size
        self.vae = DigitsVAE()
        self.loss = Loss(OBJECTIVE, ESTIMATORS)
        optim = pyro.optim.ClippedAdam({"lr": 2e-3, "weight_decay": 1e-5})
        self.svi = pyro.infer.SVI(self.vae.model, self.vae.guide, optim, loss=self.loss)

    def explain(self) -> str:
        return self.loss.explain(self.vae.model, self.vae.guide, self.train[: self.batch_size])

    def epoch(self) -> float:
        """One pass over the images; the mean bound on the way (nats per image)."""
        shuffled = self.train[torch.randperm(len(self.train))]
        return -sum(self.svi.step(x) for x in shuffled.split(self.batch_size)) / len(shuffled)

    def bound(self, objective: vi.Objective, x: np.ndarray, num_samples: int = 1) -> float:
        """A bound by `num_samples` estimates (nats per image)."""
        estimate = Loss(objective, num_samples=num_samples)
        return -estimate.loss(self.vae.model, self.vae.guide, as_tensor(x)) / len(x)

    @torch.no_grad()
    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Pixel probabilities, `(len(images), 64)`, at the most probable code and the mean style."""
        x = as_tensor(images)
        code = (self.vae.code_encoder(x) > 0).to(x.dtype)
        loc, _ = self.vae.style_encoder(joined(x, code)).chunk(2, -1)
        return torch.sigmoid(self.vae.decoder(joined(code, loc))).numpy()
