"""`make dist`: builds wheel and sdist, looks at what is in them, and tries the wheel in empty environments.

python tools/dist.py [--home FOLDER] [--only WHERE ...]
"""

import argparse
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}

PLAIN = """
import sys
import vi_kit as vi
assert "site-packages" in vi.__file__, vi.__file__
print(vi.__version__, vi.iwae(num_particles=5), vi.MeasureValued())
for part in ("pyro", "numpyro"):
    try:
        __import__(f"vi_kit.{part}")
    except vi.VersionError as error:
        assert f'pip install --upgrade "vi-kit[{part}]"' in str(error), error
        assert error.__context__ is None, error.__context__
    else:
        raise AssertionError(f"vi_kit.{part} can be imported without its library")
assert not {"torch", "jax", "pyro", "numpyro"} & set(sys.modules)
"""

FIT = """
import vi_kit as vi

def model(x):
    b = LIBRARY.sample("b", dist.Bernoulli(0.5))
    LIBRARY.sample("x", dist.Normal(b, 1.0), obs=x)

def guide(x):
    LIBRARY.sample("b", dist.Bernoulli(logits=LIBRARY.param("logit", array(0.0))))

text = str(Loss(vi.elbo()).explain(model, guide, array(2.0)))
assert "Enumerate" in text, text
found = fit(model, guide, array(2.0), num_steps=400, optimizer=0.05, seed=0)
assert abs(float(found.params["logit"]) - 1.5) < 0.1, found.params  # log N(2; 1, 1) - log N(2; 0, 1)
"""

TRIED = {
    "nothing": ("", PLAIN),
    "pyro": (
        "[pyro]",
        "import sys, torch, pyro as LIBRARY, pyro.distributions as dist\n"
        "from vi_kit.pyro import Loss, fit\narray = torch.tensor"
        + FIT
        + 'assert "jax" not in sys.modules\n',
    ),
    "numpyro": (
        "[numpyro]",
        "import sys, jax.numpy as jnp, numpyro as LIBRARY, numpyro.distributions as dist\n"
        "from vi_kit.numpyro import Loss, fit\narray = jnp.array"
        + FIT
        + 'assert "torch" not in sys.modules\n',
    ),
}
"""By name of the environment: the extra, and what must run in it."""


def build(home: Path) -> tuple[Path, Path]:
    """Wheel and sdist, by a hatchling of its own."""
    python = venv(home / "hatchling")
    pip(python, "hatchling")
    dist = ROOT / "dist"
    for old in (*dist.glob("vi_kit-*.whl"), *dist.glob("vi_kit-*.tar.gz")):
        old.unlink()
    subprocess.run([python, "-m", "hatchling", "build", "--directory", dist], cwd=ROOT, check=True)
    (wheel,), (sdist,) = dist.glob("vi_kit-*.whl"), dist.glob("vi_kit-*.tar.gz")
    return wheel, sdist


def look(wheel: Path, sdist: Path) -> None:
    """What is in them: the package with `py.typed`, the license, and no more.

    Raises:
        SystemExit: something is missing, or there that should not be.
    """
    folder = ROOT / "vi_kit"
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    package = {str(p.relative_to(ROOT)) for p in files}
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    about = {name for name in inside if name.split("/")[0].endswith(".dist-info")}
    compare(wheel, inside - about, package)
    licenses = {name.partition("/")[2] for name in about if name.endswith("LICENSE")}
    compare(wheel, licenses, {"licenses/LICENSE"})
    with tarfile.open(sdist) as archive:
        inside = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    compare(sdist, inside - BESIDE, package)
    compare(
        sdist,
        {"vi_kit/py.typed", "LICENSE", "README.md"} & inside,
        {"vi_kit/py.typed", "LICENSE", "README.md"},
    )


def compare(archive: Path, found: set[str], expected: set[str]) -> None:
    """Refuse an archive with other files than expected."""
    if found != expected:
        missing, more = sorted(expected - found), sorted(found - expected)
        sys.exit(f"{archive.name}: missing are {missing[:9]}; in it should not be {more[:9]}")


def venv(folder: Path) -> Path:
    """An empty environment; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return folder / "bin/python"


def pip(python: Path, *wanted: str) -> None:
    """Install, of the tested set."""
    pins = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, *wanted], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--home", type=Path, default=ROOT / "build/dist", help="where the venvs are made"
    )
    parser.add_argument(
        "--only", nargs="*", choices=TRIED, default=[*TRIED], help="where it is tried"
    )
    args = parser.parse_args()
    home = args.home.resolve()
    wheel, sdist = build(home)
    look(wheel, sdist)
    print(f"{wheel.name}, {sdist.name}: what is in them is the package and its license")
    for name in args.only:
        extra, code = TRIED[name]
        python = venv(home / name)
        pip(python, f"{wheel}{extra}")
        subprocess.run(
            [python, "-I", "-W", "error::UserWarning:vi_kit", "-c", code], cwd=home, check=True
        )
        print(f"{name}: passed")


if __name__ == "__main__":
    main()
