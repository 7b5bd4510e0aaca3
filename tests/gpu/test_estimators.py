"""Every estimator, baseline and objective on a device: as on the host, and with no wait in a step."""

from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch

import vi_kit as vi
from tests.conformance.families import FAMILIES
from tests.conformance.shapes import Independent
from tests.gpu.devices import DEVICES, DeviceWords, NoiseOfHost, available
from tests.oracles import seed_of
from tests.statistical.test_mixture_reparam import TwoModes
from vi_kit.pyro import Loss


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(1, 1)


def neural():
    net = network()
    return vi.Score(vi.NeuralBaseline(net, inputs=lambda: torch.ones_like(net.weight)[0]))


ESTIMATORS = {
    "reparam": ("normal", lambda: vi.Reparam()),
    "doubly": ("normal", lambda: vi.DoublyReparam()),
    "rejection": ("gamma", lambda: vi.RejectionReparam()),
    "generalized": ("gamma", lambda: vi.GeneralizedReparam()),
    "analytic": ("normal", lambda: vi.Analytic()),
    "score": ("bernoulli", lambda: vi.Score()),
    "loo": ("normal", lambda: vi.Score(vi.LeaveOneOut())),
    "average": ("bernoulli", lambda: vi.Score(vi.MovingAverage())),
    "per element": ("bernoulli", lambda: vi.Score(vi.MovingAverage(per_element=True))),
    "constant": ("bernoulli", lambda: vi.Score(vi.Constant(-2.0))),
    "learned": ("bernoulli", lambda: vi.Score(vi.LearnedConstant(-1.0))),
    "scaled": ("bernoulli", lambda: vi.Score(vi.ScaledBaseline(vi.Constant(-2.0)))),
    "enumerate": ("categorical", lambda: vi.Enumerate()),
    "measure": ("normal", lambda: vi.MeasureValued()),
    "measure_gamma": ("gamma_rate", lambda: vi.MeasureValued()),
    "measure_poisson": ("poisson", lambda: vi.MeasureValued()),
    "quadrature": ("normal", lambda: vi.Quadrature(5)),
    "disarm": ("bernoulli", lambda: vi.DisARM()),
    "disarm_categorical": ("categorical", lambda: vi.DisARM()),
    "sum_and_sample": ("categorical", lambda: vi.SumAndSample(1)),
    "without_replacement": ("categorical", lambda: vi.WithoutReplacement(2)),
    "rebar": ("bernoulli", lambda: vi.Rebar()),
    "rebar_fixed": ("bernoulli", lambda: vi.Rebar(learn=False)),
    "relax": ("bernoulli", lambda: vi.Relax(network())),
    "neural": ("bernoulli", neural),
    "mixture": (TwoModes, lambda: vi.MixtureReparam()),
    "relaxed": ("bernoulli", lambda: vi.Relaxed(0.5, biased=True)),
    "straight_through": ("bernoulli", lambda: vi.StraightThrough(biased=True)),
    "annealed": (
        "normal",
        lambda: vi.Annealed(vi.Score(vi.MovingAverage()), vi.Reparam(), lambda t: 0.5),
    ),
}
OBJECTIVES = {
    "elbo": vi.elbo(),
    "iwae": vi.iwae(num_particles=3),
    "miwae": vi.miwae(num_outer=2, num_inner=2),
    "renyi": vi.renyi(alpha=0.5, num_particles=2),
    "cubo": vi.cubo(order=2.0, num_particles=2),
    "log_variance": vi.log_variance(num_particles=3),
}
NONLINEAR = (
    "reparam",
    "doubly",
    "rejection",
    "loo",
    "per element",
    "enumerate",
    "measure",
    "rebar",
)
CASES = (
    [(e, "elbo") for e in ESTIMATORS]
    + [(e, "iwae") for e in NONLINEAR]
    + [
        (e, o)
        for e in ("reparam", "enumerate", "loo")
        for o in OBJECTIVES
        if o not in ("elbo", "iwae")
    ]
)


def estimates(device, estimator, objective, seed, shape=Independent, num_draws=4):
    family, make = ESTIMATORS[estimator]
    lib = DeviceWords(device)
    with lib.device:  # networks are there
        loss = Loss(OBJECTIVES[objective], make(), num_samples=2)
    found = lib.estimates(loss, *programs(family, shape, lib), num_draws, seed)
    return found, lib.waited


def programs(family, shape, lib):
    """Model, guide, and where their parameters start."""
    if isinstance(family, str):
        made = shape(FAMILIES[family])
        return lambda: made.model(lib), lambda: made.guide(lib), made.values
    made = family(lib)
    return made.model, made.guide, made.values


READS = {"cpu": 2, "simulated": 1, "cuda": 1}
"""Of a step: the loss and, where that is no wait, whether the gradients are numbers."""


@pytest.fixture(autouse=True)
def validation():
    """Pyro's validation asks for values at each statement."""
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("estimator", "objective"), CASES)
def test_on_a_device_as_on_the_host(estimator, objective, device):
    device, seed = available(device), seed_of(f"{estimator}{objective}")
    host, _ = estimates("cpu", estimator, objective, seed)
    with NoiseOfHost() if device == "cuda" else nullcontext():
        there, waited = estimates(device, estimator, objective, seed)
    if device == "cuda":
        _, waited = estimates(device, estimator, objective, seed)
    np.testing.assert_allclose(there, host, rtol=1e-9, atol=1e-12)
    assert len(waited) == READS[device], waited


PHASES = {
    "wake": vi.wake_sleep(num_particles=3),
    "wake and sleep": vi.wake_sleep(num_particles=3, insomnia=0.5),
    "forward_kl": vi.forward_kl(num_particles=2),
    "eubo": vi.eubo(num_particles=2),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["Normal", "Bernoulli"])
@pytest.mark.parametrize("objective", PHASES)
def test_phases_of_their_own(objective, kind, device):
    """Weights divide: to look for jumps there ended the process, as a tangent that is not there has no device."""
    device, data = available(device), np.array([0.7, -0.3])

    def found(device):
        lib = DeviceWords(device)

        def model(x):
            weight = lib.theta(np.array([0.4, -0.2]), "weight")
            with lib.plate("data", 2):
                prior = {"Normal": (0.1, 1.1), "Bernoulli": (0.4,)}[kind]
                z = lib.sample("z", getattr(lib.dist, kind)(*map(lib.array, prior)))
                lib.sample("x", lib.dist.Normal(z * weight, lib.array(0.9)), obs=x)

        def guide(x):
            theta = lib.theta(np.array([0.1, 0.3]))
            with lib.plate("data", 2):
                if kind == "Normal":
                    lib.sample("z", lib.dist.Normal(theta, lib.array(1.2)))
                else:
                    lib.sample("z", lib.dist.Bernoulli(logits=theta))

        return lib.estimates(
            Loss(PHASES[objective]),
            model,
            guide,
            np.array([0.1, 0.3]),
            num_draws=4,
            seed=seed_of(objective),
            names=("theta", "weight"),
            args=(lib.array(data),),
        )

    host = found("cpu")
    with NoiseOfHost() if device == "cuda" else nullcontext():
        np.testing.assert_allclose(found(device), host, rtol=1e-9, atol=1e-12)
