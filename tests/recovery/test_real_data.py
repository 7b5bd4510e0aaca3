"""Data that were measured: means of fitted guides, plain and corrected, against those of NumPyro's NUTS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import vi_kit as vi
from tests.libraries import LIBRARIES
from tests.recovery import real_data
from tests.recovery.real_data import az

NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class Case:
    """A data set and a guide.

    Attributes:
        programs: of a library, the model with a share of the likelihood as its argument.
        fit: settings.
        off: how many standard deviations of the posterior the guide's means may be off: what its family, and the draws
            that are held, leave.
        verdicts: of `vi.diagnose`.
        centred: sites that NUTS draws in coordinates without their location and scale.
    """

    programs: Callable[[Any], tuple[Callable, Callable]]
    fit: Mapping[str, Any]
    off: float
    verdicts: tuple[str, ...] = ("trust",)
    centred: tuple[str, ...] = ()


CASES = {
    "eight_schools": Case(
        real_data.eight_schools(),
        {"fixed_draws": 1000},
        0.2,
        ("trust", "correct by importance sampling"),
    ),
    "radon": Case(
        real_data.radon(),
        {"fixed_draws": 200, "num_steps": 60},
        0.25,
        ("trust", "correct by importance sampling"),
        centred=("alpha",),
    ),
    "digits": Case(real_data.digits(), {"fixed_draws": 400}, 0.2),
    "diabetes": Case(
        real_data.diabetes(),
        {"fixed_draws": 200, "num_steps": 150},
        0.25,
        ("trust", "correct by importance sampling"),
    ),
}


@dataclass(frozen=True)
class Reference:
    """Draws of a posterior, summed up by site.

    Attributes:
        mean: of each site.
        error: their Monte Carlo standard errors.
        scale: standard deviations.
    """

    mean: Mapping[str, np.ndarray]
    error: Mapping[str, np.ndarray]
    scale: Mapping[str, np.ndarray]


def summed_up(draws):
    """Of a dataset of ArviZ's, whose chains must agree."""
    assert all(float(r.max()) < 1.02 for r in az.rhat(draws).values())
    dims = "chain", "draw"
    parts = draws.mean(dims), az.mcse(draws), draws.std(dims)
    return Reference(*({n: x.to_numpy() for n, x in part.items()} for part in parts))


def by_nuts(case):
    import jax
    from numpyro.handlers import reparam
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.reparam import LocScaleReparam

    model, _ = case.programs(LIBRARIES["numpyro"]())
    model = reparam(model, config={site: LocScaleReparam(0.0) for site in case.centred})
    chains = {"num_chains": 2, "chain_method": "sequential", "progress_bar": False}
    sampler = MCMC(NUTS(model), num_warmup=400, num_samples=1000, **chains)
    sampler.run(jax.random.key(0), extra_fields=("diverging",))
    assert sampler.get_extra_fields()["diverging"].sum() <= 5
    found = sampler.get_samples(group_by_chain=True).items()
    return summed_up(
        az.convert_to_dataset({n: np.asarray(x) for n, x in found if "decentered" not in n})
    )


@pytest.fixture(scope="module", params=CASES)
def known(request):
    """A case, and its posterior by NUTS, run once."""
    case = CASES[request.param]
    return case, by_nuts(case)


def most_errors(found, reference):
    """By how many of their standard errors means are off, at most."""
    return max(
        np.max(abs(found.mean[name] - mean) / np.hypot(found.error[name], reference.error[name]))
        for name, mean in reference.mean.items()
    )


def test_means_are_those_of_nuts(lib, known):
    """A mutant: weights of the posterior of half the likelihood, which the corrected means reject."""
    case, reference = known
    found = lib.fit(*case.programs(lib), **case.fit)
    said = vi.diagnose(found, num_samples=NUM_SAMPLES)
    assert said.verdict in case.verdicts, said
    plain = vi.expectation(found, num_samples=NUM_SAMPLES)
    for name, mean in reference.mean.items():
        error = np.hypot(plain.error[name], reference.error[name])
        assert (abs(plain.mean[name] - mean) <= case.off * reference.scale[name] + 5 * error).all()
    corrected = vi.expectation(found, psis=True, num_samples=NUM_SAMPLES)
    assert corrected.pareto_k < 0.7
    assert most_errors(corrected, reference) < 5
    mutant = vi.expectation(found, 0.5, psis=True, num_samples=NUM_SAMPLES)
    assert most_errors(mutant, reference) > 5


@pytest.mark.parametrize(
    ("programs", "num_draws"),
    [(real_data.eight_schools(centred=True), 100), (real_data.diabetes("AutoNormal"), 50)],
    ids=["centred_eight_schools", "collinear_slopes_apart"],
)
def test_guides_that_cannot_be_trusted(lib, programs, num_draws):
    """The funnel of a centred hierarchy (Yao et al. 2018), and slopes that the data tie together."""
    found = lib.fit(*programs(lib), fixed_draws=num_draws, num_steps=60)
    said = vi.diagnose(found)
    # a part that is missed may be found by draws of the prior
    assert said.verdict in ("richer guide", "another divergence"), said
