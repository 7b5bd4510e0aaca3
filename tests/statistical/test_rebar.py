"""Control variates that are made of relaxations and networks: unbiased, and learned along the right gradient."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import NumPyroWords, PyroWords, Renamed
from tests.statistical.test_categorical import BOUNDS
from tests.statistical_cases import (
    LocalBernoulli,
    Mixture,
    ShiftedMixture,
    SubsampledBernoulli,
    exact,
    expectation,
)
from vi_kit.estimators import rebar


def network(lib, size=1):
    """A network of `size` inputs that is not linear."""
    if lib.name == "pyro":
        import torch

        torch.manual_seed(0)
        layers = torch.nn.Linear(size, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        return torch.nn.Sequential(*layers).double()
    import flax.linen as nn
    import jax.numpy as jnp

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))
            return nn.Dense(1, param_dtype=jnp.float64)(x)

    return Network()


CONTROLS = {
    "rebar": lambda lib, size=1: vi.Rebar(),
    "relax": lambda lib, size=1: vi.Relax(network(lib, size)),
    "network": lambda lib, size=1: vi.Relax(network(lib, size), scale=None),
}


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_bernoulli_sites_in_a_plate(bound, control, lib, request):
    objective, num_copies, fn = BOUNDS[bound]

    def value(theta):
        return sum(expectation(q, num_copies, fn, w) for q, w in LocalBernoulli.tables(theta))

    loss = lib.Loss(objective, CONTROLS[control](lib), num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(value, LocalBernoulli.values))


@pytest.mark.parametrize("control", CONTROLS)
def test_minibatches(control, lib, request):
    loss = lib.Loss(vi.elbo(), CONTROLS[control](lib), num_samples=1000)
    draws = SubsampledBernoulli(lib).gradients(loss, 200, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(LocalBernoulli, 1))


VALUES = np.array([0.7, -0.4, 0.2])
WEIGHTS = np.array([1.0, -1.5, 0.5])
BITS = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def code(lib):
    """Three bits in one event."""
    zeros, weights = lib.array(np.zeros(3)), lib.array(WEIGHTS)

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(logits=zeros).to_event(1))
        lib.sample("x", lib.dist.Normal((b * weights).sum(-1), 0.5), obs=lib.array(1.0))

    def guide():
        lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(VALUES)).to_event(1))

    return model, guide


def worth_of_codes(theta):
    log_q = oracles.log_bernoulli(theta, BITS).sum(-1)
    log_p = 3 * np.log(0.5) + oracles.log_normal(1.0, BITS @ WEIGHTS, 0.5)
    return log_q, log_p - log_q


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_one_event_of_several_bits(bound, control, lib, request):
    objective, num_copies, fn = BOUNDS[bound]
    loss = lib.Loss(objective, CONTROLS[control](lib, 3), num_samples=1000)
    draws = lib.gradients(loss, *code(lib), VALUES, 40, oracles.seed_of(request.node.name))

    def value(theta):
        log_q, log_w = worth_of_codes(theta)
        return expectation(log_q, num_copies, fn, log_w)

    oracles.check_unbiased(draws, -oracles.gradient(value, VALUES))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("objective", ["log_variance", "wake_sleep"])
def test_where_the_guide_is_held(objective, control, lib, request):
    """Pyro took what the control variate learns for a parameter that had been computed before the step."""
    bound = {"log_variance": vi.log_variance, "wake_sleep": vi.wake_sleep}[objective]
    loss = lib.Loss(bound(num_particles=2), CONTROLS[control](lib, 3), num_samples=1000)
    draws = lib.gradients(loss, *code(lib), VALUES, 40, oracles.seed_of(request.node.name))
    held, log_w = worth_of_codes(VALUES)
    held, weight = np.exp(held), np.exp(log_w - log_w.max())

    def value(theta):
        log_q, log_w = worth_of_codes(theta)
        if objective == "log_variance":
            return 0.5 * held @ (log_w - held @ log_w) ** 2
        of_pair = log_q[:, None] * weight[:, None] + log_q * weight
        return -held @ (of_pair / (weight[:, None] + weight)) @ held

    oracles.check_unbiased(draws, oracles.gradient(value, VALUES))


@pytest.mark.parametrize("control", ["rebar", "relax"])
@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_one_hot_values_in_pyro(bound, control, request):
    lib = PyroWords()
    objective, num_copies, fn = BOUNDS[bound]
    weights, zeros = lib.array(WEIGHTS), lib.array(np.zeros(3))

    def model():
        z = lib.sample("z", lib.dist.OneHotCategorical(logits=zeros))
        lib.sample("x", lib.dist.Normal((z * weights).sum(-1), 0.5), obs=lib.array(1.0))

    def guide():
        lib.sample("z", lib.dist.OneHotCategorical(logits=lib.theta(VALUES)))

    def value(theta):
        log_q = theta - np.log(np.exp(theta).sum())
        log_w = oracles.log_normal(1.0, WEIGHTS, 0.5) - np.log(3) - log_q
        return expectation(log_q, num_copies, fn, log_w)

    loss = lib.Loss(objective, CONTROLS[control](lib, 3), num_samples=1000)
    draws = lib.gradients(loss, model, guide, VALUES, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, -oracles.gradient(value, VALUES))


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("above", [None, "score", "measure"])
def test_categorical_sites_by_a_network(above, num_particles, lib, request):
    case = Mixture if above is None else ShiftedMixture
    first = {"score": vi.Score(vi.LeaveOneOut()), "measure": vi.MeasureValued()}.get(above)
    estimators = {"z": CONTROLS["network"](lib, 3)} | ({"m": first} if first else {})
    objective = vi.elbo() if num_particles == 1 else vi.iwae(num_particles=2)
    loss = lib.Loss(objective, estimators, num_samples=1000)
    draws = case(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    oracles.check_unbiased(draws, exact(case, num_particles))


CHAIN = np.array([0.4, -0.6, 0.9, 0.3])


def chain(lib, below):
    """A bit, and given it a Normal value or another bit. theta: logits or locations."""
    half = lib.array(0.5)

    def second(b, theta):
        at = theta[1] + theta[2] * b
        return lib.dist.Normal(at, 0.6) if below == "normal" else lib.dist.Bernoulli(logits=at)

    def model():
        theta = lib.theta(CHAIN)
        b = lib.sample("b", lib.dist.Bernoulli(probs=half))
        prior = lib.dist.Normal(0.5 * b, 1.0) if below == "normal" else lib.dist.Bernoulli(half)
        c = lib.sample("c", prior)
        lib.sample("x", lib.dist.Normal(b + theta[3] * c, 0.8), obs=lib.array(1.2))

    def guide():
        theta = lib.theta(CHAIN)
        b = lib.sample("b", lib.dist.Bernoulli(logits=theta[0]))
        lib.sample("c", second(b, theta))

    return model, guide


def bound_of_chain(theta, below, num_copies, fn):
    log_q, log_w = [], []
    for b in (0.0, 1.0):
        at = theta[1] + theta[2] * b
        if below == "normal":
            c = at + 0.6 * np.arange(-9.0, 9.0, 0.25)
            q = oracles.log_normal(c, at, 0.6)
            mass, prior = q + np.log(0.25 * 0.6), oracles.log_normal(c, 0.5 * b, 1.0)
        else:
            c = np.array([0.0, 1.0])
            mass = q = oracles.log_bernoulli(at, c)
            prior = np.log(0.5)
        of_b = oracles.log_bernoulli(theta[0], b)
        log_q.append(of_b + mass)
        log_p = np.log(0.5) + prior + oracles.log_normal(1.2, b + theta[3] * c, 0.8)
        log_w.append(log_p - q - of_b)
    return expectation(np.concatenate(log_q), num_copies, fn, np.concatenate(log_w))


@pytest.mark.parametrize(
    ("below", "bound"), [("normal", "elbo"), ("normal", "iwae"), ("bernoulli", "elbo")]
)
def test_a_site_below(below, bound, lib, request):
    """The control variate is differentiated through what is drawn, or summed, given the relaxed value."""
    objective, num_copies, fn = BOUNDS[bound]
    estimators = {"b": vi.Rebar(), "c": vi.Reparam() if below == "normal" else vi.Enumerate()}
    loss = lib.Loss(objective, estimators, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *chain(lib, below), CHAIN, 40, seed)
    oracles.check_unbiased(
        draws, -oracles.gradient(lambda t: bound_of_chain(t, below, num_copies, fn), CHAIN)
    )


@pytest.mark.parametrize("control", CONTROLS)
def test_a_site_above(control, lib, request):
    loss = lib.Loss(vi.elbo(), {"b": vi.Score(), "c": CONTROLS[control](lib)}, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    draws = lib.gradients(loss, *chain(lib, "bernoulli"), CHAIN, 40, seed)
    value, (_, num_copies, fn) = bound_of_chain, BOUNDS["elbo"]
    oracles.check_unbiased(
        draws, -oracles.gradient(lambda t: value(t, "bernoulli", num_copies, fn), CHAIN)
    )


@pytest.mark.parametrize(
    ("bound", "below"), [("elbo", vi.Score()), ("elbo", vi.Rebar()), ("iwae", vi.Enumerate())]
)
def test_a_score_below_is_refused(bound, below, lib):
    loss = lib.Loss(BOUNDS[bound][0], {"b": vi.Rebar(), "c": below})
    text = rf"site 'b': Rebar\(\) with {type(below).__name__}\(\) at site 'c', which is drawn given"
    with pytest.raises(vi.EstimatorError, match=text):
        lib.gradients(loss, *chain(lib, "bernoulli"), CHAIN, 1, 0)


# What is learned

OWN = {
    "rebar": (lambda lib: vi.Rebar(), {"scale": 1.0, "log_temperature": np.log(0.5)}),
    "constant": (lambda lib: vi.Score(vi.LearnedConstant(0.3)), {"constant": 0.3}),
}


def gradients_with(lib, loss, case, names):
    """From values of what is learned to the gradients of that and of the parameters `names`, at equal noise."""
    model, guide = case(Renamed(lib, names[0])).model, case(Renamed(lib, names[-1])).guide
    if lib.name == "pyro":
        import pyro
        import torch

        def gradients(own):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            for name, value in own.items():
                pyro.param(name, torch.tensor(value, dtype=torch.float64))
            loss.loss_and_grads(model, guide)
            return {n: p.grad.numpy() for n, p in pyro.get_param_store()._params.items()}

        return gradients
    import jax

    @jax.jit
    @jax.grad
    def gradients(params):
        return loss.loss_with_mutable_state(jax.random.key(1), params, model, guide)["loss"]

    theta = {n: lib.array(case.values) for n in names}
    return lambda own: gradients(theta | {n: lib.array(v) for n, v in own.items()})


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("bound", ["elbo", "iwae", "split"])
def test_the_gradient_of_what_is_learned(bound, own, lib):
    """It is that of the squared norm of the guide's gradient, at equal noise."""
    make, start = OWN[own]
    start = {f"vi_kit.{name}.z": value for name, value in start.items()}
    split = bound == "split"
    names = ("of_model", "of_guide") if split else ("theta",)
    objective = vi.piwae(num_outer=2, num_inner=2) if split else BOUNDS[bound][0]
    gradients = gradients_with(lib, lib.Loss(objective, make(lib)), LocalBernoulli, names)
    found = gradients(start)
    for name, value in start.items():
        up, down = (
            (gradients({**start, name: value + step})[names[-1]] ** 2).sum()
            for step in (1e-5, -1e-5)
        )
        slope = (up - down) / 2e-5
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(found[name], slope, rtol=1e-5)


