"""NumPyro's automatic guides on a jointly Gaussian model, for which the best bounds are known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO, autoguide
from scipy import stats

import vi_kit as vi
from tests.numpyro.programs import X, falls, model
from vi_kit.numpyro import Loss

KEY = jax.random.key(0)
EVIDENCE = stats.multivariate_normal(np.zeros(4), 1.25 * np.eye(4) + 1.0).logpdf(X)

# The posterior's precision matrix, of the global and the four local latent variables.
PRECISION = np.diag([5.0] + [5.0] * 4)
PRECISION[0, 1:] = PRECISION[1:, 0] = -1.0
LOG_DET = np.linalg.slogdet(PRECISION)[1]
MEAN_FIELD = EVIDENCE - 0.5 * (np.log(np.diag(PRECISION)).sum() - LOG_DET)
AT_THE_MODE = EVIDENCE + 0.5 * LOG_DET - 2.5 * np.log(2 * np.pi)


def flat_model(x):
    """The shared model with its plate of latent variables as one vector."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(loc, 1.0).expand([4]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def low_rank(model):
    return autoguide.AutoLowRankMultivariateNormal(model, rank=2)


def autoregressive_flow(model):
    return autoguide.AutoIAFNormal(model, num_flows=1, hidden_dims=[8])


def block_autoregressive_flow(model):
    return autoguide.AutoBNAFNormal(model, num_flows=1, hidden_factors=[2])


def annealed(model):
    return autoguide.AutoDAIS(model, K=2)


def guide_list(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(handlers.block(model, hide=["z"])))
    guide.append(autoguide.AutoDiagonalNormal(handlers.block(model, hide=["loc"])))
    return guide


@pytest.mark.parametrize("estimator", [vi.DoublyReparam(), vi.Score()], ids=repr)
def test_a_flow_without_an_inverse_is_refused_in_words(estimator):
    guide = block_autoregressive_flow(flat_model)
    svi = SVI(flat_model, guide, optax.adam(0.1), Loss(estimators=estimator))
    with pytest.raises(vi.EstimatorError) as caught:
        svi.evaluate(svi.init(KEY, X), X)
    assert "needs the density of a value given" in str(caught.value)
    assert 'fix:      estimators={"_auto_latent": vi.Reparam()}' in str(caught.value)


def fit(model, guide, loss, *args, steps=300):
    """Train while the learning rate falls to a hundredth."""
    optim = optax.adam(optax.exponential_decay(0.1, steps, 0.01))
    return SVI(model, guide, optim, loss).run(KEY, steps, *args, progress_bar=False)


def trained(*args, **kwargs):
    return fit(*args, **kwargs).losses


BOUNDS = [
    (model, autoguide.AutoNormal, MEAN_FIELD),
    (model, autoguide.AutoDelta, AT_THE_MODE),
    (flat_model, autoguide.AutoDiagonalNormal, MEAN_FIELD),
    (flat_model, guide_list, MEAN_FIELD),
    (flat_model, autoguide.AutoMultivariateNormal, EVIDENCE),
    (flat_model, low_rank, EVIDENCE),
    (flat_model, autoguide.AutoLaplaceApproximation, AT_THE_MODE),
]
MEAN_FIELD_OR_BETTER = [autoregressive_flow, block_autoregressive_flow, annealed]


@pytest.mark.parametrize(
    ("model", "make", "bound"), BOUNDS, ids=lambda x: getattr(x, "__name__", "")
)
def test_guide_reaches_the_best_bound_of_its_family(model, make, bound):
    """To 0.1 nats, from the last 100 steps of four samples each."""
    losses = trained(model, make(model), Loss(num_samples=4), X)
    assert falls(losses)
    assert -np.mean(losses[-100:]) == pytest.approx(bound, abs=0.1)


@pytest.mark.parametrize("make", MEAN_FIELD_OR_BETTER, ids=lambda make: make.__name__)
def test_rich_guide_reaches_at_least_the_mean_field_bound(make):
    losses = trained(flat_model, make(flat_model), Loss(num_samples=4), X)
    assert falls(losses)
    assert MEAN_FIELD - 0.1 <= -np.mean(losses[-100:]) <= EVIDENCE + 0.1


