"""`vi.profile_estimators`: what it lists, against exact variances, and how it tells a library."""

import functools
import itertools

import numpy as np
import pytest

import vi_kit as vi
from tests.libraries import LIBRARIES
from tests.workflow.test_gradient_variance import coins, gradients, variance
from vi_kit.estimators import REGISTRY
from vi_kit.estimators.baselines import Baseline
from vi_kit.workflow.libraries import library_of
from vi_kit.workflow.shelf import BASELINES, NOT_TRIED, SHELF, shelf, short


def ticks():
    """A clock by which every batch takes a second."""
    return functools.partial(next, itertools.count())


def test_every_estimator_is_on_the_shelf_or_said_not_to_be():
    assert set(REGISTRY) == (set(SHELF) | set(NOT_TRIED)) & set(REGISTRY)
    kinds = {cls for cls in Baseline.__subclasses__() if cls.__module__.startswith("vi_kit")}
    assert kinds == set(BASELINES) | (set(NOT_TRIED) & kinds)
    assert len({*shelf()}) == len(shelf())


def test_variances_against_enumeration(lib):
    loss = lib.Loss(estimators={"z1": vi.Score(), "z2": vi.Score()})
    some = [vi.Enumerate(), vi.Reparam(), vi.StraightThrough(biased=True)]
    found = vi.profile_estimators(
        loss, *coins(lib), sites="z1", num_draws=320, candidates=some, clock=ticks()
    )
    rows = {short(row.estimator): row for row in found.rows}
    own = rows["Score()"]
    exact = variance(*gradients()).sum()
    assert own.chosen and abs(own.measured.variance - exact) <= 5 * own.measured.variance_error
    # a mutant: the variance by one parameter in the place of that by both
    assert abs(own.measured.variance - exact / 2) >= 8 * own.measured.variance_error
    assert 0 < rows["Enumerate()"].measured.variance < own.measured.variance
    assert rows["Enumerate()"].measured.evaluations == 2 and own.measured.evaluations == 1
    assert own.measured.seconds == pytest.approx(1 / 20)
    assert own.measured.product == pytest.approx(own.measured.variance / 20)
    assert rows["Reparam()"].refused == "needs a reparameterised sampler; Bernoulli has none"
    assert rows["StraightThrough()"].biased and "BIASED" in repr(found)
    assert found.best("z1").estimator == vi.Enumerate()
    assert found._repr_html_().count("<tr>") == 1 + len(found.rows)
    assert_draws(found)


def test_the_whole_shelf_in_numpyro():
    lib = LIBRARIES["numpyro"]()
    found = vi.profile_estimators(*coins(lib), sites="z1", num_draws=20)
    assert [row.site for row in found.rows] == ["z1"] * (len(shelf()))
    assert all(row.measured or row.refused for row in found.rows)
    assert not [row for row in found.rows if row.refused.startswith("fails")]
    assert "not tried: Relax, needs a network" in repr(found)


def assert_draws(found):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (ax,) = found.plot()
    assert ax.get_yticklabels()[0].get_text() == short(found.of("z1")[0].estimator)
    assert ax.get_title(loc="left") == "site z1"
    pyplot.close(ax.figure)


def test_the_library_is_told_by_the_programs(lib):
    programs = coins(lib)
    expected = {"pyro": "Pyro", "numpyro": "NumPyro"}[lib.name]
    assert {library_of(program) for program in programs} == {expected}
    assert library_of(functools.partial(programs[0])) == expected


def test_autoguides_and_modules_tell_it():
    import numpyro.infer.autoguide as numpyro_guides
    import pyro.infer.autoguide as pyro_guides
    import pyro.nn

    class Module(pyro.nn.PyroModule):
        def forward(self):
            return None

    assert library_of(pyro_guides.AutoNormal(lambda: None)) == "Pyro"
    assert library_of(numpyro_guides.AutoNormal(lambda: None)) == "NumPyro"
    assert library_of(Module()) == "Pyro"

    def imports_inside():
        import numpyro

        numpyro.sample("z", None)

    assert library_of(imports_inside) == "NumPyro"


def test_programs_that_do_not_tell():
    with pytest.raises(vi.ObjectiveError, match="the programs do not tell their library"):
        vi.profile_estimators(print, print)
    for given in ((), (print,), (1, 2)):
        with pytest.raises(vi.ObjectiveError, match="profile_estimators: no model and guide"):
            vi.profile_estimators(*given)


def test_bad_settings(lib):
    programs = coins(lib)
    with pytest.raises(vi.ObjectiveError, match="no latent site to choose for"):
        vi.profile_estimators(lib.Loss(), *programs, sites="w")
    with pytest.raises(vi.ObjectiveError, match="no such cost"):
        vi.profile_estimators(lib.Loss(), *programs, cost="euros")
    with pytest.raises(vi.ObjectiveError, match="num_draws"):
        vi.profile_estimators(lib.Loss(), *programs, num_draws=np.nan)
