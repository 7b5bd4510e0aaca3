"""Programs that do not broadcast: right, or refused in words; with no estimator named always right."""

import os

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.conformance import idioms
from tests.libraries import LIBRARIES

MIN_DRAWS, MAX_DRAWS = 60, 480
DETERMINISTIC = {"Enumerate", "Analytic"}


def covering(short: bool = False) -> list[idioms.Case]:
    """Each idiom by default, and with one named estimator; sites and objectives in turn. Those of Pyro take a run of
    the program for each value: the short cover has their defaults under the ELBO only."""
    chosen, turn = [], 0
    for name, idiom in idioms.IDIOMS.items():
        for lib in idiom.libraries:
            site = idiom.sites[turn // 2 % len(idiom.sites)]
            named = [e for e in idioms.ESTIMATORS[site] if e != "default"]
            few = short and lib == "pyro"
            for estimator in ("default", named[turn // 2 % len(named)])[: 1 if few else 2]:
                objective = "elbo" if few else idioms.OBJECTIVES[(turn + turn // 3) % 3]
                chosen.append(idioms.Case(lib, site, name, estimator, objective))
            turn += 1
    return chosen


CASES = {"all": idioms.cases, "cover": covering}.get(
    os.environ.get("VI_KIT_IDIOMS", ""), lambda: covering(short=True)
)()


def estimates_of(case, seed):
    """The program, and estimates of its loss and gradient: as many as give power, within limits."""
    lib = LIBRARIES[case.lib]()
    program = idioms.Program(lib, case.idiom, case.site)
    exact = program.exact(case.objective)
    loss = idioms.loss_of(lib, case.objective, idioms.ESTIMATORS[case.site][case.estimator])
    draws = lib.estimates(loss, program.model, program.guide, program.values, 3, seed)
    exactly = case.estimator in {*DETERMINISTIC, "default"}  # others may draw one value three times
    if exactly and np.ptp(draws, axis=0).max() <= 1e-12 * np.abs(draws).max():
        return exact, draws
    draws = lib.estimates(loss, program.model, program.guide, program.values, MIN_DRAWS, seed)
    if not powerful(draws, exact):
        more = MAX_DRAWS if case.lib == "numpyro" else MAX_DRAWS // 3
        draws = lib.estimates(loss, program.model, program.guide, program.values, more, seed)
    return exact, draws


def powerful(draws, exact):
    error = draws[:, 1:].std(axis=0, ddof=1) / np.sqrt(len(draws))
    return bool((np.abs(exact[1:]) >= 20 * error).any())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_idiom(case):
    try:
        exact, draws = estimates_of(case, oracles.seed_of(str(case)))
    except vi.ViKitError as error:
        assert case.estimator != "default", f"refused by default: {error}"
        pytest.skip(f"refused: {error}".splitlines()[0])
    if case.objective != "iwae" and case.estimator in DETERMINISTIC:
        np.testing.assert_allclose(draws[0], exact, rtol=1e-6, atol=1e-6)
    oracles.check_unbiased(draws, exact, power=False)
