"""The picture in docs/how_it_works.md, recorded from one gradient: `python -m tests.docs.how_it_works` draws it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import vi_kit as vi
from tests.docs.how_to_choose import parts_of
from vi_kit.pyro import Loss

PAGE = Path(__file__).parents[2] / "docs" / "how_it_works.md"
START = "<!-- recorded from one gradient -->\n"
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


def picture() -> str:
    rows = recorded()
    missing = STATIONS.keys() - {name for *_, name in rows}
    assert not missing, f"not reached: {sorted(missing)}"
    lines = ["```mermaid", "sequenceDiagram"]
    names = {layer: f"L{i}" for i, layer in enumerate(dict.fromkeys(LAYERS.values()))}
    lines += [f"    participant {short} as {layer}" for layer, short in names.items()]
    for of, to, name in rows:
        given = STATIONS[name] and f": {STATIONS[name]}"
        lines.append(f"    {names[of]}->>{names[to]}: {name.removeprefix('_')}{given}")
    return "\n".join([*lines, "```\n"])


if __name__ == "__main__":
    before, _, after = parts_of(PAGE, START)
    PAGE.write_text(before + START + picture() + "<!-- end -->" + after)
