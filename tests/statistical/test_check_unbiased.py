"""`vi.check_unbiased` finds bias where there is some, and says where it could not have."""

from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests.cases import TwoLevelBernoulli
from tests.statistical_cases import ConjugateNormal, LocalBernoulli, exact


@dataclass(frozen=True)
class WithoutScore(vi.Score):
    """The draw, and no gradient of its density: biased."""

    def contract(self, site, terms):
        return list(terms)


@pytest.mark.parametrize("particles", [1, 2])
def test_a_loss_that_is_right_against_enumeration(lib, particles):
    case = TwoLevelBernoulli(lib)
    loss = lib.Loss(vi.iwae(num_particles=particles), {"z1": vi.Score(), "z2": vi.Enumerate()})
    found = vi.check_unbiased(loss, case.model, case.guide, num_draws=150)
    assert found.reference == "the exact sum over 16 joint values"
    reference = [row.reference for row in found.rows[1:]]
    np.testing.assert_allclose(reference, case.exact(particles), rtol=1e-9)
    assert found.passed and "passed: 150 draws" in repr(found)


def test_a_loss_without_the_score_term(lib):
    case = TwoLevelBernoulli(lib)
    loss = lib.Loss(vi.elbo(), {"z1": WithoutScore(), "z2": vi.Enumerate()})
    found = vi.check_unbiased(loss, case.model, case.guide, num_draws=50)
    assert not found.passed
    assert [row.name for row in found.biased] == ["theta[0]"]
    assert repr(found).startswith("biased")


def test_a_reference_by_the_score_function(lib):
    case = ConjugateNormal(lib)
    found = vi.check_unbiased(lib.Loss(num_samples=4), case.model, case.guide, num_draws=250)
    assert found.reference == "the score function of 1000 plain draws"
    reference, error = np.array([[row.reference, row.error] for row in found.rows[1:]]).T
    assert (np.abs(reference - exact(ConjugateNormal, 1)) <= 5 * error).all()
    assert found.passed


def test_masks_and_scales(lib):
    """A masked element is drawn, and costs nothing; a scale is of the cost."""

    def program(theta, scale):
        def run():
            logits = lib.array(theta) if theta is not None else lib.theta(np.array([0.4, -0.3]))
            with lib.handlers.scale(scale=scale):
                coin = lib.dist.Bernoulli(logits=logits).mask(lib.array([True, False]))
                z = lib.sample("z", coin.to_event(1))
            if theta is not None:
                lib.sample(
                    "x",
                    lib.dist.Normal((z * lib.array([1.0, 2.0])).sum(-1), 1.0),
                    obs=lib.array(1.0),
                )

        return run

    model, guide = program([0.5, 0.5], 2.0), program(None, 3.0)
    found = vi.check_unbiased(lib.Loss(vi.elbo(), vi.Score()), model, guide, num_draws=400)
    values = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])

    def log_bernoulli(logit):
        return values * logit - np.log1p(np.exp(logit))

    def exact_loss(logits):
        log_q = log_bernoulli(logits)
        cost = 3 * log_q[:, 0] - 2 * log_bernoulli(np.array([0.5, 0.5]))[:, 0]
        cost = cost + 0.5 * (1.0 - values @ [1.0, 2.0]) ** 2 + 0.5 * np.log(2 * np.pi)
        return np.exp(log_q.sum(1)) @ cost

    at, step = np.array([0.4, -0.3]), 1e-5
    slopes = [exact_loss(at + d) - exact_loss(at - d) for d in step * np.eye(2)]
    wanted = [exact_loss(at), *np.array(slopes) / (2 * step)]
    np.testing.assert_allclose([row.reference for row in found.rows], wanted, atol=1e-8)


def test_a_gradient_of_zero_has_no_power(lib):
    def program(name):
        def run():
            logit = 0.3 if name is None else lib.theta(np.array([0.3]), name)[0]
            lib.sample("z", lib.dist.Bernoulli(logits=lib.array(logit)))

        return run

    found = vi.check_unbiased(lib.Loss(), program(None), program("theta"), num_draws=5)
    assert not found.biased and not found.passed
    assert found.rows[1].verdict == "no power" and repr(found).startswith("no power")


def test_other_objectives_are_compared_with_score(lib):
    case = LocalBernoulli(lib)
    for objective in (vi.iwae(num_particles=2), vi.log_variance(num_particles=2)):
        found = vi.check_unbiased(lib.Loss(objective), case.model, case.guide, num_draws=20)
        assert found.reference == "the same objective with Score(), 80 draws"
        assert not found.biased


def test_nothing_is_changed():
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, pyro.param("s", torch.tensor(1.0))), obs=torch.tensor(2.0))

    loss = Loss(vi.elbo(), vi.Score(vi.MovingAverage()))
    loss.loss_and_grads(model, guide)
    store = pyro.get_param_store()
    before = {n: (p, p.detach().clone(), p.grad, p.grad and p.grad.clone()) for n, p in leaves()}
    state, kept = torch.get_rng_state(), dict(loss.state)
    vi.check_unbiased(loss, model, guide, num_draws=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert loss.state.keys() == kept.keys() and all(loss.state[k] is v for k, v in kept.items())
    assert store._params.keys() == before.keys()
    for name, leaf in leaves():
        same, value, grad, grad_value = before[name]
        assert leaf is same and torch.equal(leaf, value) and leaf.grad is grad
        assert grad is None or torch.equal(grad, grad_value)


def leaves():
    import pyro

    return pyro.get_param_store()._params.items()


def test_not_a_loss_of_vi_kit():
    import pyro

    with pytest.raises(vi.ObjectiveError, match="check_unbiased: not a loss of vi_kit"):
        vi.check_unbiased(pyro.infer.Trace_ELBO(), print, print)
