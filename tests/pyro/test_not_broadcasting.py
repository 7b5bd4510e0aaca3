"""Programs that compute something else with dims in front of their own: found out, and run one value and one replicate
after the other."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from tests import oracles
from tests.libraries import PyroWords
from vi_kit.pyro import Loss

THETA = np.array([0.1, -0.4, 0.6])
VALUES = np.array(list(itertools.product([0.0, 1.0], repeat=3)))


def theta():
    return pyro.param("theta", torch.tensor(THETA))


def guide():
    pyro.sample("z", dist.Bernoulli(logits=theta()).to_event(1))


def model_of(loc):
    """A model of what a function makes of the three values, whatever lies in front of them."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3).double()).to_event(1))
        pyro.sample("x", dist.Normal(loc(z), 1.0), obs=torch.tensor(2.0).double())

    return model


def asserted(z):
    assert z.shape == (3,)
    return z.sum()


def branched(z):
    return 2.0 * z[1] if z[0] == 1 else z[2] + 0.5


IDIOMS = {
    "sum": (lambda z: z.sum(), lambda v: v.sum(-1)),
    "normalised": (
        lambda z: ((z + 1) / (z + 1).sum())[0],
        lambda v: (v[:, 0] + 1) / (v.sum(-1) + 3),
    ),
    "softmax": (
        lambda z: torch.softmax(z, 0)[..., 1],
        lambda v: np.exp(v[:, 1]) / np.exp(v).sum(-1),
    ),
    "sorted": (lambda z: torch.sort(z, 0)[0][..., 2] + z[1], lambda v: v.max(-1) + v[:, 1]),
    "maximum": (lambda z: z.max(), lambda v: v.max(-1)),
    "matrix": (
        lambda z: (torch.arange(6.0).double().reshape(2, 3) @ z).sum(),
        lambda v: (v @ np.arange(6.0).reshape(2, 3).T).sum(-1),
    ),
    "assertion": (asserted, lambda v: v.sum(-1)),
    "branch": (branched, lambda v: np.where(v[:, 0] == 1, 2 * v[:, 1], v[:, 2] + 0.5)),
}
OBJECTIVES = {
    "elbo": (vi.elbo(), {}, 1),
    "four samples": (vi.elbo(), {"num_samples": 4}, 1),
    "iwae": (vi.iwae(num_particles=2), {}, 2),
}


def exact(features, num_particles):
    """Loss and gradient by enumeration of all joint values of the particles."""

    def bound(theta):
        log_q = oracles.log_bernoulli(theta, VALUES).sum(-1)
        log_w = -3 * np.log(2.0) + oracles.log_normal(2.0, features(VALUES), 1.0) - log_q
        joint = [np.array(i) for i in itertools.product(range(8), repeat=num_particles)]
        return sum(
            np.exp(log_q[i].sum()) * (np.logaddexp.reduce(log_w[i]) - np.log(num_particles))
            for i in joint
        )

    steps = 1e-6 * np.eye(3)
    slopes = [(bound(THETA + s) - bound(THETA - s)) / 2e-6 for s in steps]
    return -bound(THETA), -np.array(slopes)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("idiom", IDIOMS)
def test_default_is_exact(idiom, objective):
    (loc, features), (bound, settings, particles) = IDIOMS[idiom], OBJECTIVES[objective]
    words, loss = PyroWords(), Loss(bound, **settings)
    gradient = words.gradients(loss, model_of(loc), guide, THETA, 1, 0)[0]
    value, wanted = exact(features, particles)
    np.testing.assert_allclose(gradient, wanted, atol=1e-8)
    np.testing.assert_allclose(loss.loss(model_of(loc), guide), value, atol=1e-8)


@pytest.mark.parametrize("estimator", [vi.MeasureValued(), vi.DisARM()], ids=repr)
def test_alternatives_are_unbiased(estimator):
    loc, features = IDIOMS["branch"]
    draws = PyroWords().gradients(Loss(estimators=estimator), model_of(loc), guide, THETA, 100, 1)
    oracles.check_unbiased(draws, exact(features, 1)[1], power=False)


