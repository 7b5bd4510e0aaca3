"""The errors of `test_errors` that apply to NumPyro, and those of its own; all before any gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI

import vi_kit as vi
from vi_kit.numpyro import Loss

KEY = jax.random.key(0)
PARAMS = {"a": 0.5}


@pytest.fixture(autouse=True)
def double_precision():
    numpyro.enable_x64()


def check(loss, model, guide, error, *texts, params=PARAMS):
    """The error comes from the value and from the gradient, and the parameters stay as they were."""
    params = {name: jnp.asarray(value) for name, value in params.items()}
    before = dict(params)
    with pytest.raises(error) as caught:
        loss.loss(KEY, params, model, guide)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert params.keys() == before.keys()
    assert all(params[name] is before[name] for name in params)
    return str(caught.value)


def two_sites(first, second):
    def program():
        a = numpyro.param("a", 0.5, constraint=dist.constraints.positive)
        numpyro.sample("u", first(a))
        numpyro.sample("v", second(a))

    return program


def poisson(a):
    return dist.Poisson(a)


def normal(a):
    return dist.Normal(a, 1.0)


def categorical(a):
    return dist.Categorical(logits=jnp.full(5, a))


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


def test_the_same_error_under_jit_and_in_svi():
    program = two_sites(poisson, categorical)
    loss = Loss(vi.elbo(), {"v": vi.Reparam()})
    svi = SVI(program, program, numpyro.optim.Adam(0.1), loss)
    state = svi.init(KEY)
    with pytest.raises(vi.EstimatorError, match="site 'v'"):
        jax.jit(svi.update)(state)
    assert float(svi.get_params(state)["a"]) == pytest.approx(0.5)


def test_measure_valued_without_a_weak_derivative():
    def program():
        a = numpyro.param("a", 0.5, constraint=dist.constraints.positive)
        numpyro.sample("u", dist.Gamma(a, jnp.ones(())))
        numpyro.sample("w", dist.Cauchy(0.0, a))

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


def test_settings_that_are_refused_at_once():
    with pytest.raises(vi.EstimatorError, match=r"fix: .*vi.Score\(\)"):
        Loss(vi.elbo(), {"u": vi.Score})
    with pytest.raises(vi.ObjectiveError, match="num_samples=0"):
        Loss(vi.elbo(), num_samples=0)
    with pytest.raises(vi.ObjectiveError, match="not an objective"):
        Loss(vi.iwae)


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


@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.MeasureValued()])
def test_term_outside_the_plate_of_the_site(estimator):
    def model():
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=0.0)

    def guide():
        a = numpyro.param("a", 0.5)
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Bernoulli(logits=a))

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
        numpyro.sample("z", dist.Bernoulli(jnp.full(12, 0.5)).to_event(1))

    check(
        Loss(vi.elbo(), vi.Enumerate()),
        program,
        program,
        vi.EstimatorError,
        "Bernoulli has 4096 values, above max_worlds=1024",
        "vi.Enumerate(max_worlds=4096)",
    )


def test_joint_values_above_the_bound():
    def guide():
        return [numpyro.sample(f"u{i}", dist.Categorical(jnp.ones(20) / 20)) for i in range(3)]

    def model():
        numpyro.sample("x", dist.Normal(sum(guide()) * 1.0, 1.0), obs=0.0)

    check(
        Loss(vi.elbo(), vi.Enumerate()),
        model,
        guide,
        vi.EstimatorError,
        "model site 'x' depends on 8000 joint values of enumerated sites, above max_worlds=1024",
        "'u0' has 20, 'u1' has 20, 'u2' has 20",
    )


def test_enumeration_of_undeclared_batch_dims():
    def program():
        numpyro.sample("z", dist.Bernoulli(jnp.full(3, 0.5)))

    check(
        Loss(vi.elbo(), vi.Enumerate()),
        program,
        program,
        vi.EstimatorError,
        "needs each of its batch dims in a plate, or made event dims by .to_event",
    )


def test_model_and_guide_disagree_all_at_once():
    def model():
        numpyro.sample("only_model", dist.Normal(0.0, 1.0))
        numpyro.sample("rate", dist.Gamma(1.0, 1.0))
        numpyro.sample("vector", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("data", 3):
            numpyro.sample("local", dist.Normal(0.0, 1.0))

    def guide():
        numpyro.sample("only_guide", dist.Normal(0.0, 1.0))
        numpyro.sample("rate", dist.Normal(0.0, 1.0))
        numpyro.sample("vector", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        with numpyro.plate("other", 4):
            numpyro.sample("local", dist.Normal(0.0, 1.0))

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


def nan_model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("fine", dist.Normal(z, 1.0), obs=0.0)
    numpyro.sample("bad", dist.Normal(z, 1.0, validate_args=False), obs=np.nan)


def nan_guide():
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5), 1.0))


@pytest.mark.parametrize("loss", [Loss(), Loss(vi.iwae(num_particles=2))], ids=repr)
def test_loss_that_is_not_finite_names_the_first_site(loss):
    text = "the loss is nan: the log density of model site 'bad'"
    check(loss, nan_model, nan_guide, vi.ObjectiveError, text)


def test_loss_that_is_not_finite_is_a_number_under_jit():
    loss = jax.jit(lambda a: Loss().loss(KEY, {"a": a}, nan_model, nan_guide))
    assert np.isnan(loss(0.5))


def test_plates_that_are_not_shared():
    @vi.objective
    def per_datum(model, guide):
        def log_weight():
            z = vi.simulate(guide)
            return vi.log_density(model, z) - z.log_density

        return vi.iid(log_weight, 3).log_mean_exp(plates=["data"])

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.zeros(3))

    check(
        Loss(per_datum()),
        model,
        nan_guide,
        vi.ObjectiveError,
        "not every term is inside 'data'",
        "'z'",
    )


def test_program_that_looks_at_values():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if z > 0:
            numpyro.factor("positive", 1.0)

    check(
        Loss(),
        model,
        nan_guide,
        vi.BackendError,
        "model or guide looks at a value that is not known while the program is traced",
        "numpyro.contrib.control_flow.cond instead of if",
    )


def test_rows_of_a_numpy_array():
    """By the indices of a plate, which are traced; NumPyro's own loss takes them outside of `jit`."""
    x = np.zeros(6)

    def model():
        with numpyro.plate("rows", 6, subsample_size=2) as index:
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x[index])

    check(
        Loss(),
        model,
        lambda: None,
        vi.BackendError,
        "model or guide looks at a value that is not known while the program is traced",
        "data as jnp.asarray(x)",
    )


def test_max_plate_nesting_that_is_too_small():
    def program():
        with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    loss = Loss(max_plate_nesting=1)
    text = "a plate lies left of max_plate_nesting=1; give Loss a larger one"
    check(loss, program, program, vi.BackendError, text)
    assert np.isfinite(Loss(max_plate_nesting=2).loss(KEY, {}, program, program))


@pytest.mark.parametrize("loss", [Loss(num_samples=2), Loss(vi.iwae(num_particles=2))], ids=repr)
def test_mutable_state_inside_replicates(loss):
    def model():
        numpyro.primitives.mutable("count", jnp.zeros(()))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    check(
        loss,
        model,
        nan_guide,
        vi.ObjectiveError,
        "mutable site 'count' inside replicates",
        "num_samples=1",
        params={"a": 0.5, "count": 0.0},
    )
