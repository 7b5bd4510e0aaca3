"""vi_kit: variational objectives as programs, with a gradient estimator per sample site.

`import vi_kit as vi` imports neither torch nor jax; `vi_kit.pyro` and `vi_kit.numpyro` do.
"""

from vi_kit import generators
from vi_kit._errors import AnalyticError, BackendError, EstimatorError, ObjectiveError, ViKitError
from vi_kit.baselines import Baseline, Constant, LeaveOneOut, MovingAverage
from vi_kit.estimators import (
    DoublyReparam,
    Enumerate,
    Estimator,
    MeasureValued,
    Reparam,
    Score,
)
from vi_kit.language import (
    Objective,
    Range,
    divergence,
    given,
    iid,
    log_density,
    objective,
    simulate,
    split_gradients,
    stop_gradient,
    uncondition,
)
from vi_kit.objectives import (
    Generator,
    ciwae,
    cubo,
    elbo,
    f_divergence,
    forward_kl,
    iwae,
    log_variance,
    miwae,
    multi_trace,
    piwae,
    renyi,
    thermodynamic,
    trajectory_balance,
    wake_sleep,
)

__version__ = "0.1.0"

__all__ = [
    "AnalyticError",
    "BackendError",
    "Baseline",
    "Constant",
    "DoublyReparam",
    "Enumerate",
    "Estimator",
    "EstimatorError",
    "Generator",
    "LeaveOneOut",
    "MeasureValued",
    "MovingAverage",
    "Objective",
    "ObjectiveError",
    "Range",
    "Reparam",
    "Score",
    "ViKitError",
    "ciwae",
    "cubo",
    "divergence",
    "elbo",
    "f_divergence",
    "forward_kl",
    "generators",
    "given",
    "iid",
    "iwae",
    "log_density",
    "log_variance",
    "miwae",
    "multi_trace",
    "objective",
    "piwae",
    "renyi",
    "simulate",
    "split_gradients",
    "stop_gradient",
    "thermodynamic",
    "trajectory_balance",
    "uncondition",
    "wake_sleep",
]
