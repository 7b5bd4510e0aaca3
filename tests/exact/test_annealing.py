"""Annealed importance sampling: against one written by hand, and against evidences that are known."""

import itertools
import math

import numpy as np
import pytest
import torch

import vi_kit as vi
from vi_kit.engine.unbounded import Unbounded
from vi_kit.language.annealing import Noise

START = np.array([0.4, -0.3, 0.2])
DATA = np.array([0.3, -1.2, 2.0])
KERNELS = {"langevin": vi.Langevin(0.1), "hamiltonian": vi.Hamiltonian(0.2, num_leapfrog=2)}
NUM_STEPS = 4


def noise(*shape):
    """Other numbers for another shape."""
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape)


@pytest.fixture
def known_noise(monkeypatch, lib):
    """All noise is that of `noise`, whoever asks for it."""

    def rsample(self, *args, **others):
        return self.loc + self.scale * lib.array(noise(*np.shape(self.loc)))

    if lib.name == "pyro":
        import vi_kit.pyro.backend as backend

        monkeypatch.setattr(torch.distributions.Normal, "rsample", rsample)
        owner = backend.PyroBackend
    else:
        import vi_kit.numpyro.backend as backend

        monkeypatch.setattr(lib.dist.Normal, "sample", rsample)
        owner = backend.NumPyroBackend
    monkeypatch.setattr(
        owner, "standard_normal", lambda self, shape, like: lib.array(noise(*shape))
    )


def two_sites(lib):
    """A vector and a positive number."""

    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        s = lib.sample("s", lib.dist.Gamma(lib.array(2.0), 1.5))
        with lib.plate("n", 3):
            lib.sample("x", lib.dist.Normal(w[..., 0] + s, 0.5), obs=lib.array(DATA))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[:2], 0.7).to_event(1))
        lib.sample("s", lib.dist.LogNormal(theta[2], lib.array(0.4)))

    return model, guide


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def by_hand(theta, kernel, step_size, increments, damping):
    """The log weight of the one draw, in coordinates `(w, log s)`."""
    data, dims = torch.tensor(DATA), (2, 1)

    def log_q(u):
        return normal(u[:2], theta[:2], 0.7).sum() + normal(u[2], theta[2], 0.4)

    def log_p(u):
        s = u[2].exp()
        of_s = 2.0 * math.log(1.5) + s.log() - 1.5 * s + u[2]
        return normal(u[:2], 0.0, 1.0).sum() + of_s + normal(data, u[0] + s, 0.5).sum()

    def joined(lead):
        parts = [noise(*lead, 2), noise(*lead)[..., None]]
        return torch.tensor(np.concatenate(parts, axis=-1))

    scales = torch.tensor([0.7, 0.7, 0.4])
    u = theta + scales * joined(())
    log_w, betas = -log_q(u), increments.cumsum(0)[:-1]
    fresh = joined((NUM_STEPS,))
    assert fresh.shape == (NUM_STEPS, sum(dims))
    momenta = joined(())
    for beta, e in zip(betas, fresh, strict=True):

        def force(u, beta=beta):
            u = u + torch.zeros_like(u).requires_grad_()
            value = (1 - beta) * log_q(u) + beta * log_p(u)
            return torch.autograd.grad(value, u, create_graph=True)[0]

        if isinstance(kernel, vi.Langevin):
            scale = (2 * step_size).sqrt()
            new = u + step_size * force(u) + scale * e
            log_w = log_w + _normal(u, new + step_size * force(new), scale)
            log_w = log_w - _normal(new, u + step_size * force(u), scale)
            u = new
        else:
            momenta = damping * momenta + (1 - damping**2).sqrt() * e
            log_w = log_w + 0.5 * (momenta**2).sum()
            for _ in range(kernel.num_leapfrog):
                momenta = momenta + 0.5 * step_size * force(u)
                u = u + step_size * momenta
                momenta = momenta + 0.5 * step_size * force(u)
            log_w = log_w - 0.5 * (momenta**2).sum()
    return log_w + log_p(u)


