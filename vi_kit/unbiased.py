"""The promise, replayed on a user's own program: is the mean of a loss's gradient what it should be?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import EstimatorError, ObjectiveError, message, whole_number
from vi_kit.engine.plan import Plan
from vi_kit.estimators import Score
from vi_kit.language.normalize import without_bias
from vi_kit.language.objective import Objective
from vi_kit.language.programs import is_composite
from vi_kit.objectives import ciwae, cubo, elbo, iwae, miwae, renyi

MAX_TUPLES = 20_000
"""Joint values of all particles that are enumerated; above, they are drawn."""
MAX_Z = 5.0
AGAINST = ("auto", "enumeration", "differences")
MIN_POWER = 10.0
"""Standard errors that a reference must be away from zero: twice those that an error must have."""
STEPS = tuple(0.05 / 4**i for i in range(6))
"""Of differences, as parts of a coordinate, or of one where it is zero: the largest that will do is taken."""


@dataclass(frozen=True)
class Densities:
    """Log densities at draws of a guide, each with its gradient: shapes `(num,)` and `(num, num_params)`.

    Attributes:
        drawn: of what was drawn, unscaled and unmasked: its probability.
        guide: of the guide, as the objective counts it.
        model: of the model.
        moves: by coordinate, whether the support of something drawn moves with it.
    """

    drawn: tuple[np.ndarray, np.ndarray]
    guide: tuple[np.ndarray, np.ndarray]
    model: tuple[np.ndarray, np.ndarray]
    moves: np.ndarray


Displaced = Callable[[np.ndarray], np.ndarray]
"""From what is added to the coordinates to numbers, one per draw, made of the same random numbers each time."""


class Replay(Protocol):
    """A pair of programs that a library runs with its own handlers; parameters and state stay as they are."""

    @property
    def coordinates(self) -> Sequence[str]:
        """Names of the numbers by which gradients are taken."""
        ...

    @property
    def owners(self) -> Sequence[str]:
        """The parameter to which each belongs."""
        ...

    @property
    def at(self) -> np.ndarray:
        """Where they are."""
        ...

    @property
    def rounding(self) -> float:
        """Relative size of the rounding errors of one number."""
        ...

    @property
    def shares_plates(self) -> bool:
        """Whether a plate holds all sites of both programs, or one is subsampled."""
        ...

    def estimates(self, loss: Any, num_draws: int, seed: int) -> np.ndarray:
        """Estimates of a loss and of its gradient, shape `(num_draws, 1 + num_params)`."""
        ...

    def enumerated(self, most: int) -> Densities | None:
        """At all joint values of the latent sites, or `None` if they are not finite, or more than `most`."""
        ...

    def sampled(self, num_draws: int, seed: int) -> Densities:
        """At independent draws."""
        ...

    def plan(self, loss: Any) -> Plan:
        """What was found of the programs."""
        ...

    def log_weights(self, num_draws: int, seed: int) -> Displaced:
        """Log densities of the model less those of the guide, at independent draws."""
        ...

    def losses(self, loss: Any, num_draws: int, seed: int) -> Displaced:
        """Estimates of a loss, without gradient."""
        ...


@dataclass(frozen=True)
class Row:
    """The check of one number: the loss, or its gradient by one coordinate of the parameters.

    Attributes:
        name: of the coordinate.
        mean: over the draws.
        reference: what it should be.
        error: standard error of their difference.
        power: standard errors that the reference is away from zero.
    """

    name: str
    mean: float
    reference: float
    error: float

    @property
    def z(self) -> float:
        return (
            0.0 if self.mean == self.reference else _ratio(self.mean - self.reference, self.error)
        )

    @property
    def power(self) -> float:
        return 0.0 if self.reference == 0 else _ratio(abs(self.reference), self.error)

    @property
    def verdict(self) -> str:
        if math.isnan(self.reference):
            return "no reference"
        if not abs(self.z) <= MAX_Z:
            return "BIASED"
        return "passed" if self.power >= MIN_POWER else "no power"


@dataclass(frozen=True, repr=False)
class Unbiasedness:
    """What `check_unbiased` found.

    Attributes:
        reference: how the reference was found.
        num_draws: of the loss.
        rows: the loss, then each coordinate of the parameters.
    """

    reference: str
    num_draws: int
    rows: tuple[Row, ...]

    @property
    def biased(self) -> tuple[Row, ...]:
        """The numbers that are not what they should be."""
        return tuple(r for r in self.rows if r.verdict == "BIASED")

    @property
    def passed(self) -> bool:
        """Whether no number is off, and a gradient of zero would not have passed."""
        return not self.biased and any(r.verdict == "passed" for r in self.rows[1:])

    def __repr__(self) -> str:
        verdict = "biased" if self.biased else "passed" if self.passed else "no power: more draws"
        shown = sorted(self.rows[1:], key=lambda r: (r.verdict == "no power", -abs(r.z)))
        width = max([len(r.name) for r in self.rows[:1] + tuple(shown[:MAX_ROWS])])
        head = f"{'':{width}} {'mean':>11} {'reference':>11} {'s.e.':>9} {'z':>8} {'power':>8}"
        lines = [
            f"{r.name:{width}} {r.mean:11.5g} {r.reference:11.5g} {r.error:9.2g} {r.z:8.2f}"
            f" {r.power:8.1f} {r.verdict}"
            for r in (self.rows[0], *shown[:MAX_ROWS])
        ]
        more = [f"and {len(shown) - MAX_ROWS} more"] if len(shown) > MAX_ROWS else []
        title = f"{verdict}: {self.num_draws} draws against {self.reference}"
        lacks_power = [f"power {MIN_POWER:g} {self._needed()}"] * verdict.startswith("no power")
        return "\n".join([title, head, *lines, *more, *lacks_power])

    @property
    def draws_needed(self) -> int | None:
        """How many draws would give one coordinate enough power; `None` if the reference is zero."""
        power = max([row.power for row in self.rows[1:] if math.isfinite(row.power)], default=0.0)
        return math.ceil(self.num_draws * (MIN_POWER / power) ** 2) if power else None

    def _needed(self) -> str:
        if self.draws_needed is None:
            return (
                "is out of reach: the reference is zero, and so would a gradient of zero be right"
            )
        return f"needs about {max(self.draws_needed, 1 + self.num_draws)} draws"


MAX_ROWS = 20


def check_unbiased(
    loss: Any,
    model: Callable,
    guide: Callable | None = None,
    *args: Any,
    num_draws: int = 1000,
    seed: int = 0,
    params: Any = None,
    against: Any = "auto",
    **kwargs: Any,
) -> Unbiasedness:
    r"""Compare the mean of a loss's gradient with a reference, on your own programs at their present parameters.

    The reference comes from the log densities of model and guide as the library's own handlers give them. Where all
    sites of the guide have few values it is exact, a sum over them; else the score function of many draws
    ($E[F \nabla \log q + \nabla F]$). Where the support of a site moves with a coordinate the score function is not
    the gradient: there it is central differences of the mean of $F$, with the same random numbers on both sides. So
    it is for `elbo`, `iwae`, `miwae`, `ciwae`, `renyi` and `cubo`; for other objectives, for bounds per element of a
    plate, for sites of the model that are summed out, and for programs made by `vi.marginal` or `vi.normalize` (a
    filter's ancestors scored), it is the loss with `Score()` at all sites, or differences of the loss if a support
    moves. The report says which.

    Nothing is changed: parameters, what baselines keep, and the state of random number generators stay as they were.

    Args:
        loss: a `Loss` of either library.
        model: as for `SVI`.
        guide: likewise.
        *args: of model and guide.
        num_draws: of the loss; more give more power.
        seed: of its draws and those of the reference.
        params: NumPyro: values of the parameters, if not those that the programs start with.
        against: the reference: `"auto"` as above; `"enumeration"`, the sum over all joint values or an error;
            `"differences"` of the loss's own value with the same random numbers on both sides, for estimators whose
            value is right; or the exact gradient of the loss itself, as an array in the order of the coordinates, a
            dict by parameter, or a function without arguments that returns one.
        **kwargs: of model and guide.

    Returns:
        Mean, reference, standard error, z and power of the loss and of each coordinate of its gradient. `passed`
        needs |z| of at most 5 everywhere and a reference that is 10 standard errors from zero somewhere: where a zero
        gradient would have passed, the verdict is "no power". In NumPyro gradients are by the parameters as the
        program sees them, in Pyro by the unconstrained ones.

    Raises:
        ObjectiveError: not a loss of vi_kit, no guide, or not a number of draws; or there is no reference: a support
            moves, and the objective's gradient need not be that of its value.

    Example:
        >>> import pyro, torch, vi_kit as vi
        >>> import pyro.distributions as dist
        >>> from vi_kit.pyro import Loss
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.5))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        >>> found = vi.check_unbiased(Loss(), model, guide, num_draws=10)
        >>> found.passed, found.reference
        (True, 'the exact sum over 2 joint values')
    """
    num_draws = whole_number("check_unbiased", "num_draws", num_draws, least=2)
    if not hasattr(loss, "replay"):
        raise ObjectiveError(
            message(
                "check_unbiased: not a loss of vi_kit",
                got=repr(loss),
                expected="vi_kit.pyro.Loss(...) or vi_kit.numpyro.Loss(...)",
                fix="check_unbiased(Loss(), model, guide, ...)",
            )
        )
    if guide is None:
        raise ObjectiveError(
            message(
                "check_unbiased: no guide",
                got="a loss and one program",
                expected="a loss, a model and a guide",
                fix="check_unbiased(loss, model, guide, ...)",
            )
        )
    replay = loss.replay(model, guide, args, kwargs, params)
    named = isinstance(against, str)
    if named and against not in AGAINST:
        raise ObjectiveError(
            message(
                "check_unbiased: no such reference",
                got=f"against={against!r}",
                expected=f"{', '.join(map(repr, AGAINST))}, or the exact gradient",
                fix="against='auto'",
            )
        )
    given = None if named else _given(replay, against)
    draws = replay.estimates(loss, num_draws, seed)
    if given is not None:
        exact, reference_error, how = given, np.zeros(len(given)), "a gradient that was given"
    elif against == "enumeration":
        exact, reference_error, how = _enumerated(replay, loss)
    elif against == "differences":
        exact, reference_error, how = _by_differences(replay, loss, 4 * num_draws, seed + 1)
    elif is_composite(model) or is_composite(guide):
        unbiased = (without_bias(program) for program in (model, guide))
        replay = loss.replay(*unbiased, args, kwargs, params)
        exact, reference_error, how = _of_composites(replay, loss, num_draws, seed + 1)
    else:
        exact, reference_error, how = _reference(replay, loss, num_draws, seed + 1)
    mean, error = _mean(draws)
    size = replay.rounding * (1 + np.abs(np.nan_to_num(exact)) + np.abs(draws).max(axis=0))
    error = np.sqrt(error**2 + reference_error**2 + size**2)
    rows = zip(["the loss", *replay.coordinates], mean, exact, error, strict=True)
    return Unbiasedness(how, num_draws, tuple(Row(n, *map(float, r)) for n, *r in rows))


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a)


def _reference(replay: Replay, loss: Any, num_draws: int, seed: int) -> tuple[Any, Any, str]:
    """The loss and its gradient, their standard errors, and how they were found."""
    bound = _bound(loss.settings.objective)
    by_element = bound is not None and bound.num_particles > 1 and replay.shares_plates
    if bound is None or by_element or replay.plan(loss).selection.sums_out:
        return _by_the_loss(replay, loss, bound, num_draws, seed)
    num, sign = bound.num_particles, loss.settings.sign
    table = replay.enumerated(int(MAX_TUPLES ** (1 / num)))
    if table is not None:
        return _summed(bound, sign, table)
    total = 4 * num_draws
    table = replay.sampled(total * num, seed)
    tuples = np.arange(total * num).reshape(total, num)
    mean, error = _mean(sign * bound.estimates(table, tuples))
    how, moving = f"the score function of {total} plain draws", np.flatnonzero(table.moves)
    if len(moving):
        log_weights = replay.log_weights(num_draws * num, seed)

        def values_at(shift: np.ndarray) -> np.ndarray:
            return sign * bound.value(log_weights(shift).reshape(num_draws, num))[0]

        mean[1 + moving], error[1 + moving] = _differences(replay, values_at, moving)
        names = [str(replay.coordinates[i]) for i in moving[:3]] + ["..."] * (len(moving) > 3)
        how += f"; with {', '.join(names)}, which move a support, differences of {num_draws}"
    return mean, error, how


def _summed(bound: _Bound, sign: float, table: Densities) -> tuple[Any, Any, str]:
    """The exact reference, from all joint values."""
    tuples = np.array(list(product(range(len(table.drawn[0])), repeat=bound.num_particles)))
    values = bound.estimates(table, tuples, np.zeros(1 + table.drawn[1].shape[1]))
    weight = np.exp(table.drawn[0][tuples].sum(-1, keepdims=True))
    exact = sign * (weight * values).sum(axis=0)
    return exact, 0.0 * exact, f"the exact sum over {len(table.drawn[0])} joint values"


def _enumerated(replay: Replay, loss: Any) -> tuple[Any, Any, str]:
    """The exact reference, or an error that says why there is none."""
    bound, why, table = _bound(loss.settings.objective), "", None
    if bound is None:
        why = f"{loss.settings.objective!r}, whose value is not known as a function of log weights"
    elif bound.num_particles > 1 and replay.shares_plates:
        why = "a bound for each element of a plate"
    elif replay.plan(loss).selection.sums_out:
        bound, why = None, "sites of the model that the loss sums out"
    else:
        table = replay.enumerated(int(MAX_TUPLES ** (1 / bound.num_particles)))
        why = f"sites that are not finite, or more than {MAX_TUPLES} joint values of all particles"
    if bound is not None and table is not None:
        return _summed(bound, loss.settings.sign, table)
    raise ObjectiveError(
        message(
            "check_unbiased: there is nothing to enumerate",
            got=why,
            expected="few joint values, and vi.elbo(), iwae(), miwae(), ciwae(), renyi() or cubo()",
            fix="against='auto' or against='differences'",
        )
    )


def _given(replay: Replay, against: Any) -> np.ndarray:
    """The gradient that a user gives, behind the loss, which has no reference."""
    exact = against() if callable(against) else against
    owners = list(dict.fromkeys(replay.owners))
    if isinstance(exact, Mapping):
        known, got = set(exact) == set(owners), f"gradients by {sorted(exact)}"
        parts = [np.ravel(np.asarray(exact[n], float)) for n in owners] if known else []
        sizes = [len(p) for p in parts] == [list(replay.owners).count(n) for n in owners]
        flat = np.concatenate([np.zeros(0), *parts]) if known and sizes else None
    else:
        array = np.asarray(exact, float)
        got = f"shape {array.shape}"
        flat = array.ravel() if array.size == len(replay.owners) else None
    if flat is None:
        raise ObjectiveError(
            message(
                "check_unbiased: the gradient that was given is not that of these parameters",
                got=got,
                expected=f"{len(replay.owners)} numbers, or a dict by {owners}",
                fix="one number for each of found.rows[1:] of a check with against='auto'",
            )
        )
    return np.concatenate([[np.nan], flat])


def _of_composites(replay: Replay, loss: Any, num_draws: int, seed: int) -> tuple[Any, Any, str]:
    """The reference for programs of which only the loss itself knows the densities."""
    try:
        return _scored(replay, loss, num_draws, seed)
    except EstimatorError:  # sites that must be reparameterised
        return _by_differences(replay, loss, num_draws, seed)


def _scored(replay: Replay, loss: Any, num_draws: int, seed: int) -> tuple[Any, Any, str]:
    """The loss with another estimator, which is always unbiased."""
    draws = replay.estimates(loss.with_estimators(Score()), 4 * num_draws, seed)
    return *_mean(draws), f"the same objective with Score(), {len(draws)} draws"


def _by_the_loss(
    replay: Replay, loss: Any, bound: _Bound | None, num_draws: int, seed: int
) -> tuple[Any, Any, str]:
    """The reference for objectives of which only the loss itself knows what they are."""
    if not replay.sampled(SCOUTS, seed).moves.any():
        return _scored(replay, loss, num_draws, seed)
    if bound is None:
        raise ObjectiveError(
            message(
                "check_unbiased cannot judge this loss: a support moves with parameters",
                got=repr(loss),
                expected="a support that stays, or vi.elbo(), iwae(), miwae(), ciwae(), renyi() or cubo()",
                fix="a check of one of these objectives with the same estimators",
            )
        )
    return _by_differences(replay, loss, num_draws, seed)


def _by_differences(replay: Replay, loss: Any, num_draws: int, seed: int) -> tuple[Any, Any, str]:
    """Differences of the loss, with the same random numbers on both sides."""
    values_at = replay.losses(loss, num_draws, seed)
    slopes, errors = _differences(replay, values_at, np.arange(len(replay.at)))
    value, error = _mean(values_at(np.zeros_like(replay.at))[:, None])
    mean, error = np.concatenate([value, slopes]), np.concatenate([error, errors])
    return mean, error, f"differences of the loss, {num_draws} draws"


SCOUTS = 20
"""Draws that show whether a support moves."""


def _mean(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """And its standard error."""
    return draws.mean(axis=0), draws.std(axis=0, ddof=1) / math.sqrt(len(draws))


def _differences(
    replay: Replay, values_at: Displaced, coordinates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes by some coordinates and their errors, from central differences of the fourth order. What those of the
    second order have instead is counted as an error."""
    found = []
    for i in coordinates:
        tried = []
        for size in STEPS:
            step = np.zeros_like(replay.at)
            step[i] = size * (abs(replay.at[i]) or 1.0)
            with np.errstate(invalid="ignore"):
                second, wider = (
                    (values_at(n * step) - values_at(-n * step)) / (2 * n * step[i]) for n in (1, 2)
                )
                slope, error = _mean((4 * second - wider) / 3)
                off = abs(slope - second.mean())
            if not np.isfinite(slope):
                continue
            tried.append((float(np.hypot(error, off)), float(slope)))
            if off <= error or off <= 1e-3 * abs(slope):
                break
        if not tried:
            raise ObjectiveError(
                message(
                    f"check_unbiased cannot judge this loss: it is not finite around {replay.coordinates[i]}",
                    got=f"differences over steps down to {STEPS[-1] * (abs(replay.at[i]) or 1.0):.1g}",
                    expected="a finite loss for parameters that are a little off",
                    fix="other values of the parameters",
                )
            )
        found.append(min(tried))
    errors, slopes = np.array(found).T
    return slopes, errors


