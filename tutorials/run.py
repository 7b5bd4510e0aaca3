"""Execute every tutorial in place and store its outputs: `python tutorials/run.py [name.ipynb ...]`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 300  # for a whole notebook

# tqdm asks for a widget package that a notebook without widgets has no use for.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
os.environ.setdefault("TQDM_DISABLE", "1")  # a stored progress bar differs each time


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook with the tutorials folder as its working directory; the file is not changed.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails, an `assert` included.
        TimeoutError: the notebook takes longer than `TIMEOUT_SECONDS`.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    client.timeout_func = lambda _: max(1, int(deadline - time.monotonic()))
    client.execute()
    return notebook


def main(names: list[str]) -> None:
    paths = [HERE / name for name in names] if names else sorted(HERE.glob("*.ipynb"))
    for path in paths:
        started = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