def _normal(x, loc, scale):
    return (-0.5 * ((x - loc) / scale) ** 2 - scale.log()).sum()


def of_all_parameters(lib, model, guide, loss, schedule):
    """The loss, and its gradients by `theta` and the parameters of the schedule: unconstrained ones in Pyro."""
    if lib.name == "pyro":
        import pyro

        loss.loss(model, guide)
        store = pyro.get_param_store()
        leaves = {name: store._params[name] for name in store}
        for leaf in leaves.values():
            leaf.grad = None
        value = loss.loss_and_grads(model, guide)
        constrain = {n: store._constraints[n] for n in leaves}
        return value, leaves, {n: leaf.grad for n, leaf in leaves.items()}, constrain
    import jax

    params = {"theta": lib.array(START), **{n: lib.array(v) for n, v in schedule.items()}}

    def value(params):
        return loss.loss(jax.random.key(0), params, model, guide)

    value, grads = jax.jit(jax.value_and_grad(value))(params)
    leaves = {n: torch.tensor(np.asarray(v)).requires_grad_() for n, v in params.items()}
    return float(value), leaves, {n: torch.tensor(np.asarray(g)) for n, g in grads.items()}, None


@pytest.mark.parametrize("name", KERNELS)
def test_the_bound_and_all_gradients_are_those_written_by_hand(name, lib, known_noise):
    kernel, (model, guide) = KERNELS[name], two_sites(lib)
    if name == "hamiltonian":
        kernel = vi.Hamiltonian(0.2, num_leapfrog=2)
    posterior = vi.normalize(model, vi.AIS(guide, NUM_STEPS, kernel))
    schedule: dict = {
        "ais.step_size": kernel.step_size,
        "ais.increments": np.full(NUM_STEPS + 1, 1 / (NUM_STEPS + 1)),
    }
    if name == "hamiltonian":
        schedule["ais.damping"] = 0.5
    value, leaves, found, constraints = of_all_parameters(
        lib, model, posterior, lib.Loss(), schedule
    )
    values = leaves
    if constraints is not None:
        values = {n: torch.distributions.transform_to(constraints[n])(x) for n, x in leaves.items()}
    assert leaves.keys() == {"theta", *schedule}
    damping = values.get("ais.damping", torch.tensor(0.0))
    exact = -by_hand(
        values["theta"], kernel, values["ais.step_size"], values["ais.increments"], damping
    )
    np.testing.assert_allclose(value, exact.item(), rtol=1e-9)
    grads = torch.autograd.grad(exact, list(leaves.values()))
    for parameter, grad in zip(leaves, grads, strict=True):
        np.testing.assert_allclose(found[parameter], grad, rtol=1e-7, atol=1e-9, err_msg=parameter)
        assert grad.abs().max() > 1e-3


@vi.objective
def nothing(model, guide):
    """The density of a draw, and the same asked for anew."""
    z = vi.simulate(guide)
    return z.log_density - vi.log_density(guide, z)


@vi.objective
def nothing_held(model, guide):
    """Nothing either, with the score of draws and auxiliary values as its gradient, whose mean is zero."""
    z = vi.simulate(vi.stop_gradient(guide))
    return vi.stop_gradient(z.log_density) - vi.log_density(guide, vi.stop_gradient(z))


@pytest.mark.parametrize("name", KERNELS)
def test_the_density_of_a_draw_of_its_own_is_that_of_the_chain_that_made_it(name, lib):
    model, guide = two_sites(lib)
    posterior = vi.normalize(model, vi.AIS(guide, 2, KERNELS[name]))
    found = lib.estimates(lib.Loss(nothing()), model, posterior, START, 2, 5)
    np.testing.assert_allclose(found, 0.0, atol=1e-7)
    scores = lib.estimates(
        lib.Loss(nothing_held(), num_samples=200), model, posterior, START, 40, 6
    )
    np.testing.assert_allclose(scores[:, 0], 0.0, atol=1e-7)
    scores = scores[:, 1:]
    error = scores.std(0, ddof=1) / np.sqrt(20)
    assert (np.abs(scores.mean(0)) < 5 * error).all() and (error > 1e-3).all()


