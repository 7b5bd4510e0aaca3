"""vi_kit: variational objectives as programs, with a gradient estimator per sample site.

`import vi_kit as vi` imports neither torch nor jax; `vi_kit.pyro` and `vi_kit.numpyro` do.
"""

from vi_kit._errors import AnalyticError, BackendError, EstimatorError, ObjectiveError, ViKitError
from vi_kit.baselines import Baseline, Constant, LeaveOneOut, MovingAverage
from vi_kit.estimators import Enumerate, Estimator, MeasureValued, Reparam, Score
from vi_kit.language import (
    Objective,
    divergence,
    iid,
    log_density,
    objective,
    simulate,
    split_gradients,
    stop_gradient,
)
from vi_kit.objectives import elbo, iwae, miwae

__version__ = "0.1.0"

__all__ = [
    "AnalyticError",
    "BackendError",
    "Baseline",
    "Constant",
    "Enumerate",
    "Estimator",
    "EstimatorError",
    "LeaveOneOut",
    "MeasureValued",
    "MovingAverage",
    "Objective",
    "ObjectiveError",
    "Reparam",
    "Score",
    "ViKitError",
    "divergence",
    "elbo",
    "iid",
    "iwae",
    "log_density",
    "miwae",
    "objective",
    "simulate",
    "split_gradients",
    "stop_gradient",
]
