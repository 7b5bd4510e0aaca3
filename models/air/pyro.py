"""Attend, infer, repeat in Pyro."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, softplus

from models import air
from models.air import NUM_WHERE, SIZES, Sizes

WHERE_LOC, WHERE_SCALE = torch.tensor(air.WHERE_LOC), torch.tensor(air.WHERE_SCALE)


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Along the last dim, the others broadcast."""
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], -1)


def attention(where: torch.Tensor, of: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows and of columns: by how much each pixel of the image is one of the window."""
    scale, x, y = where.split(1, -1)
    grid, window = torch.linspace(-1.0, 1.0, of.side), torch.linspace(-1.0, 1.0, of.window)

    def along(shift: torch.Tensor) -> torch.Tensor:
        apart = (grid[:, None] - shift[..., None]) * scale[..., None] - window
        return torch.relu(1.0 - apart.abs() * (of.window - 1) / 2)

    return along(y), along(x)


class Guide(nn.Module):
    def __init__(self, of: Sizes = SIZES) -> None:
        super().__init__()
        self.of = of
        self.image = nn.Linear(of.num_coarse, 4 * of.num_state)
        self.gates = nn.Linear(of.num_state + NUM_WHERE + of.num_what + 1, 4 * of.num_state, False)
        self.predict = nn.Linear(of.num_state, 1 + 2 * NUM_WHERE)
        self.look = nn.Linear(of.window**2, of.num_hidden)
        self.what = nn.Linear(of.num_hidden, 2 * of.num_what)
        with torch.no_grad():
            self.predict.bias[0] = of.likely
            self.predict.bias[1 + NUM_WHERE :] = of.narrow

    def forward(self, x: torch.Tensor) -> None:
        pyro.module("guide", self)
        of = self.of
        image = self.image(avg_pool2d(x[:, None], of.zoom).flatten(1))
        hidden = cell = x.new_zeros(len(x), of.num_state)
        last, pres = x.new_zeros(len(x), NUM_WHERE + of.num_what + 1), x.new_ones(len(x))
        with pyro.plate("images", len(x)):
            for t in range(of.num_steps):
                gates = image + self.gates(joined(hidden, last))
                i, f, o, g = gates.chunk(4, -1)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * cell.tanh()
                logit, shift, raw = self.predict(hidden).split([1, NUM_WHERE, NUM_WHERE], -1)
                q: Any = dist.Bernoulli(logits=logit[..., 0]).mask(pres > 0)
                bit = pyro.sample(f"bit_{t}", q)
                pres = pres * bit
                q = dist.Normal(WHERE_LOC + shift, WHERE_SCALE * raw.exp()).to_event(1)
                where = pyro.sample(f"where_{t}", q.mask(pres > 0))
                rows, columns = attention(where, of)
                glimpse = rows.mT @ x @ columns
                loc, raw = self.what(softplus(self.look(glimpse.flatten(-2)))).chunk(2, -1)
                q = dist.Normal(loc, softplus(raw)).to_event(1)
                what = pyro.sample(f"what_{t}", q.mask(pres > 0))
                last = joined(where, what, pres[..., None])


class Model(nn.Module):
    def __init__(self, of: Sizes = SIZES) -> None:
        super().__init__()
        self.of = of
        self.draw = nn.Linear(of.num_what, of.num_hidden)
        self.pixels = nn.Linear(of.num_hidden, of.window**2)
        nn.init.constant_(self.pixels.bias, of.dark)

    def forward(self, x: torch.Tensor) -> None:
        pyro.module("model", self)
        of, pres, canvas = self.of, x.new_ones(len(x)), torch.zeros_like(x)
        with pyro.plate("images", len(x)):
            for t in range(of.num_steps):
                prior: Any = dist.Bernoulli(logits=of.prior_logit * x.new_ones(len(x)))
                pres = pres * pyro.sample(f"bit_{t}", prior.mask(pres > 0))
                prior = dist.Normal(WHERE_LOC, WHERE_SCALE * x.new_ones(len(x), 1)).to_event(1)
                where = pyro.sample(f"where_{t}", prior.mask(pres > 0))
                prior = dist.Normal(x.new_zeros(len(x), of.num_what), 1.0).to_event(1)
                what = pyro.sample(f"what_{t}", prior.mask(pres > 0))
                pixels = self.pixels(softplus(self.draw(what))).sigmoid()
                rows, columns = attention(where, of)
                pixels = pixels.unflatten(-1, (of.window, of.window))
                canvas = canvas + rows @ pixels @ columns.mT * pres[..., None, None]
            pyro.sample("x", dist.Normal(canvas, of.noise).to_event(2), obs=x)


def programs(of: Sizes = SIZES) -> tuple[Any, Any]:
    """Model and guide."""
    torch.manual_seed(0)
    return Model(of), Guide(of)