def test_replicates_of_a_normal_guide():
    def normal_guide():
        pyro.sample("z", dist.Normal(theta(), 1.0).to_event(1))

    def normal_model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(2.0).double())

    loss = Loss(num_samples=4)
    draws = PyroWords().gradients(loss, normal_model, normal_guide, THETA, 100, 2)
    oracles.check_unbiased(draws, THETA + THETA.sum() - 2.0, power=False)


def prior():
    pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3).double()).to_event(1))


@pytest.mark.parametrize("idiom", ["sum", "assertion", "branch"])
def test_functions_of_draws(idiom):
    """Expected rewards by enumeration."""
    loc, features = IDIOMS[idiom]

    def value(theta):
        log_q = oracles.log_bernoulli(theta, VALUES).sum(-1)
        return (np.exp(log_q) * (log_q + 3 * np.log(2.0) - features(VALUES))).sum()

    for settings in ({"num_samples": 2}, {"num_samples": 2, "vectorize": False}):
        loss = Loss(vi.expected_reward(reward=lambda values: loc(values["z"])), **settings)
        draw = PyroWords().estimates(loss, prior, guide, THETA, 1, 0)[0]
        exact = [value(THETA), *oracles.gradient(value, THETA)]
        np.testing.assert_allclose(draw, exact, atol=1e-8)


@pytest.mark.parametrize(
    "reward", [lambda v: (v["z"] ** 2).sum(), lambda v: v["z"][0] * 2.0], ids=["sum", "first"]
)
def test_functions_of_draws_of_replicates(reward):
    """The mean reward of the 4 draws that were made, and its gradient."""
    drawn = []

    def normal_guide():
        drawn.append(pyro.sample("z", dist.Normal(theta(), 1.0).to_event(1)))

    def normal_prior():
        pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))

    loss = Loss(vi.expected_reward(reward=reward, beta=0.0), num_samples=4)
    draw = PyroWords().estimates(loss, normal_prior, normal_guide, THETA, 1, 0)[0]
    z = torch.stack(drawn[-4:]).detach().requires_grad_()
    mean = torch.stack([reward({"z": row}) for row in z]).mean()
    (slopes,) = torch.autograd.grad(-mean, z)
    np.testing.assert_allclose(draw, [-mean.item(), *slopes.sum(0).tolist()], atol=1e-8)


def test_simulated_data():
    """Enumerated data, given to a guide that does not broadcast."""

    def joint(x):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
        logits = torch.stack([z, 0.5 - z], -1)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def amortised(x):
        pyro.sample(
            "z", dist.Bernoulli(logits=theta()[0] + theta()[1] * (x.sum() if x[0] == 1 else x[1]))
        )

    def value(theta):
        z, x, y = np.array(list(itertools.product([0.0, 1.0], repeat=3))).T
        mass = np.exp(
            oracles.log_bernoulli(np.log(0.3 / 0.7), z)
            + oracles.log_bernoulli(z, x)
            + oracles.log_bernoulli(0.5 - z, y)
        )
        logits = theta[0] + theta[1] * np.where(x == 1, x + y, y)
        return -(mass * oracles.log_bernoulli(logits, z)).sum()

    loss = Loss(vi.forward_kl(num_particles=1), vi.Enumerate())
    args = (torch.tensor([1.0, 0.0]).double(),)
    draw = PyroWords().estimates(loss, joint, amortised, THETA, 1, 0, args=args)[0]
    np.testing.assert_allclose(draw, [value(THETA), *oracles.gradient(value, THETA)], atol=1e-8)


def counted(fn):
    def program():
        program.runs += 1
        fn()

    program.runs = 0
    return program


LIKELY_ONES = torch.full((3,), 4.0).double()


@pytest.mark.parametrize(
    ("loc", "broadcasts"),
    [
        (lambda z: z.max(), False),
        (lambda z: z.amax(-1), True),
        (lambda z: 0.0 * z.sum(-1), True),
    ],
    ids=["maximum of all", "maximum of each", "nothing"],
)
def test_what_is_the_same_in_all_replicates_by_chance(loc, broadcasts):
    def likely_guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("l", LIKELY_ONES)).to_event(1))

    for seed in range(5):  # the maximum is 1 in nearly all replicates
        pyro.set_rng_seed(seed)
        loss = Loss(estimators=vi.Score(), num_samples=6)
        found = loss.explain(model_of(loc), likely_guide)
        assert ("after the other" not in found) == broadcasts


