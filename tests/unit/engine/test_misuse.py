"""What people write at first: one sentence, and what to write instead."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.costs.terms import kept_name

VALUES = np.array([0.3])


def normal(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(0.5))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    return model, guide


def test_particles_of_a_loss(lib):
    with pytest.raises(vi.ObjectiveError, match=r"Loss has no setting 'num_particles'") as caught:
        lib.Loss(num_particles=4)
    assert "vi.iwae(num_particles=4) is another bound" in str(caught.value)
    with pytest.raises(vi.ObjectiveError, match="Loss has no setting 'retain'"):
        lib.Loss(retain=True)


def test_settings_of_other_objectives():
    with pytest.raises(vi.ObjectiveError, match="elbo has no setting 'num_particles'"):
        vi.elbo(num_particles=4)
    with pytest.raises(vi.ObjectiveError, match="iwae has no setting 'num_samples'") as caught:
        vi.iwae(num_samples=3)
    assert "fix:      num_particles=3" in str(caught.value)
    with pytest.raises(vi.ObjectiveError, match="iwae: missing a required argument"):
        vi.iwae()


@pytest.mark.parametrize(
    "make", [vi.Score, vi.RejectionReparam, vi.ScaledBaseline], ids=lambda m: m.__name__
)
def test_the_class_of_a_baseline(make):
    name = make.__name__
    with pytest.raises(vi.EstimatorError, match=f"{name}: its baseline is not one") as caught:
        make(baseline=vi.MovingAverage)
    assert f"fix:      vi.{name}(vi.MovingAverage())" in str(caught.value)


def svi_step(library, loss, *programs):
    """One step of a library's `SVI`."""
    if library == "pyro":
        import pyro

        pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 0.1}), loss).step()
        return
    import jax
    import numpyro
    import optax

    numpyro.infer.SVI(*programs, optax.adam(0.1), loss).run(jax.random.key(0), 1)


def test_an_objective_is_no_loss(lib):
    with pytest.raises(
        vi.ObjectiveError, match=r"iwae\(num_particles=3\) is an objective"
    ) as caught:
        svi_step(lib.name, vi.iwae(num_particles=3), *normal(lib))
    assert "Loss(vi.iwae(num_particles=3))" in str(caught.value)


def test_a_loss_of_the_other_library(lib):
    from vi_kit import numpyro, pyro

    other = numpyro.Loss() if lib.name == "pyro" else pyro.Loss()
    with pytest.raises(vi.BackendError, match="is a loss for"):
        svi_step(lib.name, other, *normal(lib))
    assert "no latent site of" in other.explain(lambda: None, lambda: None)


def test_what_explain_says_of_the_whole(lib):
    def model():
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)))
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            lib.sample("x", lib.dist.Normal(z + b, 1.0), obs=lib.array(np.zeros(3)))

    def guide():
        lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    estimators = {"z": vi.MeasureValued(), "*": vi.Enumerate()}
    text = lib.Loss(vi.iwae(num_particles=5), estimators, num_samples=2).explain(model, guide)
    assert "pattern 'z': z\npattern '*': b\n" in text
    assert (
        "log_mean_exp over replicates, for each element of plates none: one over everything" in text
    )
    assert "on 80 draws: 10 replicates x 2 joint values of enumerated sites x 4 values" in text

    @vi.objective
    def per_datum(model, guide):
        def log_weight():
            z = vi.simulate(guide)
            return vi.log_density(model, z) - z.log_density

        return vi.iid(log_weight, 3).log_mean_exp()

    def data():
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    text = lib.Loss(per_datum()).explain(data, data)
    assert "log_mean_exp over replicates, for each element of plates 'data'\n" in text


def test_what_explain_says_of_state():
    from tests.libraries import LIBRARIES
    from vi_kit.numpyro import Loss

    lib = LIBRARIES["numpyro"]()

    def program():
        lib.sample("n", lib.dist.Poisson(lib.array(2.0)))
        lib.sample("z", lib.dist.Normal(lib.array(2.0), 1.0))

    assert "needs loss.with_state(guide) in place of guide, for n" in Loss().explain(
        program, program
    )
    assert "with_state" not in Loss(num_samples=2).explain(program, program)


