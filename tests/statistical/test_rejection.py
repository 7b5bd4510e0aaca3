"""Paths through acceptance-rejection samplers and standardised values, against quadrature."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from array_api_compat import array_namespace

import vi_kit as vi
from tests import oracles
from tests.conformance import shapes
from tests.conformance.families import FAMILIES, Family, normal_kernel, trapezoid
from tests.conformance.shapes import Hierarchy, Independent, VectorEvent
from tests.libraries import NumPyroWords, PyroWords
from tests.statistical_cases import Case
from vi_kit.estimators.score import ScoredNoise

BOUNDS = {
    "elbo": (vi.elbo(), 1),
    "iwae": (vi.iwae(num_particles=2), 2),
    "miwae": (vi.miwae(num_outer=2, num_inner=2), 2),
}
OF_CONTINUOUS = {
    "rejection": vi.RejectionReparam(),
    "rejection_0": vi.RejectionReparam(0),
    "rejection_loo": vi.RejectionReparam(1, baseline=vi.LeaveOneOut()),
    "generalized": vi.GeneralizedReparam(),
    "generalized_loo": vi.GeneralizedReparam(baseline=vi.LeaveOneOut()),
}


def circle(num_nodes):
    nodes = np.linspace(-np.pi, np.pi, num_nodes, endpoint=False)
    return nodes, np.full(num_nodes, np.log(2 * np.pi / num_nodes))


def student_t_kernel(z, log_df, loc, log_scale):
    df = np.exp(log_df)
    return -(df + 1) / 2 * np.log1p(((z - loc) / np.exp(log_scale)) ** 2 / df)


LOW, HIGH = 0.3, 0.9
OWN = {
    "near_one": dataclasses.replace(FAMILIES["gamma"], guide=(0.35, 0.3)),
    "sparse_gamma": dataclasses.replace(
        FAMILIES["gamma"],
        guide=(-0.6, 0.2),
        prior=(-0.3, 0.1),
        nodes=trapezoid(-70, 5, np.exp, lambda u: u),
    ),
    "chi2": Family(
        build=lambda lib, a: lib.dist.Chi2(lib.xp.exp(a)),
        log_density=lambda z, a: (np.exp(a) / 2 - 1) * np.log(z) - z / 2,
        nodes=trapezoid(-16, 5, np.exp, lambda u: u),
        guide=(1.2,),
        prior=(1.0,),
        slope=0.6,
    ),
    "inverse_gamma": Family(
        build=lambda lib, a, b: lib.dist.InverseGamma(lib.xp.exp(a), lib.xp.exp(b)),
        log_density=lambda z, a, b: -(np.exp(a) + 1) * np.log(z) - np.exp(b) / z,
        nodes=trapezoid(-5, 16, np.exp, lambda u: u),
        guide=(0.8, 0.5),
        prior=(0.6, 0.1),
        feature=lambda z: 1 / z,
    ),
    "student_t": Family(
        build=lambda lib, a, loc, b: lib.dist.StudentT(lib.xp.exp(a), loc, lib.xp.exp(b)),
        log_density=student_t_kernel,
        nodes=trapezoid(-12, 12, np.sinh, lambda u: np.log(np.cosh(u))),
        guide=(1.2, 0.5, -0.3),
        prior=(1.0, -0.2, 0.1),
        feature=lambda z: z / (1 + z**2),
        slope=2.0,
    ),
    "von_mises": Family(
        build=lambda lib, loc, a: lib.dist.VonMises(loc, lib.xp.exp(a)),
        log_density=lambda z, loc, a: np.exp(a) * np.cos(z - loc),
        nodes=circle,
        guide=(0.8, 0.2),
        prior=(-0.5, 0.1),
        feature=lambda z: array_namespace(z).sin(z) - 0.5 * array_namespace(z).cos(z),
        slope=1.5,
    ),
    "left_truncated": Family(
        build=lambda lib, loc, a: lib.dist.TruncatedNormal(loc, lib.xp.exp(a), low=LOW),
        log_density=normal_kernel,
        nodes=trapezoid(-30, 2.2, lambda u: LOW + np.exp(u), lambda u: u),
        guide=(0.1, -0.3),
        prior=(0.6, 0.1),
    ),
    "right_truncated": Family(
        build=lambda lib, loc, a: lib.dist.TruncatedNormal(loc, lib.xp.exp(a), high=HIGH),
        log_density=normal_kernel,
        nodes=trapezoid(-30, 2.2, lambda u: HIGH - np.exp(u), lambda u: u),
        guide=(1.3, -0.3),
        prior=(0.6, 0.1),
    ),
}
ALL = FAMILIES | OWN
CASES = [
    ("gamma", "rejection", "elbo"),
    ("gamma", "rejection", "miwae"),
    ("gamma", "rejection_loo", "iwae"),
    ("gamma", "generalized_loo", "iwae"),
    ("near_one", "rejection_0", "elbo"),
    ("sparse_gamma", "rejection_0", "elbo"),
    ("sparse_gamma", "generalized", "elbo"),
    ("beta", "rejection_0", "iwae"),
    ("beta", "generalized", "iwae"),
    ("dirichlet", "rejection_0", "elbo"),
    ("dirichlet", "generalized", "elbo"),
    ("exponential", "rejection", "elbo"),
    ("chi2", "rejection_0", "iwae"),
    ("inverse_gamma", "rejection_0", "elbo"),
    ("inverse_gamma", "generalized", "elbo"),
    ("student_t", "rejection_0", "iwae"),
    ("von_mises", "rejection", "elbo"),
    ("von_mises", "rejection", "iwae"),
    ("left_truncated", "rejection", "elbo"),
    ("right_truncated", "rejection", "iwae"),
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_families(case, lib, request):
    family, estimator, bound = case
    if "truncated" in family and lib.name == "pyro":
        pytest.skip("Pyro has no TruncatedNormal")
    objective, particles = BOUNDS[bound]
    loss = lib.Loss(objective, OF_CONTINUOUS[estimator], num_samples=1000)
    shape = Independent(ALL[family], sizes=(2,))
    shape.check(lib, loss, particles, 40, oracles.seed_of(request.node.name))


@pytest.mark.parametrize("family", ["student_t", "chi2", "inverse_gamma", "left_truncated"])
def test_implicit(family, lib, request):
    """The libraries' own paths of the families of this file that have one."""
    if "truncated" in family and lib.name == "pyro":
        pytest.skip("Pyro has no TruncatedNormal")
    loss = lib.Loss(vi.elbo(), vi.Reparam(), num_samples=1000)
    shape = Independent(ALL[family], sizes=(2,))
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


