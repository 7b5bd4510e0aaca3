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

    def contract(self, downstream):
        return downstream.terms


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


@dataclass(frozen=True)
class WithoutPath(vi.Reparam):
    """The draw as a constant: the gradient of the density alone."""

    def expand(self, dist):
        return vi.Expansion(dist.sample())


SUPPORTS = {
    "uniform": lambda lib, t: lib.dist.Uniform(t[0], t[1]),
    "pareto": lambda lib, t: lib.dist.Pareto(t[1], lib.array(9.0) + t[0]),
}


@pytest.mark.parametrize(
    ("shape", "num_particles"),
    [("uniform", 2), ("pareto", 1)],
)
def test_supports_that_move(shape, num_particles, lib):
    def guide():
        lib.sample("z", SUPPORTS[shape](lib, lib.theta(np.array([0.5, 0.8]))))

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.factor("f", -3.0 * z**2)

    objective = vi.iwae(num_particles=num_particles) if num_particles > 1 else vi.elbo()
    found = vi.check_unbiased(lib.Loss(objective, num_samples=4), model, guide, num_draws=100)
    which = "theta[1]" if shape == "pareto" else "theta[0], theta[1]"
    assert found.reference == (
        f"the score function of 400 plain draws; with {which}, which move a support, differences of 100"
    )
    assert found.passed, found
    wrong = lib.Loss(objective, WithoutPath(), num_samples=4)
    found = vi.check_unbiased(wrong, model, guide, num_draws=100)
    assert found.biased, found


def test_differences_are_as_exact_as_they_say(lib):
    """The entropy of Uniform(a, b) is log(b - a): no draw has an error but for that of the differences."""

    def program(theta):
        def run():
            low, high = lib.array([100.0, 100.5]) if theta is None else lib.theta(theta)
            lib.sample("z", lib.dist.Uniform(low, high))

        return run

    theta = np.array([100.1, 100.4])
    found = vi.check_unbiased(lib.Loss(), program(None), program(theta), num_draws=5)
    assert found.passed, found
    np.testing.assert_allclose(
        [r.reference for r in found.rows[1:]], [1 / 0.3, -1 / 0.3], rtol=1e-2
    )


def test_bounds_in_plates_whose_supports_move(lib):
    def guide():
        theta = lib.theta(np.array([0.5, 0.8]))
        with lib.plate("data", 2):
            lib.sample("z", lib.dist.Uniform(theta[0], theta[1] + lib.array([0.5, 1.0])))

    def model():
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            lib.factor("f", 2.0 * z)

    objective = vi.iwae(num_particles=2)
    found = vi.check_unbiased(lib.Loss(objective), model, guide, num_draws=100)
    assert found.reference == "differences of the loss, 100 draws"
    assert found.passed, found
    assert vi.check_unbiased(lib.Loss(objective, WithoutPath()), model, guide, num_draws=100).biased
    loss = lib.Loss(vi.f_divergence(vi.generators.pearson, num_particles=2, normalized=False))
    with pytest.raises(vi.ObjectiveError, match="cannot judge this loss: a support moves"):
        vi.check_unbiased(loss, model, guide, num_draws=2)


def test_programs_alone(lib):
    for programs in ((print, print), (lib.Loss(), print)):
        with pytest.raises(
            vi.ObjectiveError, match=r"check_unbiased\((loss|Loss\(\)), model, guide"
        ):
            vi.check_unbiased(*programs)