HIDDEN = {
    "sum": lambda z: z.sum(),
    "order": lambda z: torch.sort(z, 0)[0].sum(-1),
    "total": lambda z: torch.cumsum(z, 0).sum(-1),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("kind", ["bernoulli", "normal"])
def test_replicates_that_hide_it_by_chance(name, kind):
    """One whose elements are zero adds nothing to the sum of others; and values may stand in order."""

    def site():
        size = 2 if name == "sum" else 1
        if kind == "normal":
            return dist.Normal(torch.zeros(size).double(), 1.0).to_event(1)
        return dist.Bernoulli(torch.full((size,), 0.3).double()).to_event(1)

    def model():
        z = pyro.sample("z", site())
        pyro.sample("x", dist.Normal(HIDDEN[name](z), 1.0), obs=torch.tensor(2.0).double())

    def guide():
        pyro.sample("z", site())

    broadcast = 0
    for seed in range(30):
        pyro.set_rng_seed(seed)
        loss = Loss(estimators=vi.Score() if kind == "bernoulli" else vi.Reparam(), num_samples=2)
        broadcast += "one replicate after the other" not in loss.explain(model, guide)
    assert broadcast == 0


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(vi.LeaveOneOut())], ids=repr)
def test_weights_that_start_at_zero(estimator):
    def model():
        w = pyro.param("w", torch.zeros(()))
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3).double()).to_event(1))
        pyro.sample("x", dist.Normal(w * ((z + 1) / (z + 1).sum())[0], 1.0), obs=torch.ones(()))

    loss = Loss(estimators=estimator, num_samples=2)
    assert "after the other" in loss.explain(model, guide)


def one_if(condition):
    return lambda z: z.sum(-1) + (1.0 if condition(z) else 0.0)


SELDOM = {
    "all ones": one_if(lambda z: (z == 1).all()),
    "a sum": one_if(lambda z: z.sum() == 3),
    "kinds": one_if(lambda z: z.unique().numel() == 3),
    "close": one_if(lambda z: torch.allclose(z, torch.full_like(z, 0.3))),
    "alike": one_if(lambda z: torch.equal(z, 2 * z.flip(-1))),
    "a number": one_if(lambda z: z.amax().item() > 2),
    "a list": one_if(lambda z: 2.0 in z.reshape(-1).tolist()),
    "filled": lambda z: torch.zeros_like(z).copy_(z[:1]).sum(-1),
    "weights": lambda z: 0.0 * z.sum() + z.sum(-1),
    "length": lambda z: z.sum(-1) / len(z),
    "size": lambda z: z.sum(-1) / z.size(0),
    "shape": lambda z: z.sum(-1) / z.shape[0],
    "number of elements": lambda z: z.sum(-1) / z.shape.numel(),
}


@pytest.mark.parametrize("name", SELDOM)
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_what_seldom_makes_a_difference(name, estimator):
    """All zeros as a rule."""

    def zeros():
        pyro.sample("z", dist.Bernoulli(torch.full((3,), 1e-6).double()).to_event(1))

    loss = Loss(estimators=estimator, num_samples=2)
    assert "after the other" in loss.explain(model_of(SELDOM[name]), zeros)


APART = {
    "shape": lambda z: (torch.zeros((*z.shape[:-1], 3)) + z).sum(-1) / z.shape[-1],
    "last size": lambda z: torch.ones(3).expand(z.size()).mul(z).sum(-1) / z.size(-1),
    "view": lambda z: z.view(*z.shape[:-1], 3, 1).sum((-1, -2)),
    "rows": lambda z: torch.nn.functional.linear(
        z.reshape(-1, 3), torch.ones(1, 3).double()
    ).reshape(z.shape[:-1]),
    "softmax": lambda z: torch.softmax(z, -1).amax(-1),
    "in place": lambda z: torch.zeros_like(z).copy_(z).mul_(2.0).sum(-1),
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score(), vi.MeasureValued()], ids=repr)
def test_what_stays_apart_is_in_one_pass(name, estimator):
    loss = Loss(estimators=estimator, num_samples=2)
    assert "after the other" not in loss.explain(model_of(APART[name]), guide)


