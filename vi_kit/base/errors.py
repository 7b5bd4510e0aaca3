"""Errors of vi_kit: what is wrong and where, then what was got, what was expected, and a fix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any


class ViKitError(Exception):
    """Base class of every error that vi_kit raises on purpose."""


class EstimatorError(ViKitError):
    """A sample site cannot be handled by the estimator chosen for it."""


class ObjectiveError(ViKitError):
    """An objective program, its settings, or the pair of programs given to it is not usable."""


class NotFiniteError(ObjectiveError):
    """A loss, a gradient or a parameter is not a finite number."""


class CheckpointError(ViKitError):
    """A checkpoint cannot be written, or is of another fit."""


class ProcessError(ViKitError):
    """Of the processes that share a fit, another one has failed or is gone."""


class AnalyticError(ViKitError):
    """A zero-variance expectation met an operation that it has no rule for."""


class BackendError(ViKitError):
    """The library below (Pyro, NumPyro) cannot run the program in the way that was asked for."""


class VersionError(ViKitError, ImportError):
    """A package that a part of vi_kit needs is missing, too old or too new."""


class CaptureError(BackendError):
    """A step cannot be compiled; without `compile=True` it may run."""


class Refusal(str):
    """Why an estimator cannot serve a site; a plain `str` has the site served by another estimator.

    Args:
        reason: to be read after the estimator's name.
        expected: what would serve.
        fix: a change that helps.
    """

    expected: str
    fix: str

    def __new__(cls, reason: str, *, expected: str = "", fix: str = "") -> Refusal:
        self = super().__new__(cls, reason)
        self.expected, self.fix = expected, fix
        return self


def message(headline: str, *, got: str, expected: str, fix: str) -> str:
    """The house form of an error text."""
    return f"{headline}\n  got:      {got}\n  expected: {expected}\n  fix:      {fix}"


def whole_number(where: str, name: str, value: Any, least: int = 1) -> int:
    """A setting that is a count.

    Raises:
        ObjectiveError: not a whole number, or below `least`.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ObjectiveError(
        message(
            f"{where}: {name} must be a whole number of at least {least}",
            got=f"{name}={value!r}, a {type(value).__name__}",
            expected=f"an int, {name} >= {least}",
            fix=f"{name}={least}",
        )
    )


def refuse_settings(where: str, others: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse settings that there are not.

    Raises:
        ObjectiveError: there are such.
    """
    for name, value in others.items():
        fix = "leave it out"
        if name == "num_samples" and "num_particles" in known:
            fix = f"num_particles={value!r}, or num_samples={value!r} of Loss, which averages estimates"
        elif name in ("num_samples", "num_particles"):
            fix = f"num_samples={value!r} of Loss averages estimates; vi.iwae(num_particles={value!r}) is another bound"
        raise ObjectiveError(
            message(
                f"{where} has no setting {name!r}",
                got=f"{name}={value!r}",
                expected=", ".join(known) or "no settings",
                fix=fix,
            )
        )