@dataclass(frozen=True)
class _Bound:
    r"""$\sum_j c_j \log(\frac1K \sum_k w_k^{p_j}) / p_j$, which for a power of zero is the mean of $\log w_k$."""

    num_particles: int
    parts: tuple[tuple[float, float], ...]

    def value(self, log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of log weights of shape `(num, num_particles)`: values `(num,)`, and slopes of that shape."""
        value, slope = np.zeros(len(log_w)), np.zeros_like(log_w)
        for coefficient, power in self.parts:
            scaled = power * log_w
            top = scaled.max(axis=1, keepdims=True)
            weights = np.exp(scaled - top)
            mean = log_w.mean(axis=1)
            if power:
                mean = (top[:, 0] + np.log(weights.mean(axis=1))) / power
            value += coefficient * mean
            slope += coefficient * weights / weights.sum(axis=1, keepdims=True)
        return value, slope

    def estimates(
        self, table: Densities, tuples: np.ndarray, baseline: np.ndarray | None = None
    ) -> np.ndarray:
        """Value and gradient at tuples of draws, each weighted as if drawn: shape `(num, 1 + num_params)`.

        Args:
            table: at single draws.
            tuples: indices into it, shape `(num, num_particles)`.
            baseline: subtracted from the value where it multiplies a score; if left out the mean of the other half.
        """
        log_w = table.model[0] - table.guide[0]
        value, slope = self.value(log_w[tuples])
        path = np.einsum("nk,nkp->np", slope, (table.model[1] - table.guide[1])[tuples])
        if baseline is None:
            half = len(value) // 2
            other = np.where(np.arange(len(value)) < half, value[half:].mean(), value[:half].mean())
        else:
            other = np.zeros(len(value))
        score = table.drawn[1][tuples].sum(axis=1)
        return np.column_stack([value, path + (value - other)[:, None] * score])


def _bound(objective: Objective) -> _Bound | None:
    """The objective as a function of log weights, if it is one of those."""
    given = dict(objective.settings)
    num = given.get("num_particles", given.get("num_inner", 1))
    parts: dict[Any, Callable[[], Sequence[tuple[float, float]]]] = {
        elbo().program: lambda: [(1.0, 0.0)],
        iwae(num_particles=1).program: lambda: [(1.0, 1.0)],
        miwae(num_outer=1, num_inner=1).program: lambda: [(1.0, 1.0)],
        ciwae(num_particles=1, beta=0.0).program: lambda: [
            (given["beta"], 0.0),
            (1.0 - given["beta"], 1.0),
        ],
        renyi(alpha=0.0, num_particles=1).program: lambda: [(1.0, 1.0 - given["alpha"])],
        cubo(order=2.0, num_particles=1).program: lambda: [(1.0, given["order"])],
    }
    if objective.program not in parts or math.isinf(given.get("alpha", 0.0)):
        return None
    return _Bound(num, tuple(parts[objective.program]()))
