"""Every model: what its folder has to have, its command, and fits beside exact answers."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models import command

ROOT = Path(__file__).parents[2]
MODELS = {name: importlib.import_module(f"models.{name}") for name in command.names()}
FITS = [
    (name, recipe, objective.program.__name__)
    for name, model in MODELS.items()
    for recipe, one in model.RECIPES.items()
    for objective in one.objectives
]


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_complete(name):
    """Also: `data()` is the same each time, and `exact()`, where there is one, a number."""
    model = MODELS[name]
    assert model.__doc__ and callable(model.picture) and model.RECIPES
    for one, again in zip(model.data(), model.data(), strict=True):
        np.testing.assert_array_equal(one, again)
    assert math.isfinite(model.exact()) if hasattr(model, "exact") else True
    for file in ("pyro.py", "numpyro.py", "__main__.py"):
        assert (ROOT / "models" / name / file).exists()


@pytest.mark.parametrize(
    ("file", "expected"), [("", []), (".pyro", ["torch"]), (".numpyro", ["jax"])]
)
def test_models_import_only_the_library_asked_for(file, expected):
    modules = ", ".join(f"models.{name}{file}" for name in MODELS)
    code = f"import sys, {modules}; print([m for m in ('torch', 'jax') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(expected)


@pytest.mark.parametrize(("name", "recipe", "objective"), FITS, ids=lambda x: x)
def test_each_recipe_is_fitted_by_each_of_its_objectives(name, recipe, objective, lib, tmp_path):
    """A few steps by the command: the bound is finite, and there is a figure."""
    path = tmp_path / "figure.png"
    arguments = ["--lib", lib.name, "--recipe", recipe, "--num-steps", "3"]
    arguments += ["--objective", objective, "--figure", str(path)]
    if "batch_size" in MODELS[name].RECIPES[recipe].options:
        arguments += ["--batch-size", "4"]
    found = command.main(MODELS[name], arguments)
    assert found.num_steps == 3 and found.loss.settings.objective.program.__name__ == objective
    assert np.isfinite(found.losses).all()
    assert path.stat().st_size > 10_000


def test_the_command_changes_settings_and_says_what_it_cannot(capsys):
    cone = MODELS["cone"]
    few = ["--objective", "iwae", "--num-steps", "2"]
    found = command.main(cone, [*few, "--num-particles", "7"])
    assert repr(found.loss.settings.objective) == "iwae(num_particles=7)"
    assert f"{cone.exact():.3f} nats" in capsys.readouterr().out
    command.main(MODELS["gflownet"], ["--num-steps", "2"])  # a log variance, in nats squared
    out = capsys.readouterr().out
    assert "(minimised)" in out and "exact log evidence" not in out
    with pytest.raises(SystemExit):
        command.main(cone, ["--num-particles", "7"])
    assert "elbo() has no setting --num-particles" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(MODELS["state_space"], ["--recipe", "filter", "--objective", "iwae"])
    assert "'filter' has no objective 'iwae'; these have: series" in capsys.readouterr().err


NEAR = {
    ("cone", "autoregressive"): (600, 2.0),
    ("radon", "conditional"): (100, 1.5),
    ("hmm", "chain"): (100, 0.3),
    ("gaussian_mixture", "enumerated"): (200, 1.5),
}
"""Steps, and how near the bound then is to the log evidence (nats)."""


@pytest.mark.parametrize(("name", "recipe"), NEAR, ids=lambda x: x)
def test_a_fit_comes_near_the_exact_evidence(name, recipe, lib):
    model, (num_steps, near) = MODELS[name], NEAR[name, recipe]
    found = command.fit(model, lib.name, model.RECIPES[recipe], num_steps=num_steps)
    assert abs(found.objective - model.exact()) < near


@pytest.mark.parametrize("name", ["state_space", "stochastic_volatility"])
def test_what_a_filter_estimates_is_the_evidence(name, lib):
    """exp(-loss) has the evidence as its mean at each step; the mean of -loss is 0.3 nats lower."""
    model = MODELS[name]
    found = command.fit(model, lib.name, model.RECIPES["filter"], num_steps=60)
    ratios = np.exp(-np.asarray(found.losses) - model.exact())
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert error < 0.15
    assert abs(np.mean(ratios) - 1) < 4 * error
