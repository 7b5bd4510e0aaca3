"""A fit that is killed again and again: `python killed.py LIB FOLDER NUM_KILLS`.

Writes `whole.npy`, the losses of a fit that nobody interrupts, `again.npy`, those of one that is killed at random times
and goes on each time, and `kills`.
"""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import vi_kit as vi

ROWS = np.random.default_rng(0).normal(1.0, 1.0, 60).astype(np.float32)
NUM_STEPS = 1500


def fit(lib, folder, begun):
    of_fit = importlib.import_module(f"vi_kit.{lib}").fit
    words = importlib.import_module(lib)
    dist = importlib.import_module(f"{lib}.distributions")
    if lib == "pyro":
        import torch

        x, zero = torch.as_tensor(ROWS), lambda: torch.zeros(())
    else:
        import jax.numpy as jnp

        x, zero = jnp.asarray(ROWS), lambda key: jnp.zeros(())

    def model(x):
        b = words.sample("b", dist.Bernoulli(0.5))
        z = words.sample("z", dist.Normal(0.0, 1.0))
        with words.plate("data", len(x)):
            words.sample("x", dist.Normal(z + b, 1.0), obs=x)

    def guide(x):
        words.sample("b", dist.Bernoulli(logits=words.param("a", zero)))
        words.sample("z", dist.Normal(words.param("m", zero), 0.3))

    def look(moment):
        if begun is not None:
            begun.touch()
            time.sleep(0.005)

    return of_fit(
        model,
        guide,
        x,
        batch_size=20,
        estimators={"b": vi.Score(vi.MovingAverage())},
        num_steps=NUM_STEPS,
        callbacks=look,
        callback_every=5,
        checkpoint=None if folder is None else vi.Checkpoint(folder, every=20),
    ).losses


def in_a_child(work):
    """Run something in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(lib, folder, num_kills):
    # imported once, but nothing is run: there are no threads yet
    importlib.import_module(f"vi_kit.{lib}")
    rng, kills, begun = np.random.default_rng(), 0, folder / "begun"
    children = [in_a_child(lambda: np.save(folder / "whole.npy", fit(lib, None, None)))]

    def go_on():
        np.save(folder / "again.npy", fit(lib, folder / "checkpoints", begun))

    while kills < num_kills:
        begun.unlink(missing_ok=True)
        child = in_a_child(go_on)
        while not begun.exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the fit has failed"
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the fit was over before it was killed"
        kills += 1
    children.append(in_a_child(go_on))
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    (folder / "kills").write_text(str(kills))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
