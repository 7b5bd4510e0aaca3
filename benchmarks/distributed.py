"""Steps of a fit in Pyro by one process and by two, on whole minibatches of the same size; and what the sum over both
costs by itself.

Each process has one thread. The time of the processor is what a process has to do itself: it does not count waiting.
On a machine with two cores two processes have both of them, so that nothing is left for anything else; where fewer than
two cores are free, times by the clock say nothing about two processes.

Run it: `python -m benchmarks.distributed`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.timing import Row

NUM_ROWS, NUM_STEPS = 8192, 40
BATCHES = (128, 1024)
SIZES = (1_000, 1_000_000)
"""Numbers that are summed."""


def fitted(batch_size: int, group: Any) -> tuple[float, float]:
    """Milliseconds of a step, by the clock and of the processor's time: of the second half of a fit."""
    import pyro
    import torch

    from models.digits_vae import ESTIMATORS
    from models.digits_vae.pyro import DigitsVAE
    from vi_kit.pyro import fit

    times: list[tuple[float, float]] = []
    pyro.clear_param_store()
    vae = DigitsVAE()
    x = torch.rand(NUM_ROWS, 64, generator=torch.Generator().manual_seed(0)).round()
    fit(
        vae.model,
        vae.guide,
        x,
        estimators=ESTIMATORS,
        num_samples=2,
        batch_size=batch_size,
        num_steps=NUM_STEPS,
        compile=False,
        callbacks=lambda moment: times.append((time.perf_counter(), time.process_time())),
        callback_every=NUM_STEPS // 2,
        process_group=group,
    )
    wall, work = (1e3 * (b - a) / (NUM_STEPS // 2) for a, b in zip(*times, strict=True))
    return wall, work


def main() -> None:
    """What a process does; the first prints what it found."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    group, found = None, {}
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        group = dist.group.WORLD
    for batch_size in BATCHES:
        walls, works = zip(*(fitted(batch_size, group) for _ in range(3)), strict=True)
        found |= {f"batch {batch_size}": min(walls), f"work of batch {batch_size}": min(works)}
    for size in SIZES if group is not None else ():
        flat = torch.zeros(size)
        times = []
        for _ in range(50):
            began = time.perf_counter()
            dist.all_reduce(flat)
            times.append(1e3 * (time.perf_counter() - began))
        found[f"sum {size}"] = sorted(times)[len(times) // 2]
    if group is None or dist.get_rank() == 0:
        print(json.dumps(found))
    if group is not None:
        dist.destroy_process_group()


def measured(num: int) -> dict[str, float]:
    """What `main` finds with so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num}"]
    command = [sys.executable, *launch * (num > 1), "-m", "benchmarks.distributed", "it"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def rows() -> Iterator[Row]:
    one, two = measured(1), measured(2)
    for batch_size in BATCHES:
        of = one[f"batch {batch_size}"], two[f"batch {batch_size}"]
        times = dict(zip(("one process", "two processes"), of, strict=True))
        yield Row(f"step of a fit in Pyro, VAE of digits, batch {batch_size}, gloo", times)
        of = one[f"work of batch {batch_size}"], two[f"work of batch {batch_size}"]
        times = dict(zip(("one process", "each of two processes"), of, strict=True))
        yield Row(f"processor time of a step, VAE of digits, batch {batch_size}, gloo", times)
    for size in SIZES:
        yield Row(
            f"sum over two processes, {size} numbers, gloo", {"all_reduce": two[f"sum {size}"]}
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main()
    else:
        for row in rows():
            print(row, flush=True)