def counts(lib):
    """A Gamma model of counts, whose evidence and posterior are known, and a guide on the same support."""
    shape, rate, data = 2.0, 1.0, np.array([1.0, 3.0, 2.0])

    def model():
        r = lib.sample("r", lib.dist.Gamma(lib.array(shape), rate))
        with lib.plate("n", 3):
            lib.sample("x", lib.dist.Poisson(r), obs=lib.array(data))

    def guide():
        theta = lib.theta(START)
        lib.sample("r", lib.dist.LogNormal(theta[0], lib.xp.exp(theta[1])))

    def exact():
        lib.sample("r", lib.dist.Gamma(lib.array(shape + data.sum()), rate + 3.0))

    evidence = shape * math.log(rate) - math.lgamma(shape) + math.lgamma(shape + data.sum())
    evidence -= (shape + data.sum()) * math.log(rate + 3.0)
    evidence -= sum(math.lgamma(x + 1.0) for x in data)
    return model, guide, exact, evidence


@vi.objective
def evidence_by_weights(model, guide):
    z = vi.simulate(guide)
    return vi.apply(_exp, vi.log_density(model, z) - z.log_density, plates=[])


def _exp(x):
    return vi.array_namespace(x).exp(x)


@vi.objective
def reciprocal_evidence(model, guide, *, exact):
    z = vi.stop_gradient(vi.simulate(model.running(exact)))
    return vi.apply(_exp, vi.log_density(guide, z) - vi.log_density(model, z), plates=[])


def forget_the_jacobian(monkeypatch):
    old = Unbounded.slope
    monkeypatch.setattr(Unbounded, "slope", lambda *args: 0.0 * old(*args))


def forget_the_kernels(monkeypatch):
    old = Noise.half_squares
    monkeypatch.setattr(Noise, "half_squares", lambda self: [0.0 * x for x in old(self)])


@pytest.mark.parametrize("mutant", [None, forget_the_jacobian, forget_the_kernels])
@pytest.mark.parametrize("name", [*KERNELS, "resampled"])
def test_weights_and_densities_have_no_bias(name, mutant, lib, monkeypatch):
    """Those of one of several draws too, in proportion to their weights."""
    model, guide, exact, evidence = counts(lib)
    if name == "resampled":
        chain = vi.normalize(model, vi.AIS(guide, 1, KERNELS["langevin"], learn=False))
        posterior = vi.normalize(model, vi.SIR(chain, 2))
    else:
        posterior = vi.normalize(model, vi.AIS(guide, 2, KERNELS[name], learn=False))
    if mutant is not None:
        mutant(monkeypatch)
    worst = 0.0
    for objective, wanted in (
        (evidence_by_weights(), math.exp(evidence)),
        (reciprocal_evidence(exact=exact), math.exp(-evidence)),
    ):
        found = lib.estimates(lib.Loss(objective, num_samples=8000), model, posterior, START, 8, 7)
        mean, error = -found[:, 0].mean(), found[:, 0].std(ddof=1) / np.sqrt(8)
        assert error < 0.03 * wanted or mutant is not None
        worst = max(worst, abs(mean - wanted) / error)
        if worst > 8:
            break
    assert worst < 5 if mutant is None else worst > 8, worst


