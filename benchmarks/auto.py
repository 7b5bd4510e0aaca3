"""What `vi.auto` chooses against the best of all combinations of the same estimators, by variance x evaluations.

The programs, the estimators and the trial are those of `tests/workflow/test_auto.py`: a belief network of two layers,
and a plate with a Categorical, a Normal and a Gamma site in each row. The trial has draws of its own.

Run: `python -m benchmarks.auto [pyro | numpyro]`, or as a part of `python -m benchmarks`.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.timing import Row
from tests.libraries import LIBRARIES
from tests.workflow import test_auto as trial

PROBLEMS = {
    "belief network": (trial.belief_network, trial.BITS, trial.evaluations_of_bits, (300, 2000)),
    "Categorical, Normal and Gamma": (
        trial.three_kinds,
        trial.KINDS,
        trial.evaluations_of_kinds,
        (20, 100),
    ),
}
"""Programs, what may be chosen, evaluations of the model, draws for the choice and for the trial."""


def row(library: str, problem: str) -> Row:
    """Variance x evaluations over that of the best combination."""
    lib: Any = LIBRARIES[library]()
    programs, options, evaluations, num_draws = PROBLEMS[problem]
    _, scores, choice = trial.compared(lib, programs(lib), options, evaluations, num_draws)
    best = min(scores, key=lambda c: scores[c][0])
    least = scores[best][0]
    ratio = scores[choice][0] / least
    errors = [error / score for score, error in (scores[choice], scores[best])]
    multiples = [score / least for score, _ in scores.values()]
    numbers = {
        "chosen": ratio,
        "s.e.": ratio * math.hypot(*errors) if choice != best else 0.0,
        "median of all": statistics.median(multiples),
        "worst": max(multiples),
    }
    work = f"variance x evaluations over the best of {len(scores)}, {problem}, {lib.name}"
    return Row(f"vi.auto: {work}", numbers, unit="")


def rows(libraries: Sequence[str] = tuple(LIBRARIES)) -> Iterator[Row]:
    for problem in PROBLEMS:
        for library in libraries:
            yield row(library, problem)


if __name__ == "__main__":
    for found in rows(sys.argv[1:] or tuple(LIBRARIES)):
        print(found, flush=True)
