"""Data in files, of which a fit holds no more than minibatches: with a limit on what a process may allocate."""

import os
import subprocess
import sys

import pytest

MIB = 2**20
SCRIPT = """
import resource, sys, warnings
import numpy as np, pyro, torch
import pyro.distributions as dist
import vi_kit as vi
from vi_kit.pyro import fit
from torch.utils.data import DataLoader, Dataset

kind, path, size, room, folder = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5]
rows = size // 1024
torch.set_num_threads(1)


class Lines(Dataset):
    def __len__(self):
        return rows

    def __getitem__(self, i):
        return torch.as_tensor(np.array(memmap[i]))


def model(x):
    x = torch.as_tensor(x)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.mean(-1))


def guide(x):
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.1))


def run(**given):
    pyro.clear_param_store()
    return fit(model, guide, *args, num_steps=steps, optimizer=0.05, **given)


memmap = np.memmap(path, np.float32, "r", shape=(rows, 256))
args, given, steps = (memmap,), {"batch_size": 128}, 2
if kind == "torch":
    args = (torch.from_file(path, shared=True, size=size // 4).reshape(rows, 256),)
if kind == "whole":
    args = (np.array(memmap[:256]),)
if kind == "loader":
    args, given = (), {"batches": DataLoader(Lines(), batch_size=128, shuffle=True, num_workers=1)}
run(**given)  # what is imported, planned and made once
held = int(next(s for s in open("/proc/self/status") if s.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + room, held + room))
steps = 30
if kind == "whole":  # the mutant: what copies all data has no room
    args = (np.array(memmap),)
found = run(checkpoint=vi.Checkpoint(folder, every=10), **given)
assert found.num_steps == 30
"""


@pytest.mark.parametrize("kind", ["memmap", "torch", "loader", "whole"])
def test_peak_memory_is_flat(tmp_path, kind):
    path = tmp_path / "data"
    size = 512 * MIB
    with open(path, "wb") as file:
        file.truncate(size)  # of which the disk has nothing
    room = 256 * MIB
    command = [sys.executable, "-c", SCRIPT, kind, path, str(size), str(room), tmp_path / "steps"]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if kind == "whole":
        assert "MemoryError" in run.stderr
    else:
        assert run.returncode == 0, run.stderr[-2000:]