def hierarchy(lib, infer=None):
    """A global and local sites, and sites that only the model has."""

    def model():
        g = lib.sample("g", lib.dist.Gamma(lib.array(2.0), 1.0))
        with lib.plate("n", 3):
            w = lib.sample("w", lib.dist.Normal(lib.array(0.0), g))
            k = lib.sample("k", lib.dist.Bernoulli(lib.array(0.4)), infer=infer or {})
            lib.sample("x", lib.dist.Normal(w + k, 1.0), obs=lib.array(DATA))

    def summed():
        g = lib.sample("g", lib.dist.Gamma(lib.array(2.0), 1.0))
        with lib.plate("n", 3):
            w = lib.sample("w", lib.dist.Normal(lib.array(0.0), g))
            parts = [
                lib.dist.Normal(w + k, 1.0).log_prob(lib.array(DATA)) + math.log(p)
                for k, p in ((0.0, 0.6), (1.0, 0.4))
            ]
            lib.factor("x", lib.xp.logaddexp(*parts))

    def guide():
        theta = lib.theta(START)
        lib.sample("g", lib.dist.LogNormal(theta[2], 0.5))
        with lib.plate("n", 3):
            lib.sample("w", lib.dist.Normal(theta[0] * lib.array(DATA), lib.xp.exp(theta[1])))

    return model, summed, guide


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)])
def test_sites_of_the_model_that_are_summed_out(objective, lib):
    model, summed, guide = hierarchy(lib, {"enumerate": "parallel"})
    algorithm = vi.AIS(guide, 3, vi.Langevin(0.05))
    found, exact = (
        lib.estimates(lib.Loss(objective), m, vi.normalize(m, algorithm), START, 1, 4)
        for m in (model, summed)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def local(lib, size, factor=1, data=1.3, scale=1.0):
    """All sites in a plate, of which a minibatch is seen; all data are alike."""

    def program(is_model):
        theta = None if is_model else lib.theta(START)
        with lib.plate("n", factor * size, size if factor > 1 else None):
            if is_model:
                w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(size)), 1.0))
                x = lib.array(np.full(size, data))
                lib.sample("x", lib.dist.Normal(w * w, 1.0), obs=x)
            else:
                loc = theta[0] + lib.array(np.zeros(size))
                lib.sample("w", lib.dist.Normal(loc, lib.xp.exp(theta[1])))

    return (lambda: program(True)), (lambda: program(False))


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)])
def test_a_minibatch_of_local_sites(objective, lib, known_noise):
    """Each element has a chain of its own, and a bound of its own, which is scaled."""
    estimates = []
    for factor in (1, 2):
        model, guide = local(lib, 3, factor)
        posterior = vi.normalize(model, vi.AIS(guide, 2, vi.Langevin(0.05)))
        loss = lib.Loss(objective)
        estimates.append(lib.estimates(loss, model, posterior, START, 1, 4))
    np.testing.assert_allclose(estimates[1], 2 * estimates[0], rtol=1e-9)
    assert np.abs(estimates[0][:, 1:]).max() > 1e-2


