"""The autoencoder of digits in full: bounds of held-out images as it trains, and their reconstructions."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import numpy as np

import vi_kit as vi
from models.digits_vae import OBJECTIVE, independent_pixels, load_data


def main(
    lib: str = "pyro",
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

    train, held_out = load_data()
    training = importlib.import_module(f"models.digits_vae.{lib}").Training(train, batch_size, seed)
    print(training.loss)
    print(training.explain())

    curve: list[tuple[int, float, float]] = []
    started = time.perf_counter()
    with tqdm(range(1, num_epochs + 1), unit="epoch", disable=None) as progress:
        for epoch in progress:
            trained = training.epoch()
            if epoch % 5 == 0 or epoch == num_epochs:
                curve.append((epoch, trained, training.bound(OBJECTIVE, held_out)))
                progress.set_postfix(train=f"{curve[-1][1]:.2f}", held_out=f"{curve[-1][2]:.2f}")
    seconds = time.perf_counter() - started

    result = {
        "train": training.bound(vi.elbo(), train, 10),
        "held_out": training.bound(vi.elbo(), held_out, 20),
        "held_out_iwae": training.bound(vi.iwae(num_particles=64), held_out),
        "independent_pixels": independent_pixels(train, held_out),
    }
    print(f"trained for {seconds:.0f} s; nats per image, higher is better")
    print(f"  independent pixels, held out  {result['independent_pixels']:8.2f}")
    print(f"  ELBO, training images         {result['train']:8.2f}")
    print(f"  ELBO, held out                {result['held_out']:8.2f}")
    print(f"  IWAE (64 particles), held out {result['held_out_iwae']:8.2f}")
    if figures is not None:
        path = Path(figures) / ("digits_vae.png" if lib == "pyro" else f"digits_vae_{lib}.png")
        shown = held_out[:10]
        draw(path, curve, result["independent_pixels"], shown, training.reconstruct(shown))
        print(f"figure: {path}")
    return result


def draw(
    path: Path,
    curve: list[tuple[int, float, float]],
    reference: float,
    originals: np.ndarray,
    reconstructions: np.ndarray,
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
            cell.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            cell.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def command() -> None:
    """`python -m models.digits_vae --demo`."""
    parser = argparse.ArgumentParser(prog="python -m models.digits_vae --demo", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="this run, and not the usual command")
    parser.add_argument("--lib", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--num-epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.lib, num_epochs=given.num_epochs, seed=given.seed)
