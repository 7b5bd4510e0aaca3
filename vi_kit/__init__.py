"""vi_kit: variational objectives as programs, with a gradient estimator per sample site.

`import vi_kit as vi` imports neither torch nor jax; `vi_kit.pyro` and `vi_kit.numpyro` do.
"""

from array_api_compat import array_namespace

from vi_kit import generators
from vi_kit._errors import AnalyticError, BackendError, EstimatorError, ObjectiveError, ViKitError
from vi_kit.baselines import Baseline, Constant, LeaveOneOut, MovingAverage
from vi_kit.energy import from_log_density
from vi_kit.estimators import (
    DoublyReparam,
    Enumerate,
    Estimator,
    MeasureValued,
    Reparam,
    Score,
)
from vi_kit.language import (
    Must,
    Objective,
    Range,
    apply,
    divergence,
    evaluate,
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
    expected_reward,
    f_divergence,
    forward_kl,
    iwae,
    log_variance,
    miwae,
    multi_trace,
    piwae,
    renyi,
    sub_trajectory_balance,
    tail_adaptive,
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
    "Must",
    "Objective",
    "ObjectiveError",
    "Range",
    "Reparam",
    "Score",
    "ViKitError",
    "apply",
    "array_namespace",
    "ciwae",
    "cubo",
    "divergence",
    "elbo",
    "evaluate",
    "expected_reward",
    "f_divergence",
    "forward_kl",
    "from_log_density",
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
    "sub_trajectory_balance",
    "tail_adaptive",
    "thermodynamic",
    "trajectory_balance",
    "uncondition",
    "wake_sleep",
]
