"""What the documentation says runs: doctests, and the README from top to bottom."""

import doctest
import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import vi_kit
from tests.docs import how_it_works, how_to_choose
from tests.libraries import PyroWords
from tests.statistical_cases import LocalBernoulli
from tests.unit.estimators.test_own_estimators import MuProp

ROOT = Path(__file__).parents[2]
MODULES = ["vi_kit", *(m.name for m in pkgutil.walk_packages(vi_kit.__path__, "vi_kit."))]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0


def test_readme_runs(capsys):
    torch.set_default_dtype(torch.float32)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert "MeasureValued()" in capsys.readouterr().out


def test_the_estimators_of_contributing():
    """The score function, and MuProp: their gradients are those of the tested ones."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    names = {"dataclass": dataclass, "vi": vi_kit, **vars(vi_kit.extend)}
    for block in blocks:
        exec(block, names)
    score = type("PlainScore", (vi_kit.Score,), {"contract": names["contract"]})
    lib, objective = PyroWords(), vi_kit.iwae(num_particles=2)
    for pair in ((names["MuProp"](), MuProp()), (score(), vi_kit.Score())):
        losses = (lib.Loss(objective, estimator) for estimator in pair)
        np.testing.assert_allclose(*(LocalBernoulli(lib).gradients(x, 3, 0) for x in losses))


def test_the_table_of_estimators_is_that_of_their_docstrings():
    _, table, _ = how_to_choose.parts_of(how_to_choose.README, how_to_choose.START)
    assert table == how_to_choose.table()


def test_the_picture_of_one_gradient_is_the_one_recorded():
    _, picture, _ = how_to_choose.parts_of(how_it_works.PAGE, how_it_works.START)
    assert picture == how_it_works.picture()