def test_many_values_are_not_run_one_after_the_other_by_default():
    def guide_of(size):
        return lambda: pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(size)).to_event(1))

    def model_for(size):
        def model():
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(size)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(2.0))

        return model

    assert "Enumerate(" in Loss().explain(model_for(4), guide_of(4))
    found = Loss().explain(model_for(5), guide_of(5))
    assert "Score(" in found and "over 16 joint values" in found


def test_a_weight_at_zero_before_a_sum_over_a_normal_site():
    def of_normal():
        pyro.sample("z", dist.Normal(theta(), 0.8).to_event(1))

    def model():
        w = pyro.param("w", torch.zeros(()))
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w * z.sum(), 1.0), obs=torch.ones(()))

    assert "after the other" in Loss(num_samples=4).explain(model, of_normal)


def test_what_broadcasts_is_tested_once():
    model, runs = counted(model_of(lambda z: z.sum(-1))), []
    loss = Loss(vi.iwae(num_particles=2))
    for _ in range(3):
        before = model.runs
        PyroWords().gradients(loss, model, guide, THETA, 1, 0)
        runs.append(model.runs - before)
    assert runs[1:] == [1, 1]
    assert "after the other" not in loss.explain(model, guide)


def test_a_chain_takes_as_many_runs_as_joint_values_of_two_sites():
    length = 5

    def chain():
        z = [pyro.sample("z0", dist.Bernoulli(logits=theta()[0]))]
        for t in range(1, length):
            z.append(pyro.sample(f"z{t}", dist.Bernoulli(logits=theta()[1] * z[-1])))
        return z

    def chain_model():
        z = [pyro.sample("z0", dist.Bernoulli(torch.tensor(0.5).double()))]
        for t in range(1, length):
            assert z[-1].shape == ()
            z.append(pyro.sample(f"z{t}", dist.Bernoulli(0.3 + 0.4 * z[-1])))

    model = counted(chain_model)
    loss = Loss()
    PyroWords().gradients(loss, model, chain, THETA, 1, 0)
    before = model.runs
    loss.loss(model, chain)
    assert model.runs - before <= 6


def test_an_estimator_that_cannot_be_served_is_refused_with_its_site():
    def fails(z):
        if z.sum() == 3:
            raise ValueError("no such value")
        return z.sum()

    with pytest.raises(vi.EstimatorError, match="site 'z'") as error:
        PyroWords().gradients(Loss(estimators=vi.Enumerate()), model_of(fails), guide, THETA, 1, 0)
    assert 'estimators={"z": vi.Score()}' in str(error.value)
    pyro.set_rng_seed(0)
    assert "Score" in Loss().explain(model_of(fails), guide)


def test_vectorize_true_is_refused_where_it_is_wrong():
    with pytest.raises(vi.BackendError, match="vectorize=True"):
        Loss(num_samples=4, vectorize=True).loss(model_of(lambda z: z.sum()), guide)


def test_programs_with_randomness_of_their_own_are_not_compared():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3).double()).to_event(1))
        noise = torch.nn.functional.dropout(torch.ones(3).double(), 0.5, training=True)
        pyro.sample("x", dist.Normal((z * noise).sum(-1), 1.0), obs=torch.tensor(2.0).double())

    assert "random besides its sites" in Loss().explain(model, guide)


def test_an_attempt_that_is_given_up_moves_no_averages():
    """Of batch normalisation: the first step moves them once for each replicate, as the others do."""
    norm, x = torch.nn.BatchNorm1d(2), torch.randn(10, 2)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = torch.nn.functional.linear(norm(x), z.reshape(1, 2))[:, 0]
        with pyro.plate("data", 10):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    loss = Loss(vi.iwae(num_particles=3))
    for step in range(2):
        loss.loss_and_grads(model, guide)
        assert norm.num_batches_tracked == 3 * (step + 1)
