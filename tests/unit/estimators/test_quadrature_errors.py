"""What `Quadrature` refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest

import vi_kit as vi


@pytest.mark.parametrize("num_nodes", [0, -3, 2.5, True, "8"])
def test_a_number_of_nodes_that_is_none(num_nodes):
    with pytest.raises(vi.ObjectiveError, match="num_nodes must be a whole number of at least 1"):
        vi.Quadrature(num_nodes)


def test_more_nodes_than_can_be_computed():
    with pytest.raises(vi.ObjectiveError, match="num_nodes must be at most 150"):
        vi.Quadrature(151)
    assert vi.Quadrature(150).second_rule() == vi.Quadrature(150).second_rule()


VECTOR = np.zeros(2)
SITES = {
    "no rule": (
        vi.Quadrature(),
        lambda lib, t: lib.dist.Laplace(t, 1.0),
        "has no rule for Laplace; it has one for Normal, Exponential, Gamma, Uniform, Beta elements and"
        " MultivariateNormal",
    ),
    "a vector of Gamma elements": (
        vi.Quadrature(),
        lambda lib, t: lib.dist.Gamma(lib.xp.exp(t + lib.array(VECTOR)), 1.0).to_event(1),
        "has no rule for an event of 2 Gamma elements, only of Normal ones",
    ),
    "a vector with nodes": (
        vi.Quadrature(8),
        lambda lib, t: lib.dist.Normal(t + lib.array(VECTOR), 1.0).to_event(1),
        "takes no num_nodes for an event of 2 elements: its rule has 4",
    ),
}


@pytest.mark.parametrize("case", SITES)
def test_sites_that_it_cannot_serve(case, lib):
    estimator, make, text = SITES[case]

    def program():
        lib.sample("z", make(lib, lib.theta(np.zeros(1))[0]))

    with pytest.raises(vi.EstimatorError) as caught:
        lib.gradients(lib.Loss(vi.elbo(), estimator), program, program, np.zeros(1), 1, 0)
    assert f"site 'z': Quadrature() {text}\n" in str(caught.value)


def test_a_term_outside_the_plate(lib):
    def program(is_model):
        with lib.plate("data", 2):
            z = lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(2)), 1.0))
        if is_model:
            lib.factor("f", z.sum(-1))

    loss = lib.Loss(vi.elbo(), vi.Quadrature(2))
    with pytest.raises(vi.EstimatorError, match="cannot serve model site 'f', which is outside"):
        lib.gradients(loss, lambda: program(True), lambda: program(False), np.zeros(2), 1, 0)


def test_a_site_inside_a_scan():
    from numpyro.contrib.control_flow import scan

    from tests.libraries import NumPyroWords

    lib = NumPyroWords()

    def program():
        theta = lib.theta(np.zeros(1))

        def step(carry, _):
            return lib.sample("z", lib.dist.Normal(0.5 * carry + theta[0], 1.0)), None

        scan(step, lib.array(0.0), None, length=3)

    with pytest.raises(vi.EstimatorError, match="a scan or cond cannot hold"):
        lib.gradients(lib.Loss(vi.elbo(), vi.Quadrature(2)), program, program, np.zeros(1), 1, 0)


def test_the_table(lib):
    def program():
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    if lib.name == "pyro":
        table = lib.Loss(vi.elbo(), vi.Quadrature(2)).explain(program, program)
        assert "Quadrature(num_nodes=2, biased=False, max_worlds=1024)" in table


def test_refused_where_weights_are_not_differentiated(lib):
    """As every estimator but `Reparam`."""

    def program():
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    loss = lib.Loss(vi.tail_adaptive(num_particles=3), vi.Quadrature(2, biased=True))
    with pytest.raises(vi.EstimatorError, match=r"biased with Quadrature\(\)"):
        lib.gradients(loss, program, program, np.zeros(1), 1, 0)
