"""Fits data in a file of 4 GiB that takes no room on the disk, and prints the peak of memory before and after."""

import resource
import tempfile

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from vi_kit.numpyro import fit

ROWS, DIM = 2**22, 256


def model(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)


def guide(x):
    weights = numpyro.param("weights", jnp.ones(DIM) / DIM)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Normal(x @ weights, 0.1))


class Rows:
    """What a torch `DataLoader` takes."""

    def __init__(self, name):
        self.name = name

    def __len__(self):
        return ROWS

    def __getitem__(
        self, index
    ):  # a file that is open would go to the workers as a copy of its content
        return in_file(self.name)[index]


def in_file(name):
    return np.memmap(name, np.float32, "r", shape=(ROWS, DIM))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
        file.truncate(4 * ROWS * DIM)
        settings = {"num_steps": 30, "progress": False}
        x, rows = in_file(file.name), Rows(file.name)
        fit(model, guide, np.zeros((64, DIM), np.float32), batch_size=32, **settings)
        before = peak()
        fit(model, guide, x, batch_size=32, checkpoint=folder, **settings)
        of_file = peak()
        from torch.utils.data import DataLoader, RandomSampler

        sampler = RandomSampler(rows, replacement=True, num_samples=32 * 30)
        loader = DataLoader(
            rows, 32, sampler=sampler, num_workers=1, multiprocessing_context="spawn"
        )
        found = fit(model, guide, batches=loader, **settings)
        assert found.num_steps == 30
        print(before, of_file, peak(), x.nbytes)
