"""What the documentation says runs: doctests, and each page from top to bottom."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import vi_kit
from tests.docs import gradients, how_it_works, how_to_choose, pages, support
from tests.libraries import PyroWords
from tests.statistical_cases import LocalBernoulli
from tests.unit.estimators.test_own_estimators import MuProp
from vi_kit.estimators import REGISTRY

ROOT = Path(__file__).parents[2]
MODULES = ["vi_kit", *(m.name for m in pkgutil.walk_packages(vi_kit.__path__, "vi_kit."))]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_page_runs(page):
    torch.set_default_dtype(torch.float32)
    pages.run(page)


def test_python_that_is_only_shown_is_the_script_of_several_processes():
    shown = [p.stem for p in (ROOT / "docs").glob("*.md") if "```py\n" in p.read_text()]
    assert shown == ["scale_out"]


def test_the_estimators_of_the_page_on_extending():
    """The score function, and MuProp: their gradients are those of the tested ones."""
    names = pages.run(ROOT / "docs" / "extending.md")
    score = type("PlainScore", (vi_kit.Score,), {"contract": names["contract"]})
    lib, objective = PyroWords(), vi_kit.iwae(num_particles=2)
    for pair in ((names["MuProp"](), MuProp()), (score(), vi_kit.Score())):
        losses = (lib.Loss(objective, estimator) for estimator in pair)
        np.testing.assert_allclose(*(LocalBernoulli(lib).gradients(x, 3, 0) for x in losses))


@pytest.mark.parametrize(("page", "start", "make"), how_to_choose.GENERATED)
def test_what_is_said_of_estimators_and_objectives_is_that_of_their_docstrings(page, start, make):
    _, text, _ = how_to_choose.parts_of(page, start)
    assert text == make()


def test_the_picture_of_one_gradient_is_the_one_recorded():
    assert how_it_works.PICTURE.read_text() == how_it_works.picture()


def test_the_picture_of_the_first_page_is_that_of_the_notebook():
    assert gradients.PICTURE.read_bytes() == gradients.drawn()


def test_how_many_estimators_and_objectives_the_readme_counts():
    counts = re.findall(r"(\d+)\s+\[(estimators|objectives)\]", (ROOT / "README.md").read_text())
    found = {"estimators": len(REGISTRY), "objectives": len(support.OBJECTIVES)}
    assert {name: int(count) for count, name in counts} == found


def test_every_public_name_is_in_the_reference():
    listed = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for module, names in re.findall(
            r"```{public-names} ([\w.]+)\n(?::\w+:[^\n]*\n)?(.*?)```", page.read_text(), re.DOTALL
        ):
            listed |= {f"{module}.{name}" for name in names.split() or ["*"]}
    modules = {"vi_kit.array_namespace", "vi_kit.extend", "vi_kit.generators"}
    expected = {f"vi_kit.{name}" for name in vi_kit.__all__} - modules
    expected |= {f"{m}.*" for m in ("vi_kit.extend", "vi_kit.generators")}
    expected |= {f"vi_kit.{lib}.{name}" for lib in ("pyro", "numpyro") for name in ("Loss", "fit")}
    assert expected <= listed


def test_the_table_of_support_has_every_pair_and_is_that_of_what_was_tried():
    assert support.ESTIMATORS.keys() == set(REGISTRY)
    names = {n for n in vi_kit.objectives.__all__ if n != "Generator"}
    assert support.OBJECTIVES.keys() == names
    _, table, _ = how_to_choose.parts_of(support.PAGE, support.START)
    assert table == support.table()


@pytest.mark.parametrize(
    ("estimator", "objective", "way"),
    [
        (vi_kit.Reparam, "iwae", "Pyro"),
        (vi_kit.Enumerate, "tail_adaptive", "Pyro"),
        (vi_kit.Analytic, "renyi", "Pyro"),
        (vi_kit.Rebar, "log_variance", "Pyro"),
        (vi_kit.Reparam, "elbo", "Pyro, compiled"),
        (vi_kit.DoublyReparam, "tail_adaptive", "NumPyro"),
    ],
)
def test_what_the_table_of_support_says_of_a_pair(estimator, objective, way):
    stored = support.found()[estimator.__name__][objective][way]
    assert support.tried(estimator, objective, way) == stored
