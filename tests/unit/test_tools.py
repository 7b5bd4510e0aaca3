"""What `make matrix` and `make dist` are made of; they are not run here."""

import re
import runpy
from pathlib import Path

import pytest

from vi_kit.base import versions

ROOT = Path(__file__).parents[2]
MATRIX = runpy.run_path(str(ROOT / "tools/matrix.py"))
ENVIRONMENTS = MATRIX["ENVIRONMENTS"]
DIST = runpy.run_path(str(ROOT / "tools/dist.py"))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_tests_of_the_matrix_are_there(name):
    for test in ENVIRONMENTS[name].tests:
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.M), test


@pytest.mark.parametrize("extra", versions.NEEDED)
def test_the_lowest_versions_that_are_declared_are_run(extra):
    pins = dict(pin.split("==") for pin in ENVIRONMENTS[f"lowest-{extra}-3.11"].pins)
    for name, package in versions.NEEDED[extra].items():
        assert versions._numbers(pins[name]) == versions._numbers(package.lowest)


def test_the_lowest_dependencies_that_are_declared_are_run():
    text = (ROOT / "pyproject.toml").read_text()
    declared = re.search(r"^dependencies = \[(.*)\]", text, re.M)[1]
    pins = dict(pin.split("==") for pin in MATRIX["LOWEST"])
    lowest = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', declared))
    assert {k: versions._numbers(v) for k, v in pins.items()} == {
        k: versions._numbers(v) for k, v in lowest.items()
    }


def test_every_python_that_is_declared_is_run():
    declared = set(
        re.findall(
            r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
        )
    )
    assert declared == {e.python for e in ENVIRONMENTS.values()}


def test_a_python_that_is_missing_is_skipped_by_name(tmp_path, monkeypatch):
    run, environment = MATRIX["run"], MATRIX["Environment"]("3.99", "pyro", ())
    monkeypatch.setitem(ENVIRONMENTS, "future", environment)
    assert run("future", tmp_path, tmp_path) == "skipped: no Python 3.99 on this machine"


@pytest.mark.parametrize("found", [{"vi_kit/__init__.py", "tests/__init__.py"}, set()])
def test_other_files_in_an_archive_are_refused(found):
    with pytest.raises(SystemExit, match=r"tests/__init__\.py|missing are \['vi_kit"):
        DIST["compare"](Path("vi_kit.whl"), found, {"vi_kit/__init__.py"})
