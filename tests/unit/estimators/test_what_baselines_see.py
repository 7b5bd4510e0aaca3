"""Whatever baselines are added, none changes with what the element that it serves is worth."""

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.base.context import _current
from vi_kit.base.named import PLATE, REPLICATE, Axis, Named, union
from vi_kit.costs.terms import Site
from vi_kit.estimators import others

PLATES = Axis(PLATE, 1, "data", 3)
OUTER, COPIES = Axis(REPLICATE, 1, "iid_1", 2), Axis(REPLICATE, 2, "iid_2", 4)
AXES = union([PLATES, OUTER, COPIES])


@dataclass(frozen=True)
class OthersOfThePlate(vi.Baseline):
    """The mean of the other elements of the plate, less some of that of the other replicates."""

    def subtracted(self, others):
        plate = others.mean(others.plates[-1])
        copies = others.replicates and others.mean(others.replicates)
        parts = [p for p in (plate, copies and -0.5 * copies) if p is not None]
        return sum(parts[1:], parts[0]) if parts else None


@dataclass(eq=False)
class FakeRun:
    """What baselines ask of a run, in NumPy."""

    learned: dict = field(default_factory=dict)
    new_state: dict = field(default_factory=dict)
    own_losses: list = field(default_factory=list)
    arguments: tuple = ((), {})
    with_gradient: bool = True
    backend = SimpleNamespace(
        get_state=lambda key: np.array([[1.2, 0.3, 2.0], [0.9, 0.9, 0.9]]),
        predict=lambda name, network, given: np.array([0.5, -1.0, 2.0]),
        stop_gradient=lambda array: array,
    )

    def parameter(self, site, name, like):
        return np.asarray(0.7)


PARTS = {
    "copies": vi.LeaveOneOut(),
    "average": vi.MovingAverage(per_element=True),
    "one": vi.Constant(1.0),
    "scaled_one": vi.ScaledBaseline(vi.Constant(1.0)),
    "scaled_network": vi.ScaledBaseline(vi.NeuralBaseline(None, inputs=lambda: None)),
    "scaled_average": vi.ScaledBaseline(vi.MovingAverage(per_element=True)),
    "learned": vi.LearnedConstant(),
    "plate": OthersOfThePlate(),
    "scaled_plate": vi.ScaledBaseline(OthersOfThePlate() + vi.Constant(1.0)),
}
COSTS = {
    "local": [AXES],
    "local_and_global": [AXES, (COPIES, OUTER)],
    "mixed_by_a_function": [(OUTER,), (OUTER, PLATES)],
    "all_kinds": [AXES, (COPIES, OUTER), (OUTER, PLATES), (COPIES, PLATES), ()],
}


def sums():
    """All sums of one, two and three that can be made."""
    for size in (1, 2, 3):
        for names in itertools.product(PARTS, repeat=size):
            try:
                yield "+".join(names), sum((PARTS[n] for n in names[1:]), PARTS[names[0]])
            except vi.EstimatorError:
                continue


def answer(baseline, costs):
    token = _current.set(FakeRun())
    try:
        said = others.asked(Site("z", 0, AXES, vi.Score()), costs, baseline.subtracted)
    finally:
        _current.reset(token)
    return None if said is None else said.broadcast(AXES).array


def leaks(baseline, parts):
    """By how much a baseline changes for an element if what that element is worth changes."""
    rng = np.random.default_rng(0)
    shapes = [tuple(a.size for a in axes) for axes in parts]
    costs = [Named(rng.normal(size=shape), axes) for shape, axes in zip(shapes, parts, strict=True)]
    before, worst = answer(baseline, costs), 0.0
    for element in [(0, 0, 0), (3, 1, 2), (2, 0, 1)]:
        at = dict(zip(AXES, element, strict=True))
        moved = []
        for cost in costs:  # a cost without some of the axes sees all elements along them
            array = cost.array.copy()
            array[tuple(at[a] for a in cost.axes)] += 100.0
            moved.append(Named(array, cost.axes))
        after = answer(baseline, moved)
        if before is not None:
            worst = max(worst, abs(after[element] - before[element]))
    return worst


@pytest.mark.parametrize("costs", COSTS)
def test_none_sees_its_own_draw(costs):
    seen = {name: leaks(baseline, COSTS[costs]) for name, baseline in sums()}
    assert len(seen) > 400
    assert {name: leak for name, leak in seen.items() if leak > 1e-9} == {}


def sees_outside_the_plate(patch):
    def everything(self, axis, times=None):
        parts = [others._others(n, axis) for n in self._costs]
        return others.total(parts)

    patch.setattr(others.Others, "_sum", everything)


def left_by_baselines_that_saw_it(patch):
    less = others.Others.less
    saw = lambda seen: others.Seen(others.of_own(seen, AXES))  # noqa: E731
    patch.setattr(others.Others, "less", lambda self, seen: less(self, saw(seen)))


def fits_with_its_own(patch):
    fit = others.Others.fit

    def fit_all(self, baseline):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(others, "_others", of_all)
            return fit(self, baseline)

    patch.setattr(others.Others, "fit", fit_all)


def of_all(named, axis):
    kept = others.hidden(axis)
    return named.sum([axis]).broadcast([] if kept in named.axes else [kept])


def own_sample_kept(patch):
    patch.setattr(others, "_others", of_all)


@pytest.mark.parametrize(
    ("mistake", "names", "costs"),
    [
        (own_sample_kept, ("copies",), "local"),
        (sees_outside_the_plate, ("plate",), "local_and_global"),
        (left_by_baselines_that_saw_it, ("copies", "copies"), "local"),
        (left_by_baselines_that_saw_it, ("scaled_one", "copies"), "local"),
        (fits_with_its_own, ("scaled_average",), "local"),
    ],
)
def test_mutants_are_found(mistake, names, costs, monkeypatch):
    baseline = sum((PARTS[n] for n in names[1:]), PARTS[names[0]])
    assert leaks(baseline, COSTS[costs]) <= 1e-9
    mistake(monkeypatch)
    assert leaks(baseline, COSTS[costs]) > 1e-3
