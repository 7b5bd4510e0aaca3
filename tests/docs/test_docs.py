"""What the documentation says runs: doctests, and the README from top to bottom."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import vi_kit
from tests.docs import how_it_works, how_to_choose

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


def test_the_table_of_estimators_is_that_of_their_docstrings():
    _, table, _ = how_to_choose.parts_of(how_to_choose.README, how_to_choose.START)
    assert table == how_to_choose.table()


def test_the_picture_of_one_gradient_is_the_one_recorded():
    _, picture, _ = how_to_choose.parts_of(how_it_works.PAGE, how_it_works.START)
    assert picture == how_it_works.picture()
