"""Every tutorial runs in smoke mode, and the models run on their own."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
import torch

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


def test_digits_vae_learns():
    from models import digits_vae

    torch.set_default_dtype(torch.float32)
    result = digits_vae.main(num_epochs=10, figures=None)
    assert result["independent_pixels"] < result["held_out"] < result["held_out_iwae"] < 0


def test_cone_bounds_lie_below_the_evidence():
    import vi_kit as vi
    from models import cone
    from vi_kit.pyro import Loss

    evidence = cone.exact_log_evidence()
    grid, density = cone.posterior_grid()
    assert abs(density.sum() * (grid[1] - grid[0]) ** 2 - 1) < 1e-2
    elbo = -Loss(vi.elbo(), num_samples=20_000).loss(cone.model, cone.guide)
    iwae = -Loss(vi.iwae(num_particles=100), num_samples=2_000).loss(cone.model, cone.guide)
    assert elbo < iwae < evidence
    assert evidence - iwae < 2
