"""What stops a fit: errors about losses, gradients and arguments that are no numbers, in the words of a fit."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vi_kit.base.errors import NotFiniteError, ObjectiveError, message
from vi_kit.workflow.given import Given
from vi_kit.workflow.inquest import Seen, advice, culprit, summary

INVALID = (("Expected parameter", "got invalid"), ("Expected value argument",))
"""What torch, or NumPyro, says of an argument that is out of its range, and of a value that is."""
RANGE = (
    "an argument of a distribution is out of its range",
    "a value is outside the support of its distribution",
)
ELEMENTS = ": the log density of "
"""In the headline about a loss, before the elements that have spoilt it."""
OTHERS = ("site-packages", "/vi_kit/", "<frozen")
"""Parts of the paths of files that are not the user's."""


def is_stop(error: Exception) -> bool:
    """Whether an error is about numbers that a step has spoilt; another error is left as it is."""
    return isinstance(error, NotFiniteError) or _kind(error) is not None


def no_start(error: Exception) -> bool:
    """Whether NumPyro, or Pyro, says that it has found no values at which the log density is a number."""
    return "valid initial" in str(error) or "Model specification seems incorrect" in str(error)


def told(
    error: Exception,
    done: int | None,
    look: Callable[[bool], Callable[[int], Sequence[Seen]]],
    params: Mapping[str, np.ndarray],
    given: Given,
) -> NotFiniteError:
    """The error of a fit, for one of a step.

    Args:
        error: for which `is_stop`.
        done: the number of steps before it; `None` if none was begun.
        look: from whether gradients are looked at to what `culprit` takes.
        params: unconstrained, where the step failed.
        given: the arguments of the step.
    """
    headline, *rest = str(error).splitlines()
    got = next((line.split(":", 1)[1].strip() for line in rest if "got:" in line), headline)
    kind = _kind(error)
    if isinstance(error, ValueError):
        headline, got = RANGE[kind or 0] + _line(error), " ".join(str(error).split())
    by_gradient = "gradient of parameter" in headline
    one = culprit(look(by_gradient), by_gradient=by_gradient)
    if one is not None:
        through = (
            "a gradient that is not finite through " if by_gradient and not one.is_wrong else ""
        )
        got = through + one.text(given)
        if one.is_wrong and given.rows is not None:  # it counts elements in the minibatch
            headline = headline.split(ELEMENTS)[0]
        if one.what not in headline:
            headline += f", {'through' if by_gradient else 'at'} {one.what}{one.elements(given)}"
    parts = [got, *(given.spoilt if one is None or one.has_spoilt else ())]
    largest = [f"{k}: {summary(v)}" for k, v in params.items()]
    parts += [f"unconstrained parameters {', '.join(largest[:6])}"] * bool(largest)
    when = "before the first step" if done is None else f"step {done + 1}"
    found = NotFiniteError(
        message(
            f"{when}: {headline}",
            got="; ".join(parts),
            expected="a finite loss and gradient, of arguments and values in their range"
            + "; the step before is undone" * bool(done),
            fix=advice(one, params, given, by_gradient=by_gradient, has_begun=done is not None),
        )
    )
    found.__cause__ = error
    return found


def _kind(error: Exception) -> int | None:
    own = isinstance(error, ObjectiveError)
    found = error.__cause__ if own else error  # vi_kit says it in its own words
    text = str(found) if isinstance(found, ValueError) else ""
    kinds = [i for i, parts in enumerate(INVALID) if any(part in text for part in parts)]
    return kinds[0] if kinds else None


def _line(error: Exception) -> str:
    """The line of the user's programs from which an error comes."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in OTHERS)]
    return f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
