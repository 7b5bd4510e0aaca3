"""The command that all models share: fit one, print its bound beside the exact answer, and draw a figure."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import models
import vi_kit as vi
from models.recipe import Recipe

LIBRARIES = ("pyro", "numpyro")


def names() -> list[str]:
    """The models that there are."""
    return sorted(found.name for found in pkgutil.iter_modules(models.__path__) if found.ispkg)


def fit(
    model: ModuleType,
    lib: str,
    recipe: Recipe | None = None,
    objective: vi.Objective | None = None,
    **options: Any,
) -> vi.Fit:
    """Fit a model by a recipe.

    Args:
        model: the module of the model, such as `models.cone`.
        lib: "pyro" or "numpyro".
        recipe: one of its `RECIPES`; the first if left out.
        objective: the recipe's first if left out.
        **options: of the library's `fit`, in the place of the recipe's.
    """
    recipe = recipe or next(iter(model.RECIPES.values()))
    start = {"pyro": _start_pyro, "numpyro": _start_numpyro}[lib]
    options = {"num_steps": recipe.num_steps, **recipe.options, **options}
    as_array, optimizer = start(recipe, options["num_steps"])
    own = importlib.import_module(f"{model.__name__}.{lib}")
    objective = objective or recipe.objective()
    if recipe.reference:
        settings = {**dict(objective.settings), "reference": recipe.reference(own)}
        objective = objective.factory(**settings)
    return importlib.import_module(f"vi_kit.{lib}").fit(
        *recipe.programs(own),
        *(as_array(x) for x in model.data()),
        objective=objective,
        estimators=recipe.estimators,
        optimizer=optimizer,
        **options,
    )


def _start_pyro(recipe: Recipe, num_steps: int) -> tuple[Any, Any]:
    """What makes arrays, and an optimiser."""
    import pyro
    import torch

    torch.set_num_threads(1)  # the arrays are small; a second thread only waits
    if recipe.double:
        torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    decay = 0.1 ** (1 / max(num_steps, 1))
    optimizer = pyro.optim.ClippedAdam({"lr": recipe.step_size, "lrd": decay})

    def as_array(x: Any) -> torch.Tensor:
        x = torch.as_tensor(x)
        return x.to(torch.get_default_dtype()) if x.is_floating_point() else x

    return as_array, optimizer


def _start_numpyro(recipe: Recipe, num_steps: int) -> tuple[Any, Any]:
    """What makes arrays, and an optimiser."""
    import jax.numpy as jnp
    import numpyro
    import optax

    if recipe.double:
        numpyro.enable_x64()
    return jnp.asarray, optax.adam(optax.exponential_decay(recipe.step_size, num_steps, 0.1))


def main(model: ModuleType, arguments: list[str] | None = None) -> vi.Fit:
    """The command of a model; `arguments` are those of the command line if left out."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {model.__name__}",
        description=model.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    recipes, offered = model.RECIPES, {}
    for name, recipe in recipes.items():
        for each in recipe.objectives:
            offered.setdefault(each.program.__name__, []).append(name)
    settings = {
        name: type(value)
        for recipe in recipes.values()
        for each in recipe.objectives
        for name, value in each.settings
        if type(value) in (int, float)
    }
    parser.add_argument("--lib", choices=LIBRARIES, default="pyro")
    parser.add_argument("--recipe", choices=recipes, default=next(iter(recipes)))
    parser.add_argument("--objective", choices=offered, help="if left out, that of the recipe")
    for name, kind in settings.items():
        parser.add_argument(_flag(name), type=kind, help="a setting of the objective")
    parser.add_argument("--num-steps", type=_positive, help="if left out, those of the recipe")
    if any("batch_size" in recipe.options for recipe in recipes.values()):
        parser.add_argument("--batch-size", type=int, help="if left out, that of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=_picture, metavar="PATH", help="where to save a picture")
    given = parser.parse_args(arguments)

    recipe = recipes[given.recipe]
    if given.objective and given.recipe not in offered[given.objective]:
        parser.error(
            f"recipe {given.recipe!r} has no objective {given.objective!r}; these have: "
            + ", ".join(offered[given.objective])
        )
    objective = recipe.objective(given.objective)
    chosen = {name: getattr(given, name) for name in settings if getattr(given, name) is not None}
    unknown = [_flag(name) for name in chosen if name not in dict(objective.settings)]
    if unknown:
        parser.error(f"{objective!r} has no setting {', '.join(unknown)}")
    asked = {name: getattr(given, name, None) for name in ("num_steps", "batch_size")}
    options = {name: value for name, value in asked.items() if value is not None}

    try:
        objective = recipe.objective(given.objective, **chosen)
        if given.figure:
            given.figure.parent.mkdir(parents=True, exist_ok=True)
        found = fit(model, given.lib, recipe, objective, seed=given.seed, **options)
    except (vi.ViKitError, OSError) as error:
        parser.error(str(error))
    print(found)
    print(f"{objective!r:40} {found.objective:10.3f} ({found.direction})")
    exact = known(model, recipe, objective)
    if exact is not None:
        print(f"{'exact log evidence':40} {exact:10.3f} nats")
    if given.figure:
        draw(model, found, given.figure, exact)
        print(f"figure: {given.figure}")
    return found


def _flag(name: str) -> str:
    return "--" + name.strip("_").replace("_", "-")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive and whole")
    return int(text)


def _picture(text: str) -> Path:
    """The name of a file for a picture, `.png` if it does not say which kind."""
    from matplotlib.figure import Figure

    path, kinds = Path(text), Figure().canvas.get_supported_filetypes()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    if path.suffix[1:] not in ("", *kinds):
        raise argparse.ArgumentTypeError(f"{path.suffix} is none of {', '.join(kinds)}")
    return path if path.suffix else path.with_suffix(".png")


def known(model: ModuleType, recipe: Recipe, objective: vi.Objective) -> float | None:
    """The log evidence, or what else the objective comes to at best, if that is known: for the settings that a recipe
    has, but for how many particles there are."""
    usual = dict(recipe.objective(objective.program.__name__).settings)
    asked = {k: v for k, v in objective.settings if not k.startswith("num_")}
    is_usual = all(usual[k] == value for k, value in asked.items())
    return model.exact() if objective.maximised and is_usual and hasattr(model, "exact") else None


def draw(model: ModuleType, found: vi.Fit, path: Path, exact: float | None) -> None:
    """The objective by step, with the exact log evidence if that is known; and the model's own picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    vi.plot_bound(found, ax=left)
    if exact is not None:
        left.axhline(exact, color="grey", linestyle=":", label="exact log evidence")
        low, high = left.get_ylim()
        left.set_ylim(min(low, exact - 0.05 * (high - low)), max(high, exact + 0.05 * (high - low)))
        left.legend(fontsize="small", loc="lower right")
    model.picture(found, right)
    figure.savefig(path, dpi=120)
