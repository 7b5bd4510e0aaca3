"""Gradient estimators, one strategy a file. A new one: its file, its line here, its row in the docs."""

from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.doubly_reparam import DoublyReparam
from vi_kit.estimators.enumerate import Enumerate
from vi_kit.estimators.measure_valued import MeasureValued
from vi_kit.estimators.reparam import Reparam
from vi_kit.estimators.score import Score

REGISTRY: tuple[type[Estimator], ...] = (
    Reparam,
    DoublyReparam,
    Score,
    Enumerate,
    MeasureValued,
)

__all__ = [
    "REGISTRY",
    "DoublyReparam",
    "Enumerate",
    "Estimator",
    "Expansion",
    "MeasureValued",
    "Reparam",
    "Score",
]
