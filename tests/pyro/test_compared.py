"""Alternatives that are only compared: evaluated apart, without gradient, and sharing slots."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
import vi_kit.pyro.broadcasting as broadcasting
from vi_kit.engine.plan import shared_slots
from vi_kit.engine.run import Run
from vi_kit.pyro import Loss
from vi_kit.pyro.compared import Compared
from vi_kit.pyro.front import saved_bytes


class Programs:
    """Bits with a reparameterised site before them, a path through the decoder, and parameters in both programs."""

    def __init__(self, num_bits: int, num_pixels: int = 500) -> None:
        torch.manual_seed(0)
        self.loc = torch.zeros(num_bits, requires_grad=True)
        self.weights = torch.randn(num_bits, num_pixels).requires_grad_()

    def guide(self) -> None:
        pyro.param("loc", self.loc)
        h = pyro.sample("h", dist.Normal(self.loc, 1.0).to_event(1))
        pyro.sample("z", dist.Bernoulli(logits=h).to_event(1))

    def model(self) -> None:
        pyro.param("weights", self.weights)
        zeros = torch.zeros(len(self.loc))
        h = pyro.sample("h", dist.Normal(zeros, 1.0).to_event(1))
        z = pyro.sample("z", dist.Bernoulli(logits=zeros).to_event(1))
        logits = z @ self.weights + h.sum(-1, keepdim=True)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=torch.ones(500))

    def gradients(self, loss: Loss, num: int = 3) -> list[torch.Tensor]:
        """The last of some gradients in turn, by both parameters."""
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        for _ in range(num):
            self.loc.grad = self.weights.grad = None
            loss.loss_and_grads(self.model, self.guide)
        assert self.loc.grad is not None and self.weights.grad is not None
        return [self.loc.grad, self.weights.grad]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasting, "SAVED_BY_STATEMENT", float("-inf"))


def saved(num_bits: int, objective: Any, estimator: Any) -> float:
    programs = Programs(num_bits)
    loss = Loss(objective, {"z": estimator})
    programs.gradients(loss)
    with saved_bytes() as size:
        programs.gradients(loss, 1)
    return size() - 4 * 500 * num_bits  # the weights themselves


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=str)
def test_alternatives_save_nothing(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass is that of what was drawn: the same of 30 alternatives as of 3."""
    few, many = (saved(n, objective, vi.MeasureValued()) for n in (3, 30))
    assert many < 2 * few
    monkeypatch.setattr(broadcasting, "SAVED_BY_STATEMENT", float("inf"))
    few, many = (saved(n, objective, vi.MeasureValued()) for n in (3, 30))
    assert many > 4 * few  # the mutant: all are differentiated


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=str)
@pytest.mark.parametrize("estimator", [vi.MeasureValued(), vi.DisARM()], ids=str)
def test_per_draw_the_gradient_is_the_same(
    objective: Any, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the coefficients, and along the paths of what was drawn; a mutant without these paths is seen."""
    programs = Programs(4)
    whole = programs.gradients(Loss(objective, {"z": estimator}))
    monkeypatch.setattr(broadcasting, "SAVED_BY_STATEMENT", float("-inf"))
    torch.testing.assert_close(programs.gradients(Loss(objective, {"z": estimator})), whole)
    part = Compared._part
    monkeypatch.setattr(Compared, "_part", lambda *args: part(*args).detach())
    found = programs.gradients(Loss(objective, {"z": estimator}))
    assert not torch.allclose(found[0], whole[0], rtol=1e-2)


@pytest.mark.usefixtures("apart")
def test_program_that_differentiates_by_its_parameters() -> None:
    """With parameters held it cannot: alternatives are then differentiated with the rest."""

    def guide() -> None:
        t = pyro.param("t", torch.tensor(0.3))
        (slope,) = torch.autograd.grad(t**2 / 2, t, create_graph=True)
        pyro.sample("b", dist.Bernoulli(logits=slope))

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(2.0))

    loss, found = Loss(vi.iwae(num_particles=2), vi.MeasureValued()), []
    pyro.clear_param_store()
    for _ in range(3):
        loss.loss_and_grads(model, guide)
        leaf = pyro.get_param_store()._params["t"]
        found.append(float(leaf.grad))
        leaf.grad = None
    assert all(abs(g) > 1e-3 for g in found)


def chain_gradients(length: int, monkeypatch: pytest.MonkeyPatch, *, shares: bool) -> torch.Tensor:
    logits = torch.linspace(-1.0, 1.0, length).double().requires_grad_()

    def guide() -> None:
        pyro.param("logits", logits)
        for t in range(length):
            pyro.sample(f"z{t}", dist.Bernoulli(logits=logits[t]))

    def model() -> None:
        z = torch.tensor(0.0).double()
        for t in range(length):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=0.5 * z))
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.3).double())

    nums: list[int] = []
    with monkeypatch.context() as patch:
        if not shares:
            patch.setattr(
                "vi_kit.engine.run.shared_slots", lambda nums, _: shared_slots(nums, [nums])
            )
        original = Run.claim_slots

        def noted(run: Any, *args: Any) -> None:
            nums.append(run.plan.num_slots)
            original(run, *args)

        patch.setattr(Run, "claim_slots", noted)
        loss = Loss(estimators=vi.MeasureValued())
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        for _ in range(3):
            logits.grad = None
            loss.loss_and_grads(model, guide)
    assert nums[-1] == (3 if shares else length + 1)
    assert logits.grad is not None
    return logits.grad


def test_sites_share_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chain no more of them are needed than two sites next to each other have, and each draw has the gradient that
    it has with slots for each site alone."""
    both = [chain_gradients(7, monkeypatch, shares=shares) for shares in (True, False)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-10, atol=0.0)


def test_slots_of_sites_that_meet_lie_apart() -> None:
    keys = [(i, f"z{i}") for i in range(4)]
    nums = dict(zip(keys, (2, 1, 3, 1), strict=True))
    pairs = [(keys[0], keys[1]), (keys[0], keys[2]), (keys[2], keys[3])]
    assert list(shared_slots(nums, pairs).values()) == [1, 3, 3, 1]