def test_a_pattern_for_a_site_of_an_autoguide():
    """It is for what the guide draws; one that can mean nothing is refused."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro import poutine
    from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    from vi_kit.pyro import Loss

    def model():
        w = pyro.sample("w", dist.LogNormal(torch.tensor(0.0), 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=torch.tensor(0.3))

    hidden = poutine.block(model, hide=["z"])
    auto = AutoNormal(hidden)

    def guide(auto=auto):
        auto()
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("l", torch.tensor(0.2))))

    text = Loss(vi.elbo(), {"w": vi.MeasureValued()}).explain(model, guide)
    assert "pattern 'w': w_unconstrained\n" in text
    joint = AutoMultivariateNormal(hidden)
    with pytest.raises(vi.EstimatorError, match="matches only sites with a Delta"):
        Loss(vi.elbo(), {"w": vi.MeasureValued()}).explain(model, lambda: guide(joint))
    estimators = {"w": vi.DoublyReparam(), "z": vi.DisARM()}  # z is drawn next to w, not given it
    for objective in (vi.elbo(), vi.iwae(num_particles=2)):
        for estimator in (vi.DisARM(), vi.Enumerate()):
            Loss(objective, {**estimators, "z": estimator}).loss_and_grads(model, guide)


def test_gradients_that_are_not_numbers():
    """Parameter and statement are named, at the step whose gradient it is; the parameters are as they were."""
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("fine", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        rate = pyro.param("rate", torch.tensor(0.5))
        root = (1.0 - z).sqrt() * rate.sqrt()
        far = torch.where(root > 100.0, ((0.0 * rate) ** 0.5) * 0.0, root)
        pyro.sample("x", dist.Normal(far, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("l", torch.tensor(0.2))))

    with pytest.raises(vi.ObjectiveError) as caught:
        Loss().loss_and_grads(model, guide)
    assert "the gradient of parameter 'rate' is not a number" in str(caught.value)
    assert "a gradient through model site 'x'" in str(caught.value)
    leaves = pyro.get_param_store()._params
    assert leaves["rate"].grad is None and leaves["rate"].item() == 0.5


def test_parameters_that_are_not_numbers(lib):
    """After a step without the check: not the program's shapes are to blame."""

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(0.5))

    def guide():
        theta = lib.theta(VALUES)[0]
        lib.sample("z", lib.dist.Bernoulli(logits=theta, validate_args=True))

    loss, key = lib.Loss(), ()
    if lib.name == "pyro":
        import pyro

        loss.loss_and_grads(model, guide)
        pyro.get_param_store()._params["theta"].data.fill_(np.nan)
    else:
        import jax

        key = jax.random.key(0), {"theta": lib.array([np.nan])}
    with pytest.raises(vi.ObjectiveError, match="parameter 'theta' is not a number") as caught:
        loss.loss(*key, model, guide)
    assert "broadcast" not in str(caught.value)


def test_values_at_which_a_log_density_is_infinite():
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    data = torch.tensor([0.5, 1.5, 0.2, 2.5])

    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        with pyro.plate("data", 4):
            high = torch.tensor([4.0, 2.0, 3.0])[k]
            pyro.sample("x", dist.Uniform(0.0, high, validate_args=False), obs=data)

    def guide():
        pyro.sample("k", dist.Categorical(torch.ones(3)))

    with pytest.raises(vi.ObjectiveError) as caught:
        Loss().loss_and_grads(model, guide)
    where = "model site 'x' (at value 1 of site 'k'; 3 of plate 'data')"
    assert f"the log density of {where} is not finite" in str(caught.value)


def counts(lib):
    def model():
        n = lib.sample("n", lib.dist.Poisson(lib.array(2.0)))
        lib.sample("x", lib.dist.Normal(n, 1.0), obs=lib.array(0.5))

    def guide():
        lib.sample("n", lib.dist.Poisson(lib.xp.exp(lib.theta(VALUES)[0])))

    return model, guide


@pytest.mark.filterwarnings("error")
def test_the_default_baseline_asks_for_no_room():
    """Without a place for state the default is the plain score, in silence and the same number; a baseline that was
    named says that it has no effect."""
    import jax

    from tests.libraries import NumPyroWords
    from vi_kit.numpyro import Loss

    lib = NumPyroWords()
    model, guide = counts(lib)
    params = {"theta": lib.array(VALUES)}

    def gradient(loss, guide, state):
        def value(params):
            return loss.loss(jax.random.key(1), {**params, **state}, model, guide)

        return np.asarray(jax.grad(value)(params)["theta"])

    plain = gradient(Loss(), guide, {})
    np.testing.assert_allclose(plain, gradient(Loss(vi.elbo(), vi.Score()), guide, {}))
    with pytest.warns(UserWarning, match="nowhere to keep"):
        named = gradient(Loss(vi.elbo(), vi.Score(vi.MovingAverage())), guide, {})
    np.testing.assert_allclose(plain, named)
    state = {kept_name("baseline", "n"): lib.array(np.array([0.7, 1.0]))}
    assert not np.allclose(plain, gradient(Loss(), Loss().with_state(guide), state))
    text = Loss().explain(model, guide)
    assert "less variance needs loss.with_state(guide) in place of guide, for n" in text
    text = Loss(vi.elbo(), vi.Score(vi.MovingAverage())).explain(model, guide)
    assert "SVI needs loss.with_state(guide) in place of guide, for n" in text


def test_an_index_between_the_values_of_a_support(lib):
    """What `Rebar` has in the place of a draw is no index."""

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
        index = z if lib.name == "numpyro" else z.long()
        lib.sample("x", lib.dist.Normal(lib.array([0.0, 1.0])[index], 1.0), obs=lib.array(1.0))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta([0.2])[0]))

    loss = lib.Loss(vi.elbo(), vi.Rebar())
    text = {
        "numpyro": r"site 'z': the program cannot be run at the values of Rebar\(\)",
        "pyro": r"site 'z': Rebar\(\) is biased if a cost jumps between the discrete values",
    }[lib.name]
    with pytest.raises(vi.EstimatorError, match=text):
        loss.explain(model, guide)


def test_the_ratio_of_one_particle(lib):
    def program():
        lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))

    loss = lib.Loss(vi.f_divergence(generator=vi.generators.pearson, num_particles=1))
    with pytest.raises(vi.ObjectiveError, match="the ratio of one particle to its own mean is one"):
        loss.explain(program, program)
