"""Attend, infer, repeat in Pyro."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from models import air
from models.air import (
    NOISE,
    NUM_HIDDEN,
    NUM_STATE,
    NUM_STEPS,
    NUM_WHAT,
    NUM_WHERE,
    PRIOR_LOGIT,
    SIDE,
    WINDOW,
)

WHERE_LOC, WHERE_SCALE = torch.tensor(air.WHERE_LOC), torch.tensor(air.WHERE_SCALE)


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Along the last dim, the others broadcast."""
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], -1)


def attention(where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows and of columns: by how much each pixel of the image is one of the window."""
    scale, x, y = where.split(1, -1)
    grid, window = torch.linspace(-1.0, 1.0, SIDE), torch.linspace(-1.0, 1.0, WINDOW)

    def along(shift: torch.Tensor) -> torch.Tensor:
        apart = (grid[:, None] - shift[..., None]) * scale[..., None] - window
        return torch.relu(1.0 - apart.abs() * (WINDOW - 1) / 2)

    return along(y), along(x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(SIDE**2 + NUM_STATE + NUM_WHERE + NUM_WHAT + 1, 4 * NUM_STATE)
        self.predict = nn.Linear(NUM_STATE, 1 + 2 * NUM_WHERE)
        self.look, self.what = nn.Linear(WINDOW**2, NUM_HIDDEN), nn.Linear(NUM_HIDDEN, 2 * NUM_WHAT)

    def forward(self, x: torch.Tensor) -> None:
        pyro.module("guide", self)
        hidden = cell = x.new_zeros(len(x), NUM_STATE)
        last, pres = x.new_zeros(len(x), NUM_WHERE + NUM_WHAT + 1), x.new_ones(len(x))
        with pyro.plate("images", len(x)):
            for t in range(NUM_STEPS):
                inputs = joined(x.flatten(1), hidden, last)
                i, f, o, g = self.gates(inputs).chunk(4, -1)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * cell.tanh()
                logit, shift, raw = self.predict(hidden).split([1, NUM_WHERE, NUM_WHERE], -1)
                q: Any = dist.Bernoulli(logits=logit[..., 0]).mask(pres > 0)
                bit = pyro.sample(f"bit_{t}", q)
                pres = pres * bit
                q = dist.Normal(WHERE_LOC + shift, WHERE_SCALE * raw.exp()).to_event(1)
                where = pyro.sample(f"where_{t}", q.mask(pres > 0))
                rows, columns = attention(where)
                glimpse = rows.mT @ x @ columns
                loc, raw = self.what(softplus(self.look(glimpse.flatten(-2)))).chunk(2, -1)
                q = dist.Normal(loc, softplus(raw)).to_event(1)
                what = pyro.sample(f"what_{t}", q.mask(pres > 0))
                last = joined(where, what, pres[..., None])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.draw, self.pixels = nn.Linear(NUM_WHAT, NUM_HIDDEN), nn.Linear(NUM_HIDDEN, WINDOW**2)

    def forward(self, x: torch.Tensor) -> None:
        pyro.module("model", self)
        pres, canvas = x.new_ones(len(x)), torch.zeros_like(x)
        with pyro.plate("images", len(x)):
            for t in range(NUM_STEPS):
                prior: Any = dist.Bernoulli(logits=PRIOR_LOGIT * x.new_ones(len(x)))
                pres = pres * pyro.sample(f"bit_{t}", prior.mask(pres > 0))
                prior = dist.Normal(WHERE_LOC, WHERE_SCALE * x.new_ones(len(x), 1)).to_event(1)
                where = pyro.sample(f"where_{t}", prior.mask(pres > 0))
                prior = dist.Normal(x.new_zeros(len(x), NUM_WHAT), 1.0).to_event(1)
                what = pyro.sample(f"what_{t}", prior.mask(pres > 0))
                pixels = (
                    self.pixels(softplus(self.draw(what))).sigmoid().unflatten(-1, (WINDOW, WINDOW))
                )
                rows, columns = attention(where)
                canvas = canvas + rows @ pixels @ columns.mT * pres[..., None, None]
            pyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)


def programs() -> tuple[Any, Any]:
    """Model and guide."""
    torch.manual_seed(0)
    return Model(), Guide()
