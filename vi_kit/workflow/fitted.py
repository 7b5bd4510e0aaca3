"""What a fit is made of and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.workflow.asking import Trained
from vi_kit.workflow.calibrating import Calibration, calibrate
from vi_kit.workflow.diagnosing import diagnose
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.expecting import Expectation, expectation, resample
from vi_kit.workflow.exporting import to_arviz
from vi_kit.workflow.heldout import Heldout, heldout
from vi_kit.workflow.predicting import predictive
from vi_kit.workflow.sampling import sample


@dataclass(eq=False)
class Fit(Trained):
    """What `fit` returns: the programs, where their parameters ended, and how they got there.

    Attributes:
        model: the model, with the scale of its minibatches seen to.
        guide: the guide, likewise.
        args: what they take: all the data, or the first minibatch of a loader.
        kwargs: likewise.
        loss: the `Loss` of the library.
        params: the parameters by name, as the programs see them (constrained).
        losses: of each step (nats), shape `(num_steps,)`.
        gradient_norms: the Euclidean norm of the gradient of each step, before clipping, same shape.
        stopped: why it stopped, in words.
        explained: which estimator each site had, and why.
        seconds: by phase: `"first step"`, `"steps"`.
        versions: of the libraries.
        seed: of all random numbers.
        notes: what else there is to know.
        state: what modules (batch normalisation) and baselines keep from step to step, by name.
        restarts: the losses of each start, if there were several.
    """

    model: Callable
    guide: Callable
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Any
    params: dict[str, Any]
    losses: np.ndarray
    gradient_norms: np.ndarray
    stopped: str
    explained: str
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    seed: int
    notes: tuple[str, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    restarts: tuple[np.ndarray, ...] = ()

    @property
    def num_steps(self) -> int:
        """Steps that were taken."""
        return len(self.losses)

    @property
    def objective(self) -> float:
        """The objective (nats): its mean over the last tenth of the steps, at least ten of them."""
        sign = self.loss.settings.sign
        return sign * float(np.mean(self.losses[-last_tenth(self.num_steps) :]))

    def sample(
        self, num_samples: int = 1000, *args: Any, seed: int = 0, **kwargs: Any
    ) -> dict[str, np.ndarray]:
        """Draws of the guide; see `vi.sample`."""
        return sample(self, *args, num_samples=num_samples, seed=seed, **kwargs)

    def predictive(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Draws of the data; see `vi.predictive`."""
        return predictive(self, *args, **kwargs)

    def to_arviz(self, *args: Any, **kwargs: Any) -> Any:
        """The fit as ArviZ has posteriors; see `vi.to_arviz`."""
        return to_arviz(self, *args, **kwargs)

    def heldout(self, *args: Any, **kwargs: Any) -> Heldout:
        """How probable new data are; see `vi.heldout`."""
        return heldout(self, *args, **kwargs)

    def diagnose(self, *args: Any, **kwargs: Any) -> Diagnosis:
        """Whether the fit can be trusted; see `vi.diagnose`."""
        return diagnose(self, *args, **kwargs)

    def calibrate(self, *args: Any, **kwargs: Any) -> Calibration:
        """Simulation-based calibration; see `vi.calibrate`."""
        return calibrate(self, *args, **kwargs)

    def expectation(self, *args: Any, **kwargs: Any) -> Expectation:
        """Posterior means; see `vi.expectation`."""
        return expectation(self, *args, **kwargs)

    def resample(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Draws in proportion to importance weights; see `vi.resample`."""
        return resample(self, *args, **kwargs)


def last_tenth(num_steps: int) -> int:
    """How many steps tell where a fit ended."""
    return max(10, num_steps // 10)
