"""Every tutorial runs in smoke mode; the cone, and the demo of the digits."""

import importlib
import importlib.util
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import vi_kit as vi
from models import cone

TUTORIALS = Path(__file__).parents[2] / "tutorials"


def runner():
    spec = importlib.util.spec_from_file_location("run_tutorials", TUTORIALS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_tutorial_runs_in_smoke_mode(path, monkeypatch):
    monkeypatch.setenv("VI_KIT_SMOKE", "1")
    stored = nbformat.read(path, as_version=4)
    assert all(c.outputs or c.execution_count for c in stored.cells if c.cell_type == "code")
    runner().execute(path)


LIBS = ["pyro", "numpyro"]


@pytest.mark.parametrize("lib", LIBS)
def test_digits_vae_learns(lib):
    from models.digits_vae import demo

    torch.set_default_dtype(torch.float32)
    result = demo.main(lib, num_epochs=10, figures=None)
    assert result["independent_pixels"] < result["held_out"] < result["held_out_iwae"] < 0


def bounds_of_the_cone_pyro(guide):
    from models.cone import pyro as cone_pyro
    from vi_kit.pyro import Loss

    programs = cone_pyro.model, getattr(cone_pyro, guide)
    elbo = -Loss(vi.elbo(), num_samples=20_000).loss(*programs)
    iwae = -Loss(vi.iwae(num_particles=100), num_samples=2_000).loss(*programs)
    return elbo, iwae


def bounds_of_the_cone_numpyro(guide):
    import jax
    from numpyro.handlers import seed, trace

    from models.cone import numpyro as cone_numpyro
    from vi_kit.numpyro import Loss

    programs = cone_numpyro.model, getattr(cone_numpyro, guide)
    sites = trace(seed(programs[1], 0)).get_trace().values()
    params = {site["name"]: site["value"] for site in sites if site["type"] == "param"}
    key = jax.random.key(0)
    elbo = -Loss(vi.elbo(), num_samples=20_000).loss(key, params, *programs)
    iwae = -Loss(vi.iwae(num_particles=100), num_samples=2_000).loss(key, params, *programs)
    return float(elbo), float(iwae)


@pytest.mark.parametrize("guide", ["guide", "guide_autoregressive"])
@pytest.mark.parametrize("bounds", [bounds_of_the_cone_pyro, bounds_of_the_cone_numpyro])
def test_cone_bounds_lie_below_the_evidence(bounds, guide):
    evidence = cone.exact_log_evidence()
    elbo, iwae = bounds(guide)
    assert elbo < iwae < evidence
    assert evidence - iwae < 2


def test_posterior_of_the_cone_has_mass_one():
    grid, density = cone.posterior_grid()
    assert abs(density.sum() * (grid[1] - grid[0]) ** 2 - 1) < 1e-2


@pytest.mark.parametrize("lib", LIBS)
def test_cone_fit_rises_towards_the_evidence(lib):
    """The trained mean-field guide comes within 3.5 nats; its bound stays below the evidence."""
    fit = importlib.import_module(f"models.cone.{lib}")
    bound = fit.fit(fit.guide, vi.elbo(), num_steps=600)
    assert -3.5 < bound - cone.exact_log_evidence() < 0


@pytest.mark.parametrize("lib", LIBS)
def test_a_semi_implicit_guide_covers_the_whole_ring(lib):
    """As many of its draws lie in one direction as in any other, and at the radius of the ring."""
    module = importlib.import_module(f"models.cone.{lib}")
    guide = module.semi_implicit(20)
    params = module.train(guide, vi.elbo(), num_steps=400)
    if lib == "pyro":
        from pyro.infer import Predictive

        draws = Predictive(module.model, guide=guide, num_samples=2000, parallel=True)()
        x, y = (draws[n].flatten().numpy() for n in ("x", "y"))
    else:
        import jax
        from numpyro.infer import Predictive

        draws = Predictive(guide, params=params, num_samples=2000)(jax.random.key(1))
        x, y = np.asarray(draws["x"]), np.asarray(draws["y"])
    counts, _ = np.histogram(np.arctan2(y, x), bins=8, range=(-np.pi, np.pi))
    assert counts.min() > 150  # of 250
    assert abs(np.hypot(x, y).mean() - 5**0.5) < 0.15
