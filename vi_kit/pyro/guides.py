"""Copies of guides that have not been run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide


def copied(guide: Any, model: Any) -> Any:
    """A guide with modules of its own, for the same model. A function is its own copy."""
    # an autoguide loses its model by being copied, and so does the copy
    guides = _autoguides(guide)
    kept = [(g._model, g.master) for g in guides]
    try:
        made = copy.deepcopy(guide, {id(model): model})
    finally:
        for own, (of_model, master) in zip(guides, kept, strict=True):
            own._model, own.master = of_model, master
    for own, (of_model, _) in zip(_autoguides(made), kept, strict=True):
        own._model = of_model
    return made


def _autoguides(guide: Any) -> list[AutoGuide]:
    modules = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    return [m for m in modules if isinstance(m, AutoGuide)]
