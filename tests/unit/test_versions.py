"""What is said where the packages of an environment are not those that vi_kit has been run with."""

import importlib
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import array_api_compat
import numpy
import pytest
import scipy

import vi_kit as vi
from vi_kit.base import versions

ROOT = Path(vi.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def environment(tmp_path):
    """An empty one: what vi_kit needs, and the packages that a test says are there."""
    for module in (numpy, scipy, array_api_compat):
        home = Path(module.__file__).parent
        for folder in (home, home.with_name(f"{home.name}.libs")):
            if folder.exists():
                (tmp_path / folder.name).symlink_to(folder)

    def add(name, version, module="", code=""):
        if version is not None:
            info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(text)
        if module:
            (tmp_path / f"{module}.py").write_text(code)

    def run(statement):
        code = f"import sys\nsys.path += {[str(ROOT), str(tmp_path)]}\n{statement}"
        run = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
        )
        return run.returncode, run.stderr.replace("vi_kit.base.errors.", "")

    add.run = run
    return add


def told(stderr):
    """The error, and whether it is the only one."""
    return stderr.partition("VersionError: ")[2].strip()


def test_without_libraries(environment):
    assert environment.run("import vi_kit; vi_kit.elbo(); vi_kit.Score()") == (0, "")
    code, stderr = environment.run("import vi_kit.pyro")
    assert code == 1 and stderr.count("Traceback") == 1
    assert told(stderr) == (
        "vi_kit.pyro needs torch>=2.13,<2.14 and pyro-ppl>=1.9,<1.10\n"
        "  got:      no torch, no pyro-ppl\n"
        "  expected: torch>=2.13,<2.14 and pyro-ppl>=1.9,<1.10\n"
        '  fix:      pip install --upgrade "vi-kit[pyro]"'
    )


def test_an_import_error_as_others_are(environment):
    statement = (
        "try: import vi_kit.numpyro.loss\nexcept ImportError as e: print(type(e), file=sys.stderr)"
    )
    assert environment.run(statement) == (0, "<class 'VersionError'>\n")


def test_too_old(environment):
    environment("jax", "0.6.2", "jax", "raise SystemExit('imported')")
    environment("numpyro", "0.19.0", "numpyro")
    environment("optax", "0.2.4", "optax")
    code, stderr = environment.run("import vi_kit.numpyro")
    assert code == 1
    assert told(stderr) == (
        "vi_kit.numpyro needs jax>=0.7,<0.13 and numpyro>=0.20,<0.23\n"
        "  got:      jax 0.6.2, numpyro 0.19.0, optax 0.2.4\n"
        "  expected: jax>=0.7,<0.13 and numpyro>=0.20,<0.23 and optax>=0.2.4,<0.3\n"
        '  fix:      pip install --upgrade "vi-kit[numpyro]"'
    )


def test_too_new_to_be_imported(environment):
    environment("torch", "2.99.0+cpu", "torch")
    environment("pyro-ppl", "1.9.0", "pyro")
    code, stderr = environment.run("import vi_kit.pyro")
    assert code == 1
    assert told(stderr).startswith(
        "vi_kit.pyro cannot be imported with a newer version than it has been run with: "
    )
    assert "  got:      torch 2.99.0+cpu, pyro-ppl 1.9.0\n" in told(stderr)


def test_a_mistake_with_known_versions_is_told_as_it_is(environment):
    environment("torch", "2.13.0+cpu", "torch")
    environment("pyro-ppl", "1.9.2", "pyro", "raise ImportError('of its own')")
    code, stderr = environment.run("import vi_kit.pyro")
    assert code == 1 and "VersionError" not in stderr


def test_a_module_without_metadata_is_no_missing_one(environment):
    environment("torch", None, "torch")
    environment("pyro-ppl", "1.8.6", "pyro")
    code, stderr = environment.run("import vi_kit.pyro")
    assert code == 1
    assert told(stderr).startswith(
        "vi_kit.pyro needs pyro-ppl>=1.9,<1.10\n  got:      pyro-ppl 1.8.6\n"
    )


@pytest.fixture
def newest(monkeypatch):
    """The range of array-api-compat, as if it were what an extra needs."""

    def set_to(lowest, below):
        package = versions.Package("array_api_compat", lowest, below)
        monkeypatch.setitem(versions.NEEDED, "pyro", {"array-api-compat": package})

    return set_to


def test_newer_and_importable_warns(newest):
    newest("1.0", "1.1")
    with pytest.warns(
        UserWarning, match=r"has not been run with so new a version\n  got:      array-api-compat 1"
    ):
        with versions.importing("pyro"):
            pass


def test_within_its_range_nothing_is_said(newest):
    newest(importlib.metadata.version("array-api-compat"), "99")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with versions.importing("pyro"):
            pass


@pytest.mark.parametrize(
    ("older", "newer"),
    [("2.9", "2.13"), ("1.9.2", "1.10"), ("0.9.0.1", "0.10.0"), ("2.12.9+cu130", "2.13.0a0+git1")],
)
def test_versions_are_compared_as_numbers(older, newer):
    assert versions._numbers(older) < versions._numbers(newer)
    assert versions._numbers("2.0") == versions._numbers("2.0.0+cpu") == (2,)


@pytest.mark.parametrize("extra", versions.NEEDED)
def test_the_project_declares_the_same(extra):
    needed = versions.NEEDED[extra].items()
    declared = PROJECT["optional-dependencies"][extra]
    assert declared == [f"{name}>={p.lowest},<{p.below}" for name, p in needed]


def test_the_tested_set_is_within_what_is_declared():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for needed in versions.NEEDED.values():
        for name, package in needed.items():
            assert (
                versions._numbers(package.lowest)
                <= versions._numbers(pins[name])
                < versions._numbers(package.below)
            )
