"""A variational autoencoder of handwritten digits with a discrete code and a continuous style.

1,797 real 8 x 8 images (scikit-learn's `load_digits`, no download), binarised. Each has a code of eight
bits and a style of four numbers. The bits have no reparameterised sampler and the style has one, so each
site gets its own estimator.
Run it: `python -m models.digits_vae --demo`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

NUM_PIXELS, NUM_BITS, NUM_STYLE = 64, 8, 4
NUM_TRAIN = 1400


def load_data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary images, `(1400, 64)` to train on and `(397, 64)` held out."""
    from sklearn.datasets import load_digits

    images = load_digits().data / 16.0 > 0.5
    order = np.random.default_rng(seed).permutation(len(images))
    x = torch.tensor(images[order], dtype=torch.get_default_dtype())
    return x[:NUM_TRAIN], x[NUM_TRAIN:]


def independent_pixels(train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Log likelihood of the held-out images (nats per image) if pixels were independent."""
    rate = (train.sum(0) + 1) / (len(train) + 2)
    return dist.Bernoulli(rate).to_event(1).log_prob(held_out).mean().item()


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Concatenate along the last dim, whatever batch dims each part has on the left."""
    shape = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], -1)


class DigitsVAE(nn.Module):
    """Model and guide; both broadcast over extra batch dims on the left."""

    def __init__(self, num_hidden: int = 128):
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

    @torch.no_grad()
    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Pixel probabilities, `(len(x), 64)`, at the most probable code and the mean style."""
        code = (self.code_encoder(x) > 0).to(x.dtype)
        loc, _ = self.style_encoder(joined(x, code)).chunk(2, -1)
        return torch.sigmoid(self.decoder(joined(code, loc)))


def main(
    num_epochs: int = 150,
    batch_size: int = 100,
    seed: int = 0,
    figures: str | Path | None = "figures",
) -> dict[str, float]:
    """Train, print the bounds, and draw the curve and held-out reconstructions.

    Returns:
        Bounds in nats per image: `train`, `held_out` (both ELBO), `held_out_iwae` (64 particles) and
        `independent_pixels`.
    """
    from tqdm import tqdm

    import vi_kit as vi
    from vi_kit.pyro import Loss

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    train, held_out = load_data()
    vae = DigitsVAE()
    loss = Loss(
        vi.iwae(num_particles=4),
        estimators={"code": vi.Score(baseline=vi.LeaveOneOut()), "style": vi.Reparam()},
    )
    print(loss)
    print(loss.explain(vae.model, vae.guide, train[:batch_size]))

    def bound(objective: Any, x: torch.Tensor, num_samples: int = 1) -> float:
        return -Loss(objective, num_samples=num_samples).loss(vae.model, vae.guide, x) / len(x)

    optim = pyro.optim.ClippedAdam({"lr": 2e-3, "weight_decay": 1e-5})
    svi = pyro.infer.SVI(vae.model, vae.guide, optim, loss=loss)
    curve: list[tuple[int, float, float]] = []
    started = time.perf_counter()
    with tqdm(range(1, num_epochs + 1), unit="epoch") as progress:
        for epoch in progress:
            total = sum(svi.step(x) for x in train[torch.randperm(len(train))].split(batch_size))
            if epoch % 5 == 0 or epoch == num_epochs:
                curve.append((epoch, -total / len(train), bound(loss.objective, held_out)))
                progress.set_postfix(train=f"{curve[-1][1]:.2f}", held_out=f"{curve[-1][2]:.2f}")
    seconds = time.perf_counter() - started

    result = {
        "train": bound(vi.elbo(), train, 10),
        "held_out": bound(vi.elbo(), held_out, 20),
        "held_out_iwae": bound(vi.iwae(num_particles=64), held_out),
        "independent_pixels": independent_pixels(train, held_out),
    }
    print(f"trained for {seconds:.0f} s; nats per image, higher is better")
    print(f"  independent pixels, held out  {result['independent_pixels']:8.2f}")
    print(f"  ELBO, training images         {result['train']:8.2f}")
    print(f"  ELBO, held out                {result['held_out']:8.2f}")
    print(f"  IWAE (64 particles), held out {result['held_out_iwae']:8.2f}")
    if figures is not None:
        path = Path(figures) / "digits_vae.png"
        draw(
            path, curve, result["independent_pixels"], held_out[:10], vae.reconstruct(held_out[:10])
        )
        print(f"figure: {path}")
    return result


def draw(
    path: Path,
    curve: list[tuple[int, float, float]],
    reference: float,
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
) -> None:
    """The bound by epoch, and originals above reconstructions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
    axis = left.subplots()
    epochs, train, held_out = zip(*curve, strict=True)
    axis.plot(epochs, train, label="training")
    axis.plot(epochs, held_out, label="held out")
    axis.axhline(reference, color="grey", linestyle=":", label="independent pixels, held out")
    axis.set(xlabel="epoch", ylabel="IWAE bound (nats per image)")
    axis.legend(fontsize="small")
    right.suptitle("held-out digits (top) and reconstructions", fontsize="medium")
    axes = right.subplots(2, len(originals))
    for row, images in zip(axes, (originals, reconstructions), strict=True):
        for cell, image in zip(row, images, strict=True):
            cell.imshow(image.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
            cell.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--demo", action="store_true", help="the settings above, which are the default"
    )
    parser.add_argument("--lib", choices=["pyro"], default="pyro")
    parser.add_argument("--num-epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small; a second thread only waits
    main(num_epochs=arguments.num_epochs, seed=arguments.seed)