def with_a_parameter(lib):
    """A model with a parameter of its own."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.theta(START, "mu")[0], 1.0))
        lib.sample("x", lib.dist.Normal(z, 0.5), obs=lib.array(1.2))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(START)[0], lib.array(0.7)))

    return model, guide


def test_parameters_of_the_target_are_the_models(lib):
    """Where gradients are split, that by the model's parameters is one of the model's bound, along the chain too."""
    model, guide = with_a_parameter(lib)
    objective = vi.piwae(num_outer=2, num_inner=2)
    posterior, step = vi.normalize(model, vi.AIS(guide, 1)), np.array([1e-4, 0.0, 0.0])
    one, other = (
        lib.estimates(lib.Loss(objective), model, posterior, values, 1, 3, ("mu",))[0]
        for values in (START - step, START + step)
    )
    slope = (other[0] - one[0]) / 2e-4
    np.testing.assert_allclose((one[1] + other[1]) / 2, slope, rtol=1e-6)
    assert abs(slope) > 0.1


def test_weights_by_densities_that_are_asked_for_anew(lib):
    """Those of a chain are those with which it was drawn; with equal weights the bound is the ELBO."""
    model, guide = with_a_parameter(lib)
    algorithm = vi.AIS(guide, 2, vi.Langevin(0.1))
    path, total = (
        lib.estimates(lib.Loss(o, num_samples=1000), model, posterior, START, 20, 3)[:, :2]
        for posterior in [vi.normalize(model, algorithm)]
        for o in (vi.tail_adaptive(num_particles=1, beta=0.0), vi.elbo())
    )
    error = np.hypot(path.std(0, ddof=1), total.std(0, ddof=1)) / np.sqrt(20)
    assert (abs(path.mean(0) - total.mean(0)) < 5 * error).all() and (error < 0.03).all()
    for guided in (
        vi.normalize(model, vi.SIR(guide, 2)),
        vi.marginal(guide, ["z"], vi.ImportanceSampling(2)),
    ):
        with pytest.raises(vi.ObjectiveError, match="which the guide estimates by other particles"):
            lib.estimates(lib.Loss(vi.tail_adaptive(3)), model, guided, START, 1, 3)


def test_refusals(lib):
    model, _, guide = hierarchy(lib, {"enumerate": "parallel"})

    def value(model, guide, estimators=None):
        posterior = vi.normalize(model, vi.AIS(guide, 2))
        return lib.estimates(lib.Loss(vi.elbo(), estimators), model, posterior, START, 1, 0)

    with pytest.raises(vi.EstimatorError, match=r"\['w'\] are not reparameterised"):
        value(model, guide, {"w": vi.Score()})

    def discrete():
        lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(START)[0]))

    with pytest.raises(vi.EstimatorError, match="are discrete, and a chain moves") as error:
        value(discrete, discrete)
    assert "vi.marginal" in str(error.value) and "marginalize" in str(error.value)

    def scaled():
        with lib.handlers.scale(scale=0.5):
            guide()

    with pytest.raises(vi.ObjectiveError, match="its log density is scaled or masked"):
        value(model, scaled)
    with pytest.raises(vi.ObjectiveError, match="'k' is not in the draw"):
        value(hierarchy(lib)[0], guide)

    def minibatch(is_model):
        w = lib.sample("w", lib.dist.Normal(lib.theta(START)[0], 1.0))
        with lib.plate("n", 6, 3):
            if is_model:
                lib.sample("x", lib.dist.Normal(w, 1.0), obs=lib.array(DATA))

    with pytest.raises(vi.ObjectiveError, match="given a minibatch of plate"):
        value(lambda: minibatch(True), lambda: minibatch(False))

    def kinked():
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("x", lib.dist.Normal(lib.xp.abs(w), 0.5), obs=lib.array(0.2))

    def simple():
        lib.sample("w", lib.dist.Normal(lib.theta(START)[0], 1.0))

    with pytest.raises(vi.EstimatorError, match="not reparameterised"):
        value(kinked, simple)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: vi.AIS(None, 3), "the proposal is no program"),
        (lambda: vi.AIS(vi.marginal(len, ["z"], vi.Exact()), 3), "is a marginal by Exact itself"),
        (lambda: vi.AIS(vi.normalize(len, vi.AIS(len, 2)), 3), "is a posterior by AIS itself"),
        (lambda: vi.SIR(vi.normalize(len, vi.SIR(len, 2)), 3), "whose draws are several values"),
        (lambda: vi.SMC(vi.normalize(len, vi.AIS(len, 2)), 3), "which has no steps"),
        (lambda: vi.SMC(len, 3, biased="x"), "biased is True or False"),
        (lambda: vi.AIS(len, 2, vi.Langevin), "no kernel"),
        (lambda: vi.AIS(len, 1, betas=(0.5,), learn=("betas",)), "betas cannot be learned"),
        (lambda: vi.AIS(len, 1, vi.Langevin(0.1), learn="damping"), "damping cannot be learned"),
        (lambda: vi.AIS(len, 0), "num_steps"),
        (lambda: vi.AIS(len, 3, kernel=0.1), "no kernel"),
        (lambda: vi.AIS(len, 3, betas=[0.5, 0.4, 1.0]), "betas are the powers"),
        (lambda: vi.AIS(len, 3, betas=[0.5, 1.0]), "betas are the powers"),
        (lambda: vi.AIS(len, 3, vi.Langevin([0.1, 0.1])), "as many step sizes as steps"),
        (lambda: vi.AIS(len, 3, learn="beta"), "learn takes names"),
        (lambda: vi.Langevin(0.0), "step_size takes positive numbers"),
        (lambda: vi.Hamiltonian(0.1, 0), "num_leapfrog"),
        (lambda: vi.Hamiltonian(0.1, damping=1.0), "damping is which part"),
    ],
)
def test_settings(make, match):
    with pytest.raises(vi.ObjectiveError, match=match):
        make()


def banana(lib):
    """Two coordinates, one of them a curve of the other, and a guide without curves."""

    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(2)), 1.0).to_event(1))
        bend = w[..., 1] - 1.2 * w[..., 0] ** 2
        lib.sample("x", lib.dist.Normal(bend, 0.6), obs=lib.array(-1.5))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[:2], 0.8).to_event(1))

    z = np.linspace(-8, 8, 4001)  # the second coordinate in closed form
    inner = normal(-1.5 + 1.2 * z**2, 0.0, math.sqrt(1 + 0.36))
    evidence = np.log(np.exp(inner + normal(z, 0.0, 1.0)).sum() * (z[1] - z[0]))
    return model, guide, evidence


@pytest.mark.parametrize("name", KERNELS)
def test_more_steps_are_tighter_and_bounds_bracket_the_evidence(name, lib):
    model, guide, evidence = banana(lib)
    kernel = vi.Langevin(0.03) if name == "langevin" else vi.Hamiltonian(0.2)
    loss, bounds = lib.Loss(vi.elbo(), num_samples=1000), []
    for num_steps in (0, 3, 12):
        program = guide
        if num_steps:
            program = vi.normalize(model, vi.AIS(guide, num_steps, kernel, learn=False))
        draws = -lib.estimates(loss, model, program, START, 4, 3)[:, 0]
        bounds.append((draws.mean(), draws.std(ddof=1) / 2))
    for (one, error), (other, _) in itertools.pairwise(bounds):
        assert other > one + 4 * error
    assert bounds[-1][0] < evidence
    upper = lib.estimates(lib.Loss(vi.eubo(num_particles=1000)), model, program, START, 4, 3)[:, 0]
    assert evidence < upper.mean() < evidence + (evidence - bounds[-1][0]) * 2


def trained(lib, model, guide, num_steps, num_samples):
    """The first and the last bounds of some steps of SVI, and the parameters."""
    loss = lib.Loss(num_samples=num_samples)
    if lib.name == "pyro":
        import pyro

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
        losses = np.array([svi.step() for _ in range(num_steps)])
        params = {name: pyro.param(name).detach() for name in pyro.get_param_store()}
    else:
        import jax
        import numpyro
        import optax

        svi = numpyro.infer.SVI(model, guide, optax.adam(0.03), loss)
        result = svi.run(jax.random.key(0), num_steps, progress_bar=False)
        losses, params = np.asarray(result.losses), result.params
    return -losses[:10].mean(), -losses[-10:].mean(), params


@pytest.mark.parametrize("autoguide", ["AutoNormal", "AutoMultivariateNormal"])
def test_a_learned_schedule_over_an_autoguide(autoguide, lib):
    """Of which some draw an auxiliary site that determines those of the model, on bounded supports."""
    model, _, _, evidence = counts(lib)
    if lib.name == "pyro":
        from pyro.infer import autoguide as of_library
    else:
        from numpyro.infer import autoguide as of_library
    algorithm = vi.AIS(getattr(of_library, autoguide)(model), 3, vi.Hamiltonian(0.02))
    first, last, params = trained(lib, model, vi.normalize(model, algorithm), 60, 20)
    assert first + 0.05 < last < evidence + 0.05
    betas = np.cumsum([float(x) for x in params["ais.increments"]])
    assert np.isclose(betas[-1], 1.0) and (np.diff(betas) > 0).all()
    assert float(params["ais.step_size"]) > 0.021


def test_a_fixed_schedule_has_no_parameters(lib):
    model, guide = two_sites(lib)
    algorithm = vi.AIS(guide, 2, vi.Langevin((0.1, 0.05)), betas=(0.5, 1.0), learn=False)
    _, last, params = trained(lib, model, vi.normalize(model, algorithm), 11, 1)
    assert set(params) == {"theta"} and np.isfinite(last)


def test_gradients_that_jump_are_refused(lib):
    """Of the functions and the distributions of a library, too."""
    if lib.name == "pyro":
        import torch

        leaky, clipped, elu = (
            torch.nn.functional.leaky_relu,
            torch.nn.functional.hardsigmoid,
            torch.nn.functional.elu,
        )
    else:
        import jax

        leaky, clipped, elu = (
            jax.nn.leaky_relu,
            lambda z: jax.numpy.clip(z, 0.0, 1.0),
            jax.nn.elu,
        )

    def programs(prior, mean):
        def model():
            z = lib.sample("z", prior)
            lib.sample("x", lib.dist.Normal(mean(z), 1.0), obs=lib.array(0.5))

        def guide():
            lib.sample("z", lib.dist.Normal(lib.array(0.3), 0.8))

        return model, vi.normalize(model, vi.AIS(guide, 1, vi.Langevin(0.3)))

    normal, laplace = (kind(lib.array(0.0), 0.5) for kind in (lib.dist.Normal, lib.dist.Laplace))
    for prior, mean in ((laplace, elu), (normal, leaky), (normal, clipped)):
        with pytest.raises(vi.EstimatorError, match="nor may a gradient jump"):
            lib.value(lib.Loss(), *programs(prior, mean), 0)
    assert np.isfinite(lib.value(lib.Loss(), *programs(normal, elu), 0))


def test_a_chain_over_the_steps_of_a_scan(lib):
    """In a plate of series, each of which is moved as a whole."""
    if lib.name == "pyro":
        pytest.skip("there is no scan")
    from numpyro.contrib.control_flow import scan

    data = np.array([[0.5, 0.3], [0.9, -0.4], [0.2, 0.1]])

    def program(is_model):
        def step(state, x):
            with lib.plate("n", 2):
                loc, scale = (0.8 * state, 1.0) if is_model else (0.5 * state + 0.4 * x, 0.7)
                z = lib.sample("z", lib.dist.Normal(loc, scale))
                if is_model:
                    lib.sample("x", lib.dist.Normal(z, 0.6), obs=x)
            return z, None

        scan(step, lib.array(np.zeros(2)), lib.array(data))

    model = lambda: program(True)  # noqa: E731
    chain = vi.AIS(lambda: program(False), 1, vi.Langevin(0.1), learn=False)
    loss = lib.Loss(evidence_by_weights(), num_samples=4000)
    found = -lib.estimates(loss, model, vi.normalize(model, chain), START, 8, 7)[:, 0]
    along = np.array([[1.0, 0.0, 0.0], [0.8, 1.0, 0.0], [0.64, 0.8, 1.0]])
    covariance = along @ along.T + 0.36 * np.eye(3)
    squares = (data * np.linalg.solve(covariance, data)).sum()
    exact = math.exp(-0.5 * squares) / np.linalg.det(2 * math.pi * covariance)
    error = found.std(ddof=1) / np.sqrt(8)
    assert abs(found.mean() - exact) < 5 * error < 0.1 * exact


def test_parameters_of_another_number_of_steps(lib):
    model, guide = with_a_parameter(lib)
    longer, shorter = (vi.normalize(model, vi.AIS(guide, n)) for n in (3, 2))
    if lib.name == "pyro":
        lib.value(lib.Loss(), model, longer, 0)
        run = lambda: lib.value(lib.Loss(), model, shorter, 0)  # noqa: E731
    else:
        import jax

        params = {"ais.increments": lib.array(np.full(4, 0.25))}
        run = lambda: lib.Loss().loss(jax.random.key(0), params, model, shorter)  # noqa: E731
    with pytest.raises(
        vi.ObjectiveError, match=r"'ais.increments'.*\n.*\(4,\) kept.*\(3,\)"
    ) as error:
        run()
    assert "clear_param_store" in str(error.value) and "prefix=" in str(error.value)


def test_explain_says_what_a_chain_takes(lib):
    model, guide = with_a_parameter(lib)
    posterior = vi.normalize(model, vi.AIS(guide, 3, vi.Hamiltonian(0.1, 2), prefix="a"))
    text = lib.Loss().explain(model, posterior)
    assert "guide by AIS: 3 steps of Hamiltonian(" in text and "7 gradients" in text
    assert "learned: a.step_size, a.increments, a.damping" in text
