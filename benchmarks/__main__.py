"""One table of what gradients cost: `python -m benchmarks [--only NAME ...] [--write]`.

Each part is a module of this folder with a function `rows`, and runs in an interpreter of its own. With `--write` the
table goes to `benchmarks/README.md`, with the machine and the date.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PARTS = (
    "compiled",
    "pyro_overhead",
    "numpyro_overhead",
    "vae_overhead",
    "air",
    "air_pyro",
    "cone",
    "discrete",
    "auto",
    "scaling",
    "stopping",
    "averaging",
    "fitting",
    "distributed",
    "sharding",
)
README = Path(__file__).parent / "README.md"
START, END = "<!-- table: starts here -->\n", "<!-- table: ends here -->\n"
LIBRARIES = ("torch", "pyro-ppl", "jax", "numpyro")


def lines_of(part: str) -> list[str]:
    """The lines of one part, printed as they come."""
    code = f"from benchmarks.{part} import rows\nfor row in rows(): print(row, flush=True)"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    lines = []
    for line in filter(lambda line: line.startswith("|"), run.stdout):
        print(line, end="", flush=True)
        lines.append(line)
    if run.wait():
        lines.append(f"| {part} failed | | |\n")
    return lines


def machine() -> str:
    names = [f"{name} {version(name)}" for name in LIBRARIES]
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}, {os.cpu_count()} cores of {model}; Python {platform.python_version()}, {', '.join(names)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="to benchmarks/README.md")
    given = parser.parse_args()
    head = ["| work | 1.00 is | multiples of it |\n", "|---|---|---|\n"]
    print(*head, sep="", end="")
    lines = [line for part in given.only for line in lines_of(part)]
    if given.write:
        text = README.read_text()
        before, after = text[: text.index(START)], text[text.index(END) :]
        README.write_text(
            before + START + f"\n{machine()}\n\n" + "".join(head + lines) + "\n" + after
        )


if __name__ == "__main__":
    main()