BADLY_STARTED = {
    "rebar": vi.Rebar(temperature=1.0, scale=-0.5),
    "constant": vi.Score(vi.LearnedConstant(2.0)),
}


@pytest.mark.parametrize("estimator", BADLY_STARTED)
def test_variance_falls(estimator, lib):
    """What is learned moves along its gradient, and that of the guide gets less noisy."""
    loss = lib.Loss(vi.elbo(), BADLY_STARTED[estimator], num_samples=20)
    before, after = spread_around_training(lib, loss, LocalBernoulli(lib))
    assert after < 0.5 * before


PHASES = ((200, 0.0), (400, 0.5), (200, 0.0))
"""Numbers of steps, and the learning rates of what is learned."""


def spread_around_training(lib, loss, case):
    """Variance of the guide's gradient in the first and the last phase, with `theta` fixed."""
    draws = []
    if lib.name == "pyro":
        import pyro
        import torch

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        for num_steps, rate in PHASES:
            for _ in range(num_steps):
                loss.loss_and_grads(case.model, case.guide)
                leaves = dict(pyro.get_param_store()._params)
                draws.append(leaves["theta"].grad[:3].numpy().copy())
                with torch.no_grad():
                    for name, p in leaves.items():
                        p -= (rate if name != "theta" else 0.0) * p.grad
                        p.grad.zero_()
    else:
        import jax
        from numpyro import handlers

        guide = loss.with_state(case.guide)
        with handlers.trace() as trace, handlers.seed(rng_seed=0):
            guide()
        params = {n: lib.array(s["value"]) for n, s in trace.items() if s["type"] == "param"}

        @jax.jit
        def step(params, key, rate):
            def value(params):
                return loss.loss_with_mutable_state(key, params, case.model, guide)["loss"]

            grads = jax.grad(value)(params)
            moved = {n: p - rate * grads[n] for n, p in params.items()}
            return {**moved, "theta": params["theta"]}, grads["theta"][:3]

        rates = [rate for num_steps, rate in PHASES for _ in range(num_steps)]
        for key, rate in zip(jax.random.split(jax.random.key(0), len(rates)), rates, strict=True):
            params, gradient = step(params, key, rate)
            draws.append(np.asarray(gradient))
    draws = np.array(draws)
    return [part.var(axis=0).sum() for part in (draws[: PHASES[0][0]], draws[-PHASES[-1][0] :])]


