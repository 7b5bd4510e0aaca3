"""Attend-Infer-Repeat in Pyro, as in `air.py`: vi_kit beside `TraceGraph_ELBO` and `TraceEnum_ELBO`.

Run it: `python -m benchmarks.air_pyro`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from pyro.poutine import infer_config

import vi_kit as vi
from benchmarks.pyro_overhead import make_step
from benchmarks.timing import Row, in_turn
from models.air import SIZES
from models.air.pyro import Guide, Model
from vi_kit.pyro import Loss


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    model, guide = Model(), Guide()
    x = torch.sigmoid(torch.randn(64, SIZES.side, SIZES.side) - 2.0)
    rest = {"where_*": vi.Reparam(), "what_*": vi.Reparam()}
    bits = {"REINFORCE": vi.Score(), "ENUM": vi.Enumerate(), "MVD": vi.MeasureValued()}
    ours = {name: Loss(estimators={"bit_*": e, **rest}) for name, e in bits.items()}

    def infer_of(site: Any) -> dict[str, Any]:
        return {"enumerate": "parallel"} if site["name"].startswith("bit") else {}

    theirs = {
        "TraceGraph_ELBO": make_step(TraceGraph_ELBO(), model, guide, x),
        "TraceEnum_ELBO": make_step(
            TraceEnum_ELBO(max_plate_nesting=1), model, infer_config(guide, infer_of), x
        ),
    }
    mine = {f"vi_kit {name}": make_step(loss, model, guide, x) for name, loss in ours.items()}
    yield Row("AIR gradient in Pyro, batch 64", in_turn({**theirs, **mine}, seconds=30.0))


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
