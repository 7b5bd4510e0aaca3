"""Baselines of one's own, and those that are made of others: unbiased, and trained where they have parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import LocalBernoulli, SubsampledBernoulli, exact
from vi_kit.base.named import Named
from vi_kit.estimators.baselines import SumOfBaselines


@dataclass(frozen=True)
class MeanOverPlate(vi.Baseline):
    """One of a user's own: the mean of the other elements of the first plate."""

    def subtracted(self, others):
        return others.mean(others.plates[-1])


def network(lib):
    """Predictions for the three elements of the plate, as a program of its library."""

    def linear(x):
        weight = lib.theta(np.array([-1.0, 0.5]), "vi_kit.network.weight")
        return weight[0] + weight[1] * x

    return vi.NeuralBaseline(linear, inputs=lambda: lib.array(LocalBernoulli.x))


BASELINES = {
    "own": lambda lib: MeanOverPlate(),
    "per_element": lambda lib: vi.MovingAverage(per_element=True),
    "scaled_average": lambda lib: vi.ScaledBaseline(vi.MovingAverage()),
    "scaled_constant": lambda lib: vi.ScaledBaseline(vi.Constant(-2.0)),
    "learned": lambda lib: vi.LearnedConstant(-1.0),
    "sum": lambda lib: vi.MovingAverage() + vi.LeaveOneOut(),
    "network": network,
    "scaled_network_and_rest": lambda lib: vi.ScaledBaseline(network(lib)) + vi.MovingAverage(),
}


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("baseline", BASELINES)
def test_unbiased(baseline, num_particles, lib, request):
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=2)
    loss = lib.Loss(objective, vi.Score(BASELINES[baseline](lib)), num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 50, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(LocalBernoulli, num_particles))


@pytest.mark.parametrize("baseline", ["scaled_constant", "scaled_average", "sum"])
def test_less_noise_than_without(baseline, lib, request):
    """Of costs that are all worth about 10."""
    seed, (model, guide) = oracles.seed_of(request.node.name), worths(lib)
    spread = []
    for b in (vi.Constant(), BASELINES[baseline](lib)):
        loss = lib.Loss(vi.elbo(), vi.Score(b), num_samples=10)
        x = lib.array(np.ones(3))
        draws = lib.gradients(loss, model, guide, np.zeros(3), 300, seed, args=(x,))
        spread.append(draws[50:].var(axis=0).sum())
    assert spread[1] < 0.2 * spread[0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: vi.ScaledBaseline(vi.LeaveOneOut()),
            "ScaledBaseline: the baseline must not mix replicates",
        ),
        (lambda: vi.MovingAverage() + vi.MovingAverage(0.5), "can keep one state per site"),
        (
            lambda: vi.NeuralBaseline(None) + vi.LeaveOneOut() + vi.NeuralBaseline(len),
            "can keep one network per site",
        ),
    ],
)
def test_refused_when_made(make, text):
    with pytest.raises(vi.EstimatorError, match=text):
        make()


@pytest.mark.parametrize(
    ("baseline", "text"),
    [
        (vi.ScaledBaseline(vi.Constant(1.0)), "needs at least 2 replicates of the site"),
        (vi.MovingAverage(per_element=True), r"needs whole plates; \['data'\] are subsampled"),
    ],
)
def test_refused_for_a_site(baseline, text, lib):
    loss = lib.Loss(vi.elbo(), vi.Score(baseline))
    with pytest.raises(vi.EstimatorError, match=text):
        SubsampledBernoulli(lib).gradients(loss, 1, 0)


def rows(lib):
    """A plate as long as the minibatch, whose last one is shorter."""

    def model(x):
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
            lib.factor("f", x * z)

    def guide(x):
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.zeros(1))))

    return model, guide


def test_averages_per_element_of_minibatches(lib):
    loss = lib.Loss(vi.elbo(), vi.Score(vi.MovingAverage(per_element=True)))
    with pytest.raises(vi.EstimatorError, match="whose sizes have changed"):
        if lib.name == "pyro":
            for size in (3, 1):
                loss.loss_and_grads(*rows(lib), lib.array(np.ones(size)))
        else:
            import jax

            kept = {"vi_kit.baseline.z": lib.array(np.zeros((2, 3))), "theta": lib.array([0.0])}
            loss.loss(jax.random.key(0), kept, *rows(lib), lib.array(np.ones(1)))


def test_state_is_no_parameter():
    import pyro

    from tests.libraries import PyroWords

    lib = PyroWords()
    loss = lib.Loss(vi.elbo(), vi.Score(vi.MovingAverage()))
    LocalBernoulli(lib).gradients(loss, 2, 0)
    assert all(p.grad is not None for _, p in pyro.get_param_store().named_parameters())
    assert list(loss.state) == ["vi_kit.baseline.z"]


