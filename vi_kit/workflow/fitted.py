"""What a fit is made of and what it found."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vi_kit.workflow.asking import Trained
from vi_kit.workflow.calibrating import Calibration, calibrate
from vi_kit.workflow.diagnosing import diagnose
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.expecting import Expectation, expectation, resample
from vi_kit.workflow.exporting import to_arviz
from vi_kit.workflow.held import Held
from vi_kit.workflow.heldout import Heldout, heldout
from vi_kit.workflow.history import last_tenth
from vi_kit.workflow.predicting import predictive
from vi_kit.workflow.response import LinearResponse, linear_response
from vi_kit.workflow.sampling import sample


@dataclass(eq=False, repr=False)
class Fit(Trained):
    """What `fit` returns: the programs, where their parameters ended, and how they got there.

    Attributes:
        model: the model, with the scale of its minibatches seen to.
        guide: the guide, likewise.
        args: what they take: all the data, or the first minibatch of a loader.
        kwargs: likewise.
        loss: the `Loss` of the library.
        params: the parameters by name, as the programs see them (constrained).
        losses: of each step (bounds: nats), shape `(num_steps,)`.
        gradient_norms: the Euclidean norm of the gradient of each step, before clipping, same shape.
        stopped: why it stopped, in words.
        explained: which estimator each site had, and why.
        seconds: by phase: `"before"` (planning), `"first step"` (with compilation), `"steps"`.
        versions: of the libraries.
        seed: of all random numbers.
        notes: what else there is to know.
        state: what modules (batch normalisation) and baselines keep from step to step, by name.
        restarts: the losses of each start, if there were several.
        restart_params: where the parameters of each ended, likewise.
        by_rule: whether it is its stopping rule that ended it, or with fixed draws that no step was left to take;
            `None` if there was no rule.
        is_whole: whether `args` are all the data, and not the first minibatch of a loader.
        fixed_draws: the number of draws that were held, if so: `losses` are then those after each iteration.
        held: the loss with its noise held, which `linear_response` asks.
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
    restart_params: tuple[dict[str, Any], ...] = ()
    by_rule: bool | None = None
    is_whole: bool = True
    fixed_draws: int | None = None
    held: Held | None = None

    @property
    def num_steps(self) -> int:
        """Steps that were taken."""
        return len(self.losses)

    @property
    def direction(self) -> str:
        """What is done with the objective: `"maximised"` or `"minimised"`."""
        return "maximised" if self.loss.settings.sign < 0 else "minimised"

    @property
    def objective(self) -> float:
        """The objective, in its own units (bounds: nats): its mean over the last tenth of the steps, at least ten of
        them; with fixed draws, that of the last step."""
        sign = self.loss.settings.sign
        if self.fixed_draws is not None and self.num_steps:
            return sign * float(self.losses[-1])
        return sign * float(np.mean(self.losses[-last_tenth(self.num_steps) :]))

    def __repr__(self) -> str:
        names = (getattr(p, "__name__", type(p).__name__) for p in (self.model, self.guide))
        lines = ["Fit of {} by {}: {}".format(*names, self.loss), f"stopped: {self.stopped}"]
        if self.num_steps:
            lines.append(
                f"objective {self.objective:.5g} ({self.direction}), norm of the gradient"
                f" {self.gradient_norms[-1]:.3g}"
            )
        if self.restarts:
            ends = (x[-last_tenth(len(x)) :] for x in self.restarts)
            sign = self.loss.settings.sign
            ends = (f"{sign * np.mean(x):.5g}" if len(x) else "none" for x in ends)
            lines.append(f"objectives of {len(self.restarts)} starts: {', '.join(ends)}")
        lines.append("seconds: " + ", ".join(f"{k} {v:.2g}" for k, v in self.seconds.items()))
        shown = [f"{n} {_shape(v)}" for n, v in list(self.params.items())[:MAX_SHOWN]]
        shown += [f"and {len(self.params) - MAX_SHOWN} more"] * (len(self.params) > MAX_SHOWN)
        lines.append("parameters: " + ", ".join(shown))
        lines += [*self.notes, "", self.explained.strip(), ""]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join([*lines, f"seed {self.seed}; {versions}"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

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

    def linear_response(
        self,
        functions: Mapping[str, Callable] | Sequence[str] | str | None = None,
        *,
        num_draws: int = 200,
        seed: int = 1,
    ) -> LinearResponse:
        r"""Posterior means and covariances by linear response, of a fit with `fixed_draws`.

        The covariance of $f_j$ and $f_k$ is estimated by how much the guide's mean of $f_j$, over the held draws, would
        change at the optimum, per unit of $t$, if $t f_k$ were added to the model's log density:
        $\nabla m_j^\top H^{-1} \nabla m_k$, with $H$ the Hessian of the held loss by the guide's parameters. For a
        mean-field guide it has the correlations, and the variances, that the guide itself has not; it is as good as
        the guide's means are. Parameters of the model are held where they are. Hessians are met by their products with
        vectors, in conjugate gradients.

        Args:
            functions: names of latent sites (all, if left out), or functions by name: each from a dict of the values of
                the model's sites to an array. They are run as part of the model, so they must broadcast over dims in
                front; a site that is enumerated under a plate is to be asked for by its name.
            num_draws: of single draws, by which the Monte Carlo errors are found.
            seed: of these.

        Raises:
            ObjectiveError: a fit without `fixed_draws`, unknown sites, functions that do not broadcast.
            NotFiniteError: the Hessian is not positive: no minimum, or parameters that change nothing.

        References:
            Giordano, Broderick and Jordan 2018, Covariances, Robustness, and Variational Bayes.
            Giordano, Ingram and Broderick 2024, Black Box Variational Inference with a Deterministic Objective.
        """
        num_fixed = self.fixed_draws or 1
        return linear_response(self.held, functions, num_fixed, num_draws, seed)

    def covariance(self, *sites: str) -> np.ndarray:
        """The posterior covariance of sites by linear response, shape `(num, num)`; see `linear_response`."""
        return self.linear_response(list(sites) or None, num_draws=2).covariance


MAX_SHOWN = 12
"""Parameters."""


def _shape(value: Any) -> str:
    """That of an array; of a network's parameters in NumPyro, a tree, how many arrays they are."""
    num = _num_arrays(value)
    return str(tuple(np.shape(value))) if num is None else f"({num} arrays)"


def _num_arrays(value: Any) -> int | None:
    """`None` of what is no tree."""
    if not isinstance(value, Mapping | list | tuple):
        return None
    parts = value.values() if isinstance(value, Mapping) else value
    return sum(1 if (num := _num_arrays(part)) is None else num for part in parts)
