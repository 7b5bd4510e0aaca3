"""A model given as an unnormalised log density: the same gradient, draw by draw, as of the model itself."""

import re

import numpy as np
import pytest

import vi_kit as vi

VALUES = np.array([0.2, -0.1, -0.6, -0.3])
X = np.array([0.9, 1.6])
OBJECTIVES = {
    "elbo": vi.elbo(),
    "iwae": vi.iwae(num_particles=3),
    "renyi": vi.renyi(alpha=0.5, num_particles=2),
    "cubo": vi.cubo(order=2.0, num_particles=2),
    "f_divergence": vi.f_divergence(generator=vi.generators.squared_hellinger, num_particles=3),
    "tail_adaptive": vi.tail_adaptive(num_particles=3),
    "log_variance": vi.log_variance(num_particles=3),
    "wake_sleep": vi.wake_sleep(num_particles=2),
}
ESTIMATORS = {
    "reparam": vi.Reparam(),
    "score": vi.Score(vi.LeaveOneOut()),
    "doubly": vi.DoublyReparam(),
}
CASES = [
    (objective, estimator)
    for objective in OBJECTIVES
    for estimator in ESTIMATORS
    if objective != "tail_adaptive" or estimator == "reparam"
]


def model(lib):
    """z ~ Normal(0, 1) twice, x ~ Normal(z, 0.7)."""

    def run():
        z = lib.sample("z", lib.dist.Normal(lib.array([0.0, 0.0]), 1.0).to_event(1))
        lib.sample("x", lib.dist.Normal(z, 0.7).to_event(1), obs=lib.array(X))

    return run


def log_density(lib):
    def fn(z):
        return -0.5 * (z**2 + ((lib.array(X) - z) / 0.7) ** 2).sum(-1)

    return fn


def guide(lib):
    def run():
        theta = lib.theta(VALUES)
        fn = lib.dist.Normal(theta[:2], lib.xp.exp(theta[2:])).to_event(1)
        lib.sample("z", fn)

    return run


@pytest.mark.parametrize(("objective", "estimator"), CASES)
def test_same_gradient_as_of_the_model(objective, estimator, lib):
    loss = lib.Loss(OBJECTIVES[objective], ESTIMATORS[estimator], num_samples=2)
    energy = vi.from_log_density(log_density(lib), event_shape=(2,))
    draws = [lib.gradients(loss, m, guide(lib), VALUES, 2, 0) for m in (model(lib), energy)]
    np.testing.assert_allclose(*draws, rtol=1e-9, atol=1e-9)
    assert np.abs(draws[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (vi.forward_kl(), "cannot draw from"),
        (vi.multi_trace(num_particles=2), "cannot draw from"),
        (
            vi.f_divergence(generator=vi.generators.pearson, num_particles=2, normalized=True),
            "is observed or a factor, and the model is to be normalised",
        ),
    ],
)
def test_objectives_that_need_more_of_a_model(objective, text, lib):
    energy = vi.from_log_density(log_density(lib), event_shape=(2,))
    with pytest.raises(vi.ObjectiveError, match=text):
        lib.gradients(lib.Loss(objective), energy, guide(lib), VALUES, 1, 0)


def test_another_event_shape(lib):
    energy = vi.from_log_density(log_density(lib), event_shape=(3,))
    with pytest.raises(vi.ObjectiveError, match="disagree about its event shape"):
        lib.gradients(lib.Loss(), energy, guide(lib), VALUES, 1, 0)


@pytest.mark.parametrize("shape", [2, (0,), ("a",)])
def test_what_is_not_a_shape(shape):
    with pytest.raises(vi.ObjectiveError, match=re.escape(f"event_shape={shape!r}")):
        vi.from_log_density(lambda z: z, event_shape=shape)


def test_called_where_no_library_runs(lib):
    energy = vi.from_log_density(lambda z: z)
    with pytest.raises((vi.BackendError, NotImplementedError)):
        energy()


def exponential(lib):
    """An unnormalised Gamma(3, 2) density on positive numbers."""
    return vi.from_log_density(
        lambda z: 2 * lib.xp.log(z) - 2 * z, support=lib.dist.constraints.positive
    )


def test_autoguide_in_pyro():
    import pyro
    import torch
    from pyro.infer.autoguide import AutoNormal
    from pyro.infer.autoguide.initialization import init_to_value

    from tests.libraries import PyroWords
    from vi_kit.pyro import Loss

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    energy = exponential(PyroWords())
    guide = AutoNormal(energy, init_loc_fn=init_to_value(values={"z": torch.tensor(1.0)}))
    optim = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.995})
    svi = pyro.infer.SVI(energy, guide, optim, Loss(num_samples=20))
    for _ in range(500):
        svi.step()
    draws = torch.stack([guide()["z"] for _ in range(2000)]).log()
    assert abs(draws.mean().item() - 0.2388) < 0.1  # the mean of log z if log z is Normal


def test_autoguide_in_numpyro():
    import jax
    import optax
    from numpyro.infer import SVI
    from numpyro.infer.autoguide import AutoNormal

    from tests.libraries import NumPyroWords
    from vi_kit.numpyro import Loss

    energy = exponential(NumPyroWords())
    guide = AutoNormal(energy)
    svi = SVI(
        energy, guide, optax.adam(optax.exponential_decay(0.03, 500, 0.1)), Loss(num_samples=20)
    )
    params = svi.run(jax.random.key(0), 500, progress_bar=False).params
    assert abs(params["z_auto_loc"] - 0.2388) < 0.05
