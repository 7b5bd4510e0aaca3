"""What importing costs, and that the public names are complete."""

import inspect
import json
import subprocess
import sys

import pytest

import vi_kit as vi
from vi_kit import estimators, objectives
from vi_kit.base import errors
from vi_kit.estimators import baselines
from vi_kit.language import words as language

LIBRARIES = ("torch", "jax", "pyro", "numpyro")
# What takes a tenth of a second or more, and is used later or never.
SLOW = ("numpy.testing", "array_api_compat.numpy", "torch._dynamo")


def imported_by(statement):
    """Which of the libraries a fresh interpreter has loaded after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([*sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(run.stdout)) & {*LIBRARIES, *SLOW}


def test_the_core_imports_no_library():
    assert imported_by("import vi_kit") == set()
    assert imported_by("from vi_kit import *") == set()


def test_the_first_gradient_in_pyro_imports_no_jax_and_no_compiler():
    first_gradient = """
import pyro, torch, vi_kit, vi_kit.pyro
from pyro.distributions import Normal
model = lambda: pyro.sample("z", Normal(0.0, 1.0))
guide = lambda: pyro.sample("z", Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))
vi_kit.pyro.Loss(vi_kit.iwae(num_particles=2), vi_kit.Score()).loss_and_grads(model, guide)
"""
    assert imported_by(first_gradient) == {"torch", "pyro"}


@pytest.mark.parametrize("name", vi.__all__)
def test_every_public_name_resolves(name):
    assert getattr(vi, name) is not None


def test_public_names_are_sorted_and_unique():
    assert list(vi.__all__) == sorted(set(vi.__all__))


def test_what_is_imported_is_public():
    modules = {name for name, value in vars(vi).items() if inspect.ismodule(value)}
    names = {name for name in vars(vi) if not name.startswith("_")} - modules
    assert names <= set(vi.__all__)


def subclasses(module, base):
    return {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base)
    }


def test_every_estimator_baseline_objective_and_error_is_public():
    public = set(vi.__all__)
    assert {e.__name__ for e in estimators.REGISTRY} <= public
    assert subclasses(estimators, vi.Estimator) <= public
    assert subclasses(baselines, vi.Baseline) <= public
    assert set(objectives.__all__) <= public
    assert subclasses(errors, Exception) <= public


def all_subclasses(base):
    return {c for own in base.__subclasses__() for c in (own, *all_subclasses(own))}


def test_every_shipped_estimator_is_registered():
    shipped = {
        c
        for base in (vi.Estimator, estimators.Policy)
        for c in all_subclasses(base)
        if c.__module__.startswith("vi_kit.estimators.") and not inspect.isabstract(c)
    }
    assert shipped == set(estimators.REGISTRY)


def test_every_word_of_the_language_is_public():
    words = {
        "simulate",
        "log_density",
        "iid",
        "stop_gradient",
        "split_gradients",
        "uncondition",
        "given",
        "held_draw",
        "log_mean_exp",
        "softmax",
    }
    assert words | {"objective", "divergence", "Objective"} <= set(vi.__all__)
    assert all(getattr(vi, word) is getattr(language, word) for word in words)


def test_objectives_are_made_by_the_decorators():
    given = {"beta": 0.5, "partition": (0.0,), "reference": "guide", "reward": len}
    given["generator"] = vi.generators.pearson
    for name in objectives.__all__:
        if name == "Generator":
            continue
        settings = inspect.signature(getattr(vi, name)).parameters
        needed = [k for k, p in settings.items() if k in given or p.default is p.empty]
        made = getattr(vi, name)(**{k: given.get(k, 2) for k in needed})
        assert isinstance(made, vi.Objective), name
        assert made.program.__doc__, name
