"""Every model: what its folder has to have, its command, and fits beside exact answers."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

from models import command, cone, kl_policy

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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--num-steps", "-5"], "-5 is not positive"),
        (["--num-steps", "0"], "0 is not positive"),
        (["--num-steps", "few"], "few is not positive and whole"),
        (["--seed", "-1"], "seed"),
        (["--num-particles", "0", "--objective", "iwae"], "num_particles=0"),
        (["--figure", "a.xyz"], ".xyz is none of"),
        (["--figure", "."], ". is a folder"),
        (["--figure", "/dev/null/a.png"], "/dev/null"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_what_the_command_cannot_do_is_said_before_the_fit(arguments, text, capsys):
    with pytest.raises(SystemExit):
        command.main(cone, arguments)
    said = capsys.readouterr()
    assert text in said.err and not said.out


def test_what_is_known_of_a_policy_is_so_for_the_usual_weight_of_the_divergence():
    recipe = kl_policy.RECIPES["reward"]
    usual, other = (recipe.objective("expected_reward", **s) for s in ({}, {"beta": 0.1}))
    assert command.known(kl_policy, recipe, usual) == kl_policy.exact()
    assert command.known(kl_policy, recipe, other) is None


def test_programs_of_a_policy_are_those_that_pyro_takes():
    """A plate that was opened twice had two sites of one name."""
    programs = importlib.import_module("models.kl_policy.pyro")
    prompts = torch.as_tensor(kl_policy.data()[0])
    assert np.isfinite(Trace_ELBO().loss(programs.model, programs.guide, prompts))
    found = command.fit(kl_policy, "pyro", num_steps=2)
    assert found.sample(3)["token_0"].shape == (3, len(prompts))


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
