"""Every error comes before any gradient, names all bad sites, and leaves the parameters as they were."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.pyro import Loss


def check(loss, model, guide, error, *texts):
    with pytest.raises(error) as caught:
        loss.loss_and_grads(model, guide)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    for leaf in pyro.get_param_store()._params.values():
        assert leaf.grad is None
    return str(caught.value)


def two_sites(first, second):
    def program(data=None):
        a = pyro.param("a", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("u", first(a))
        pyro.sample("v", second(a))

    return program


def poisson(a):
    return dist.Poisson(a)


def normal(a):
    return dist.Normal(a, 1.0)


def categorical(a):
    return dist.Categorical(logits=a.expand(5))


def test_estimators_that_cannot_handle_their_sites_all_at_once():
    program = two_sites(poisson, categorical)
    text = check(
        Loss(vi.elbo(), {"u": vi.Enumerate(), "v": vi.Reparam()}),
        program,
        program,
        vi.EstimatorError,
        "site 'u': Enumerate() needs a finite support that is the same for all draws; that of Poisson is not",
        "site 'v': Reparam() needs a reparameterised sampler; Categorical has none",
        "got:      Reparam(), from pattern 'v'",
        "expected: Enumerate() or MeasureValued() or Score()",
        'fix:      estimators={"v": vi.Enumerate()}',
    )
    assert text.count("site '") == 2


def test_measure_valued_without_a_weak_derivative():
    def program():
        a = pyro.param("a", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("u", dist.Gamma(a, 1.0))
        pyro.sample("w", dist.Cauchy(0.0, a))

    check(
        Loss(vi.elbo(), vi.MeasureValued()),
        program,
        program,
        vi.EstimatorError,
        "MeasureValued() has no weak derivative for the concentration of Gamma",
        "MeasureValued() has no weak derivative for Cauchy",
    )


def test_pattern_that_matches_no_site():
    program = two_sites(normal, normal)
    check(
        Loss(vi.elbo(), {"x*": vi.Reparam(), "u": vi.Reparam()}),
        program,
        program,
        vi.EstimatorError,
        "estimators['x*'] matches no latent site",
        "a pattern for one of ['u', 'v']",
    )


def test_class_instead_of_a_value():
    with pytest.raises(vi.EstimatorError, match=r"fix: .*vi.Score\(\)"):
        Loss(vi.elbo(), {"u": vi.Score})


def test_leave_one_out_of_one():
    program = two_sites(normal, poisson)
    check(
        Loss(vi.elbo(), {"v": vi.Score(vi.LeaveOneOut())}),
        program,
        program,
        vi.EstimatorError,
        "LeaveOneOut() needs at least 2 replicates",
        "num_samples=2",
    )


def outside_plate(inside):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=inside), 1.0), obs=torch.zeros(()))

    def guide():
        a = pyro.param("a", torch.zeros(3))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=a))

    return model, guide


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()])
def test_term_outside_the_plate_of_the_site(estimator):
    model, guide = outside_plate(inside=False)
    check(
        Loss(vi.elbo(), {"z": estimator}),
        model,
        guide,
        vi.EstimatorError,
        f"site 'z': {type(estimator).__name__}() cannot serve model site 'x'",
        "which is outside plate 'data'",
        'fix:      estimators={"z": vi.Score()}',
    )


def test_support_above_the_bound():
    def program():
        pyro.sample("z", dist.Bernoulli(torch.full((12,), 0.5)).to_event(1))

    check(
        Loss(vi.elbo(), vi.Enumerate()),
        program,
        program,
        vi.EstimatorError,
        "Bernoulli has 4096 values, above max_worlds=1024",
        "vi.Enumerate(max_worlds=4096)",
    )


def test_joint_values_above_the_bound():
    def program():
        us = [pyro.sample(f"u{i}", dist.Categorical(torch.ones(20))) for i in range(3)]
        pyro.sample("x", dist.Normal(sum(us) * 1.0, 1.0), obs=torch.zeros(()))

    def guide():
        for i in range(3):
            pyro.sample(f"u{i}", dist.Categorical(torch.ones(20)))

    check(
        Loss(vi.elbo(), vi.Enumerate()),
        program,
        guide,
        vi.EstimatorError,
        "model site 'x' depends on 8000 joint values of enumerated sites, above max_worlds=1024",
        "'u0' has 20, 'u1' has 20, 'u2' has 20",
    )


def test_model_and_guide_disagree_all_at_once():
    def model():
        pyro.sample("only_model", dist.Normal(0.0, 1.0))
        pyro.sample("rate", dist.Gamma(1.0, 1.0))
        pyro.sample("vector", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("local", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("only_guide", dist.Normal(0.0, 1.0))
        pyro.sample("rate", dist.Normal(0.0, 1.0))
        pyro.sample("vector", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("other", 4):
            pyro.sample("local", dist.Normal(0.0, 1.0))

    check(
        Loss(vi.elbo()),
        model,
        guide,
        vi.ObjectiveError,
        "model site 'only_model' is not in the draw",
        "guide site 'only_guide' is not a latent site of the model",
        "infer={'is_auxiliary': True}",
        "site 'rate': the guide draws values outside the model's support",
        "site 'vector': model and guide disagree about its event shape",
        "site 'local': model and guide disagree about its plates",
        "model ['data'], guide ['other']",
    )


@pytest.mark.parametrize(
    "make", [lambda n: vi.iwae(num_particles=n), lambda n: vi.miwae(num_outer=2, num_inner=n)]
)
@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_counts_below_one(make, number):
    with pytest.raises(vi.ObjectiveError, match="must be a whole number of at least 1"):
        make(number)


def test_num_samples_below_one():
    with pytest.raises(vi.ObjectiveError, match="num_samples=0"):
        Loss(vi.elbo(), num_samples=0)


def test_objective_that_is_not_reduced():
    @vi.objective
    def unreduced(model, guide):
        return vi.iid(lambda: vi.simulate(guide).log_density, 3)

    program = two_sites(normal, normal)
    check(
        Loss(unreduced()),
        program,
        program,
        vi.ObjectiveError,
        "unreduced() must return one cost",
        "Replicates",
    )


def test_words_outside_an_objective():
    with pytest.raises(vi.ObjectiveError, match="only have a meaning inside an objective"):
        vi.iid(lambda: None, 3)


def test_program_instead_of_an_objective():
    with pytest.raises(vi.ObjectiveError, match="not an objective"):
        Loss(vi.iwae)


def test_loss_that_is_not_finite_names_the_first_site():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("fine", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        pyro.sample("bad", dist.Normal(z, 1.0, validate_args=False), obs=torch.tensor(float("nan")))

    def guide():
        a = pyro.param("a", torch.tensor(0.5))
        pyro.sample("z", dist.Normal(a, 1.0))

    check(
        Loss(),
        model,
        guide,
        vi.ObjectiveError,
        "the loss is nan: the log density of model site 'bad'",
    )


def test_batch_dim_in_no_plate():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(4), 1.0), obs=torch.zeros(4))

    check(
        Loss(),
        model,
        lambda: None,
        vi.ObjectiveError,
        "model site 'x': a batch dim",
        ".to_event(1)",
    )


def test_plates_that_are_not_shared():
    @vi.objective
    def per_datum(model, guide):
        def log_weight():
            z = vi.simulate(guide)
            return vi.log_density(model, z) - z.log_density

        return vi.iid(log_weight, 3).log_mean_exp(plates=["data"])

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    check(
        Loss(per_datum()), model, guide, vi.ObjectiveError, "not every term is inside 'data'", "'z'"
    )
