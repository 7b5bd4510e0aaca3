"""What of each estimator is tried at a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from vi_kit.estimators import (
    Analytic,
    Annealed,
    DisARM,
    DoublyReparam,
    Enumerate,
    Estimator,
    GeneralizedReparam,
    MeasureValued,
    MixtureReparam,
    Policy,
    Quadrature,
    Rebar,
    RejectionReparam,
    Relax,
    Relaxed,
    Reparam,
    Score,
    StraightThrough,
    SumAndSample,
    WithoutReplacement,
)
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

BASELINES: dict[type[Baseline], tuple[Baseline, ...]] = {
    Constant: (Constant(),),
    MovingAverage: (MovingAverage(),),
    LearnedConstant: (LearnedConstant(),),
    LeaveOneOut: (LeaveOneOut(),),
    SumOfBaselines: (LeaveOneOut() + MovingAverage(),),
    ScaledBaseline: (ScaledBaseline(MovingAverage()),),
}

SHELF: dict[type[Estimator | Policy], Callable[[], tuple[Estimator, ...]]] = {
    Enumerate: lambda: (Enumerate(),),
    Reparam: lambda: (Reparam(),),
    Analytic: lambda: (Analytic(), Analytic(fallback=Reparam())),
    Quadrature: lambda: (Quadrature(5),),
    Score: lambda: tuple(Score(b) for own in BASELINES.values() for b in own),
    MeasureValued: lambda: (MeasureValued(),),
    DisARM: lambda: (DisARM(),),
    SumAndSample: lambda: (SumAndSample(1), SumAndSample(3)),
    WithoutReplacement: lambda: (WithoutReplacement(2), WithoutReplacement(3)),
    RejectionReparam: lambda: (RejectionReparam(),),
    GeneralizedReparam: lambda: (GeneralizedReparam(),),
    MixtureReparam: lambda: (MixtureReparam(),),
    DoublyReparam: lambda: (DoublyReparam(),),
    Rebar: lambda: (Rebar(),),
    Relaxed: lambda: (
        Relaxed(0.5, biased=True),
        Relaxed(0.5, straight_through=True, biased=True),
    ),
    StraightThrough: lambda: (
        StraightThrough(biased=True),
        StraightThrough(second_order=True, biased=True),
    ),
}
"""From simple to intricate: where measurements do not tell two apart, the one before wins."""

NOT_TRIED: dict[type, str] = {
    Relax: "needs a network: candidates=[vi.Relax(...)]",
    NeuralBaseline: "needs a network: candidates=[vi.Score(vi.NeuralBaseline(...))]",
    Annealed: "a mixture of two estimators, by a schedule",
}


def short(value: Any) -> str:
    """An estimator or baseline without the settings that go without saying."""
    if isinstance(value, SumOfBaselines):
        return " + ".join(map(short, value.parts))
    if not isinstance(value, Estimator | Baseline) or not is_dataclass(value):
        return repr(value)
    own = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
    usual = {f.name: f.default for f in fields(value)}
    usual.update(
        (f.name, f.default_factory()) for f in fields(value) if f.default_factory is not MISSING
    )
    shown = (
        f"{short(v)}" if isinstance(v, Baseline | Estimator) else f"{n}={v!r}"
        for n, v in own.items()
        if n != "biased" and not (usual[n] is not MISSING and v == usual[n])
    )
    return f"{type(value).__name__}({', '.join(shown)})"


def shelf() -> list[Estimator]:
    """All that is tried, in this order."""
    return [estimator for make in SHELF.values() for estimator in make()]
