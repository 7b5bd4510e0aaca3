"""The picture of docs/how_it_works.md, recorded from one gradient: `python -m tests.docs.how_it_works` draws it."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import vi_kit as vi
from vi_kit.pyro import Loss

PICTURE = Path(__file__).parents[2] / "docs" / "one_gradient.svg"
LAYERS = {
    "pyro": "pyro (or numpyro)",
    "engine": "engine",
    "objectives": "objectives, language",
    "language": "objectives, language",
    "estimators": "estimators",
    "costs": "costs",
}
STATIONS = {
    "Run.execute": "the objective, with model and guide as programs",
    "iwae": "",
    "Run.replicate": "a function to run for 2 copies",
    "simulate": "the guide",
    "PyroBackend.simulate": "the guide, under a handler",
    "_Handler.sample": "each sample statement",
    "draw": "a statement: name, distribution, plates",
    "Reparam.expand": "the distribution of z",
    "Score.expand": "the distribution of b",
    "Simulation.record": "log densities, as terms that know their sites",
    "log_density": "the model, and the draw",
    "PyroBackend.log_density": "the model, at the values of the draw",
    "Replay.record": "log densities, as terms that know their sites",
    "Replicates.log_mean_exp": "",
    "applied": "terms in, one term out, with alternatives per site",
    "contract": "the cost, and the sites in their order",
    "Score.contract": "Downstream: the terms that depend on b",
    "Downstream.worth": "what each element of b is worth",
    "Downstream.weighted": "its log density, times that",
}
"""Functions to be drawn, and what they are given."""


def model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Bernoulli(logits=z))
    pyro.sample("x", dist.Normal(z + b, 1.0), obs=torch.tensor(1.0))


def guide() -> None:
    z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("b", dist.Bernoulli(logits=z))


def recorded() -> list[tuple[str, str, str]]:
    """For each station of one gradient, when it is first reached: from which layer, in which, and its name."""
    found: dict[str, tuple[str, str, str]] = {}

    def layer(frame: FrameType | None) -> str | None:
        while frame is not None:
            package, _, rest = frame.f_globals.get("__name__", "").partition(".")
            name = rest.split(".")[0]
            if package == "vi_kit" and name in LAYERS:
                return LAYERS[name]
            frame = frame.f_back
        return None

    def note(frame: FrameType, event: str, value: Any) -> None:
        name, inside = frame.f_code.co_qualname, frame.f_globals.get("__name__", "")
        if event == "call" and name in STATIONS and inside.startswith("vi_kit."):
            of, to = layer(frame.f_back), layer(frame)
            if of and to:
                found.setdefault(name, (of, to, name))

    loss = Loss(vi.iwae(num_particles=2), {"b": vi.Score()})
    with pyro.get_param_store().scope():
        loss.loss_and_grads(model, guide)  # plans
        sys.setprofile(note)
        try:
            loss.loss_and_grads(model, guide)
        finally:
            sys.setprofile(None)
    return list(found.values())


WIDTH, LANE, ROW, TOP = 980, 190, 30, 64
HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{{height}}" viewBox="0 0 {WIDTH} {{height}}"
 font-family="sans-serif" font-size="13" fill="#222">
<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">
<path d="M0,0 L9,4 L0,8 z"/></marker></defs>
<rect width="100%" height="100%" rx="6" fill="#fff"/>
"""


def picture() -> str:
    """Layers from left to right, and calls between them from top to bottom, as SVG."""
    rows = recorded()
    missing = STATIONS.keys() - {name for *_, name in rows}
    assert not missing, f"not reached: {sorted(missing)}"
    layers = {layer: 110 + LANE * i for i, layer in enumerate(dict.fromkeys(LAYERS.values()))}
    height = TOP + ROW * len(rows) + 20
    lines = [HEAD.format(height=height)]
    for layer, x in layers.items():
        lines.append(f'<line x1="{x}" x2="{x}" y1="44" y2="{height - 12}" stroke="#bbb"/>')
        lines.append(f'<rect x="{x - 85}" y="14" width="170" height="30" rx="4" fill="#dde7f0"/>')
        lines.append(f'<text x="{x}" y="34" text-anchor="middle">{escape(layer)}</text>')
    for i, (of, to, name) in enumerate(rows):
        x, end, y = layers[of], layers[to], TOP + ROW * i + 22
        to_left = min(x, end) > WIDTH / 2
        anchor, at = ("end", max(x, end) - 14) if to_left else ("start", min(x, end) + 14)
        path = f"M{x},{y} H{end}" if x != end else f"M{x},{y - 12} h10 v12 h-10"
        lines.append(f'<path d="{path}" fill="none" stroke="#333" marker-end="url(#tip)"/>')
        given = f"<tspan fill='#666'> {escape(STATIONS[name])}</tspan>" if STATIONS[name] else ""
        lines.append(
            f'<text x="{at}" y="{y - 5}" text-anchor="{anchor}" paint-order="stroke" stroke="#fff"'
            f' stroke-width="4">{escape(name.removeprefix("_"))}{given}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(picture())
