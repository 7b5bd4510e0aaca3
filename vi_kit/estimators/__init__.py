"""Gradient estimators, one strategy a file. A new one: its file, its lines here, its row in the docs."""

from vi_kit.estimators.analytic import Analytic
from vi_kit.estimators.annealed import Annealed
from vi_kit.estimators.base import Estimator, Expansion, Policy
from vi_kit.estimators.disarm import DisARM
from vi_kit.estimators.doubly_reparam import DoublyReparam
from vi_kit.estimators.enumerate import Enumerate
from vi_kit.estimators.generalized_reparam import GeneralizedReparam
from vi_kit.estimators.measure_valued import MeasureValued
from vi_kit.estimators.mixture_reparam import MixtureReparam
from vi_kit.estimators.quadrature import Quadrature
from vi_kit.estimators.rebar import Rebar, Relax
from vi_kit.estimators.rejection_reparam import RejectionReparam
from vi_kit.estimators.rejector import Rejector
from vi_kit.estimators.relaxed import Relaxed, StraightThrough
from vi_kit.estimators.reparam import Reparam
from vi_kit.estimators.score import Score
from vi_kit.estimators.sum_and_sample import SumAndSample
from vi_kit.estimators.without_replacement import WithoutReplacement

REGISTRY: tuple[type[Estimator | Policy], ...] = (
    Reparam,
    DoublyReparam,
    MixtureReparam,
    RejectionReparam,
    GeneralizedReparam,
    Analytic,
    Score,
    Enumerate,
    MeasureValued,
    Quadrature,
    DisARM,
    SumAndSample,
    WithoutReplacement,
    Rebar,
    Relax,
    Relaxed,
    StraightThrough,
    Annealed,
)

__all__ = [
    "Analytic",
    "Annealed",
    "DisARM",
    "DoublyReparam",
    "Enumerate",
    "Estimator",
    "Expansion",
    "GeneralizedReparam",
    "MeasureValued",
    "MixtureReparam",
    "Quadrature",
    "Rebar",
    "RejectionReparam",
    "Rejector",
    "Relax",
    "Relaxed",
    "Reparam",
    "Score",
    "StraightThrough",
    "SumAndSample",
    "WithoutReplacement",
]
