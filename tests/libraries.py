"""One set of words for both libraries, so that a test case is written once and runs on each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


class PyroWords:
    """What a test case needs of Pyro; `theta` is the one flat parameter vector of a case."""

    name = "pyro"

    def __init__(self) -> None:
        import pyro
        import pyro.distributions as dist
        import torch
        from pyro import poutine

        from vi_kit.pyro import Loss

        self.dist = dist
        self.sample, self.plate, self.factor = pyro.sample, pyro.plate, pyro.factor
        self.handlers = SimpleNamespace(
            scale=poutine.scale, mask=poutine.mask, block=poutine.block, condition=poutine.condition
        )
        self.Loss = Loss
        self.xp: Any = torch
        self.detach = lambda x: x.detach()

    def array(self, values: Any) -> Any:
        return self.xp.as_tensor(values)

    def theta(self, values: np.ndarray) -> Any:
        import pyro

        return pyro.param("theta", self.xp.tensor(values, dtype=self.xp.float64))

    def gradients(
        self, loss: Any, model: Any, guide: Any, values: np.ndarray, num_draws: int, seed: int
    ) -> np.ndarray:
        """Independent gradient estimates of the loss by `theta`, shape `(num_draws, len(values))`."""
        import pyro

        pyro.clear_param_store()
        pyro.set_rng_seed(seed % 2**31)
        self.theta(values)
        leaf = pyro.get_param_store()._params["theta"]
        draws = []
        for _ in range(num_draws):
            leaf.grad = None
            loss.loss_and_grads(model, guide)
            draws.append(leaf.grad.numpy().copy())
        return np.array(draws)

    def value(self, loss: Any, model: Any, guide: Any, seed: int) -> float:
        """One estimate of the loss (nats)."""
        import pyro

        pyro.set_rng_seed(seed % 2**31)
        return loss.loss(model, guide)


LIBRARIES = {"pyro": PyroWords}