@pytest.mark.parametrize(
    "make",
    [autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoregressive_flow, annealed],
    ids=lambda make: make.__name__,
)
def test_importance_weighted_bound_is_tighter(make):
    loss = Loss(vi.iwae(num_particles=3), num_samples=4)
    losses = trained(flat_model, make(flat_model), loss, X)
    assert falls(losses)
    assert MEAN_FIELD - 0.05 <= -np.mean(losses[-100:]) <= EVIDENCE + 0.1


@pytest.mark.parametrize("make_loss", [Loss, lambda: Trace_ELBO()], ids=["vi_kit", "Trace_ELBO"])
def test_same_result_as_trace_elbo(make_loss):
    """Both reach the posterior means and the best scales of a mean field."""
    params = fit(model, autoguide.AutoNormal(model), make_loss(), X, steps=1000).params
    mean = np.linalg.solve(PRECISION, [0.0, *(4 * X)])
    scale = np.diag(PRECISION) ** -0.5
    np.testing.assert_allclose(params["loc_auto_loc"], mean[0], atol=0.1)
    np.testing.assert_allclose(params["z_auto_loc"], mean[1:], atol=0.1)
    np.testing.assert_allclose(params["loc_auto_scale"], scale[0], atol=0.1)
    np.testing.assert_allclose(params["z_auto_scale"], scale[1:], atol=0.1)


def with_room(model):
    return Loss().with_state(autoguide.AutoNormal(model))


@pytest.mark.parametrize("make", [autoguide.AutoNormal, guide_list, low_rank, with_room])
def test_explain_leaves_a_guide_that_was_not_run_as_it_is(make):
    """It had set itself up while it was traced, and then could not be run."""
    guides, losses = [make(flat_model), make(flat_model)], []
    assert "Reparam" in Loss().explain(flat_model, guides[1], X)
    for guide in guides:
        svi = SVI(flat_model, guide, optax.adam(0.01), Loss())
        losses.append(svi.update(svi.init(KEY, X), X)[1])
    assert losses[0] == losses[1]


def coins(x):
    theta = numpyro.sample("theta", dist.Normal(np.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(x), subsample_size=4) as batch:
        logits = jnp.broadcast_to(theta[0] + theta[1] / 2, (4,))
        numpyro.sample("x", dist.Bernoulli(logits=logits), obs=jnp.asarray(x)[batch])


def surrogate():
    theta = numpyro.sample("theta", dist.Normal(np.zeros(2), 1.0).to_event(1))
    weights = numpyro.param("weights", np.ones(3), constraint=dist.constraints.positive)
    with numpyro.plate("surrogate", 3), handlers.scale(scale=weights):
        numpyro.sample("s", dist.Bernoulli(logits=theta[0] * np.ones(3)), obs=np.ones(3))


def test_surrogate_likelihood_dais():
    x = np.array([1.0, 1, 1, 0, 1, 1, 1, 1])
    guide = autoguide.AutoSurrogateLikelihoodDAIS(coins, surrogate, K=2)
    assert falls(trained(coins, guide, Loss(num_samples=4), x, steps=100))


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)], ids=repr)
def test_semi_dais_with_a_subsampled_plate(objective):
    def global_model():
        return numpyro.sample("theta", dist.Normal(0.0, 1.0))

    def local_model(theta):
        with numpyro.plate("data", 4, subsample_size=2) as batch:
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=jax.numpy.asarray(X + 5)[batch])

    def whole():
        local_model(global_model())

    base = autoguide.AutoNormal(global_model)
    guide = autoguide.AutoSemiDAIS(whole, local_model, base, K=2)
    if objective == vi.elbo():
        assert falls(trained(whole, guide, Loss(num_samples=2), steps=100))
    else:
        with pytest.warns(UserWarning, match="summed inside a nonlinear function"):
            assert falls(trained(whole, guide, Loss(objective), steps=100))


@pytest.mark.parametrize("make", [autoguide.AutoDiagonalNormal, autoguide.AutoMultivariateNormal])
def test_a_guide_that_joins_sites_of_a_plate(make):
    def in_a_plate():
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jax.numpy.asarray([0.5, -1.0, 2.0]))

    assert falls(trained(in_a_plate, make(in_a_plate), Loss(num_samples=4), steps=100))
