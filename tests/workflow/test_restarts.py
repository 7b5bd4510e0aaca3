"""Starts of a fit that end in one place, or in several."""

import importlib

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.workflow.restarts import Start, end_of, said_of

OFF = 3.0


def a_fit(lib, model):
    guides = importlib.import_module(f"{lib.name}.infer.autoguide")
    init = importlib.import_module(
        f"{lib.name}.infer" + ".autoguide.initialization" * (lib.name == "pyro")
    ).init_to_uniform
    guide = guides.AutoNormal(model, init_scale=0.1, init_loc_fn=init)
    fit = importlib.import_module(f"vi_kit.{lib.name}").fit
    return fit(model, guide, num_steps=100, optimizer=0.1, num_restarts=4, seed=1)


def test_parameters_of_all_starts_are_kept_and_modes_are_seen(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 100.0))
        lib.sample("x", lib.dist.Normal(z**2, 0.6), obs=lib.array(OFF**2))

    found = a_fit(lib, model)
    assert len(found.restart_params) == len(found.restarts) == 4
    best = next(i for i, own in enumerate(found.restarts) if np.array_equal(own, found.losses))
    for name, value in found.params.items():
        np.testing.assert_array_equal(
            np.asarray(found.restart_params[best][name]), np.asarray(value)
        )
    means = [
        vi.sample(found, params=own, num_samples=200)["z"].mean() for own in found.restart_params
    ]
    assert abs(abs(np.array(means)) - OFF).max() < 0.2 and np.ptp(means) > 5  # both modes are met
    diagnosis = found.diagnose(num_samples=1000, num_gradients=0)
    assert len(diagnosis.starts) == 3
    away = [s for s in diagnosis.starts if s.distance > 3]
    assert len(away) == sum(np.sign(m) != np.sign(means[best]) for m in means)
    assert max(s.distance for s in away) > 2 * OFF / 0.2
    assert diagnosis.verdict == "another divergence"
    assert f"{len(away)} of 4 starts ended elsewhere" in " ".join(diagnosis.reasons)


def test_starts_that_agree_say_so(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0), obs=lib.array(1.0))

    diagnosis = a_fit(lib, model).diagnose(num_samples=1000, num_gradients=0)
    assert "all 4 starts ended in one place" in diagnosis.reasons
    assert diagnosis.verdict in ("trust", "correct by importance sampling")


def said(sign=-1.0, *starts):
    record = type("", (), {"loss": type("", (), {"settings": type("", (), {"sign": sign})})})
    return said_of(starts, record)  # pyright: ignore


@pytest.mark.parametrize(
    ("starts", "words", "modes"),
    [
        ([Start(0.1, 0.05, 20.0), Start(0.0, 0.1, 0.2)], "1 of 3 starts ended elsewhere", True),
        (
            [Start(40.0, 0.5, 20.0), Start(0.0, 0.1, 0.2)],
            "1 of 3 starts ended up to 40 nats worse, 1",
            False,
        ),
        ([Start(2.0, 0.1, 0.4)], "1 of 2 starts ended up to 2 nats worse, 0", False),
        ([Start(0.3, 0.1, 0.4)], "all 2 starts ended in one place", False),
    ],
)
def test_what_is_said_of_starts(starts, words, modes):
    reasons, shows = said(-1.0, *starts)
    assert words in reasons[0] and len(reasons) == 1 and shows is modes
    assert not said(1.0, *starts)[1]  # of a divergence that is minimised, nats are no mass


def test_the_end_of_autocorrelated_losses():
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        noise = rng.standard_normal(1000)
        for i in range(1, 1000):
            noise[i] += 0.7 * noise[i - 1]
        found.append(end_of(noise))
    means, errors = np.array(found).T
    assert 0.7 < errors.mean() / means.std() < 1.2  # mutant: as if independent, 0.4
