"""Programs that are right are not refused, and what is refused is refused in one sentence."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

VALUES = np.array([0.3])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def support_cases(lib):
    """By name: the model's distribution, the support, and of numbers u: the log density at t(u) and log t'(u)."""
    d, c, one = lib.dist, lib.dist.constraints, lib.array(1.0)

    def affine(loc, scale):
        return [d.transforms.ExpTransform(), d.transforms.AffineTransform(loc, scale)]

    return {
        "positive": (d.Gamma(2 * one, one), c.positive, lambda u: (u - np.exp(u), u)),
        "interval": (
            d.Uniform(one, 3 * one),
            c.interval(1.0, 3.0),
            lambda u: (0 * u, u - 2 * np.log(1 + np.exp(u))),
        ),
        "affine": (d.Gamma(2 * one, one), affine(0.0, 2.0), lambda u: (u - 2 * np.exp(u), u)),
    }


@pytest.mark.parametrize("name", ["positive", "interval", "affine"])
def test_supports_are_judged_by_the_image_of_all_transforms(name, lib):
    prior, support, densities = support_cases(lib)[name]
    transforms = support if isinstance(support, list) else [lib.dist.transforms.biject_to(support)]

    def model():
        lib.sample("z", prior)

    def guide():
        base = lib.dist.Normal(lib.theta(values)[0], 0.3)
        lib.sample("z", lib.dist.TransformedDistribution(base, transforms))

    def loss(theta):
        return -(WEIGHTS * sum(densities(0.3 * NODES + theta[0]))).sum()

    values = np.array([1.5])
    draws = lib.gradients(lib.Loss(), model, guide, values, 300, oracles.seed_of(name))
    oracles.check_unbiased(draws, oracles.gradient(loss, values))


@pytest.mark.parametrize("shift", [False, True])
def test_a_guide_without_bound_is_still_refused(shift, lib):
    def model():
        lib.sample("z", lib.dist.Uniform(lib.array(0.0), 1e9))

    def guide():
        transforms = [lib.dist.transforms.ExpTransform()] * shift
        transforms.append(lib.dist.transforms.AffineTransform(1.0, 2.0))
        base = lib.dist.Normal(lib.theta(VALUES)[0], 1.0)
        lib.sample("z", lib.dist.TransformedDistribution(base, transforms))

    with pytest.raises(vi.ObjectiveError, match="outside the model's support"):
        lib.gradients(lib.Loss(), model, guide, VALUES, 1, 0)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_number_of_values_may_depend_on_a_draw(num_samples, lib):
    """n ~ Categorical, k ~ Binomial(n, p): n is enumerated, k cannot be, and nothing is refused."""
    logits, p = np.array([0.2, -0.4, 0.1]), 0.3

    def programs(probs):
        n = lib.sample("n", lib.dist.Categorical(probs(lib)))
        lib.sample("k", lib.dist.Binomial(n, lib.array(p)))

    def model():
        programs(lambda lib: lib.array(np.full(3, 1 / 3)))

    def guide():
        t = lib.xp.exp(lib.theta(logits))
        programs(lambda lib: t / t.sum())

    def divergence(theta):
        q = np.exp(theta) / np.exp(theta).sum()
        return (q * np.log(q * 3)).sum()

    loss = lib.Loss(num_samples=num_samples)
    if lib.name == "numpyro":
        loss = lib.Loss(estimators={"k": vi.Score()}, num_samples=num_samples)
    draws = lib.gradients(loss, model, guide, logits, 100, oracles.seed_of("binomial"))
    oracles.check_unbiased(draws, oracles.gradient(divergence, logits))


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=3)], ids=str)
@pytest.mark.parametrize("vectorize", [True, False])
def test_programs_without_statements_are_worth_nothing(objective, vectorize, lib):
    def nothing():
        pass

    loss = lib.Loss(objective, num_samples=2, vectorize=vectorize)
    assert lib.value(loss, nothing, nothing, 0) == 0.0
    assert "site" in loss.explain(nothing, nothing)


@vi.objective
def scaled_elbo(model, guide, *, factor, power=1.0):
    z = vi.simulate(guide)
    return factor * power * (vi.log_density(model, z) - z.log_density)


@pytest.mark.parametrize(
    "objective",
    [vi.iwae(num_particles=3), vi.log_variance(num_particles=4), scaled_elbo(factor=2.0)],
    ids=str,
)
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_objectives_and_losses_can_be_pickled_and_copied(objective, copied, lib):
    assert copied(objective) == objective

    def program():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    loss = lib.Loss(objective, {"z": vi.Score(vi.LeaveOneOut())}, num_samples=2)
    lib.gradients(loss, program, program, VALUES, 1, 0)
    assert repr(copied(loss)) == repr(loss)
    lib.gradients(copied(loss), program, program, VALUES, 1, 0)


def test_all_missing_sites_in_one_error(lib):
    def model():
        for t in range(12):
            lib.sample(f"z_{t}", lib.dist.Bernoulli(lib.array(0.5)))

    def guide():
        lib.theta(VALUES)

    with pytest.raises(vi.ObjectiveError) as caught:
        lib.gradients(lib.Loss(), model, guide, VALUES, 1, 0)
    assert str(caught.value).startswith("model sites 'z_0', 'z_1', 'z_2'")
    assert len(str(caught.value).splitlines()) == 4


def test_an_annotation_for_analytic_divergences_is_named(lib):
    """NumPyro's enumerating loss reads it at the site of the model."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0), infer={"kl": "analytic"})
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(1.0))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES)[0], 1.0))

    with pytest.warns(UserWarning, match="'kl'.*vi.Analytic"):
        lib.Loss().explain(model, guide)
    exact = 2 * VALUES[0] - 1.0
    loss = lib.Loss(estimators=vi.Analytic(fallback=vi.Reparam()))
    with pytest.warns(UserWarning, match="'kl'"):
        draws = lib.gradients(loss, model, guide, VALUES, 1, 0)
    assert draws[0, 0] == pytest.approx(exact, rel=1e-10)


def test_the_reference_of_logits_that_are_zero(lib):
    """NumPyro's own log density of a Bernoulli has another gradient there, which made right estimators biased."""

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.zeros(1), "prior")[0]))
        lib.sample("x", lib.dist.Normal(1.0 * z, 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.zeros(1))[0]))

    found = str(vi.check_unbiased(lib.Loss(vi.elbo(), vi.Score()), model, guide))
    assert "exact sum" in found and "BIASED" not in found
