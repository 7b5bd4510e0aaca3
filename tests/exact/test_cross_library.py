"""Both libraries give the same gradient for the same noise."""

import numpy as np
import pytest

import vi_kit as vi
from tests.cases import TwoLevelBernoulli
from tests.libraries import LIBRARIES

VALUES = np.array([0.3, -0.4, 0.8, 0.2])
DATA = np.array([0.5, -1.0, 1.5])
NOISE = {"m": 0.37, "b": np.array([0.2, 0.9, 0.6])}
ESTIMATORS = {
    "reparam-score": {"m": vi.Reparam(), "b": vi.Score(vi.Constant(-1.0))},
    "score-score": {"m": vi.Score(), "b": vi.Score()},
    "reparam-enumerate": {"m": vi.Reparam(), "b": vi.Enumerate()},
    "measure-measure": {"m": vi.MeasureValued(), "b": vi.MeasureValued()},
    "score-measure": {"m": vi.Score(), "b": vi.MeasureValued()},
}


def model_and_guide(lib):
    """A global Normal and a plate of Bernoulli sites below it, both with their noise given."""

    def normal(loc, scale):
        class Given(lib.dist.Normal):
            def sample(self, *args, **kwargs):
                return lib.detach(self.loc + self.scale * NOISE["m"])

            def rsample(self, *args, **kwargs):
                return self.loc + self.scale * NOISE["m"]

            def sample_with_intermediates(self, *args, **kwargs):
                return self.rsample(), []

        Given.__name__ = "Normal"
        return Given(loc, scale)

    def bernoulli(logits):
        base = type(lib.dist.Bernoulli(logits=logits))

        class Given(base):
            def sample(self, *args, **kwargs):
                probs = lib.xp.broadcast_to(self.probs, (*self.probs.shape[:-1], 3))
                below = lib.array(NOISE["b"]) < probs
                return lib.xp.where(below, lib.xp.ones_like(probs), lib.xp.zeros_like(probs))

        Given.__name__ = base.__name__
        return Given(logits=logits)

    def model():
        theta = lib.theta(VALUES)
        m = lib.sample("m", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 3):
            b = lib.sample("b", lib.dist.Bernoulli(logits=0.3 * m))
            lib.sample("x", lib.dist.Normal(m + theta[3] * b, 0.7), obs=lib.array(DATA))

    def guide():
        theta = lib.theta(VALUES)
        m = lib.sample("m", normal(theta[0], lib.xp.exp(theta[1])))
        with lib.plate("data", 3):
            lib.sample("b", bernoulli(theta[2] * lib.xp.ones_like(lib.array(DATA)) + m))

    return model, guide


@pytest.mark.parametrize("name", ESTIMATORS)
def test_same_noise_same_gradient(name, monkeypatch):
    found = []
    for words in LIBRARIES.values():
        lib = words()
        monkeypatch.setattr(
            f"vi_kit.{lib.name}.backend.{type(lib).__name__[:-5]}Backend.uniform",
            lambda self, shape, like: like * 0.0 + 0.4,
        )
        loss = lib.Loss(vi.elbo(), ESTIMATORS[name])
        found.append(lib.gradients(loss, *model_and_guide(lib), VALUES, 1, 0)[0])
    assert np.abs(found[0]).min() > 1e-3
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
def test_no_noise_same_gradient(objective):
    found = []
    for words in LIBRARIES.values():
        lib = words()
        loss = lib.Loss(objective, vi.Enumerate())
        found.append(TwoLevelBernoulli(lib).gradients(loss, 1, 0)[0])
    np.testing.assert_allclose(*found, rtol=1e-10)
