"""Guides that put a part of the latent sites at a point have no importance weights."""

from functools import partial

import numpy as np
import pytest

import vi_kit as vi
from tests.workflow.test_to_arviz import groups_of

EVIDENCE = -1 / 6 - 0.5 * np.log(2 * np.pi * 3)
"""log Normal(1 | 0, sqrt(3)): of the model below."""


def model_of(lib):
    def model():
        a = lib.sample("a", lib.dist.Normal(0.0, 1.0))
        s = lib.sample("s", lib.dist.Normal(0.0, 10.0))
        lib.sample("x", lib.dist.Normal(a + 0.1 * s, 1.0), obs=lib.array(np.array(1.0)))

    return model


def point(lib, name, value):
    return lib.sample(name, lib.dist.Delta(value))


def auxiliary(lib, name, fn):
    return lib.sample(name, fn, infer={"is_auxiliary": True})


def joint(lib):
    """The posterior of both sites."""
    loc = lib.array(np.array([1 / 3, 10 / 3]))
    covariance = lib.array(np.array([[2 / 3, -10 / 3], [-10 / 3, 200 / 3]]))
    return auxiliary(lib, "u", lib.dist.MultivariateNormal(loc, covariance))


def by_a_parameter(lib):  # as AutoNormal and AutoDelta
    lib.sample("a", lib.dist.Normal(0.5, 0.5**0.5))
    point(lib, "s", lib.theta(np.array([0.0]))[0])


def of_another_site(lib):
    point(lib, "s", 2 * lib.sample("a", lib.dist.Normal(0.5, 0.5**0.5)))


def beside_auxiliary_values_enough(lib):
    point(lib, "a", joint(lib)[0])
    point(lib, "s", lib.theta(np.array([0.0]))[0])


def at_one_of_some_values(lib):
    lib.sample("a", lib.dist.Normal(0.5, 0.5**0.5))
    row = auxiliary(lib, "row", lib.dist.Categorical(logits=lib.array(np.zeros(3))))
    point(lib, "s", lib.array(np.array([-1.0, 0.0, 1.0]))[row])


def bound(lib, guide):
    return lambda: guide(lib)


@pytest.mark.parametrize(
    "guide",
    [by_a_parameter, of_another_site, beside_auxiliary_values_enough, at_one_of_some_values],
)
def test_a_part_of_the_guide_at_a_point(lib, guide):
    """Without the refusal the log evidence is that of x and s = 0 together: -4.74, and no warning."""
    with pytest.raises(vi.BackendError, match="no density at 's': point masses") as caught:
        vi.heldout(lib.Loss(), model_of(lib), bound(lib, guide), num_samples=20)
    text = str(caught.value)
    assert "a density for 's', such as AutoNormal has" in text
    assert {"pyro": "pyro.condition", "numpyro": "numpyro.handlers.condition"}[lib.name] in text


def test_all_that_uses_weights(lib):
    programs = lib.Loss(), model_of(lib), bound(lib, by_a_parameter)
    for function in (
        partial(vi.expectation, psis=True),
        vi.resample,
        vi.diagnose,
        vi.plot_weights,
    ):
        with pytest.raises(vi.BackendError, match="no density at 's': point masses"):
            function(*programs, num_samples=50)
    assert vi.expectation(*programs, num_samples=5).mean["s"] == 0.0
    data = vi.to_arviz(*programs, num_samples=5)
    assert "sample_stats" not in groups_of(data)
    assert "no density at 's'" in data.posterior.attrs["no_log_weights"]


def test_a_change_of_variables_has_a_density(lib):
    def guide():
        u = joint(lib)
        point(lib, "a", u[0])
        point(lib, "s", u[1])

    found = vi.heldout(lib.Loss(), model_of(lib), guide, num_samples=10)
    assert found.log_prob == pytest.approx(EVIDENCE, abs=1e-5)


def test_what_is_fixed_in_the_model_has_weights(lib):
    """What the error says can be done: the log density of x and s = 0."""
    condition = lib.handlers.condition

    def guide():
        lib.sample("a", lib.dist.Normal(0.5, 0.5**0.5))

    model = condition(model_of(lib), data={"s": lib.array(np.array(0.0))})
    found = vi.heldout(lib.Loss(), model, guide, num_samples=10)
    exact = -1 / 4 - 0.5 * np.log(2 * np.pi * 2) - 0.5 * np.log(2 * np.pi * 100)
    assert found.log_prob == pytest.approx(exact, abs=1e-5)


def test_discrete_sites(lib):
    """A point is no guide of a discrete site either; of an auxiliary one it is another name."""

    def model():
        b = lib.sample("b", lib.dist.Bernoulli(0.3))
        lib.sample("x", lib.dist.Normal(b, 1.0), obs=lib.array(np.array(1.0)))

    def at_one():
        point(lib, "b", lib.array(np.array(1.0)))

    weights = np.array([0.7 * np.exp(-0.5), 0.3])

    def renamed():
        other = auxiliary(lib, "c", lib.dist.Bernoulli(weights[0] / weights.sum()))
        point(lib, "b", 1.0 - other)

    with pytest.raises(vi.BackendError, match="no density at 'b': point masses"):
        vi.heldout(lib.Loss(), model, at_one, num_samples=10)
    found = vi.heldout(lib.Loss(), model, renamed, num_samples=10)
    exact = np.log(weights.sum() / (2 * np.pi) ** 0.5)
    assert found.log_prob == pytest.approx(exact, abs=1e-5)
