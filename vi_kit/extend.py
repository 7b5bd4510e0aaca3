"""What estimators and baselines of one's own are made of.

`current().backend` is the library that runs: `stop_gradient`, `uniform` and what arrays of both have in common.
"""

from vi_kit.base.context import current
from vi_kit.base.demands import ClosedForm, Continuous, ContinuousBetween, Polynomial
from vi_kit.base.errors import Refusal
from vi_kit.base.layouts import Alternatives, Closed, Gradient, Single, Worlds
from vi_kit.base.named import Axis, Named, combine, total
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Site, Term, stopped
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.baselines import Baseline
from vi_kit.estimators.memory import Learned, Network, State, Step
from vi_kit.estimators.noise import Noise
from vi_kit.estimators.others import Others, Seen
from vi_kit.estimators.score import WithBaseline

__all__ = [
    "Alternatives",
    "Axis",
    "Baseline",
    "Closed",
    "ClosedForm",
    "Continuous",
    "ContinuousBetween",
    "Downstream",
    "Estimator",
    "Expansion",
    "Gradient",
    "Learned",
    "Named",
    "Network",
    "Noise",
    "Others",
    "Polynomial",
    "Refusal",
    "Seen",
    "Single",
    "Site",
    "State",
    "Step",
    "Term",
    "WithBaseline",
    "Worlds",
    "combine",
    "current",
    "stopped",
    "total",
]
