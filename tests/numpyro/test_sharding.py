"""Fits whose work several devices share, in processes of their own: how many there are is set before JAX starts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.numpyro.in_two_processes import fits

ROOT = Path(__file__).parents[2]


def started(*command, devices=1, **env):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **env}
    env.pop("PYTEST_ADDOPTS", None)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process, seconds=600, code=0):
    try:
        text = process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
    assert process.returncode == code, text[-8000:]
    return text


REFUSED = {
    "seed": ("ObjectiveError", "settings differ .*\n.*: +seed: 0 in process 0, 1 in process 1\n"),
    "num_steps": ("ObjectiveError", "num_steps: 4 in process 0, 5 in process 1\n"),
    "num_samples": ("ObjectiveError", "loss: .* in process 0, .*num_samples=4.* in process 1\n"),
    "optimizer": ("ObjectiveError", "optimizer: sum of all .* lead to: .* in process 1\n"),
    "program": ("ObjectiveError", "guide: .*shifted .* in process 0, .*shifted .* in process 1\n"),
    "rows": ("ObjectiveError", "the data differ between the processes\n.*: +content: "),
    "number of rows": ("ObjectiveError", "rows: 48 in process 0, 32 in process 1"),
    "all data": ("ObjectiveError", "the data differ between the processes\n.*: +content: "),
    "batches": ("ObjectiveError", "the data differ between the processes\n.*: +content: "),
    "optimizer later": ("ProcessError", "no longer the same in each process"),
}


def test_on_eight_devices():
    options = ("-p", "no:cacheprovider", "-p", "no:xdist", "-x")
    said(started("-m", "pytest", *options, "tests/numpyro/on_eight_devices.py", devices=8))


def test_in_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = ROOT / "tests/numpyro/in_two_processes.py"
    both = [started(script, address, i, tmp_path, devices=2) for i in range(2)]
    expected = fits(None, 0, tmp_path / "alone")
    said(both[0])
    said(both[1], code=-signal.SIGKILL)
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as found:
            assert set(found) == set(expected) and len(expected) == 12
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, err_msg=name)
    assert len(list((tmp_path / "saved").glob("step-*.npz"))) == 1  # by one of them
    both = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert both[0] == both[1] and both[0].keys() == REFUSED.keys() | {"start"}
    for name, (kind, says) in REFUSED.items():
        assert both[0][name][0] == kind, (name, both[0][name])
        assert re.search(says, both[0][name][1]), (name, both[0][name])
    end = json.loads((tmp_path / "killed.json").read_text())
    assert end["kind"] == "ProcessError" and end["steps"] >= 6, end
    assert "another process of the group is gone, or does not answer" in end["text"]
    assert np.abs(np.array(both[0]["start"][1]) - 0.2).max() < 0.06  # a step from that of the first


def test_data_larger_than_is_held():
    text = said(started(ROOT / "tests/numpyro/larger_than_memory.py"))
    before, of_file, of_workers, size = (int(word) for word in text.split()[-4:])
    assert size == 2**32
    assert of_file - before < size / 8, (before, of_file)
    assert of_workers - before < size / 8, (before, of_workers)  # torch is in it