def test_no_implicit_path(lib):
    shape = Independent(ALL["von_mises"], sizes=(2,))
    with pytest.raises(vi.EstimatorError, match="VonMises has none"):
        shape.gradients(lib, lib.Loss(vi.elbo(), vi.Reparam()), 1, 0)


def test_a_scalar_site(lib, request):
    loss = lib.Loss(vi.iwae(num_particles=2), vi.RejectionReparam(0), num_samples=1000)
    shape = Independent(ALL["near_one"], sizes=())
    shape.check(lib, loss, 2, 40, oracles.seed_of(request.node.name))


@pytest.mark.parametrize("estimator", ["rejection_0", "generalized"])
def test_an_event_of_several(estimator, lib, request, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    loss = lib.Loss(vi.elbo(), OF_CONTINUOUS[estimator], num_samples=1000)
    shape = VectorEvent(ALL["beta" if estimator == "generalized" else "near_one"])
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


UPSTREAM = {
    "enumerate": vi.Enumerate(),
    "score": vi.Score(vi.LeaveOneOut()),
    "measure": vi.MeasureValued(),
}


@pytest.mark.parametrize(
    ("first", "bound"),
    [("enumerate", "elbo"), ("enumerate", "iwae"), ("score", "iwae"), ("measure", "iwae")],
)
def test_below_a_discrete_site(first, bound, lib, request, monkeypatch):
    """The concentration of the Gamma site depends on its value."""
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    objective, particles = BOUNDS[bound]
    estimators = {"z1": UPSTREAM[first], "z2": vi.RejectionReparam(0)}
    loss = lib.Loss(objective, estimators, num_samples=1000)
    shape = Hierarchy(ALL["bernoulli"], ALL["near_one"], local=True)
    shape.check(lib, loss, particles, 40, oracles.seed_of(request.node.name))


@pytest.mark.parametrize("first", ["enumerate", "measure"])
def test_a_plate_below_a_discrete_site(first, lib, request, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    estimators = {"z1": UPSTREAM[first], "z2": vi.GeneralizedReparam()}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=1000)
    shape = Hierarchy(ALL["bernoulli"], ALL["gamma"], local=False)
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


@pytest.mark.parametrize("second", ["enumerate", "measure"])
def test_above_a_discrete_site(second, lib, request, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    estimators = {"z1": vi.RejectionReparam(0), "z2": UPSTREAM[second]}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=1000)
    shape = Hierarchy(ALL["near_one"], ALL["bernoulli"], local=True)
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


class MovingBound(Case):
    """A Normal truncated from below. theta: mean, log scale and bound of the guide."""

    values = np.array([0.2, -0.4, 0.1])

    def model(self):
        lib = self.lib
        z = lib.sample("z", lib.dist.Normal(0.0, 1.3))
        lib.sample("x", lib.dist.Normal(z, 0.9), obs=lib.array(1.4))

    def guide(self):
        lib, theta = self.lib, self.lib.theta(self.values)
        lib.sample("z", lib.dist.TruncatedNormal(theta[0], lib.xp.exp(theta[1]), low=theta[2]))

    @classmethod
    def bound(cls, theta, num_particles):
        u, step = np.linspace(-30, 2.2, 400, retstep=True)
        z, log_measure = theta[2] + np.exp(u), u + np.log(step)
        log_q = oracles.normalised(normal_kernel(z, theta[0], theta[1]), log_measure)
        log_w = oracles.log_normal(z, 0.0, 1.3) + oracles.log_normal(1.4, z, 0.9) - log_q
        return oracles.expected_bound(log_q + log_measure, log_w, num_particles)


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_a_bound_that_moves(bound, request):
    lib, (objective, particles) = NumPyroWords(), BOUNDS[bound]
    loss = lib.Loss(objective, vi.RejectionReparam(), num_samples=1000)
    draws = MovingBound(lib).gradients(loss, 40, oracles.seed_of(request.node.name))
    exact = -oracles.gradient(lambda t: MovingBound.bound(t, particles), MovingBound.values)
    oracles.check_unbiased(draws, exact)


@pytest.mark.parametrize("estimator", [vi.RejectionReparam(), vi.GeneralizedReparam()], ids=repr)
def test_extreme_concentrations_in_single_precision(estimator):
    """Low ones of a Dirichlet stay finite; the score of the noise of a high one loses nothing to rounding."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from vi_kit.numpyro import Loss

    def model():
        numpyro.sample("y", dist.Dirichlet(jnp.ones(3, jnp.float32)))
        numpyro.sample("z", dist.Gamma(jnp.float32(1.0), jnp.float32(1.0)))

    def guide():
        numpyro.sample("y", dist.Dirichlet(jnp.exp(numpyro.param("low", low))))
        numpyro.sample("z", dist.Gamma(jnp.exp(numpyro.param("high", high)), jnp.float32(1.0)))

    low, high = jnp.full(3, np.log(0.1), jnp.float32), jnp.asarray(np.log(1e5), jnp.float32)

    def loss(params, key):
        return Loss(vi.elbo(), estimator).loss(key, params, model, guide)

    keys = jax.random.split(jax.random.key(0), 10_000)
    params = {"low": low, "high": high}
    draws = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys)
    assert np.isfinite(draws["low"]).all()
    # of E[z] - H[q] it is a - 1/2 but for O(1 / a); the standard error is 1.6
    assert abs(np.mean(draws["high"], dtype=np.float64) - (1e5 - 0.5)) < 10


# Samplers of a user's own


def marsaglia_tsang():
    def proposal(params, noise):
        return noise.normal()

    def transform(eps, params):
        d = params["concentration"] - 1 / 3
        return d * (1 + eps / (9 * d) ** 0.5) ** 3 / params["rate"]

    def log_accept(eps, params):
        xp = vi.array_namespace(eps)
        d = params["concentration"] - 1 / 3
        v = (1 + eps / (9 * d) ** 0.5) ** 3
        inside = v > 0
        v = xp.where(inside, v, xp.ones_like(v))
        return xp.where(inside, 0.5 * eps**2 + d - d * v + d * xp.log(v), -xp.inf)

    return vi.Rejector(proposal, log_accept, transform)


def half_normal(by_transform):
    """Proposals from an exponential distribution; they, or the accepted ones, are scaled."""

    def proposal(params, noise):
        return noise.exponential() * (1 if by_transform else params["scale"])

    def log_accept(eps, params):
        return -0.5 * (eps / (1 if by_transform else params["scale"]) - 1) ** 2

    def transform(eps, params):
        return eps * (params["scale"] if by_transform else 1)

    return vi.Rejector(proposal, log_accept, transform, params=("scale",))


HALF_NORMAL = Family(
    build=lambda lib, a: lib.dist.HalfNormal(lib.xp.exp(a)),
    log_density=lambda z, a: normal_kernel(z, 0.0, a),
    nodes=trapezoid(-30, 2.2, np.exp, lambda u: u),
    guide=(0.2,),
    prior=(-0.2,),
)
REJECTORS = {
    "marsaglia_tsang": (marsaglia_tsang(), OWN["near_one"]),
    "by_transform": (half_normal(True), HALF_NORMAL),
    "by_proposal": (half_normal(False), HALF_NORMAL),
}


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("marsaglia_tsang", "elbo"),
        ("marsaglia_tsang", "iwae"),
        ("by_transform", "elbo"),
        ("by_proposal", "iwae"),
    ],
)
def test_own_samplers(name, bound, lib, request):
    rejector, family = REJECTORS[name]
    objective, particles = BOUNDS[bound]
    loss = lib.Loss(objective, vi.RejectionReparam(rejector=rejector), num_samples=1000)
    shape = Independent(family, sizes=(2,))
    shape.check(lib, loss, particles, 40, oracles.seed_of(request.node.name))


@pytest.mark.parametrize(
    ("name", "first"),
    [("marsaglia_tsang", "enumerate"), ("marsaglia_tsang", "measure"), ("by_proposal", "score")],
)
def test_own_samplers_below_a_discrete_site(name, first, lib, request, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_JOINT_NODES", 120)
    rejector, family = REJECTORS[name]
    estimators = {"z1": UPSTREAM[first], "z2": vi.RejectionReparam(rejector=rejector)}
    loss = lib.Loss(vi.elbo(), estimators, num_samples=1000)
    shape = Hierarchy(ALL["bernoulli"], family, local=True)
    shape.check(lib, loss, 1, 40, oracles.seed_of(request.node.name))


def rejection_gamma(lib, a, b):
    """Pyro's own Gamma with an acceptance-rejection sampler, whose path is half of its gradient."""
    from pyro.distributions.testing.rejection_gamma import RejectionGamma

    return RejectionGamma(lib.xp.exp(a), lib.xp.exp(b))


PYROS_OWN = dataclasses.replace(OWN["near_one"], build=rejection_gamma)


@pytest.mark.parametrize("estimator", [None, vi.RejectionReparam()])
def test_samplers_of_pyro(estimator, request):
    """The default rule does not take them for reparameterised."""
    lib = PyroWords()
    loss = lib.Loss(vi.elbo(), estimator, num_samples=1000)
    seed = oracles.seed_of(request.node.name)
    Independent(PYROS_OWN, sizes=(2,)).check(lib, loss, 1, 60, seed)
    if estimator is not None:
        VectorEvent(PYROS_OWN).gradients(lib, loss, 1, seed)
    with pytest.raises(vi.EstimatorError, match="RejectionGamma has none"):
        Independent(PYROS_OWN).gradients(lib, lib.Loss(vi.elbo(), vi.Reparam()), 1, 0)


# Mistakes


@pytest.mark.parametrize(
    ("family", "estimator", "bound"),
    [
        ("near_one", "rejection_0", "elbo"),
        ("near_one", "rejection_0", "iwae"),
        ("von_mises", "rejection", "elbo"),
        ("gamma", "generalized", "elbo"),
    ],
)
def test_without_the_score_of_the_noise(family, estimator, bound, lib, request, monkeypatch):
    monkeypatch.setattr(ScoredNoise, "contract", lambda self, downstream: downstream.terms)
    objective, particles = BOUNDS[bound]
    loss = lib.Loss(objective, OF_CONTINUOUS[estimator], num_samples=1000)
    shape = Independent(ALL[family], sizes=(2,))
    draws = shape.gradients(lib, loss, 60, oracles.seed_of(request.node.name))
    assert oracles.largest_z(draws, shape.exact(particles)) >= 8


@pytest.mark.parametrize("augmentation", [-1, 1.5, True])
def test_augmentation_is_a_count(augmentation):
    text = "RejectionReparam: augmentation must be a whole number of at least 0"
    with pytest.raises(vi.ObjectiveError, match=text):
        vi.RejectionReparam(augmentation)


@pytest.mark.parametrize(
    ("estimator", "family", "text"),
    [
        (
            vi.RejectionReparam(),
            "normal",
            "no acceptance-rejection sampler for Normal; it has one for Gamma, Chi2, Exponential",
        ),
        (vi.GeneralizedReparam(), "student_t", "no standardised form for StudentT; .* for Gamma"),
        (vi.RejectionReparam(), "bernoulli", "no acceptance-rejection sampler for Bernoulli"),
        (
            vi.RejectionReparam(rejector=marsaglia_tsang()),
            "poisson",
            "needs independent continuous scalars; Poisson has none",
        ),
        (
            vi.RejectionReparam(
                rejector=dataclasses.replace(half_normal(True), params=("scales",))
            ),
            "normal",
            "does not know the parameters of Normal",
        ),
        (
            vi.RejectionReparam(
                rejector=dataclasses.replace(marsaglia_tsang(), proposal=lambda p, noise: p["rate"])
            ),
            "gamma",
            r"has a proposal of shape \(2,\) where the noise has shape \(256, 2\)",
        ),
    ],
)
def test_sites_that_it_cannot_serve(estimator, family, text, lib):
    shape = Independent(ALL[family], sizes=(2,))
    with pytest.raises(vi.EstimatorError, match=text):
        shape.gradients(lib, lib.Loss(vi.elbo(), estimator), 1, 0)


@pytest.mark.parametrize("log_accept", [0.3, np.nan, -np.inf])
def test_acceptance_that_is_no_probability(log_accept, lib):
    """Seen before any gradient where values are known then; else the loss is not a number."""
    if lib.name == "numpyro" and log_accept == -np.inf:
        pytest.skip("nothing is ever accepted, and no one can know")

    def wrong(eps, params):
        return vi.array_namespace(eps).full_like(eps, log_accept)

    rejector = dataclasses.replace(marsaglia_tsang(), log_accept=wrong)
    shape = Independent(ALL["gamma"], sizes=(2,))
    loss = lib.Loss(vi.elbo(), vi.RejectionReparam(rejector=rejector))
    if lib.name == "numpyro":
        assert np.isnan(shape.gradients(lib, loss, 1, 0)).all()
        return
    text = "accepts none" if log_accept == -np.inf else "log_accept above 0"
    with pytest.raises(vi.EstimatorError, match=text):
        shape.gradients(lib, loss, 1, 0)
