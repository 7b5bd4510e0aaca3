"""Values that a program is told: what it only checks, prints or logs makes no difference, and everything else does."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import nn
from torch.nn import functional as F

import vi_kit as vi
from vi_kit.pyro import Loss

LOG = []


def asserted(loc):
    assert not torch.isnan(loc).any()
    return loc


def raised(loc):
    if not torch.isfinite(loc).all():
        raise ValueError("not finite")
    return loc


def bounded(loc):
    assert loc.abs().max().item() < 1e3, "too large"
    return loc


def logged(loc):
    LOG.append((loc.mean().item(), loc.detach().cpu().numpy(), f"{loc}"))
    return loc


def compared(loc):
    torch.testing.assert_close(loc, loc)
    return loc


def halved(loc):
    while (loc.abs() > 50).any():
        loc = loc / 2
    return loc


def gated(loc):
    return loc + pyro.param("w", torch.zeros(())) * (1.0 if (loc > 0).all() else 2.0)


HARMLESS = [asserted, raised, bounded, logged, compared]
HARMFUL = {
    "branch": lambda loc: loc if (loc > 0).all() else 2 * loc,
    "number": lambda loc: loc + loc.mean().item(),
    "array": lambda loc: torch.from_numpy(loc.detach().numpy()) + 0 * loc,
    "list": lambda loc: torch.tensor(loc.tolist()),
    "seldom": lambda loc: loc if loc.abs().max().item() < 1e3 else 0 * loc,
    "printed": lambda loc: loc + float(f"{loc.sum():.3f}"),
    "loop": halved,
    "window": lambda loc: loc + 3.0 * (0.55 < loc.mean().item() < 0.75),
    "count of a window": lambda loc: loc + sum(0.55 < x < 0.75 for x in loc.flatten().tolist()),
    "window of an array": lambda loc: loc * (1 + (abs(loc.detach().numpy().mean() - 0.65) < 0.1)),
    "weight at zero": gated,
}


def plated(fn):
    def model():
        with pyro.plate("d", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(fn(z.sum(-1)), 1.0), obs=torch.ones(4))

    def guide():
        with pyro.plate("d", 4):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    return Loss(vi.iwae(num_particles=2)).explain(model, guide)


def discrete(fn):
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(fn(0.3 * z.sum(-1) + 0.05), 1.0), obs=torch.ones(()))
        pyro.sample("w", dist.Normal(y, 1.0), obs=torch.ones(()))

    def guide():
        pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))

    return Loss(num_samples=2).explain(model, guide)


@pytest.mark.parametrize("fn", HARMLESS, ids=lambda fn: fn.__name__)
def test_what_makes_no_difference(fn):
    assert "see each other" not in plated(fn)
    found = discrete(fn)
    assert "after the other" not in found and "Score" not in found


@pytest.mark.parametrize("name", HARMFUL)
def test_what_makes_one(name):
    assert "see each other" in plated(HARMFUL[name])
    assert "after the other" in discrete(HARMFUL[name])


FLOWS = {
    "planar": transforms.planar,
    "radial": transforms.radial,
    "polynomial": lambda size: transforms.polynomial(size, hidden_dims=[8]),
    "neural": lambda size: transforms.neural_autoregressive(size, hidden_dims=[8]),
    "sylvester": transforms.sylvester,
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_that_have_no_inverse_keep_the_bounds_of_a_plate(name):
    flow = FLOWS[name](3)

    def model():
        with pyro.plate("d", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.ones(4))

    def guide():
        pyro.module("flow", flow)
        with pyro.plate("d", 4):
            base = dist.Normal(torch.zeros(3), 1.0).expand([4, 3]).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    found = Loss(vi.iwae(num_particles=2)).explain(model, guide)
    assert "see each other" not in found and "after the other" not in found


GRU = nn.GRU(3, 2, batch_first=True).double()


def recurrent(z):
    front = z.shape[:-2]
    made, _ = GRU(z.reshape((-1, *z.shape[-2:])))
    return made.reshape(front + made.shape[-2:]).sum((-1, -2))


def grid(z):
    front, theta = z.shape[:-2], z.reshape(-1, 2, 3)
    size = (theta.shape[0], 1, 2, 3)
    image = torch.arange(6.0).reshape(1, 1, 2, 3).expand(size)
    made = F.grid_sample(
        image, F.affine_grid(theta, size, align_corners=False), align_corners=False
    )
    return made.reshape((*front, 6)).sum(-1)


@pytest.mark.parametrize("decode", [recurrent, grid])
def test_decoders_of_flattened_batches(decode):
    def model():
        with pyro.plate("d", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(decode(z), 1.0), obs=torch.ones(4))

    def guide():
        with pyro.plate("d", 4):
            pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

    found = Loss(vi.iwae(num_particles=2)).explain(model, guide)
    assert "see each other" not in found and "after the other" not in found


def test_whole_numbers_always_count():
    """A program may ask whether they are equal to any."""

    def model():
        k = pyro.sample("k", dist.Poisson(2.0))
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        loc = 3.0 if k.item() == 7 else 0.0
        pyro.sample("x", dist.Normal(loc + z.sum(-1), 1.0), obs=torch.ones(()))

    def guide():
        pyro.sample("k", dist.Poisson(2.0))
        pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))

    assert "after the other" in Loss(num_samples=2).explain(model, guide)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
def test_buffers_of_modules_are_what_one_step_makes_them(objective):
    """What a program is told in the place of its values, or is run for to plan, leaves no trace; nor does a pass with
    what does not broadcast, before one value is taken after the other."""
    norm = nn.BatchNorm1d(3).double()

    def model():
        with pyro.plate("d", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            scale = 1.0 + z.abs().mean().item()
            loc = norm(scale * z.reshape(-1, 3)).reshape(z.shape).sum(-1)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.ones(4))

    def guide():
        with pyro.plate("d", 4):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    loss = Loss(objective)
    runs = []
    for _ in range(3):
        loss.loss(model, guide)
        runs.append(int(norm.num_batches_tracked))
    each = 1 if objective == vi.elbo() else 2
    assert runs == [each, 2 * each, 3 * each]
    assert norm.running_mean.abs().max() < 10.0
