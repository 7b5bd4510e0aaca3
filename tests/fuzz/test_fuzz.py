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
    program, seed = Program(lib, spec), oracles.seed_of(repr(spec))
    default = all(s.estimator == "default" for s in spec.sites)
    try:
        error, off, exact = judge(lib, spec, program, num_draws, seed)
    except vi.ViKitError as error:
        assert not default, f"refused by default: {error}"
        reasons[str(error).splitlines()[0]] += 1
        return "refused"
    if (off > 5 * error).any():  # few draws do not show how heavy their tails are
        error, off, exact = judge(lib, spec, program, 20 * num_draws, seed + 1)
    assert (off <= 5 * error).all(), f"off by {off}, s.e. {error}, exact {exact}"
    counts["with power"] += bool((np.abs(exact[1:]) > 5 * error[1:]).any())
    return "right"


def judge(lib, spec, program, num_draws, seed):
    """Standard errors of loss and gradient, how far these are off, and what they should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = lib.estimates(
            spec.loss(lib), program.model, program.guide, program.values, num_draws, seed
        )
    exact = program.exact()
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    # a rule of five nodes for Normal sites under iwae is exact to a few thousandths
    off = np.abs(draws.mean(axis=0) - exact) - 2e-3 * (1 + np.abs(exact))
    return error, off, exact


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
        if (counts["right"] + counts["refused"]) % 100 == 0:
            print(f"{name}: {dict(counts)}", flush=True)

    run()
    num_programs = counts["right"] + counts["refused"]
    share = counts["refused"] / max(1, num_programs)
    print(f"{name}: {dict(counts)}, {share:.0%} refused", *reasons.items(), sep="\n  ")
    assert share <= 0.25
    assert counts["with power"] >= 0.8 * counts["right"]
