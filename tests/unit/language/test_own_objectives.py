"""What users stumble over when they write objectives and generators of their own."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.statistical_cases import LocalBernoulli
from vi_kit.language.words import SettingRule


def reduced(fn):
    @vi.objective
    def program(model, guide):
        def log_weight():
            z = vi.simulate(guide)
            return vi.log_density(model, z) - z.log_density

        return vi.iid(log_weight, 2).reduce(fn)

    return program()


@pytest.mark.parametrize(
    ("fn", "got"),
    [
        (lambda w: w, r"shape \(2, 3\)"),
        (lambda w: 0.0, "float"),
        (lambda w: (w * w).mean(), r"shape \(\)"),
        (lambda w: w.sum(1), r"shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("estimator", [vi.Enumerate(), vi.Score()], ids=repr)
def test_functions_of_another_shape(fn, got, estimator, lib):
    text = rf"returned what is not an array of the right shape\n  got:      {got}"
    with pytest.raises(vi.ObjectiveError, match=text):
        LocalBernoulli(lib).gradients(lib.Loss(reduced(fn), estimator), 1, 0)


@vi.objective
def power(model, guide):
    w = vi.elbo()(model, guide)
    return w**2 + abs(w)


@vi.objective
def product(model, guide):
    w = vi.elbo()(model, guide)
    return w * w + vi.apply(abs, w)


def test_powers_of_costs(lib):
    case = LocalBernoulli(lib)
    draws = [case.gradients(lib.Loss(o(), vi.Enumerate()), 1, 0) for o in (power, product)]
    np.testing.assert_allclose(*draws, rtol=1e-12)


@vi.objective
def weighted_by_a_draw(model, guide):
    z = vi.simulate(guide)
    return vi.log_density(model, z) * z["z"].sum()


def test_a_weight_that_was_drawn(lib):
    loss = lib.Loss(weighted_by_a_draw(), vi.Score())
    with pytest.raises(vi.ObjectiveError, match="scaled by a number, not by drawn values"):
        LocalBernoulli(lib).gradients(loss, 1, 0)


@vi.objective
def weighted_by_a_parameter(model, guide, *, scale):
    return vi.elbo()(model, guide) * scale()


def test_a_weight_without_dims(lib):
    case = LocalBernoulli(lib)
    half = weighted_by_a_parameter(scale=lambda: lib.array(0.5))
    whole, halved = (case.gradients(lib.Loss(o, vi.Enumerate()), 1, 0) for o in (vi.elbo(), half))
    np.testing.assert_allclose(0.5 * whole, halved, rtol=1e-12)


def test_requirements_survive_annotations_that_are_strings():
    @vi.objective
    def program(model, guide, *, rate: Annotated[float, vi.SettingRange(0.0, 1.0)]):
        return vi.elbo()(model, guide)

    with pytest.raises(vi.ObjectiveError, match=r"rate in \[0, 1\]"):
        program(rate=2.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: vi.log_variance(num_particles=5, reference="prior"), 'to be "guide" or a program'),
        (lambda: vi.iwae(num_particles=5.0), r"num_particles=5.0, a float"),
        (lambda: vi.iwae(num_particles=True), r"num_particles=True, a bool"),
        (
            lambda: vi.f_divergence(generator=abs, num_particles=2),
            "generator to be a vi.Generator",
        ),
        (
            lambda: vi.objective(lambda model, guide, beta=1.0: None),
            r"settings after a \*\n  fix:      def <lambda>\(model, guide, \*, beta\)",
        ),
        (lambda: vi.objective(lambda model: None), "two positional parameters"),
        (lambda: vi.Generator("g", lambda u: 0.0), r"generator 'g' returns shape \(\)"),
        (lambda: vi.Generator("g", lambda u: u.nothing), "generator 'g' cannot be evaluated"),
    ],
)
def test_refused_when_made(make, text):
    with pytest.raises(vi.ObjectiveError, match=text):
        make()


def test_counts_of_any_whole_number_type():
    assert vi.iwae(num_particles=np.int64(5)) == vi.iwae(num_particles=5)


def test_a_requirement_prints():
    assert str(SettingRule(callable, "be a function", "f")) == "to be a function"


def skewed(xp):
    return lambda u: u * xp.log(2 * u / (1 + u))


def test_generators_of_the_shelf_are_convex():
    for name in {*vi.generators.__all__} - {"alpha", "tsallis"}:
        known = getattr(vi.generators, name)
        vi.Generator(name, known.fn, known.of_log)  # which checks, as an import does not


def test_generators_in_the_functions_of_a_library(lib, request):
    """Convex functions, evaluated in single precision or double, by torch or JAX."""
    import jax
    import torch

    own = vi.Generator("skewed", skewed(lib.xp))
    vi.Generator("skewed", skewed(torch))
    with jax.enable_x64(False):
        vi.Generator("skewed", skewed(jax.numpy))
    portable = vi.Generator("skewed", lambda u: skewed(vi.array_namespace(u))(u))
    seed = oracles.seed_of(request.node.name)
    draws = [
        LocalBernoulli(lib).gradients(
            lib.Loss(vi.f_divergence(generator=g, num_particles=2), vi.Score()), 2, seed
        )
        for g in (own, portable)
    ]
    np.testing.assert_allclose(*draws, rtol=1e-12)


def test_a_generator_that_is_not_convex_in_single_precision():
    import jax

    with jax.enable_x64(False), pytest.raises(vi.ObjectiveError, match="is not convex near"):
        vi.Generator("root", lambda u: jax.numpy.sqrt(u) - 1)
