"""vi_kit: variational objectives as programs, with a gradient estimator per sample site.

`import vi_kit as vi` imports neither torch nor jax; `vi_kit.pyro` and `vi_kit.numpyro` do.
"""

from array_api_compat import array_namespace

from vi_kit import estimators, extend, generators, objectives
from vi_kit.base.errors import (
    AnalyticError,
    BackendError,
    CaptureError,
    CheckpointError,
    EstimatorError,
    NotFiniteError,
    ObjectiveError,
    ProcessError,
    VersionError,
    ViKitError,
)
from vi_kit.estimators import *  # noqa: F403
from vi_kit.estimators.baselines import (
    Baseline,
    Constant,
    LearnedConstant,
    LeaveOneOut,
    MovingAverage,
    NeuralBaseline,
    ScaledBaseline,
    SumOfBaselines,
)
from vi_kit.estimators.quadrature_error import quadrature_error
from vi_kit.language.annealing import AIS
from vi_kit.language.energy import from_log_density
from vi_kit.language.kernels import Hamiltonian, Langevin
from vi_kit.language.marginal import Exact, ImportanceSampling, marginal
from vi_kit.language.normalize import SIR, normalize
from vi_kit.language.smc import SMC
from vi_kit.language.words import (
    Objective,
    SettingRange,
    SettingRule,
    apply,
    divergence,
    evaluate,
    given,
    held_draw,
    iid,
    log_density,
    log_mean_exp,
    objective,
    simulate,
    softmax,
    split_gradients,
    stop_gradient,
    uncondition,
)
from vi_kit.objectives import *  # noqa: F403
from vi_kit.unbiased import Unbiasedness, check_unbiased
from vi_kit.workflow.auto import Chosen, auto
from vi_kit.workflow.averaging import IterateAverage
from vi_kit.workflow.calibrating import Calibration, calibrate
from vi_kit.workflow.checkpoints import Checkpoint, CheckpointWarning
from vi_kit.workflow.citation import citation
from vi_kit.workflow.decreasing import DecreasingSteps
from vi_kit.workflow.diagnosing import diagnose
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.expecting import Expectation, expectation, resample
from vi_kit.workflow.exporting import to_arviz
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.heldout import Heldout, heldout
from vi_kit.workflow.pictures import plot_bound, plot_posterior, plot_snr, plot_weights
from vi_kit.workflow.predicting import predictive
from vi_kit.workflow.profile import Profile, profile_estimators
from vi_kit.workflow.sampling import sample
from vi_kit.workflow.stationary import Stationary

__version__ = "0.1.0"

__all__ = [
    "AIS",
    "SIR",
    "SMC",
    "AnalyticError",
    "BackendError",
    "Baseline",
    "Calibration",
    "CaptureError",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Chosen",
    "Constant",
    "DecreasingSteps",
    "Diagnosis",
    "EstimatorError",
    "Exact",
    "Expectation",
    "Fit",
    "Hamiltonian",
    "Heldout",
    "ImportanceSampling",
    "IterateAverage",
    "Langevin",
    "LearnedConstant",
    "LeaveOneOut",
    "MovingAverage",
    "NeuralBaseline",
    "NotFiniteError",
    "Objective",
    "ObjectiveError",
    "ProcessError",
    "Profile",
    "ScaledBaseline",
    "SettingRange",
    "SettingRule",
    "Stationary",
    "SumOfBaselines",
    "Unbiasedness",
    "VersionError",
    "ViKitError",
    "apply",
    "array_namespace",
    "auto",
    "calibrate",
    "check_unbiased",
    "citation",
    "diagnose",
    "divergence",
    "evaluate",
    "expectation",
    "extend",
    "from_log_density",
    "generators",
    "given",
    "held_draw",
    "heldout",
    "iid",
    "log_density",
    "log_mean_exp",
    "marginal",
    "normalize",
    "objective",
    "plot_bound",
    "plot_posterior",
    "plot_snr",
    "plot_weights",
    "predictive",
    "profile_estimators",
    "quadrature_error",
    "resample",
    "sample",
    "simulate",
    "softmax",
    "split_gradients",
    "stop_gradient",
    "to_arviz",
    "uncondition",
]
__all__ += estimators.__all__
__all__ += objectives.__all__
__all__.sort()  # pyright: ignore[reportUnsupportedDunderAll]