def test_state_of_the_second_of_two_estimators(lib):
    """It is kept under the name for which `with_state` makes room."""
    average = vi.Score(vi.MovingAverage())
    loss = lib.Loss(vi.elbo(), vi.Annealed(vi.Score(), average, lambda step: 0.5 + 0 * step))
    case = LocalBernoulli(lib)
    if lib.name == "pyro":
        case.gradients(loss, 1, 0)
        kept = loss.state
    else:
        import jax
        from numpyro import handlers

        guide = loss.with_state(case.guide)
        with handlers.trace() as trace, handlers.seed(rng_seed=0):
            guide()
        start = {n: s["value"] for n, s in trace.items() if s["type"] in ("param", "mutable")}
        key = jax.random.key(0)
        result = loss.loss_with_mutable_state(key, start, case.model, case.guide)
        kept = result["mutable_state"]
    assert kept["vi_kit.baseline.z (second estimator)"][1] > 0


def test_predictions_that_do_not_fit(lib):
    wrong = vi.NeuralBaseline(lambda x: x, inputs=lambda: lib.array(np.zeros(2)))
    loss = lib.Loss(vi.elbo(), vi.Score(wrong))
    with pytest.raises(vi.ObjectiveError, match="predictions of its NeuralBaseline do not fit"):
        LocalBernoulli(lib).gradients(loss, 1, 0)


def test_no_argument_for_the_network(lib):
    loss = lib.Loss(vi.elbo(), vi.Score(vi.NeuralBaseline(lambda x: x)))
    with pytest.raises(vi.ObjectiveError, match="no positional argument for the network"):
        LocalBernoulli(lib).gradients(loss, 1, 0)


def test_sums_are_flat_and_print():
    total = vi.Constant(1.0) + vi.LeaveOneOut() + vi.MovingAverage()
    assert isinstance(total, SumOfBaselines) and len(total.parts) == 3
    assert total == vi.Constant(1.0) + (vi.LeaveOneOut() + vi.MovingAverage())
    assert Named  # what a baseline gets and returns


X = np.array([-1.0, 0.0, 2.0])


def worths(lib):
    """A model of which each element of the plate is worth about 10 times its datum."""

    def model(x):
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
            lib.factor("f", 10.0 * x + 0.1 * z)

    def guide(x):
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.zeros(3))))

    return model, guide


def test_a_torch_module_learns_the_worth():
    import pyro
    import torch

    from tests.libraries import PyroWords
    from vi_kit.pyro import Loss

    lib, net = PyroWords(), torch.nn.Linear(1, 1)
    baseline = vi.NeuralBaseline(net, inputs=lambda x: x[:, None])
    loss = Loss(vi.elbo(), vi.Score(baseline), num_samples=5)
    svi = pyro.infer.SVI(*worths(lib), pyro.optim.Adam({"lr": 0.1}), loss)
    for _ in range(400):
        svi.step(lib.array(X))
    assert abs(net.weight.item() - 10) < 0.5 and abs(net.bias.item()) < 0.5
    assert {"vi_kit.network.z$$$weight", "vi_kit.network.z$$$bias"} <= set(pyro.get_param_store())


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
def test_a_jax_module_learns_the_worth(kind):
    import equinox as eqx
    import jax
    import optax
    from flax import linen, nnx
    from numpyro.infer import SVI

    from tests.libraries import NumPyroWords
    from vi_kit.numpyro import Loss

    class Each(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            return jax.vmap(self.linear)(x)

    lib = NumPyroWords()
    net = {
        "linen": lambda: linen.Dense(1),
        "nnx": lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
        "equinox": lambda: Each(eqx.nn.Linear(1, 1, key=jax.random.key(0))),
    }[kind]()
    baseline = vi.NeuralBaseline(net, inputs=lambda x: x[:, None])
    loss = Loss(vi.elbo(), vi.Score(baseline), num_samples=5)
    model, guide = worths(lib)
    svi = SVI(model, loss.with_state(guide), optax.adam(0.1), loss)
    result = svi.run(jax.random.key(0), 400, lib.array(X), progress_bar=False)
    learned = result.params["vi_kit.network.z$params"]
    weights = [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(learned)]
    np.testing.assert_allclose(sorted(weights), [0.0, 10.0], atol=0.5)


def test_a_network_without_a_place_for_its_parameters():
    import jax
    from flax import linen

    from tests.libraries import NumPyroWords
    from vi_kit.numpyro import Loss

    lib = NumPyroWords()
    baseline = vi.NeuralBaseline(linen.Dense(1), inputs=lambda x: x[:, None])
    loss, x = Loss(vi.elbo(), vi.Score(baseline)), lib.array(X)
    with pytest.warns(UserWarning, match="nowhere to keep the parameters of 'vi_kit.network.z'"):
        loss.loss(jax.random.key(0), {"theta": lib.array(np.zeros(3))}, *worths(lib), x)
