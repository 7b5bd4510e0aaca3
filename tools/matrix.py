"""`make matrix`: tests in environments with the oldest and the newest packages that vi_kit is declared for.

    python tools/matrix.py [NAME ...] [--list] [--home FOLDER]

Each environment is a venv of its own under `build/matrix`, into which the wheel and the pins are installed, so
that pip itself holds the pins against what `pyproject.toml` declares. An environment whose Python is not
on this machine is skipped, by name.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

NUMPYRO = (
    "tests/numpyro/test_handlers.py::test_block_substitute_and_condition",
    "tests/numpyro/test_handlers.py::test_loc_scale_reparam",
    "tests/numpyro/test_handlers.py::test_transform_reparam",
    "tests/numpyro/test_handlers.py::test_nested_plates",
    "tests/numpyro/test_handlers.py::test_constrained_parameters",
    "tests/numpyro/test_control_flow.py::test_normal_chain_in_a_scan",
    "tests/numpyro/test_control_flow.py::test_cond",
    "tests/numpyro/test_autoguides.py::test_same_result_as_trace_elbo",
    "tests/numpyro/test_svi.py",
)
PYRO = (
    "tests/pyro/test_handlers.py",
    "tests/pyro/test_autoguides.py::test_guide_has_the_gradients_of_pyro",
    "tests/pyro/test_autoguides.py::test_discrete_guide_is_enumerated_exactly",
    "tests/pyro/test_compiled.py::test_what_stands_around_a_step",
    "tests/pyro/test_compiled.py::test_autoguides_are_made_by_the_first_step",
    "tests/pyro/test_compiled.py::test_svi_by_inductor",
)
ARVIZ = ("tests/workflow/test_to_arviz.py::test_groups_dims_and_log_likelihoods",)


@dataclass(frozen=True)
class Environment:
    """Python, extras, pins, and the tests that touch what vi_kit uses of the packages."""

    python: str
    extras: str
    tests: tuple[str, ...]
    pins: tuple[str, ...] = field(default=())


TORCH = "torch==2.13.0"  # the one version with a build for the CPU that the tested set has
LOWEST = ("numpy==2.0.0", "scipy==1.13.0", "array-api-compat==1.12.0")

ENVIRONMENTS = {
    "lowest-numpyro-3.11": Environment(
        "3.11",
        "numpyro",
        NUMPYRO,
        (*LOWEST, "jax==0.7.0", "jaxlib==0.7.0", "numpyro==0.20.0", "optax==0.2.4"),
    ),
    "lowest-pyro-3.11": Environment("3.11", "pyro", PYRO, (*LOWEST, TORCH, "pyro-ppl==1.9.0")),
    "newest-3.11": Environment("3.11", "all", (*NUMPYRO, *PYRO, *ARVIZ), (TORCH,)),
    "newest-numpyro-3.12": Environment("3.12", "numpyro,arviz", (*NUMPYRO, *ARVIZ)),
    "newest-numpyro-3.13": Environment("3.13", "numpyro,arviz", (*NUMPYRO, *ARVIZ)),
}


def find_python(version: str) -> str | None:
    """On PATH, or among those of pyenv; it must start, as pyenv's shims need not."""
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, homes)):
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        if found:
            run = subprocess.run([found, "-c", ask], capture_output=True, text=True, check=False)
            if run.stdout.strip() == version:
                return found
    return None


def run(name: str, home: Path, wheel: Path) -> str:
    """Make one environment and run its tests; what came of it, in words."""
    environment = ENVIRONMENTS[name]
    python = find_python(environment.python)
    if python is None:
        return f"skipped: no Python {environment.python} on this machine"
    venv = home / name
    subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
    installed = f"{wheel}[{environment.extras}]"
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", installed]
    if subprocess.run([*pip, *environment.pins, "pytest", "hypothesis"], check=False).returncode:
        return "FAILED: not installed"
    start = time.monotonic()
    # the flags of tests/conftest.py are those of one jaxlib, and another may not know them
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    tests = subprocess.run(
        [
            venv / "bin/python",
            "-m",
            "pytest",
            "--short",
            "-p",
            "no:cacheprovider",
            *environment.tests,
        ],
        cwd=ROOT,
        env=os.environ | flags,
        check=False,
    )
    listed = subprocess.run(
        [venv / "bin/python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    wanted = (
        "array-api-compat",
        "arviz",
        "jax",
        "numpy",
        "numpyro",
        "optax",
        "pyro-ppl",
        "scipy",
        "torch",
    )
    versions = [line for line in listed.stdout.splitlines() if line.partition("==")[0] in wanted]
    word = "FAILED" if tests.returncode else "passed"
    return f"{word} in {time.monotonic() - start:.0f} s: {', '.join(versions)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *ENVIRONMENTS], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the environments, and run none")
    parser.add_argument(
        "--home", type=Path, default=ROOT / "build/matrix", help="where the venvs are made"
    )
    args = parser.parse_args()
    if args.list:
        print(*ENVIRONMENTS, sep="\n")
        return 0
    wheels = home = args.home.resolve()
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        wheels,
        ROOT,
    ]
    subprocess.run(build, check=True)
    (wheel,) = wheels.glob("vi_kit-*.whl")
    found = {name: run(name, home, wheel) for name in args.names or ENVIRONMENTS}
    print(*(f"{name}: {words}" for name, words in found.items()), sep="\n")
    return any("FAILED" in words for words in found.values())


if __name__ == "__main__":
    sys.exit(main())
