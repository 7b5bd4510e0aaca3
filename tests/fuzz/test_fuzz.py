"""Random programs: right, or refused in words; with no estimator named always right.

`make fuzz NUM_PROGRAMS=1000` runs more of them.
"""

import os
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import vi_kit as vi
from tests import oracles
from tests.fuzz.programs import Program, specs
from tests.libraries import LIBRARIES

NUM_PROGRAMS = int(os.environ.get("VI_KIT_NUM_PROGRAMS", "20"))
counts: Counter = Counter()
reasons: Counter = Counter()


def check(lib, spec, num_draws=200):
    """Raises if a program is wrong, or refused where it must not be."""
    program = Program(lib, spec)
    default = all(s.estimator == "default" for s in spec.sites)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws = lib.estimates(
                spec.loss(lib), program.model, program.guide, program.values, num_draws,
                oracles.seed_of(repr(spec)),
            )  # fmt: skip
    except vi.ViKitError as error:
        assert not default, f"refused by default: {error}"
        reasons[str(error).splitlines()[0]] += 1
        return "refused"
    exact = program.exact()
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    off = np.abs(draws.mean(axis=0) - exact)
    # a rule of five nodes for Normal sites under iwae is exact to a few thousandths
    assert (off <= 5 * error + 2e-3 * (1 + np.abs(exact))).all(), (
        f"mean {draws.mean(axis=0)}, s.e. {error}, exact {exact}"
    )
    counts["with power"] += bool((np.abs(exact[1:]) > 5 * error[1:]).any())
    return "right"


@pytest.mark.parametrize("name", LIBRARIES)
def test_random_programs(name):
    lib = LIBRARIES[name]()
    counts.clear()
    reasons.clear()

    @settings(
        max_examples=NUM_PROGRAMS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(specs())
    def run(spec):
        counts[check(lib, spec, 200 if name == "numpyro" else 40)] += 1

    run()
    num_programs = counts["right"] + counts["refused"]
    share = counts["refused"] / max(1, num_programs)
    print(f"{name}: {dict(counts)}, {share:.0%} refused", *reasons.items(), sep="\n  ")
    assert share <= 0.25
    assert counts["with power"] >= 0.8 * counts["right"]
