"""What `Analytic` refuses, how it says so, and what `explain` shows."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import vi_kit as vi
from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Hierarchy, Independent, VectorEvent
from tests.libraries import NumPyroWords, PyroWords

VALUES = np.array([0.3, -0.4])


def guide_of(lib):
    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return guide


def model_of(lib, *terms):
    """Of a Normal value, with factors that are functions of it."""

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        for i, term in enumerate(terms):
            lib.factor(f"f{i}", term(lib, z))

    return model


def gradients(lib, model, guide=None, estimators=None, objective=None):
    loss = lib.Loss(objective or vi.elbo(), estimators or vi.Analytic())
    return lib.gradients(loss, model, guide or guide_of(lib), VALUES, 1, 0)


def refused(lib, *terms, **settings):
    with pytest.raises(vi.AnalyticError) as caught:
        gradients(lib, model_of(lib, *terms), **settings)
    return str(caught.value)


def line_in(fn):
    """The number of the first line of the body of a function."""
    return inspect.getsourcelines(fn)[1] + 1


def through_tanh(lib, z):
    return lib.xp.tanh(z)


def of_a_square(lib, z):
    return lib.xp.exp(-(z**2))


def a_wave(lib, z):
    return lib.xp.cos(z**2)


def a_quotient(lib, z):
    return 1.0 / z


def a_maximum(lib, z):
    return lib.xp.maximum(z, lib.array(0.0))


def a_logarithm(lib, z):
    return lib.xp.log(z + 3.0)


def a_square_of_a_square(lib, z):
    return (z**2 + 1.0) ** 2


def a_condition(lib, z):
    return lib.xp.where(z > 0, z, 2.0 * z)


TERMS = {
    through_tanh: ("tanh", "there is no rule for it"),
    of_a_square: ("exp", "the exponential of what is not an affine function of Gaussian values"),
    a_wave: ("cos", "the cosine of what is not an affine function of Gaussian values"),
    a_quotient: (
        "div|rdiv",
        "a power of -1 of a value of which mean and variance are known",
    ),
    a_maximum: ("max|maximum", "there is no rule for it"),
    a_logarithm: ("log", "the logarithm of what is no product of positive sites"),
    a_square_of_a_square: ("pow|integer_pow|square", "a power of what is an expectation already"),
    a_condition: ("gt", "only whole numbers can be compared, and only with constants"),
}


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__name__)
def test_the_operation_and_the_line(term, lib):
    name, reason = TERMS[term]
    first, got, expected, fix = refused(lib, term).split("\n")
    assert re.match(rf"site 'z': Analytic\(\) has no closed form for ({name}) at ", first)
    assert first.endswith(f": {reason}")
    line = line_in(term)
    assert f" at test_analytic_errors.py:{line} ({term.__name__})" in first
    assert got == "  got:      model site 'f0'"
    assert expected.startswith("  expected: sums, products with constants, linear layers; squares,")
    assert fix == (
        '  fix:      estimators={"z": vi.Analytic(fallback=vi.Reparam())}, or vi.Reparam()'
    )


def test_all_terms_at_once(lib):
    text = refused(lib, through_tanh, lambda lib, z: 0.1 * z, a_logarithm)
    assert [line for line in text.split("\n") if "got:" in line] == [
        "  got:      model site 'f0'",
        "  got:      model site 'f2'",
    ]


def first_softplus(lib, z):
    return lib.xp.logaddexp(z, lib.array(0.0))


def second_softplus(lib, z):
    return 0.5 * lib.xp.logaddexp(z, lib.array(0.0))


def test_the_line_of_a_function_that_is_traced_once(lib):
    for term in (first_softplus, second_softplus):
        line = line_in(term)
        text = f"for logaddexp at test_analytic_errors.py:{line} ({term.__name__}): "
        assert text in refused(lib, term)


def two_sites(lib, term):
    """A model with a term of two sites, and its guide."""

    def guide():
        theta = lib.theta(VALUES)
        lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        lib.sample("w", lib.dist.Normal(theta[1], 1.0))

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.factor("f", term(z, w))

    return model, guide


def test_a_product_of_two_sites(lib):
    model, guide = two_sites(lib, lambda z, w: lib.xp.exp(z * w))

    with pytest.raises(vi.AnalyticError, match=r"^sites \['w', 'z'\]: .* for exp at"):
        gradients(lib, model, guide)


NOT_CLOSED = {
    "poisson": "lgamma",
    "negative_binomial": "lgamma",
    "binomial_counts": "lgamma",
    "weibull": "pow",
    "weibull_scale": "pow",
}


@pytest.mark.parametrize("family", NOT_CLOSED)
def test_families_that_are_not_closed(family, lib):
    shape = Independent(FAMILIES[family], sizes=(2,))
    text = rf"no closed form for {NOT_CLOSED[family]} at shapes.py:\d+ \(.*(guide|model)\)"
    with pytest.raises(vi.AnalyticError, match=text):
        shape.gradients(lib, lib.Loss(vi.elbo(), vi.Analytic()), 1, 0)


SHAPES = {
    "a power of what is an expectation already": VectorEvent(FAMILIES["normal"]),
    "a draw whose parameters, other than its loc, are random": Hierarchy(
        FAMILIES["normal"], FAMILIES["normal"], local=True
    ),
}


@pytest.mark.parametrize("reason", SHAPES)
def test_shapes_that_are_not_closed(reason, lib):
    with pytest.raises(vi.AnalyticError, match=rf"at shapes.py:\d+ \(.*\): {reason}"):
        SHAPES[reason].gradients(lib, lib.Loss(vi.elbo(), vi.Analytic()), 1, 0)


@pytest.mark.parametrize("family", ["binomial", "geometric_probs", "laplace"])
def test_families_that_are_not_closed_in_numpyro(family):
    shape = Independent(FAMILIES[family], sizes=(2,))
    with pytest.raises(vi.AnalyticError, match=r"site 'z': .* at shapes.py:\d+ "):
        shape.gradients(NumPyroWords(), NumPyroWords().Loss(vi.elbo(), vi.Analytic()), 1, 0)


SITES = {
    "Cauchy": lambda lib, t: lib.dist.Cauchy(t, 1.0),
    "TransformedDistribution": lambda lib, t: FAMILIES["logit_normal"].build(lib, t, t),
}


@pytest.mark.parametrize("family", SITES)
def test_unknown_moments(family, lib):
    def program():
        lib.sample("z", SITES[family](lib, lib.theta(VALUES)[0]))

    with pytest.raises(vi.EstimatorError) as caught:
        gradients(lib, program, program)
    text = (
        f"site 'z': Analytic() needs the mean and the variance of {family}, which are not known\n"
    )
    assert text in str(caught.value)
    assert "got:      Analytic(), from" in str(caught.value)


def test_random_parameters_other_than_locs(lib):
    def guide():
        theta = lib.theta(VALUES)
        s = lib.sample("s", lib.dist.Gamma(lib.xp.exp(theta[0]), 1.0))
        lib.sample("z", lib.dist.Normal(theta[1], s))

    def model():
        lib.sample("s", lib.dist.Gamma(2.0, lib.array(1.0)))
        lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    text = "for sample at .*: a draw whose parameters, other than its loc, are random"
    with pytest.raises(vi.AnalyticError, match=text):
        gradients(lib, model, guide)


@pytest.mark.parametrize("estimator", [vi.Analytic(), vi.Analytic(fallback=vi.Reparam())], ids=repr)
@pytest.mark.parametrize(
    "objective", [vi.iwae(num_particles=2), vi.renyi(alpha=0.5, num_particles=2)], ids=repr
)
def test_nonlinear_objectives(objective, estimator, lib):
    with pytest.raises(vi.EstimatorError) as caught:
        gradients(lib, model_of(lib), estimators=estimator, objective=objective)
    assert "site 'z': Analytic() has no closed form inside log_mean_exp" in str(caught.value)
    assert "got:      a nonlinear function of costs, which needs draws" in str(caught.value)


def test_a_scored_site_below(lib):
    def guide():
        theta = lib.theta(VALUES)
        z = lib.sample("z", lib.dist.Normal(theta[0], 1.0))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1] + z))

    def model():
        lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)))

    with pytest.raises(vi.EstimatorError) as caught:
        gradients(lib, model, guide, {"z": vi.Analytic(), "b": vi.Score()})
    assert "site 'z': Analytic() with Score() at site 'b', which is drawn given it" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "fallback",
    [vi.Enumerate(), vi.Analytic(), vi.MeasureValued(), vi.DoublyReparam(), "Reparam", vi.Reparam],
    ids=str,
)
def test_fallbacks_that_are_none(fallback):
    with pytest.raises(vi.EstimatorError) as caught:
        vi.Analytic(fallback=fallback)
    assert "Analytic: its fallback must be an estimator of single draws" in str(caught.value)
    assert f"got:      fallback={fallback!r}" in str(caught.value)


def test_a_fallback_that_cannot_serve_the_site(lib):
    def program():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(VALUES)[0]))

    with pytest.raises(vi.EstimatorError, match=r"site 'z': Analytic\(\) needs .*Bernoulli"):
        gradients(lib, program, program, vi.Analytic(fallback=vi.Reparam()))


def test_a_term_of_two_sites_of_which_one_has_a_fallback(lib):
    model, guide = two_sites(lib, lambda z, w: lib.xp.tanh(z + w))

    estimators = {"z": vi.Analytic(fallback=vi.Reparam()), "w": vi.Analytic()}
    with pytest.raises(vi.AnalyticError, match=r"^sites \['w', 'z'\]: .* for tanh"):
        gradients(lib, model, guide, estimators)


def test_a_site_inside_a_scan():
    from numpyro.contrib.control_flow import scan

    lib = NumPyroWords()

    def program():
        theta = lib.theta(VALUES)

        def step(carry, _):
            return lib.sample("z", lib.dist.Normal(0.5 * carry + theta[0], 1.0)), None

        scan(step, lib.array(0.0), None, length=3)

    text = r"site 'z': Analytic\(\) needs to see what is done with the value"
    with pytest.raises(vi.EstimatorError, match=text):
        gradients(lib, program, program)


# In Pyro, where values are seen as the program runs


def branched(lib, z):
    return z if z > 0 else 2.0 * z


def as_number(lib, z):
    return lib.array(z.item())


def as_array(lib, z):
    return lib.array(z.detach().numpy())


def written_in_place(lib, z):
    y = 2.0 * z
    y.add_(z)
    return y


def added_in_place(lib, z):
    y = 2.0 * z
    y += z
    return y


def added_to_a_constant(lib, z):
    y = lib.array(1.0)
    y.mul_(z)
    return y


def written_into(lib, z):
    y = lib.xp.zeros(2)
    y[0] = z
    return y.sum()


@pytest.mark.parametrize(
    ("term", "operation", "estimator"),
    [
        (branched, "gt", vi.Analytic()),
        (branched, "gt", vi.Analytic(fallback=vi.Reparam())),
        (as_number, "item", vi.Analytic()),
        (as_number, "item", vi.Analytic(fallback=vi.Reparam())),
        (as_array, "detach", vi.Analytic()),
        (written_in_place, "add_", vi.Analytic()),
        (written_in_place, "add_", vi.Analytic(fallback=vi.Reparam())),
        (added_in_place, "add_", vi.Analytic()),
        (added_to_a_constant, "mul_", vi.Analytic()),
        (written_into, "setitem", vi.Analytic()),
        (written_into, "setitem", vi.Analytic(fallback=vi.Reparam())),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_values_that_leave_the_reach_of_torch(term, operation, estimator):
    lib = PyroWords()
    text = refused(lib, term, estimators=estimator)
    assert f"has no closed form for {operation} at test_analytic_errors.py:" in text
    assert f"({term.__name__})" in text


# What is left as it was


def test_nothing_changes_after_an_error(lib):
    """Neither parameters nor the state of random numbers, and the next loss is right."""
    with pytest.raises(vi.AnalyticError):
        gradients(lib, model_of(lib, through_tanh))
    if lib.name == "pyro":
        import pyro

        np.testing.assert_array_equal(pyro.param("theta").detach(), VALUES)
        assert not lib.xp.nn.functional.tanh(lib.xp.zeros(2)).any()
    found = gradients(lib, model_of(lib, lambda lib, z: 0.7 * z))[0]
    var = np.exp(2 * VALUES[1])
    np.testing.assert_allclose(found, [VALUES[0] - 0.7, var - 1], rtol=1e-12)


def test_explain(lib):
    estimators = {"z": vi.Analytic(fallback=vi.Reparam())}
    model = model_of(lib, through_tanh, lambda lib, z: 0.7 * z)
    loss = lib.Loss(vi.elbo(), estimators)
    guide = guide_of(lib)
    table = loss.explain(model, guide)
    assert re.search(r"^z +Normal +- +Analytic\(fallback=Reparam\(\)\)", table, re.MULTILINE)
    *_, own, prior, first, second = table.split("\n")
    assert own == "guide site 'z': closed form"
    assert prior == "model site 'z': closed form"
    assert second == "model site 'f1': closed form"
    line = line_in(through_tanh)
    assert first == (
        f"model site 'f0': Reparam() for 'z', because of tanh at test_analytic_errors.py:{line}"
        " (through_tanh): there is no rule for it"
    )


def test_explain_refuses_too(lib):
    with pytest.raises(vi.AnalyticError, match="no closed form for tanh"):
        lib.Loss(vi.elbo(), vi.Analytic()).explain(model_of(lib, through_tanh), guide_of(lib))


def test_repr():
    assert repr(vi.Analytic()) == "Analytic()"
    assert repr(vi.Analytic(fallback=vi.Score())) == f"Analytic(fallback={vi.Score()!r})"
    assert vi.Analytic(fallback=vi.Reparam()) == vi.Analytic(fallback=vi.Reparam())


def test_a_support_that_is_random():
    """Whether the datum lies in it is not asked of the mean."""
    lib = PyroWords()

    def model():
        z = lib.sample("z", lib.dist.Gamma(lib.array(4.0), lib.array(1.0)))
        lib.sample("x", lib.dist.Uniform(lib.array(0.0), z), obs=lib.array(2.5))

    def guide():
        lib.sample("z", lib.dist.Gamma(lib.xp.exp(lib.theta(VALUES)[0]), lib.array(1.0)))

    with pytest.raises(vi.AnalyticError, match=r"no closed form for \w+ at"):
        gradients(lib, model, guide)


def test_moments_in_a_program_that_is_run_in_turn():
    """In Pyro: `loc[k]` finds the replicates of `k` where the plate should be."""
    import pyro
    import pyro.distributions as dist
    import torch

    from vi_kit.pyro import Loss

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=torch.zeros(3))

    def guide():
        pyro.sample("loc", dist.Normal(torch.zeros(2), 0.5).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("k", dist.Categorical(logits=torch.zeros(3, 2)))

    estimators = {"loc": vi.Analytic(fallback=vi.Reparam()), "k": vi.Enumerate()}
    with pytest.raises(vi.EstimatorError, match="one value of its sites after the other") as error:
        Loss(estimators=estimators, num_samples=4).loss(model, guide)
    assert "site 'loc' has moments" in str(error.value)