def test_nowhere_to_learn_in_numpyro():
    """Without room for them, scale and temperature stay what they are, and it says so."""
    import jax

    lib = NumPyroWords()
    case, params = LocalBernoulli(lib), {"theta": lib.array(LocalBernoulli.values)}

    def trace(estimator):
        """What is missing is known before anything is computed."""
        loss, key = lib.Loss(vi.elbo(), estimator), jax.random.key(0)
        programs = case.model, case.guide
        jax.eval_shape(lambda p: loss.loss_with_mutable_state(key, p, *programs)["loss"], params)

    with pytest.warns(UserWarning, match=r"nowhere to keep 'vi_kit.*it is not learned"):
        trace(vi.Rebar())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(vi.Rebar(learn=False))


# Mistakes


@pytest.mark.parametrize("control", ["rebar", "network"])
def test_a_control_variate_with_a_gradient_is_rejected(control, lib, request, monkeypatch):
    """One that leaves out how the value given the draw moves has a mean of its own."""
    given = rebar.given_the_largest

    def held(probs, *rest):
        return given(lib.detach(probs), *rest)

    monkeypatch.setattr(rebar, "given_the_largest", held)
    loss = lib.Loss(vi.elbo(), CONTROLS[control](lib), num_samples=1000)
    draws = LocalBernoulli(lib).gradients(loss, 60, oracles.seed_of(request.node.name))
    assert oracles.largest_z(draws, exact(LocalBernoulli, 1)) >= 8


def test_refusals(lib):
    case = Mixture(lib)
    with pytest.raises(vi.ObjectiveError, match="Rebar: the temperature must be positive"):
        vi.Rebar(temperature=0.0)
    with pytest.raises(vi.ObjectiveError, match="Rebar: it needs a scale"):
        vi.Rebar(scale=None)
    with pytest.raises(vi.EstimatorError, match="needs Bernoulli or OneHotCategorical elements"):
        case.gradients(lib.Loss(vi.elbo(), {"z": vi.Rebar()}), 1, 0)
    relax = vi.Relax(network(lib, 3))
    with pytest.raises(vi.EstimatorError, match="with scale=None it does without"):
        case.gradients(lib.Loss(vi.elbo(), {"z": relax}), 1, 0)


def test_a_network_that_is_no_module_in_pyro():
    lib = PyroWords()
    loss = lib.Loss(vi.elbo(), vi.Relax(lambda z: z[..., 0], scale=None))
    with pytest.raises(vi.EstimatorError, match="must be a module\n  got:      function"):
        LocalBernoulli(lib).gradients(loss, 1, 0)
